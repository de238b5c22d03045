"""
Which files of a folder are read as a user's texts, and which are left out. What is left out is counted and named.

Example: a folder that a notebook works in has .ipynb_checkpoints/, with copies of its texts. Nobody chose to train on
the copies, and near-copies of a text would stand on both sides of the split. So hidden files and folders are left out,
and those of tools and systems, and symbolic links. A path that a user types is read, also where it is hidden or a link.
Never imports torch.
"""

import hashlib
import os
import re
import stat
from collections import Counter, defaultdict
from pathlib import Path

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.gz", ".parquet")  # text_files.py has a reader for each
FIRST_NAMES = 3  # of each kind that is left out
MOST_KINDS = 12
# Folders of archives, systems, environments and of this project, in lower case
TOOL_FOLDERS = {"__macosx", "__pycache__", "node_modules", "site-packages", "venv", "cvs", "lost+found", "$recycle.bin",
                "system volume information", "network trash folder", "temporary items", "@eadir", "#recycle",
                "checkpoints", "base_data_climbmix"}
TOOL_FOLDER = re.compile(r".*_checkpoints|checkpoint-\d+")
TOOL_FILE = re.compile(r"thumbs\.db|desktop\.ini|icon\r|~\$.*|#.*#")


def shown(path) -> str:
    """A path for messages and JSON: what is not UTF-8 or cannot be printed is escaped.

    >>> shown("caf\\udce9.txt"), shown("a\\nb.txt")
    ('caf\\\\xe9.txt', 'a\\\\nb.txt')
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def name_hash(name: str) -> str:
    """Hash that gives the order of files. The order is the same on every machine, and unrelated to their subjects."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()


def suffix_of(path: Path) -> str:
    """The suffix of a file that is read; "" for another file."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


class LeftOut:
    """Counts what is left out by kind, with the first names of each."""

    def __init__(self):
        self.counts, self.names = Counter(), defaultdict(list)

    def add(self, kind: str, name):
        self.counts[kind] += 1
        names = self.names[kind]
        if len(names) <= FIRST_NAMES and shown(name) not in names:
            names.append(shown(name) if len(names) < FIRST_NAMES else "...")

    def take_lines(self) -> list[str]:
        """One line for each kind, the largest first. Counting starts anew."""
        kinds = [f"left out, {kind}: {n:,} ({', '.join(self.names[kind])})" for kind, n in self.counts.most_common()]
        rest = sum(n for _, n in self.counts.most_common()[MOST_KINDS:])
        self.counts, self.names = Counter(), defaultdict(list)
        further = [f"left out, of {len(kinds) - MOST_KINDS} further kinds: {rest:,}"] if rest else []
        return kinds[:MOST_KINDS] + further


def _folder_kind(path: Path, outputs: set[str]) -> str:
    """Why a folder is not walked into; "" where it is."""
    name = path.name.lower()
    if name.startswith("."):
        return "hidden"
    if path.is_symlink():
        return "symbolic links"
    if os.path.realpath(path) in outputs:
        return "written by this project"
    if name in TOOL_FOLDERS or TOOL_FOLDER.fullmatch(name) or os.path.exists(path / "pyvenv.cfg"):
        return "of tools or systems"
    return ""


def _file_kind(path: Path) -> str:
    """Why a file is not read; "" where it is. A file that vanished meanwhile is missed when it is opened."""
    name = path.name.lower()
    if name.startswith("."):
        return "hidden"
    if TOOL_FILE.fullmatch(name):
        return "of tools or systems"
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return ""
    if stat.S_ISLNK(found.st_mode):
        return "symbolic links"
    if not stat.S_ISREG(found.st_mode):
        return "pipes, sockets or devices"
    if not suffix_of(path):
        return f"{path.suffix.lower()} files" if path.suffix else "files without suffix"
    return "" if found.st_size else "empty files"


def _walk(root: Path, left_out: LeftOut, outputs: set[str]) -> list[Path]:
    def refuse(error: OSError):
        raise ValueError(f"{shown(error.filename)} cannot be listed ({error.strerror}); make it readable, or move it "
                         f"out of {shown(root)}. Then run this again")

    files = []
    for folder, subfolders, names in os.walk(root, onerror=refuse):
        here, inside = Path(folder), Path(folder).relative_to(root)
        kinds = {name: _folder_kind(here / name, outputs) for name in sorted(subfolders)}
        subfolders[:] = [name for name, kind in kinds.items() if not kind]
        kinds |= {name: _file_kind(here / name) for name in sorted(names)}
        files += [here / name for name in names if not kinds[name]]
        for name, kind in kinds.items():
            if kind:
                left_out.add(kind, inside / name)
    return sorted(files, key=lambda p: name_hash(p.relative_to(root).as_posix()))


def find_files(paths, left_out: LeftOut | None = None, outputs=()) -> list[Path]:
    """Files to read; those of a folder in the order of the hash of their names.

    outputs: folders that are not walked into, because a command writes there. ValueError for a path that cannot be
    read, or that holds nothing to read.
    """
    left_out = LeftOut() if left_out is None else left_out
    outputs = {os.path.realpath(path) for path in outputs}
    files = []
    for path in paths:
        try:
            path = Path(path).expanduser()
            mode = path.stat().st_mode
        except (OSError, RuntimeError, ValueError) as e:  # RuntimeError: no home folder; ValueError: a null character
            why = "no such file or folder" if isinstance(e, FileNotFoundError) else getattr(e, "strerror", None) or e
            raise ValueError(f"{shown(path)}: {why}") from None
        found = _walk(path, left_out, outputs) if stat.S_ISDIR(mode) else [path]
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise ValueError(f"{shown(path)}: expected a file or a folder, this is a pipe, socket or device; write its "
                             "content to a file")
        if not found or not all(map(suffix_of, found)):
            raise ValueError(f"{shown(path)}: expected {' '.join(SUFFIXES)} (a file, or a folder that holds some)"
                             + "".join(f"; {line}" for line in left_out.take_lines()))
        files += found
    return files


def open_regular(path: Path):
    """A regular file, opened to read bytes. A pipe that took its place is refused and not waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as e:
        raise ValueError(f"{shown(path)} cannot be opened ({e.strerror}); make it readable, or move it away. Then run "
                         "this again") from e
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError(f"{shown(path)} is no regular file; move it away. Then run this again")
    return open(fd, "rb")
