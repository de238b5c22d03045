"""
git as every module runs it, and the state of a repository as a record states it.

Torch-free. Reads no configuration of ours, writes nothing.
"""

import os
import subprocess
from pathlib import Path

from nanochat.common import REPO_ROOT

TRACKED_DIRS = ("nanochat", "scripts", "patches")  # uncommitted changes here make a run "dirty"
# git runs a hook with these variables set, and they beat -C.
HOOK_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_PREFIX")


def run_git(root, *words, env: dict | None = None, given: bytes = b"") -> tuple[int, bytes, str]:
    """(exit code, output, messages) of a git command in the folder `root`. OSError where there is no git.

    env: more variables. given: what the command reads. Output is bytes: contents and file names may be no UTF-8.
    """
    own = {name: value for name, value in os.environ.items() if name not in HOOK_VARIABLES}
    try:  # English messages, because our own stand beside them
        done = subprocess.run(["git", "-C", str(root), *map(str, words)], input=given, capture_output=True,
                              env={**own, "LC_ALL": "C", **(env or {})})
    except OSError as e:
        raise OSError(f"git cannot be run ({e.strerror}); install it: patches and trees need it") from e
    return done.returncode, done.stdout, done.stderr.decode("utf-8", "replace").strip()


def git_state(root=REPO_ROOT) -> dict:
    """{"git_commit": str | None, "dirty": bool | None}; None where git is missing, refuses, or has no commit."""
    def git(*words):
        code, out, _ = run_git(root, *words)
        if code:
            raise OSError
        return os.fsdecode(out)
    try:
        top = Path(git("rev-parse", "--show-toplevel").removesuffix("\n")).resolve()
        if top != Path(root).resolve():  # another repository around an unpacked copy of this one
            return {"git_commit": None, "dirty": None}
        commit = git("rev-parse", "HEAD").strip()
        dirty = bool(git("status", "--porcelain", "--untracked-files=normal", "--", *TRACKED_DIRS).strip())
    except OSError:
        return {"git_commit": None, "dirty": None}
    return {"git_commit": commit, "dirty": dirty}
