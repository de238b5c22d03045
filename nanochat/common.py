"""
Helpers that every other module may use: the base directory, ranks, commands to paste, durable files, hashes.

Torch-free on purpose: the lab, the command line and the tests of both start in milliseconds.
Anything that needs torch (device, dtype, seeding) lives in nanochat/device.py.
"""

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import sys
import tempfile
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parent.parent
WINDOWS = os.name == "nt"
MOST_BYTES = 2 ** 26  # of a file that is read whole: no JSON, page or patch of ours comes near 64 MiB
VENV_PYTHON = r".venv\Scripts\python" if WINDOWS else ".venv/bin/python"  # as it is typed in REPO_ROOT


def get_base_dir() -> Path:
    """Root of all artifacts, as an absolute path: NANOCHAT_BASE_DIR, or ~/.cache/nanochat. Created on first use.

    A relative path starts in the working directory, and a leading ~ is the home folder. runs/common.sh reads the
    variable in the same way. Raises OSError, one line that says what to set, where there is no such folder.
    """
    path = Path(os.path.abspath(_with_home(os.environ.get("NANOCHAT_BASE_DIR") or "~/.cache/nanochat")))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OSError(f"{path} cannot be made: {e.strerror}; set NANOCHAT_BASE_DIR to a folder that you may write "
                      "to") from e
    return path


def _with_home(path: str) -> str:
    """`path` with the home folder for a leading ~. Quotes, a .env file or YAML keep the ~ from the shell."""
    if not path.startswith("~"):
        return path
    if path[1:2] not in ("", "/", os.sep):
        raise OSError(f"NANOCHAT_BASE_DIR={path}: expected ~/folder or a path without ~, because the home of another "
                      "user is not looked up; write its path")
    try:
        if not WINDOWS and os.environ.get("HOME") == "":
            raise RuntimeError
        return str(Path(path).expanduser())
    except RuntimeError:  # a container whose user is not in /etc/passwd
        raise OSError("this user has no home folder (HOME is not set); set NANOCHAT_BASE_DIR to a folder that you may "
                      "write to") from None


def get_dist_info() -> tuple[int, int, int]:
    """(rank, local rank, world size) as torchrun sets them; (0, 0, 1) outside torchrun."""
    return tuple(int(os.environ.get(name, default)) for name, default in
                 (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))


def print0(*args, **kwargs):
    """print on rank 0, flushed, so that a log file grows while a run is going on."""
    if get_dist_info()[0] == 0:
        print(*args, **{"flush": True, **kwargs})


# -----------------------------------------------------------------------------
# Commands that are printed to be pasted, and the environment of processes that are started

def to_paste(text: str) -> str:
    """`text` with each `python -m` in it as a person types it in REPO_ROOT.

    That is the path of .venv's Python, where the running Python is .venv's; elsewhere it stays `python -m`.

    For printed text only. Records and rows keep `python -m`, which is the same on every machine.
    """
    python = _typed_python()
    return re.sub(r"(?<![\w./\\-])python -m ", lambda _: f"{python} -m ", text)


def _typed_python() -> str:
    return VENV_PYTHON if Path(sys.prefix).resolve() == (REPO_ROOT / ".venv").resolve() else "python"


def quote_word(word: str, windows: bool = WINDOWS) -> str:
    """`word` as a shell reads it as one word: a POSIX shell, or cmd.exe and PowerShell alike.

    >>> quote_word("a b", windows=False), quote_word("a b", windows=True), quote_word("--x=0.5", windows=True)
    ("'a b'", '"a b"', '"--x=0.5"')
    """
    if not windows:
        return shlex.quote(word)
    # PowerShell makes two words of --x=0.5 and of --eval=bpb,sample, unless they are quoted.
    if re.fullmatch(r"[\w=:/\\-]+|(?!-)[\w=:./\\-]+", word):
        return word
    word = re.sub(r'(\\*)"', r'\1\1\\"', word)  # C programs read a backslash before a quote as an escape
    return '"' + re.sub(r"(\\+)$", r"\1\1", word) + '"'


def paste_command(words, env: dict | None = None, windows: bool = WINDOWS, python: str | None = None) -> str:
    """A command as a person pastes it into a shell in REPO_ROOT. The one place where printed commands are quoted.

    words: a list, or a stored command line, which is quoted as POSIX shells read it. env: variables to set for it.
    python: what stands for the Python that runs now.
    With variables the Windows form is that of cmd.exe.

    >>> paste_command(["python", "-m", "scripts.x", "--a=b c"], {"LABEL": "it is"}, windows=False, python="python")
    "LABEL='it is' python -m scripts.x '--a=b c'"
    >>> paste_command("python -m scripts.x '--a=b c'", {"LABEL": "it is"}, windows=True, python="python")
    'set "LABEL=it is" && python -m scripts.x "--a=b c"'
    """
    words = shlex.split(words) if isinstance(words, str) else list(map(str, words))
    if words[0] in ("python", sys.executable):
        words[0] = python or _typed_python()
    command = " ".join(quote_word(word, windows) for word in words)
    settings = ((name, str(value)) for name, value in (env or {}).items())
    if windows:
        return "".join(f'set "{name}={value}" && ' for name, value in settings) + command
    return "".join(f"{name}={shlex.quote(value)} " for name, value in settings) + command


def paste_setting(name: str, value, windows: bool = WINDOWS) -> str:
    """Lines that set a variable for the commands after them, in the user's shell.

    >>> print(paste_setting("X", "my drive", windows=True))
    in cmd.exe:
    set "X=my drive"
    in PowerShell:
    $env:X = 'my drive'
    """
    if not windows:
        return f"export {name}={shlex.quote(str(value))}"
    in_powershell = str(value).replace("'", "''")
    return "\n".join(["in cmd.exe:", f'set "{name}={value}"', "in PowerShell:", f"$env:{name} = '{in_powershell}'"])


def child_environment(**changes) -> dict:
    """Our environment for a Python process that we start, with `changes` (a value of None unsets a variable).

    Its output is UTF-8, because we read it so. On Windows a pipe or a file would get cp1252, and a trainer that prints
    a banner of block letters would end there.
    """
    found = {**os.environ, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8", **changes}
    return {name: str(value) for name, value in found.items() if value is not None}


# -----------------------------------------------------------------------------
# Durable files. The order is always: write, fsync, rename, fsync of the folder. Whenever the machine stops, a reader
# finds either the whole old file or the whole new file.

@contextlib.contextmanager
def temporary_folder(prefix: str):
    """The Path of a folder that goes away at the end. Raises OSError that names TMPDIR where none can be made."""
    try:
        folder = tempfile.mkdtemp(prefix=prefix)
    except OSError as e:
        raise OSError(f"no temporary folder can be made ({e.strerror}); set TMPDIR to a folder that you may write "
                      "to") from e
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    """A binary file object whose content appears under `path` whole, or not at all. Only a regular file is replaced."""
    path = Path(path)
    if path.exists() and not path.is_file():  # as root, --output-json=/dev/null would replace the device for everyone
        raise OSError(f"{path} is no regular file, and is not replaced; give another name")
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
    except BaseException as e:
        tmp.unlink(missing_ok=True)
        if isinstance(e, OSError) and e.filename is None:  # a full disk: say which
            raise OSError(e.errno, e.strerror, str(path)) from e
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
    raw = read_regular(path)
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


def read_regular(path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file. Raises ValueError for one of more than `most` bytes, which would fill the memory,
    and for a pipe (it is not waited for), a folder or a device."""
    with open_regular(path) as f:
        if (size := os.fstat(f.fileno()).st_size) > most:
            raise ValueError(f"{path} is damaged: it has {size:,} bytes, expected at most {most:,}")
        return f.read(most)


def open_regular(path):
    """A regular file, opened to read bytes; raises as read_regular."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError(f"{path} is damaged: expected a regular file")
    return open(fd, "rb")


# -----------------------------------------------------------------------------
# Hashes

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
