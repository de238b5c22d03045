"""
Patches on a checkout of any nanochat: check, apply, revert. It also makes a checkout of upstream.

`git apply` does the work. A diff is applied whole or not at all. A revert takes back the lines of the patch and no
others, so unrelated edits stay, also in the same files. Each applied patch is noted in the checkout's git directory,
never among its files, together with a copy. So a patch can be reverted even after its own file has changed.
scripts/patch.py is the command.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock

from nanochat.common import REPO_ROOT, atomic_write, read_json, sha256_file, write_json

UPSTREAM = "https://github.com/karpathy/nanochat"
# README.md compares with this commit, and the files in patches/ are made for it.
UPSTREAM_COMMIT = "92d63d4e8bb4df75c3b71618f31ddde2378b2bcd"
NOTES = "nanochat_patches"  # in the git directory: a .json file, and a folder with the copies of patches


def run_git(tree, *args) -> subprocess.CompletedProcess:
    # Inside a git hook these three are set, and git would then ignore the folder that -C names.
    env = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    try:
        return subprocess.run(["git", "-C", str(tree), *args], capture_output=True, text=True,
                              env={**env, "LC_ALL": "C"})
    except OSError as e:
        raise ValueError(f"git cannot be run ({e}); install it: patches and trees need it") from e


def git(tree, *args) -> str:
    """Output of a git command, stripped. Raises ValueError with git's own message where the command fails."""
    done = run_git(tree, *args)
    if done.returncode:
        raise ValueError(f"git {' '.join(args)} failed in {tree}:\n{(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


@dataclass(frozen=True)
class Patch:
    path: Path
    sha256: str
    base: str | None  # the commit on the patch's "Base:" line
    adds: bool  # the patch adds lines, and does not only remove some

    @property
    def name(self) -> str:
        return self.path.name


def read_patch(path) -> Patch:
    """A patch file. Any text may stand before its first diff; a line `Base: COMMIT` there names its commit.

    Raises ValueError for a file that cannot be read or holds no diff.
    """
    path = Path(path).expanduser().resolve()
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as e:
        raise ValueError(f"patch {path} cannot be read ({e.strerror}); give the path of a git diff") from e
    start = re.search(r"^(diff --git |--- )", text, re.MULTILINE)
    if not start:
        raise ValueError(f"{path} holds no diff; make one with: git diff -U1 > {path.name}")
    base = re.search(r"^Base: ([0-9a-f]{7,64})$", text[:start.start()], re.MULTILINE)
    return Patch(path, sha256_file(path), base and base.group(1), bool(re.search(r"^\+(?!\+\+ )", text, re.MULTILINE)))


def open_tree(path) -> Path:
    """The absolute path of a git checkout. Raises ValueError unless `path` is the top of a checkout with a commit."""
    tree = Path(path).expanduser().resolve()
    if not tree.is_dir():
        raise ValueError(f"tree {path}: no such folder; `make upstream` makes a checkout and prints its path")
    top = run_git(tree, "rev-parse", "--show-toplevel")
    if top.returncode or Path(top.stdout.strip()).resolve() != tree:
        raise ValueError(f"tree {path} is not the top of a git checkout: a patch is kept track of by git")
    git(tree, "rev-parse", "--verify", "HEAD^{commit}")
    return tree


def head(tree) -> str:
    return git(tree, "rev-parse", "HEAD")


# -----------------------------------------------------------------------------
# Check, apply, revert

def applies(tree, patch: Path, *how) -> str | None:
    """None where `git apply` would succeed, else git's message. how: further options, such as --reverse."""
    done = run_git(tree, "apply", "--check", "--whitespace=nowarn", *how, str(patch))
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip()


def check(tree, path) -> Patch:
    """Dry run: the patch, if it would apply. Raises ValueError if it would not, or if it is in the tree already."""
    tree, patch = open_tree(tree), read_patch(path)
    if find_note(tree, patch):
        raise ValueError(f"{patch.name} is applied to {tree} already; `make patch-revert` takes it back")
    # A patch with little context may apply a second time, so ask whether it could be taken back.
    if patch.adds and applies(tree, patch.path, "--reverse") is None:
        raise ValueError(f"{patch.name} is in {tree} already, though not applied by `make patch-apply`; "
                         "nothing was changed")
    why = applies(tree, patch.path)
    if why is None:
        return patch
    commit = f"made for {patch.base}" if patch.base else "without a Base: line"
    raise ValueError(f"{patch.name} ({commit}) does not apply to {tree} at {head(tree)}; nothing was changed:\n{why}")


def apply(tree, path) -> dict:
    """Apply a patch and note it. Returns the note: patch, sha256, base_commit (of the tree), applied_at.

    Raises ValueError where `check` does; the tree is then unchanged.
    """
    tree = open_tree(tree)
    with _locked(tree):
        patch = check(tree, path)
        note = {"patch": patch.name, "sha256": patch.sha256, "base_commit": head(tree),
                "applied_at": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        atomic_write(_copy(tree, patch.sha256), patch.path.read_text(encoding="utf-8"))
        git(tree, "apply", "--whitespace=nowarn", str(patch.path))
        _write_notes(tree, [*read_notes(tree), note])
    return note


def revert(tree, path) -> dict:
    """Take an applied patch back, from the copy that `apply` kept; other edits stay. Returns the note.

    Raises ValueError, with the tree unchanged, for a patch that is not applied or whose lines were edited since.
    """
    tree, path = open_tree(tree), Path(path).expanduser()
    with _locked(tree):
        patch = read_patch(path) if path.exists() else None
        note = find_note(tree, patch) or find_note(tree, name=path.name)
        if note is None and patch is None:
            read_patch(path)  # raises the error that there is no such file
        if note is None:
            raise ValueError(f"{path.name} is not applied to {tree}; applied: {_names(read_notes(tree))}. "
                             "Nothing was changed")
        copy = _copy(tree, note["sha256"])
        if why := applies(tree, copy, "--reverse"):
            notes = read_notes(tree)
            later = notes[notes.index(note) + 1:]
            hint = f"revert {_names(later[::-1])} first, or" if later else "the lines were edited since:"
            raise ValueError(f"{path.name} cannot be taken back from {tree}; nothing was changed. "
                             f"{hint} undo the edits:\n{why}")
        git(tree, "apply", "--reverse", "--whitespace=nowarn", str(copy))
        _write_notes(tree, [other for other in read_notes(tree) if other != note])
        copy.unlink()
    return note


# -----------------------------------------------------------------------------
# Notes

def git_dir(tree) -> Path:
    return Path(git(tree, "rev-parse", "--absolute-git-dir"))


def read_notes(tree) -> list[dict]:
    """The patches that `apply` put into the tree, in that order."""
    try:
        return read_json(git_dir(tree) / f"{NOTES}.json")["applied"]
    except FileNotFoundError:
        return []


def find_note(tree, patch: Patch | None = None, name=None) -> dict | None:
    return next((n for n in read_notes(tree) if (patch and n["sha256"] == patch.sha256) or n["patch"] == name), None)


def _write_notes(tree, notes):
    write_json(git_dir(tree) / f"{NOTES}.json", {"applied": notes})


def _copy(tree, sha256) -> Path:
    return git_dir(tree) / NOTES / f"{sha256}.patch"


def _locked(tree):
    return FileLock(git_dir(tree) / f"{NOTES}.lock")


def _names(notes) -> str:
    return ", ".join(note["patch"] for note in notes) or "none"


# -----------------------------------------------------------------------------
# A checkout

def upstream(folder, remote=None, commit=None) -> dict:
    """Clone `remote` into `folder`, or update the checkout that is there; {"path", "branch", "commit", "remote"}.

    commit: a commit, branch or tag. By default it is UPSTREAM_COMMIT for the default remote, and the remote's HEAD for
    any other. It is checked out detached, so that no later fetch moves it. Raises ValueError for a checkout with
    changes, which is left as it is.
    """
    folder = Path(folder).expanduser().resolve()
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
        if changed := git(folder, "status", "--porcelain"):
            raise ValueError(f"{folder} has changes, so it stays at {head(folder)}; "
                             f"revert patches and commit or undo the rest:\n{changed}")
    git(folder, "checkout", "--quiet", "--detach", commit)
    return {"path": str(folder), "branch": _branch(folder, commit), "commit": commit, "remote": origin}


def _absolute(remote: str) -> str:
    """A local path becomes absolute; a URL stays as it is."""
    path = Path(remote).expanduser()
    return str(path.resolve()) if path.is_dir() else remote


def _clone(remote, folder):
    """Clone under another name, and rename when done. So an unfinished clone is never taken for a finished clone."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        git(folder.parent, "clone", "--quiet", remote, str(unfinished))
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _find(folder, wanted) -> str:
    """The commit that `wanted` names (None: the remote's HEAD), fetched if the checkout does not have it."""
    if wanted and re.fullmatch(r"[0-9a-f]{40}", wanted) and run_git(folder, "cat-file", "-e", wanted).returncode == 0:
        return wanted  # a full hash, and the commit is here: no need of the network
    git(folder, "fetch", "--quiet", "--tags", "origin")
    git(folder, "fetch", "--quiet", "origin", "HEAD")
    for name in [f"refs/remotes/origin/{wanted}", wanted] if wanted else ["FETCH_HEAD"]:
        found = run_git(folder, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
        if found.returncode == 0:
            return found.stdout.strip()
    raise ValueError(f"COMMIT={wanted}: {git(folder, 'remote', 'get-url', 'origin')} has no such commit, branch or tag")


def _branch(folder, commit) -> str | None:
    """A branch of the remote that contains the commit: the default branch if it does; None where no branch does."""
    default = run_git(folder, "symbolic-ref", "--short", "refs/remotes/origin/HEAD").stdout.strip()
    names = git(folder, "branch", "--remotes", "--contains", commit, "--format=%(refname:short)").split()
    names = [name for name in names if name.startswith("origin/")]
    best = default if default in names else next(iter(names), None)
    return best and best.removeprefix("origin/")
