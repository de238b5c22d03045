"""
Helpers that every other module may use: the base directory, ranks, durable files, hashes, git.

Torch-free on purpose: the lab, the command line and the tests of both start in milliseconds.
Anything that needs torch (device, dtype, seeding) lives in nanochat/device.py.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import stat
import subprocess
import sys
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parent.parent
VENV_PYTHON = r".venv\Scripts\python" if os.name == "nt" else ".venv/bin/python"  # as it is typed in REPO_ROOT
TRACKED_DIRS = ("nanochat", "scripts", "patches")  # uncommitted changes here make a run "dirty"


def get_base_dir() -> Path:
    """Root of all artifacts: NANOCHAT_BASE_DIR, or ~/.cache/nanochat. Created on first use."""
    base = os.environ.get("NANOCHAT_BASE_DIR")
    path = Path(base).expanduser() if base else Path.home() / ".cache" / "nanochat"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OSError(f"{path} cannot be made: {e.strerror}; set NANOCHAT_BASE_DIR to a folder that you may write "
                      "to") from e
    return path


def get_dist_info() -> tuple[int, int, int]:
    """(rank, local rank, world size) as torchrun sets them; (0, 0, 1) outside torchrun."""
    return tuple(int(os.environ.get(name, default)) for name, default in
                 (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))


def print0(*args, **kwargs):
    """print on rank 0, flushed, so that a log file grows while a run is going on."""
    if get_dist_info()[0] == 0:
        print(*args, **{"flush": True, **kwargs})


def to_paste(text: str) -> str:
    """`text` with each `python -m` in it as a person types it in REPO_ROOT.

    That is the path of .venv's Python, where the running Python is .venv's; elsewhere it stays `python -m`.

    For printed text only. Records and rows keep `python -m`, which is the same on every machine.
    """
    if Path(sys.prefix).resolve() != (REPO_ROOT / ".venv").resolve():
        return text
    return re.sub(r"(?<![\w./\\-])python -m ", lambda _: f"{VENV_PYTHON} -m ", text)


# -----------------------------------------------------------------------------
# Durable files. The order is always: write, fsync, rename, fsync of the folder. Whenever the machine stops, a reader
# finds either the whole old file or the whole new file.

def fsync_dir(path: Path):
    if os.name == "nt":  # a directory cannot be opened there; NTFS journals the rename itself
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def atomic_writer(path):
    """A binary file object whose content appears under `path` whole, or not at all."""
    path = Path(path)
    made = [p for p in (path.parent, *path.parents[1:]) if not p.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in made:
        fsync_dir(folder.parent)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(tmp, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException:
        tmp.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def atomic_write(path, text: str):
    with atomic_writer(path) as f:
        f.write(text.encode("utf-8"))


def write_json(path, obj):
    """Strict JSON: NaN and Infinity raise ValueError, because a value that was not measured is null."""
    atomic_write(path, json.dumps(obj, indent=2, allow_nan=False) + "\n")


def read_json(path) -> dict:
    """The JSON object in the file `path`. This is the one reader of JSON files, ours and other people's.

    FileNotFoundError: there is no such file. Other OSErrors: it cannot be opened. ValueError, one line that names the
    file: it is there and is damaged (no regular file, no UTF-8, no JSON, no object). So "damaged" is never "missing".
    """
    raw = _read_regular(path)
    try:
        text = raw.decode("utf-8-sig")
        found = json.loads(text, parse_constant=_refuse_constant, parse_int=_whole_number)
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is damaged: byte {e.start} is not UTF-8") from None
    except json.JSONDecodeError as e:
        raise ValueError(f"{path} is damaged: no JSON at line {e.lineno}, column {e.colno} ({e.msg})") from None
    except RecursionError:
        raise ValueError(f"{path} is damaged: its JSON is nested too deeply") from None
    except ValueError as e:  # NaN, or a number of thousands of digits
        raise ValueError(f"{path} is damaged: {e}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, got {text.strip()[:40]!r}")
    return found


def _refuse_constant(name):
    """Python would read NaN and Infinity. They are no JSON, and nothing here writes them."""
    raise ValueError(f"it holds {name}, which is no JSON")


def _whole_number(digits: str) -> int:
    """A number that no float can hold would end arithmetic with an exception, far from the file."""
    if len(digits) > 300:
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _read_regular(path) -> bytes:
    """The bytes of a regular file. A pipe is refused and not waited for, a folder and a device too."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError(f"{path} is damaged: expected a regular file")
    with open(fd, "rb") as f:
        return f.read()


# -----------------------------------------------------------------------------
# Hashes and provenance

def sha256_file(path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") \
            else _sha256_stream(f)


def _sha256_stream(f) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := f.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def hash_json(obj) -> str:
    """Content hash of a JSON value, the same for any key order."""
    return hashlib.sha256(json.dumps(obj, sort_keys=True, allow_nan=False).encode()).hexdigest()


def git_state(root=REPO_ROOT) -> dict:
    """{"git_commit": str | None, "dirty": bool | None}; None where there is no git or no commit."""
    # git runs a hook with these variables set, and they beat -C
    env = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}

    def git(*args):
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True,
                              env=env).stdout
    try:
        top = Path(git("rev-parse", "--show-toplevel").strip()).resolve()
        if top != Path(root).resolve():  # another repository around an unpacked copy of this one
            return {"git_commit": None, "dirty": None}
        commit = git("rev-parse", "HEAD").strip()
        dirty = bool(git("status", "--porcelain", "--", *TRACKED_DIRS).strip())
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": None, "dirty": None}
    return {"git_commit": commit, "dirty": dirty}


def cpu_name() -> str:
    """Model of the processor, as a record states it."""
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
