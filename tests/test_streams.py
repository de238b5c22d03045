"""
Output that nobody reads, that does not fit on the disk, or that cannot be encoded: of commands as a shell runs them.

python -m pytest tests/test_streams.py -q
"""

import os
import shlex
import subprocess
import sys

import pytest

from nanochat.streams import undisturbed
from tests.conftest import REPO_ROOT

PRINTS = "import sys; sys.argv[0] = '-m'; import nanochat\n"  # as `python -m` sets it


def python(*words, **kwargs):
    return subprocess.run([sys.executable, *words], cwd=REPO_ROOT, stderr=subprocess.PIPE, text=True, **kwargs)


@pytest.fixture
def closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("unbuffered", [[], ["-u"]], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("words", [["scripts.base_train", "--help"], ["scripts.patch", "--help"]], ids=lambda w: w[0])
def test_a_command_whose_reader_went_away_ends_quietly(closed_pipe, words, unbuffered):
    result = python(*unbuffered, "-m", *words, stdout=closed_pipe)
    assert result.returncode != 0 and result.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_under_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        result = python("-c", PRINTS + "print('x' * 10 ** 6)", stdout=full)
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "No space left on device" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX closes the descriptor")
def test_a_command_without_any_stdout_runs():
    command = f"{shlex.quote(sys.executable)} -m scripts.patch --help >&-"
    result = subprocess.run(command, shell=True, cwd=REPO_ROOT, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 0 and result.stderr == ""


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-8"])
def test_characters_that_cannot_be_encoded_become_question_marks(encoding):
    result = python("-c", PRINTS + "print('a \\u5317 \\udc80 b', flush=True)", stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}, encoding=encoding)
    assert result.returncode == 0 and result.stdout == ("a ? ? b\n" if encoding != "utf-8" else "a \u5317 ? b\n")


def test_ctrl_c_is_no_traceback():
    result = python("-c", PRINTS + "raise KeyboardInterrupt", stdout=subprocess.PIPE)
    assert result.returncode == 130 and result.stderr == ""


def test_undisturbed_prints_raise_nothing_are_told_once_and_the_streams_come_back(closed_pipe):
    code = PRINTS + "from nanochat.streams import undisturbed\nbefore = sys.stdout\nwith undisturbed():\n" \
        "    for i in range(3): print('x' * 10 ** 5, flush=True)\nsys.exit(0 if sys.stdout is before else 9)"
    result = python("-c", code, stdout=closed_pipe)
    assert result.returncode == 0 and result.stderr.count("Broken pipe") == 1, result.stderr


def test_undisturbed_output_is_the_output(capsys):
    with undisturbed():
        print("ü", flush=True)
        print("told", file=sys.stderr)
    assert capsys.readouterr() == ("ü\n", "told\n")
