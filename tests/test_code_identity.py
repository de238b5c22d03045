"""
Which files decide the numbers of a run: a copy of this tree is edited file by file; made-up trees import in every way.

python -m pytest tests/test_code_identity.py -q
"""

import hashlib
import shutil
import subprocess
import sys

import pytest
from conftest import REPO_ROOT

from nanochat.code_identity import CODE_DIRS, TRAINER, code_files, tree_hash, tree_hash_of_0_1
from nanochat.common import atomic_write, hash_json

# Every module that a run of the trainer imports, in a process of its own; it prints those under the tree.
LOADED = """
import sys
import scripts.base_train, nanochat.trainer, nanochat.run_facts, nanochat.engine
for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None)
    if path and path.startswith(sys.argv[1]):
        print(path[len(sys.argv[1]) + 1:].replace("\\\\", "/"))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("copy")
    for folder in CODE_DIRS:
        shutil.copytree(REPO_ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def names(root, paths=None):
    return {path.relative_to(root).as_posix() for path in (code_files(root) if paths is None else paths)}


def changes_hash(root, name, before) -> bool:
    """Whether an edit of the file changes the hash from `before`; the file is put back."""
    path = root / name
    old = path.read_bytes()
    path.write_bytes(old + b"\n# edited\n")
    try:
        return tree_hash(root) != before
    finally:
        path.write_bytes(old)


def test_an_edit_counts_where_the_trainer_imports_the_file_and_nowhere_else(copy):
    every = names(copy, [path for folder in CODE_DIRS for path in (copy / folder).rglob("*.py")])
    before = tree_hash(copy)
    counted = {name for name in every if changes_hash(copy, name, before)}
    assert counted == names(copy)
    assert {TRAINER, "nanochat/__init__.py", "nanochat/gpt.py", "nanochat/layers/mlp.py"} <= counted
    assert not [name for name in counted if name.startswith("nanochat/lab/")], "the lab decides no number of a run"
    assert {name for name in counted if name.startswith("scripts/")} == {TRAINER, "scripts/__init__.py"}


def test_every_file_that_a_process_of_the_trainer_loads_counts(copy):
    run = subprocess.run([sys.executable, "-c", LOADED, str(copy)], cwd=copy, capture_output=True, text=True,
                         check=True)
    loaded = set(run.stdout.split())
    assert TRAINER in loaded and loaded <= names(copy)


def test_it_does_not_matter_where_a_tree_lies(copy):
    assert tree_hash(copy) == tree_hash() == tree_hash(REPO_ROOT) and len(tree_hash()) == 64


def make_tree(root, files=None):
    """A tree whose trainer imports nanochat.a. files: {path without .py: text}, beside its own or instead of them."""
    texts = {"scripts/base_train": "import nanochat.a\n", "nanochat/a": "", "nanochat/unused": "", "scripts/other": ""}
    for name, text in {**texts, **(files or {})}.items():
        atomic_write(root / f"{name}.py", text)
    return root


@pytest.mark.parametrize("statement, imported", [
    ("import nanochat.b", "nanochat/b.py"), ("import nanochat.b as other", "nanochat/b.py"),
    ("from nanochat import b", "nanochat/b.py"), ("from nanochat.b import f", "nanochat/b.py"),
    ("from nanochat.b import *", "nanochat/b.py"),
    ("from . import b", "nanochat/b.py"),
    ("from .b import f", "nanochat/b.py"), ("from nanochat.deep.c import f", "nanochat/deep/c.py"),
    ("from .deep import c", "nanochat/deep/c.py"), ("from nanochat.deep import f", "nanochat/deep/__init__.py"),
    ("def late():\n    from nanochat import b", "nanochat/b.py"),
    ("try:\n    import nanochat.b\nexcept ImportError:\n    pass", "nanochat/b.py"),
    ("from tasks.common import f", "tasks/common.py"), ("if 0: import nanochat.b", "nanochat/b.py")])
def test_every_form_of_an_import_is_followed(tmp_path, statement, imported):
    tree = make_tree(tmp_path, {
        "nanochat/a": statement + "\n", "nanochat/b": "import nanochat.last\n", "nanochat/last": "",
        "nanochat/deep/__init__": "", "nanochat/deep/c": "", "tasks/common": ""})
    beside = {"nanochat/b.py": "nanochat/last.py", "nanochat/deep/c.py": "nanochat/deep/__init__.py"}  # runs as well
    assert names(tree) == {TRAINER, "nanochat/a.py", imported, beside.get(imported, imported)}


@pytest.mark.parametrize("statement", [
    "import importlib\nm = importlib.import_module(name)", "m = __import__(name)", "exec(text)",
    "from importlib import import_module\nimport_module(name)", "def f(:", "x = '\0'", "x = " + "-" * 100_000 + "1",
    "from importlib import import_module as load\nload(name)", "import sys\nsys.path.insert(0, name)"])
def test_where_imports_cannot_be_read_every_file_counts(tmp_path, statement):
    tree = make_tree(tmp_path, {"nanochat/a": statement + "\n"})
    assert names(tree) == {"scripts/base_train.py", "nanochat/a.py", "nanochat/unused.py", "scripts/other.py"}


def test_a_star_of_a_package_counts_all_of_its_modules_and_nothing_outside_the_tree_counts(tmp_path):
    tree = make_tree(tmp_path / "tree", {"nanochat/a": "from nanochat.deep import *\nfrom ... import outside\n",
                                         "nanochat/deep/__init__": "__all__ = ['c']\n", "nanochat/deep/c": ""})
    atomic_write(tmp_path / "outside.py", "")
    assert names(tree) == {TRAINER, "nanochat/a.py", "nanochat/deep/__init__.py", "nanochat/deep/c.py"}


def test_rows_of_0_1_hold_the_hash_of_every_file(tmp_path):
    tree = make_tree(tmp_path)
    every = "nanochat/a.py", "nanochat/unused.py", "scripts/base_train.py", "scripts/other.py"
    hashes = {name: hashlib.sha256((tree / name).read_bytes()).hexdigest() for name in every}
    assert tree_hash_of_0_1(tree) == hash_json(hashes) != tree_hash(tree)


def test_a_tree_without_the_training_script_counts_whole(tmp_path):
    tree = make_tree(tmp_path)
    (tree / TRAINER).unlink()
    assert names(tree) == {"nanochat/a.py", "nanochat/unused.py", "scripts/other.py"}


def test_kernels_count_and_texts_do_not(tmp_path):
    tree = make_tree(tmp_path)
    before = tree_hash(tree)
    for name in ("nanochat/notes.txt", "README.md", "tests/test_a.py", "patches/p.py", "nanochat/unused.py"):
        atomic_write(tree / name, "changed")
        assert tree_hash(tree) == before, name
    atomic_write(tree / "nanochat/kernels/fast.cu", "changed")
    assert tree_hash(tree) != before


def test_a_new_name_is_a_change(tmp_path):
    tree = make_tree(tmp_path, {"nanochat/b": ""})
    before = tree_hash(tree)
    (tree / "nanochat/a.py").rename(tree / "nanochat/c.py")
    assert tree_hash(tree) != before
    atomic_write(tree / TRAINER, "import nanochat.c\n")
    assert len({tree_hash(tree), before}) == 2 and "nanochat/c.py" in names(tree)
