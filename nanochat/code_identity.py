"""
Which code decides the numbers of a run, and its hash.

A stored run may be reused while the code that made it is the same. That code is the training script and every file that
it imports, directly or through others, wherever the import stands in a file. A report page or another script is not
among it: `from nanochat.lab...` never stands in the trainer.

    tree_hash() == tree_hash("../a-copy")     # where a tree lies does not matter

Imports are read from the syntax tree; nothing is run. Two things cannot be read so, and then every file of CODE_DIRS
counts: a file that is not valid Python (an edit in the middle), and a module that is imported by a computed name.
"""

import ast
import functools
from pathlib import Path

from nanochat.common import REPO_ROOT, hash_json, sha256_file

TRAINER = "scripts/base_train.py"
CODE_DIRS = ("nanochat", "scripts")
COMPILED = ("*.cu", "*.cuh", "*.cpp", "*.cc", "*.c", "*.h", "*.metal")  # kernels are built at run time, never imported
# A call of one of these may import a file that no import statement names.
COMPUTED = {"import_module", "__import__", "exec", "spec_from_file_location", "run_path", "run_module"}


@functools.lru_cache(maxsize=4096)
def _imported(source: bytes) -> tuple[tuple[str, int], ...] | None:
    """(dotted name, level of a relative import) of every import in `source`; None where imports cannot be read.

    `from a import b` gives a.b as well as a: b may be a module.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # ValueError: a NUL byte
        return None
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(".".join(filter(None, (node.module, alias.name))), node.level) for alias in node.names]
        elif getattr(node, "attr", None) in COMPUTED or getattr(node, "id", None) in COMPUTED:
            return None
    return tuple(found)


def _files_of(root: Path, dotted: str, level: int, importer: Path) -> list[Path]:
    """Files under `root` that an import of `dotted` runs: the module, and the __init__.py of each package above it."""
    folder = root
    if level:
        folder = importer.parent
        for _ in range(level - 1):
            folder = folder.parent
    found = []
    for part in filter(None, dotted.split(".")):
        found += [folder / f"{part}.py", folder / part / "__init__.py"]
        folder = folder / part
    return [path for path in found if path.is_file()]


def code_files(root=REPO_ROOT) -> list[Path]:
    """The files under `root` that decide the numbers of its training, sorted."""
    root = Path(root)
    kernels = [path for folder in CODE_DIRS for pattern in COMPILED for path in (root / folder).rglob(pattern)]
    trainer = root / TRAINER
    if not trainer.is_file():
        return sorted([*kernels, *_all_python(root)])
    seen, waiting = set(), [trainer, *_files_of(root, "scripts", 0, trainer)]
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


def tree_hash(root=REPO_ROOT) -> str:
    """Content hash of code_files(root): equal hashes train equal numbers."""
    root = Path(root)
    return hash_json({path.relative_to(root).as_posix(): sha256_file(path) for path in code_files(root)})
