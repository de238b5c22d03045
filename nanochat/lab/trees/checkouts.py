"""
Checkouts of any nanochat: what git says of one, and a checkout of upstream that is made or brought up to date.

git's own message is passed on wherever git refuses, because it names the cure: "fatal: detected dubious ownership" is
followed by the command that sets safe.directory.
"""

import os
import re
import shutil
from pathlib import Path

from nanochat.common import REPO_ROOT
from nanochat.git import run_git

UPSTREAM = "https://github.com/karpathy/nanochat"
# README.md compares with this commit, and the files in patches/ are made for it.
UPSTREAM_COMMIT = "92d63d4e8bb4df75c3b71618f31ddde2378b2bcd"


def git(tree, *words) -> str:
    """Output of a git command, stripped. Raises ValueError with git's own message where the command fails."""
    code, out, said = run_git(tree, *words)
    if code:
        raise ValueError(f"git {' '.join(map(str, words))} failed in {tree}:\n{said or os.fsdecode(out).strip()}")
    return os.fsdecode(out).strip()


def open_tree(path) -> Path:
    """The absolute path of a git checkout. Raises ValueError unless `path` is the top of a checkout with a commit."""
    tree = Path(os.path.expanduser(path)).resolve()
    if not tree.is_dir():
        raise ValueError(f"tree {path}: no such folder; `make upstream` makes a checkout and prints its path")
    code, top, said = run_git(tree, "rev-parse", "--show-toplevel")
    if code or Path(os.fsdecode(top).removesuffix("\n")).resolve() != tree:
        why = f"git says: {said}" if code else f"its top is {os.fsdecode(top).strip()}"
        raise ValueError(f"tree {path} is not the top of a git checkout, and git keeps track of a patch; {why}")
    if run_git(tree, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")[0]:
        raise ValueError(f"tree {path} has no commit yet, and a patch is noted with its base commit; commit once")
    return tree


def head(tree) -> str:
    return git(tree, "rev-parse", "HEAD")


def git_dir(tree) -> Path:
    return Path(git(tree, "rev-parse", "--absolute-git-dir"))


# -----------------------------------------------------------------------------
# A checkout of upstream

def upstream(folder, remote=None, commit=None) -> dict:
    """Clone `remote` into `folder`, or update the checkout that is there; {"path", "branch", "commit", "remote"}.

    commit: a commit, branch or tag. By default it is UPSTREAM_COMMIT for the default remote, and the remote's HEAD for
    any other. It is checked out detached, so that no later fetch moves it. Raises ValueError for a checkout with
    changes, which is left as it is.
    """
    folder = Path(os.path.expanduser(folder)).resolve()
    if folder == REPO_ROOT or REPO_ROOT in folder.parents:
        raise ValueError(f"{folder} is inside this repository; keep other checkouts outside it")
    if not folder.exists():
        _clone(_absolute(remote or UPSTREAM), folder)
    origin = git(open_tree(folder), "remote", "get-url", "origin")
    if remote and _absolute(remote) != _absolute(origin):
        raise ValueError(f"{folder} is a checkout of {origin}, not of {remote}; give another folder, "
                         "as in FOLDER=../other-nanochat")
    if commit is None and origin == UPSTREAM:
        commit = UPSTREAM_COMMIT
    commit = _find(folder, commit)
    if commit != head(folder):
        if changed := git(folder, "status", "--porcelain", "--untracked-files=normal"):
            raise ValueError(f"{folder} has changes, so it stays at {head(folder)}; "
                             f"revert patches and commit or undo the rest:\n{changed}")
    git(folder, "checkout", "--quiet", "--detach", commit)
    return {"path": str(folder), "branch": _branch(folder, commit), "commit": commit, "remote": origin}


def _absolute(remote: str) -> str:
    """A local path becomes absolute; a URL stays as it is."""
    path = Path(os.path.expanduser(remote))
    return str(path.resolve()) if path.is_dir() else remote


def _clone(remote, folder):
    """Clone under another name, and rename when done. So an unfinished clone is never taken for a finished clone."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        # The same bytes on every system: code is compared by its hash, and patches are made for LF.
        git(folder.parent, "clone", "--quiet", "--origin=origin", "--config=core.autocrlf=false", remote,
            unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _find(folder, wanted) -> str:
    """The commit that `wanted` names (None: the remote's HEAD), fetched if the checkout does not have it."""
    if wanted and re.fullmatch(r"[0-9a-f]{40}", wanted) and run_git(folder, "cat-file", "-e", wanted)[0] == 0:
        return wanted  # a full hash, and the commit is here: no need of the network
    git(folder, "fetch", "--quiet", "--tags", "origin")
    git(folder, "fetch", "--quiet", "origin", "HEAD")
    for name in [f"refs/remotes/origin/{wanted}", wanted] if wanted else ["FETCH_HEAD"]:
        code, found, _ = run_git(folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if code == 0:
            return found.decode().strip()
    raise ValueError(f"COMMIT={wanted}: {git(folder, 'remote', 'get-url', 'origin')} has no such commit, branch or tag")


def _branch(folder, commit) -> str | None:
    """A branch of the remote that contains the commit: the default branch if it does; None where no branch does."""
    default = os.fsdecode(run_git(folder, "symbolic-ref", "--short", "refs/remotes/origin/HEAD")[1]).strip()
    names = git(folder, "branch", "--remotes", "--contains", commit, "--format=%(refname:short)").split()
    names = [name for name in names if name.startswith("origin/")]
    best = default if default in names else next(iter(names), None)
    return best and best.removeprefix("origin/")
