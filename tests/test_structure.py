"""
The rules of dev/DESIGN.md that can be read off the files: who imports whom, how long a file is, what is tracked.

python -m pytest tests/test_structure.py -q
"""

import ast
import doctest
import importlib
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A module of nanochat/ imports only modules to its left; `layers` stands for the whole folder.
ORDER = """streams common git machine code_identity ranks stage checks command_line schedule options config_check config
    record gpt_config manifest shards text_walk text_advice text_files corpus http_answers download dataset
    blank_runs tokenizer_files tokenizer
    device dataloader layers loss gpt muon optim cost vram checkpoint_manager engine loss_eval
    tree_logits tree_score run_facts run_setup run_save run_guard run_eval run_log trainer""".split()
TORCH_FREE = ORDER[:ORDER.index("device")]
# A folder of nanochat/lab/ imports only from itself and from folders to its left; `ground` is the files in lab/ itself.
ROOMS = "ground verdict trees ledger report protocol simulation cycle horizon".split()
LAB_MAY_IMPORT = {"numpy", "scipy", "matplotlib", "filelock", *sys.stdlib_module_names}
LAB_MAY_IMPORT_OF_OURS = set("""common git machine code_identity checks command_line config options schedule stage
                             record manifest""".split())
BARE_PYTHON = ("scripts.setup", "scripts.smoke")  # run before any package is installed


def files(*patterns):
    return sorted(path for pattern in patterns for path in ROOT.glob(pattern))


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def all_imports(tree):
    """Absolute dotted names of every import, wherever it stands. `from a import b` gives a.b: b may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write nanochat.x"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports(path):
    return tuple(all_imports(ast.parse(path.read_text(encoding="utf-8"))))


def our_module(name):
    """First name below nanochat: nanochat.layers.norm.Norm -> layers. None for a package that is not ours."""
    parts = name.split(".")
    return parts[1] if parts[0] == "nanochat" and len(parts) > 1 else None


def module_of(path):
    return path.relative_to(ROOT / "nanochat").with_suffix("").parts[0]


LIBRARY = files("nanochat/*.py", "nanochat/layers/*.py")
LAB = files("nanochat/lab/**/*.py")
SCRIPTS = files("scripts/*.py")


@pytest.mark.parametrize("path", [p for p in LIBRARY if p.name != "__init__.py"], ids=name_of)
def test_library_imports_go_one_way(path):
    module = module_of(path)
    assert module in ORDER, f"nanochat/{module}.py is new: put it into ORDER, after what it imports"
    before = ORDER[:ORDER.index(module)] + (["layers"] if module == "layers" else [])
    for name in filter(None, map(our_module, imports(path))):
        assert name in before, f"{name_of(path)} imports nanochat.{name}, which comes after it (or is the lab)"
    assert not [name for name in imports(path) if name.split(".")[0] == "scripts"], "the library never imports scripts"


@pytest.mark.parametrize("path", LAB, ids=name_of)
def test_lab_imports_no_torch_and_little_else(path):
    for name in imports(path):
        if our_module(name):
            assert our_module(name) in LAB_MAY_IMPORT_OF_OURS | {"lab"}, f"{name_of(path)} imports {name}"
        else:
            assert name.split(".")[0] in LAB_MAY_IMPORT, f"{name_of(path)} imports {name}"


LAB_MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
               for path in LAB if path.name != "__init__.py"}


def room_of(module):
    """nanochat.lab.verdict.gates -> verdict; nanochat.lab.arms -> ground"""
    parts = module.split(".")
    return parts[2] if len(parts) > 3 else "ground"


def lab_modules(names):
    """Those of the lab's modules that names, as all_imports gives them, lead to: a module itself, or a name in it."""
    return {module for name in names for module in (name, name.rpartition(".")[0]) if module in LAB_MODULES}


@pytest.mark.parametrize("module", LAB_MODULES)
def test_rooms_of_the_lab_import_one_way(module):
    room = room_of(module)
    assert room in ROOMS, f"nanochat/lab/{room}/ is new: put it into ROOMS, after what it imports"
    allowed = ROOMS[:ROOMS.index(room) + 1]
    for other in lab_modules(imports(LAB_MODULES[module])):
        assert room_of(other) in allowed, f"{module} imports {other}, whose room comes after its own"


def test_modules_of_a_room_import_each_other_without_circles():
    left = {module: lab_modules(imports(path)) for module, path in LAB_MODULES.items()}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left, f"these import each other in a circle, or a module that does: {sorted(left)}"


def test_rooms_are_folders_with_an_empty_init():
    folders = {path.parent.name for path in LAB_MODULES.values() if path.parent.name != "lab"}
    assert folders == set(ROOMS[1:])
    assert all((ROOT / f"nanochat/lab/{folder}/__init__.py").read_text(encoding="utf-8") == "" for folder in folders)


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_never_import_scripts(path):
    assert not [name for name in imports(path) if name.split(".")[0] == "scripts"]


def in_fresh_process(code, *python_flags):
    return subprocess.run([sys.executable, *python_flags, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_lab_and_torch_free_modules_leave_torch_out_of_a_fresh_process():
    names = [f"nanochat.{m}" for m in TORCH_FREE if (ROOT / f"nanochat/{m}.py").exists()]
    names += [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in LAB if path.name != "__init__.py"]
    run = in_fresh_process(f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
                           "sys.exit(sorted(n for n in sys.modules if n.split('.')[0] == 'torch')[:1] or 0)")
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("module", BARE_PYTHON)
def test_script_starts_on_a_bare_python(module):
    if not (ROOT / (module.replace(".", "/") + ".py")).exists():
        pytest.skip(f"no {module}")
    run = in_fresh_process(f"import sys; sys.path.insert(0, '.'); import {module}", "-I", "-S")
    assert run.returncode == 0, run.stderr


COMMANDS = [f"scripts.{path.stem}" for path in SCRIPTS if path.name != "__init__.py"] + ["nanochat.dataset"]


@pytest.mark.parametrize("module", COMMANDS)
def test_command_without_the_packages_says_in_one_line_what_to_run(module):
    """-S leaves site-packages out: what a Python is that is not .venv's."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-S", "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True,
                         env=environment)
    if run.returncode == 0:  # --help needs no package
        assert "usage" in run.stdout
    else:
        line = rf"error: .+ lacks the package \w+; run .*\S+ -m {module} --help\n"
        assert run.returncode == 2 and re.fullmatch(line, run.stderr), run.stderr


def test_other_errors_of_a_command_keep_their_traceback():
    run = in_fresh_process("import sys; sys.argv[0] = '-m'; import nanochat; import no_such_module")
    assert run.returncode == 1 and run.stderr.startswith("Traceback"), run.stderr


def has_examples(path):
    return ">>> " in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [p for p in files("nanochat/**/*.py", "scripts/*.py") if has_examples(p)], ids=name_of)
def test_examples_in_docstrings_are_true(path):
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


# -----------------------------------------------------------------------------
# Options are declared once

# (file, names of the options): why three of them stand in one literal, which is no list of what options are.
SPELLED_OUT = {
    ("nanochat/schedule.py", "num_iterations target_flops target_param_data_ratio"):
        "the order in which horizons count, and the word that a record has for each; below config.py",
    ("nanochat/run_setup.py", "num_iterations target_flops target_param_data_ratio"):
        "the sentence that the log has for each horizon",
}


def literals(tree):
    """The strings of each literal tuple, list and set, and the keys of each dict, that hold nothing else."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Tuple, ast.List, ast.Set, ast.Dict)):
            items = node.keys if isinstance(node, ast.Dict) else node.elts
            words = [item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)]
            others = [item for item in items if not isinstance(item, (ast.Constant, ast.Starred))]
            if words and not others:
                yield node.lineno, words


def test_no_list_of_options_is_kept_beside_their_declarations():
    from nanochat.config import TrainConfig
    from nanochat.options import declared, spellings
    options = {**{name: name for name in declared(TrainConfig)}, **spellings(TrainConfig)}
    unused = set(SPELLED_OUT)
    for path in files("nanochat/**/*.py", "scripts/*.py"):
        for line, words in literals(ast.parse(path.read_text(encoding="utf-8"))):
            if len(words) >= 3 and set(words) <= set(options):
                key = name_of(path), " ".join(sorted(words))
                assert key in SPELLED_OUT, f"{name_of(path)}:{line} lists {', '.join(words)}: ask the declarations " \
                    "in nanochat/config.py instead, by role or tag, or say in SPELLED_OUT why it stands here"
                unused.discard(key)
    assert not unused, "an exception outlived its reason"
