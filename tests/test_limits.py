"""
The limits of dev/STYLE.md that can be read off the files: how long a file, a line and a function is, what is tracked.

python -m pytest tests/test_limits.py -q
"""

import ast
import re
import statistics
import subprocess
from functools import cache

import pytest

from tests.test_structure import ROOT, files, name_of

FOLDERS = {"nanochat", "scripts", "runs", "patches", "ideas", "dev", "tests", ".ci", ".github"}
MAX_LINES, MAX_COLUMNS = 300, 120
MEDIAN_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 8, 50, 6  # of a function
MORE_LINES = {}  # path: (budget, reason)


@cache
def tracked():
    """Files that git has or would add; the test is skipped where there is no git."""
    try:
        run = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                             capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ()
    return tuple(ROOT / name for name in run.stdout.split("\0") if name and (ROOT / name).is_file())


@pytest.fixture
def tracked_files():
    return tracked() or pytest.skip("not a git checkout")


def test_only_the_agreed_folders_exist(tracked_files):
    folders = {path.relative_to(ROOT).parts[0] for path in tracked_files if path.parent != ROOT}
    assert folders <= FOLDERS


def test_files_keep_to_their_line_budget(tracked_files):
    for path in tracked_files:
        if path.suffix == ".py":
            budget, _ = MORE_LINES.get(name_of(path), (MAX_LINES, ""))
            lines = len(path.read_text(encoding="utf-8").splitlines())
            hint = "split it, or give it a budget and a reason in MORE_LINES"
            assert lines <= budget, f"{name_of(path)} has {lines} lines; {hint}"


def test_lines_end_at_120_columns(tracked_files):
    wide = [f"{name_of(path)}:{i}" for path in tracked_files if path.suffix == ".py"
            for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if len(line) > MAX_COLUMNS]
    assert not wide, "a file that passes its budget when it is wrapped is split by subject"


def functions_of(path):
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


CODE = [path for path in files("nanochat/**/*.py", "scripts/*.py")]


def test_half_of_all_functions_are_short():
    lengths = [node.end_lineno - node.lineno + 1 for path in CODE for node in functions_of(path)]
    assert statistics.median(lengths) <= MEDIAN_LINES and max(lengths) <= MAX_FUNCTION_LINES


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_many_parameters_have_their_reason_above_the_function(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in functions_of(path):
        args = node.args
        given = [arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs) if arg.arg not in ("self", "cls")]
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        reason = lines[first - 2].lstrip().startswith("#")
        assert len(given) <= MAX_PARAMETERS or reason, f"{name_of(path)}: {node.name} takes {len(given)} parameters"


def test_no_exception_outlives_its_reason():
    for name, (budget, reason) in MORE_LINES.items():
        assert budget > MAX_LINES and reason and (ROOT / name).exists(), name


LOCAL_PATH = re.compile(r"(?<![\w.}~$)])/(?:root|work|home|Users|tmp|mnt)/\w+")


def test_no_path_of_one_machine_is_tracked(tracked_files):
    assert LOCAL_PATH.search("see /" + "home/me") and not LOCAL_PATH.search("see ~/" + "home/me, a/" + "home/me")
    for path in tracked_files:
        if path.suffix not in (".png", ".gz", ".parquet"):
            found = LOCAL_PATH.search(path.read_text(encoding="utf-8"))
            assert not found, f"{name_of(path)} has {found.group()!r}"
