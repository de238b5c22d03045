"""
Shell scripts where they are not at home: bash 3.2 and BSD tools of macOS, spaces in paths, a base dir with ~.

python -m pytest tests/test_shell.py -q
"""

import json
import os
import re
import shlex
import shutil
import subprocess

import pytest

from nanochat.common import get_base_dir
from tests.test_runs import FALLS_BACK, ROOT, Stage, each_that_runs

pytestmark = pytest.mark.skipif(not shutil.which("bash") or os.name == "nt", reason="no POSIX shell")
COMMON = shlex.quote(str(ROOT / "runs" / "common.sh"))
SCRIPTS = [*sorted((ROOT / "runs").glob("*.sh")), ROOT / ".ci" / "run"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMMAND = r"(?:^|[;&|({`!]) *(?:env )?"  # where a command's name stands
# What bash 3.2 lacks.
NEWER_BASH = [
    r"\b(mapfile|readarray|coproc)\b", r"\b(declare|local|typeset) -[a-zA-Z]*[Agn]", r"\$\{\w+(\[[^]]*\])?[,^]",
    r"\$\{\w+(\[[^]]*\])?@[A-Za-z]\}", r"\$\{!\w+@\}", r"\|&", r"&>>", r"\[-\d+\]|: -\d+\}", r"\bwait -n", r";;?&",
    r"\bprintf .*%\([^)]*\)T", r"\[\[ -v ", r"\bshopt -s (globstar|lastpipe|inherit_errexit)", r"\bexec \{\w+\}",
    r"\b(EPOCHSECONDS|EPOCHREALTIME|SRANDOM|BASHPID)\b", r"\bread -[a-zA-Z]*[Ni]\b", r"\\u[0-9a-fA-F]{4}"]
# Options that only GNU's tools have, and programs that macOS does not have.
GNU_ONLY = [
    rf"{COMMAND}(seq|nproc|timeout|realpath|tac|shuf|sha256sum|md5sum|free|setsid|flock|readarray)\b",
    r"\bsed -[a-zA-Z]*[ir]", r"\bdate -d", r"\breadlink -f", r"\bstat -c", r"\bgrep -[a-zA-Z]*P",
    r"\bcp -[a-zA-Z]*[tT]\b", r"\bxargs -[a-zA-Z]*[rd]\b", r"\bfind\b.*-printf", r"\bsort -[a-zA-Z]*V",
    r"\bmktemp --", rf"{COMMAND}head -n? ?-\d",
    r"\bdu -[a-zA-Z]*b", r"\bls --", r"\bln -[a-zA-Z]*[rT]"]


def code_of(text):
    """The lines without comments and without the Python in here-documents."""
    text = re.sub(r"<<'PY'\n.*?\nPY\n", "\n", text, flags=re.DOTALL)
    return [line for line in (re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines()) if line.strip()]


def found(patterns, lines):
    return [line.strip() for line in lines for pattern in patterns if re.search(pattern, line)]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_has_nothing_that_macos_lacks(script):
    lines = code_of(script.read_text(encoding="utf-8"))
    assert lines and found(NEWER_BASH, lines) + found(GNU_ONLY, lines) == []


def test_recipes_of_make_have_nothing_that_macos_lacks():
    assert found(NEWER_BASH, code_of(MAKEFILE)) + found(GNU_ONLY, code_of(MAKEFILE)) == []
    # GNU make 3.81 is the make of macOS
    newer = r"\$\(file |\.ONESHELL|\$\(guile|\$\(let |\$\(intcmp|!=|\.RECIPEPREFIX|::=|\bundefine\b|\.NOTINTERMEDIATE"
    assert not re.findall(newer, "\n".join(code_of(MAKEFILE)))


def test_the_search_finds_what_it_is_for():
    bad = ["mapfile -t x", "declare -A m", "echo ${x,,}", "a |& b", "a &>> b", 'echo "${x[-1]}"', "wait -n",
           "printf '%(%F)T'", "[[ -v x ]]"]
    assert found(NEWER_BASH, bad) == bad
    bad = ["sed -i s/a/b/ f", "date -d now", "readlink -f x", "stat -c %s x", "grep -oP x", "for i in $(seq 3)",
           "a && timeout 3 x", "x -j $(nproc)"]
    assert found(GNU_ONLY, bad) == bad
    good = ["sed -n 1p", "date +%F", "grep -E x", '${x[@]+"${x[@]}"}', "${x:+--a=$x}", "# mapfile", "${TIMEOUT:-3}",
            "${x##*,}", "--max-seq-len=4 --head-dim=64", 'local a="$1"', "ln -sfn a b"]
    assert found(NEWER_BASH, code_of("\n".join(good))) + found(GNU_ONLY, code_of("\n".join(good))) == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_array_that_begins_empty_is_expanded_as_bash_3_2_needs_it(script):
    """Under set -u, bash 3.2 takes "${x[@]}" of an empty array for an unset variable."""
    text = "\n".join(code_of(script.read_text(encoding="utf-8")))
    for name in re.findall(r"\b(\w+)=\(\)", text):
        assert re.findall(r'\$\{%s\[@\]\+"\$\{%s\[@\]\}"\}' % (name, name), text), name
        assert not re.findall(r'(?<!\+)"\$\{%s\[@\]\}"' % name, text), name


@pytest.fixture
def old_bash(tmp_path, base_dir, monkeypatch):
    """The stage of test_runs.py, in a bash without the builtins that 3.2 lacks, and without GNU's programs."""
    stage = Stage(tmp_path, base_dir)
    (tmp_path / "env").write_text("{ enable -n mapfile readarray; shopt -s compat32; } 2>/dev/null\n", encoding="utf-8")
    for name in ("realpath", "readlink", "timeout", "nproc", "seq", "tac", "shuf", "sha256sum"):
        (stage.bin / name).write_text(f"#!/bin/sh\necho {name}: not on macOS >&2\nexit 127\n", encoding="utf-8")
        (stage.bin / name).chmod(0o755)
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "env"))
    return stage


@each_that_runs
def test_recipe_runs_in_an_old_bash_from_a_folder_with_a_space(recipe, old_bash, tmp_path):
    place = tmp_path / "My Drive" / "nanochat lab"
    shutil.copytree(ROOT / "runs", place / "runs")
    for name in ("nanochat", "scripts", "pyproject.toml"):
        (place / name).symlink_to(ROOT / name)
    calls = old_bash.run(place / "runs" / recipe.name, NANOCHAT_BASE_DIR=str(tmp_path / "My Drive" / "base"))
    assert old_bash.result.returncode == FALLS_BACK.get(recipe.name, 0), old_bash.result.stderr
    assert calls and "not on macOS" not in old_bash.result.stderr


def test_lane_b_passes_on_what_was_inferred_in_an_old_bash(old_bash, tmp_path):
    shutil.copytree(ROOT / "runs", tmp_path / "lab" / "runs")
    for name in ("nanochat", "scripts"):
        (tmp_path / "lab" / name).symlink_to(ROOT / name)
    (tmp_path / "lab" / "results").mkdir()
    arms = {"control": {"flags": "-"}, "inferred": {"flags": "--a=1.6"}, "confirmation": {"flags": "--x=1.7 --y='b c'"}}
    (tmp_path / "lab" / "results" / "lane_b_infer.json").write_text(json.dumps({"arms": arms}), encoding="utf-8")
    calls = old_bash.run(tmp_path / "lab" / "runs" / "lane_b.sh")
    assert old_bash.result.returncode == 0, old_bash.result.stderr
    assert [word for word in calls[-2] if word.startswith("--candidate")] == [
        "--candidate=inferred: --a=1.6", "--candidate=confirmation: --x=1.7 --y='b c'"]


def test_product_is_of_numbers_and_runs_nothing(tmp_path):
    def product(*words):
        script = f'set -euo pipefail; source {COMMON}; product "$@"'
        env = {**os.environ, "SKIP_SETUP": "1", "NANOCHAT_BASE_DIR": str(tmp_path / "base")}
        return subprocess.run(["bash", "-c", script, "x", *words], env=env, capture_output=True, encoding="utf-8")
    assert [product(a, b).stdout for a, b in (("0.9", "1"), ("2", "1e-3"), ("-1.5", "+2"))] == ["0.9", "0.002", "-3"]
    for word in (f"1; system(\"touch {tmp_path / 'ran'}\")", "abc", ""):
        done = product("2", word)
        assert done.returncode == 2 and "expected two numbers" in done.stderr and not (tmp_path / "ran").exists()


# -----------------------------------------------------------------------------
# The base dir

def base_dir_of_runs(cwd, **env):
    script = f'set -euo pipefail; source {COMMON}; printf %s "$NANOCHAT_BASE_DIR"'
    full = {**os.environ, "SKIP_SETUP": "1", **env}
    return subprocess.run(["bash", "-c", script], cwd=cwd, capture_output=True, encoding="utf-8",
                          env={name: value for name, value in full.items() if value is not None})


@pytest.mark.parametrize("said", ["~", "~/", "~/artifacts", "~/My Drive/../a b", "relative", "./a/../b", "../up", "",
                                  None, "{home}/absolute/"])
def test_base_dir_is_one_folder_in_python_and_in_the_scripts(said, tmp_path, monkeypatch):
    home, cwd = tmp_path / "my home", tmp_path / "cwd"
    home.mkdir(), cwd.mkdir(), monkeypatch.chdir(cwd)
    said = said and said.format(home=home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("NANOCHAT_BASE_DIR") if said is None else monkeypatch.setenv("NANOCHAT_BASE_DIR", said)
    done = base_dir_of_runs(cwd, CDPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, str(get_base_dir())), done.stderr
    assert get_base_dir().is_absolute() and not list(cwd.glob("~*"))
    assert said or get_base_dir() == home / ".cache" / "nanochat"


@pytest.mark.parametrize("said, message", [("~root/x", "home of another user is not looked up"),
                                           ("~nobody-at-all", "home of another user is not looked up")])
def test_home_of_another_user_is_refused_alike(said, message, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", said)
    with pytest.raises(OSError, match=message) as caught:
        get_base_dir()
    done = base_dir_of_runs(tmp_path)
    assert (done.returncode, done.stderr) == (2, f"error: {caught.value}\n") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("home", [None, ""])
def test_user_without_a_home_is_told_what_to_set(home, tmp_path, monkeypatch):
    pwd = pytest.importorskip("pwd")
    monkeypatch.delenv("NANOCHAT_BASE_DIR")
    monkeypatch.delenv("HOME") if home is None else monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: (_ for _ in ()).throw(KeyError("uid not found")))
    with pytest.raises(OSError, match="no home folder.*set NANOCHAT_BASE_DIR") as caught:
        get_base_dir()
    if home == "":  # the list of users cannot be emptied for bash
        done = base_dir_of_runs(tmp_path, HOME="", NANOCHAT_BASE_DIR=None)
        assert (done.returncode, done.stderr) == (2, f"error: {caught.value}\n")


def test_base_dir_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = base_dir_of_runs(tmp_path, NANOCHAT_BASE_DIR=str(tmp_path / "file" / "base"))
    assert done.returncode == 2 and done.stderr.endswith("set NANOCHAT_BASE_DIR to a folder that you may write to\n")
