"""
The code that decides the numbers of a run, and its hash.

A stored run may be reused while the code that made it is the same. That code is the training script and every file that
it imports, directly or through others, wherever the import stands in a file. A report page or another script is not
part of it, because the trainer never imports nanochat.lab.

    tree_hash() == tree_hash("../a-copy")     # where a tree lies does not matter

Imports are read from the syntax tree; nothing is run. Two things cannot be read in this way, and then every file of
CODE_DIRS counts. The first is a file that is not valid Python (an edit in the middle). The second is a module that is
imported by a computed name or from a folder that is put on sys.path.
"""

import ast
import functools
from pathlib import Path

from nanochat.common import REPO_ROOT, hash_json, sha256_file

TRAINER = "scripts/base_train.py"
CODE_DIRS = ("nanochat", "scripts")
COMPILED = ("*.cu", "*.cuh", "*.cpp", "*.cc", "*.c", "*.h", "*.metal")  # kernels are built at run time, never imported
# A call of one of these may import a file that no import statement names.
COMPUTED = {"import_module", "__import__", "exec", "spec_from_file_location", "SourceFileLoader", "run_path",
            "run_module"}


@functools.lru_cache(maxsize=4096)
def _imported(source: bytes) -> tuple[tuple[str, int], ...] | None:
    """(dotted name, level of a relative import) of every import in `source`; None where imports cannot be read.

    `from a import b` gives a.b as well as a: b may be a module.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a NUL byte, an expression nested too deeply
        return None
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(".".join(filter(None, (node.module, alias.name))), node.level) for alias in node.names]
        elif getattr(node, "attr", None) in COMPUTED or getattr(node, "id", None) in COMPUTED or _edits_path(node):
            return None
    return None if any(name.rpartition(".")[2] in COMPUTED for name, _ in found) else tuple(found)


def _edits_path(node) -> bool:
    """Whether the node is sys.path.insert, sys.path.append or the like."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr == "path" \
        and getattr(node.value.value, "id", None) == "sys"


def _files_of(root: Path, dotted: str, level: int, importer: Path) -> list[Path]:
    """Files under `root` that an import of `dotted` runs: the module, and the __init__.py of each package above it."""
    folder = root
    if level:
        folder = importer.parent
        for _ in range(level - 1):
            folder = folder.parent
    found = []
    for part in filter(None, dotted.split(".")):
        # A star of a package may import every module in it, by the package's __all__.
        found += folder.glob("*.py") if part == "*" else [folder / f"{part}.py", folder / part / "__init__.py"]
        folder = folder / part
    return [path for path in found if path.is_file() and path.is_relative_to(root)]


def code_files(root=REPO_ROOT, start: str = TRAINER) -> list[Path]:
    """The files under `root` that decide the numbers of its training, sorted. Imports are followed from `start`."""
    root = Path(root).resolve()
    kernels = [path for folder in CODE_DIRS for pattern in COMPILED for path in (root / folder).rglob(pattern)]
    first = root / start
    if not first.is_file():
        return sorted([*kernels, *_all_python(root)])
    seen, waiting = set(), [first, *_files_of(root, start.partition("/")[0], 0, first)]
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        imports = _imported(path.read_bytes())
        if imports is None:
            return sorted({*kernels, *_all_python(root), *seen})
        waiting += [file for name, level in imports for file in _files_of(root, name, level, path)]
    return sorted({*kernels, *seen})


def _all_python(root: Path) -> list[Path]:
    return [path for folder in CODE_DIRS for path in (root / folder).rglob("*.py")]


def tree_hash(root=REPO_ROOT, start: str = TRAINER) -> str:
    """Content hash of code_files: equal hashes train equal numbers."""
    return _hash_of(Path(root).resolve(), code_files(root, start))


def tree_hash_of_0_1(root) -> str:
    """The tree hash as version 0.1.0 computed it, of every Python file in CODE_DIRS.

    Rows, records and notes that version 0.1.0 wrote hold this hash.
    """
    root = Path(root).resolve()
    return _hash_of(root, sorted(_all_python(root)))


def _hash_of(root: Path, paths: list[Path]) -> str:
    return hash_json({path.relative_to(root).as_posix(): sha256_file(path) for path in paths})
