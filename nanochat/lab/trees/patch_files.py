"""
A patch file, and the files of a tree that it changes, as bytes before and after.

git computes the change on blobs in a repository of its own in a temporary folder. So no configuration, no attribute
and no file system has a say in the bytes: CRLF, a lone CR, Latin-1, a missing final newline and modes stay as they are.
A change is taken only if git can take it back to the same bytes. So whatever is applied can be reverted.

One conversion exists. Git for Windows checks files out with CRLF, and a patch is made for LF. If a patch does not fit
the bytes, files whose lines all end in CRLF are tried as LF, and get their CRLF again.
"""

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nanochat.common import atomic_writer, quote_word, read_regular, temporary_folder
from nanochat.git import run_git

PLAIN, EXECUTABLE, LINK = "100644", "100755", "120000"  # modes as git writes them


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
    path = Path(os.path.expanduser(path)).resolve()
    try:
        if path.exists() and not path.is_file():
            raise OSError(0, "it is no regular file")
        raw = read_regular(path)
    except (OSError, ValueError) as e:
        raise ValueError(f"patch {path} cannot be read ({getattr(e, 'strerror', None) or e}); give the path of a git "
                         "diff") from e
    text = raw.decode("utf-8", "replace")  # only to look at: git gets the bytes
    start = re.search(r"^(diff --git |--- )", text, re.MULTILINE)
    if not start:
        raise ValueError(f"{path} holds no diff; make one with: git diff -U1 > {quote_word(path.name)}")
    base = re.search(r"^Base: ([0-9a-f]{7,64})\r?$", text[:start.start()], re.MULTILINE)
    return Patch(path, hashlib.sha256(raw).hexdigest(), base and base.group(1),
                 bool(re.search(r"^\+(?!\+\+ )", text, re.MULTILINE)))


# -----------------------------------------------------------------------------
# Files

@dataclass(frozen=True)
class File:
    mode: str  # as git writes it
    content: bytes  # of a symbolic link: where it leads

    @property
    def is_crlf(self) -> bool:
        """True if it is a text whose lines all end in CRLF."""
        lines = self.content.count(b"\n")
        return self.mode != LINK and 0 < lines == self.content.count(b"\r\n") and b"\0" not in self.content

    def with_lf(self) -> "File":
        return File(self.mode, self.content.replace(b"\r\n", b"\n"))

    def with_crlf(self) -> "File":
        is_text = self.mode != LINK and b"\0" not in self.content
        return File(self.mode, re.sub(rb"(?<!\r)\n", b"\r\n", self.content)) if is_text else self


def read_file(path: Path) -> File | None:
    """None where there is no such file. Raises ValueError for a folder, a pipe or a device."""
    if path.is_symlink():
        return File(LINK, os.fsencode(os.readlink(path)))
    if not path.exists():
        return None
    if not path.is_file():
        raise ValueError(f"{path} is no regular file, and a patch changes files")
    return File(EXECUTABLE if os.name != "nt" and os.access(path, os.X_OK) else PLAIN, path.read_bytes())


def write_file(path: Path, file: File | None):
    """Make the file at `path` this one; None removes it, and folders that are empty then."""
    if file is None or file.mode == LINK or path.is_symlink():
        path.unlink(missing_ok=True)
    if file is None:
        return _remove_empty(path.parent)
    if file.mode == LINK:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.symlink(os.fsdecode(file.content), path)
    before = path.stat().st_mode & 0o777 if path.exists() else None
    with atomic_writer(path) as f:
        f.write(file.content)
    if os.name != "nt":
        mode = path.stat().st_mode & 0o777 if before is None else before
        path.chmod(mode | (mode & 0o444) >> 2 if file.mode == EXECUTABLE else mode & ~0o111)


def _remove_empty(folder: Path):
    """As git does. A folder that holds anything, the top of a checkout too, ends the walk with an OSError."""
    try:
        while True:
            folder.rmdir()
            folder = folder.parent
    except OSError:
        pass


# -----------------------------------------------------------------------------
# What a patch does to files

def changes(tree: Path, patch: Path, reverse: bool = False) -> dict[str, tuple[File | None, File | None]]:
    """{name: (before, after)} of the files that the patch changes. Nothing is written into the tree.

    Raises ValueError with git's message where the patch does not fit, or could not be taken back to the byte.
    """
    with temporary_folder("nanochat-patch-") as folder:
        store = _Store(folder)
        names = store.names(patch)
        before = {name: None if _gives_way(tree, name, names) else read_file(_inside(tree, name)) for name in names}
        after = _either_way(store, before, patch, reverse)
    return {name: (before[name], after[name]) for name in names}


def _gives_way(tree, name, names) -> bool:
    """True for a folder that the patch takes away, with a file of the folder's name in its place; or the reverse."""
    path = tree / name
    return path.is_dir() and not path.is_symlink() and any(other.startswith(f"{name}/") for other in names)


def put(tree: Path, patch: Path, reverse: bool = False):
    """Change the files of the tree as the patch says: all of them, or none. Raises ValueError as `changes` does."""
    found, written = changes(tree, patch, reverse), []
    try:
        for name, (before, after) in sorted(found.items(), key=lambda item: item[1][1] is not None):  # removals first
            written.append((name, before))
            if after != before:
                write_file(tree / name, after)
    except OSError:
        for name, before in written:
            write_file(tree / name, before)
        raise


def _inside(tree: Path, name: str) -> Path:
    path = tree / name
    if path.parent.resolve() != (tree.resolve() / name).parent:
        raise ValueError(f"{name} lies beyond a symbolic link of {tree}, and a patch changes nothing there")
    return path


def _either_way(store, before, patch, reverse):
    """The files after the patch, with their bytes as they are, or with lines that end in CRLF taken for LF."""
    try:
        return _there_and_back(store, before, patch, reverse, crlf=False)
    except ValueError as e:
        if any(file and file.is_crlf for file in before.values()):
            with contextlib.suppress(ValueError):
                return _there_and_back(store, before, patch, reverse, crlf=True)
        raise e


def _there_and_back(store, before, patch, reverse, crlf):
    after = _apply(store, before, patch, reverse, crlf)
    if _apply(store, after, patch, not reverse, crlf) != before:
        raise ValueError("it applies, and git would not take it back to the same bytes: give it more context "
                         "(git diff -U3)")
    return after


def _apply(store, files, patch, reverse, crlf):
    was_crlf = {name for name, file in files.items() if crlf and file and file.is_crlf}
    given = {name: file.with_lf() if name in was_crlf else file for name, file in files.items() if file}
    found = store.apply(given, patch, reverse)
    ends = was_crlf | {name for name, file in files.items() if crlf and file is None}  # new ones, as git would write
    return {name: found[name].with_crlf() if name in found and name in ends else found.get(name) for name in files}


class _Store:
    """A bare repository in a temporary folder. Files are blobs and index entries of it, and no file is checked out."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {"GIT_DIR": str(folder), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        self._git("init", "--quiet", "--bare", "--template=")

    def _git(self, *words, given=b"") -> bytes:
        code, out, said = run_git(self.folder, *words, env=self.env, given=given)
        if code:
            raise ValueError(said or f"git {words[0]} ended with exit code {code}")
        return out

    def names(self, patch: Path) -> list[str]:
        """Names of all files in the patch, before and after it. --numstat names a renamed file by its new name."""
        found = [self._git("apply", "--numstat", "-z", *how, patch) for how in ((), ("--reverse",))]
        lines = [line for out in found for line in out.split(b"\0") if line]
        return list(dict.fromkeys(os.fsdecode(line.split(b"\t", 2)[2]) for line in lines))

    def apply(self, files: dict[str, File], patch: Path, reverse: bool) -> dict[str, File]:
        blobs = {name: self._git("hash-object", "-w", "--stdin", given=file.content).strip().decode()
                 for name, file in files.items()}
        self._git("read-tree", "--empty")
        entries = [f"{file.mode} {blobs[name]}\t".encode() + os.fsencode(name) for name, file in files.items()]
        self._git("update-index", "-z", "--index-info", given=b"".join(entry + b"\0" for entry in entries))
        how = ["--reverse"] if reverse else []
        self._git("-c", "apply.ignoreWhitespace=no", "apply", "--cached", "--whitespace=nowarn", *how, patch)
        lines = [line.partition(b"\t") for line in self._git("ls-files", "-s", "-z").split(b"\0") if line]
        return {os.fsdecode(name): self._file(*facts.decode().split()[:2]) for facts, _, name in lines}

    def _file(self, mode: str, blob: str) -> File:
        return File(mode, self._git("cat-file", "blob", blob))
