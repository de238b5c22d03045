"""
What a stranger starts from: --version, an editable installation, the contributor's pages, the hosted checks.

python -m pytest tests/test_packaging.py -q
"""

import os
import re
import shlex
import subprocess
import sys
import zipfile

import pytest
from test_makefile import TARGETS
from test_structure import COMMANDS, ROOT

from scripts import setup

PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
# Files that begin with a user's first row, so that a clone has none of them.
USERS_ROWS = ("dev/ledger/experiments.csv", "dev/ledger/declarations.csv", "dev/ledger/lane_b.csv", "dev/machines.csv")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


VERSION = re.search(r'^version = "(.+)"$', read("pyproject.toml"), re.MULTILINE)[1]


@pytest.mark.parametrize("module", COMMANDS)
def test_command_prints_its_version_on_a_python_without_packages(module):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-S", "-m", module, "--version"], cwd=ROOT, capture_output=True, text=True,
                         env=environment)
    assert (run.returncode, run.stdout, run.stderr) == (0, f"nanochat-lab {VERSION}\n", "")


def test_version_is_the_same_wherever_it_is_written():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML parser")
    assert tomllib.loads(read("pyproject.toml"))["project"]["version"] == VERSION
    assert f"\nversion: {VERSION}\n" in read("CITATION.cff")
    assert re.findall(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.MULTILINE)[:2] == ["Unreleased", VERSION]


# -----------------------------------------------------------------------------
# pip install -e .

@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What `pip install -e .` puts into site-packages, without pip and without a network."""
    pytest.importorskip("setuptools", "77", reason="no setuptools that can build this project")
    folder = tmp_path_factory.mktemp("site")
    build = f"from setuptools import build_meta; build_meta.build_editable({str(folder)!r})"
    run = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def run_installed(site, cwd, module, *argv):
    """python -m module in cwd, with `site` as a folder of installed packages."""
    code = (f"import runpy, site, sys; site.addsitedir({str(site)!r}); sys.argv = ['-m', *{argv!r}]; "
            f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("module", ("scripts.base_train", "nanochat.dataset", "scripts.ledger"))
def test_installed_command_starts_in_any_folder(installed, tmp_path, module):
    run = run_installed(installed, tmp_path, module, "--help")
    assert run.returncode == 0 and "usage" in run.stdout, run.stderr


def test_every_folder_of_code_is_a_declared_package():
    find_packages = pytest.importorskip("setuptools").find_packages
    include, = re.findall(r'^include = \[(.+)\]$', read("pyproject.toml"), re.MULTILINE)
    declared = find_packages(str(ROOT), include=re.findall(r'"(.+?)"', include))
    modules = [path for name in ("nanochat", "scripts") for path in (ROOT / name).rglob("*.py")]
    assert set(declared) == {".".join(path.relative_to(ROOT).parent.parts) for path in modules}


def test_scripts_of_another_checkout_win_over_the_installed_ones(installed, tmp_path):
    (tmp_path / "scripts").mkdir()  # without __init__.py, as nanochat has it
    (tmp_path / "nanochat").mkdir()
    (tmp_path / "nanochat" / "__init__.py").write_text("")
    (tmp_path / "scripts" / "base_train.py").write_text("import nanochat\nprint(__file__, nanochat.__file__)")
    run = run_installed(installed, tmp_path, "scripts.base_train")
    assert run.returncode == 0 and run.stdout.count(str(tmp_path)) == 2, run.stderr


# -----------------------------------------------------------------------------
# Pages and hosted checks

def test_hosted_checks_run_what_ci_run_runs_and_nothing_else():
    workflow = read(".github/workflows/ci.yml")
    assert re.findall(r"\brun: *(.*)", workflow) == [".ci/run"]
    actions = re.findall(r"uses: *(\S+)@v\d+$", workflow, re.MULTILINE)
    assert sorted(actions) == ["actions/checkout", "actions/setup-python"]
    assert 'python-version: "3.11"' in workflow


def test_hosted_platforms_run_the_quick_tests_of_make_on_three_systems():
    workflow = read(".github/workflows/platforms.yml")
    assert "os: [ubuntu-latest, macos-latest, windows-latest]" in workflow and "timeout-minutes:" in workflow
    runs = re.findall(r"\brun: (.*)", workflow)
    assert runs[0] == "python -m scripts.setup --dev" and 'matrix.os' in workflow
    quick = re.search(r"^test: .*\n\t\$\(PY\) -m pytest (.*)$", read("Makefile"), re.MULTILINE)[1]
    words = shlex.split(runs[-1])
    assert words[:3] == ["python", "-m", "pytest"] and words[-2:] == shlex.split(quick)[-2:]
    actions = re.findall(r"uses: *(\S+)@v\d+$", workflow, re.MULTILINE)
    assert sorted(actions) == ["actions/checkout", "actions/setup-python"]
    yaml = pytest.importorskip("yaml")
    assert list(yaml.safe_load(workflow)["jobs"]) == ["quick-tests"]


def test_citation_file_is_valid_and_names_nanochat():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software" and citation["license"] == "MIT"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["authors"] == [{"name": "nanochat lab contributors"}]
    reference, = citation["references"]
    assert {"type", "title", "authors"} <= reference.keys()
    assert reference["authors"] == [{"family-names": "Karpathy", "given-names": "Andrej"}]


@pytest.mark.parametrize("page", PAGES)
def test_page_names_files_targets_and_commands_that_exist(page):
    text = read(page)
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    files = re.findall(r"`((?:nanochat|scripts|tests|dev|ideas|patches|runs|\.ci)/[\w./-]*)`", text)
    assert not [name for name in {*links, *files} - {*USERS_ROWS} if not (ROOT / name).exists()]
    assert set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.MULTILINE)) <= set(TARGETS)
    assert set(re.findall(r"\bscripts\.[a-z]\w+", text)) <= set(COMMANDS)


def test_contributing_names_rows_that_exist():
    names = re.findall(r"`(\w+)` in `(nanochat/\w+\.py)`", read("CONTRIBUTING.md"))
    assert len(names) >= 3 and all(re.search(rf"^{name} = ", read(path), re.MULTILINE) for name, path in names)


def test_pins_are_read_beside_the_build_system():
    assert len(setup.read_pins("dependencies")) > 10 and len(setup.read_pins("dev")) == 3
