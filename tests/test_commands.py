"""
Commands one after another: how they are printed, and how they are interrupted. An interrupt reaches the child and its
own children, once, and they have the time to save.

python -m pytest tests/test_commands.py -q
"""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from nanochat.common import REPO_ROOT, VENV_PYTHON, to_paste
from nanochat.lab.commands import call, module_command, shown

SAVES = """
import pathlib, signal, sys, time
caught = []
signal.signal(signal.SIGINT, lambda *_: caught.append(1))
pathlib.Path(sys.argv[1]).write_text("started")
while not caught:
    time.sleep(0.01)
time.sleep(0.5)  # a checkpoint takes a while
pathlib.Path(sys.argv[1]).write_text(f"saved {len(caught)}")
sys.exit(130)
"""


def test_exit_code_and_environment_are_passed_on():
    assert call([sys.executable, "-c", "import os, sys; sys.exit(int(os.environ['CODE']))"], {"CODE": "7"}) == 7
    command = module_command("scripts.protocol", "--label=a b")
    assert shown(command, {"SEEDS": "1 2"}) == "SEEDS='1 2' python -m scripts.protocol '--label=a b'"


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("shell", [False, True], ids=["program", "template"])
def test_interrupt_lets_the_child_save(tmp_path, shell):
    note, script = tmp_path / "note", tmp_path / "saves.py"
    script.write_text(SAVES)
    command = [sys.executable, str(script), str(note)]
    if shell:
        (tmp_path / "t.sh").write_text(f"set -e\n{shlex.join(command)}\necho not reached > {shlex.quote(str(note))}\n")
        command = ["bash", str(tmp_path / "t.sh")]
    parent = subprocess.Popen([sys.executable, "-c",
                               f"import sys\nfrom nanochat.lab.commands import call\nsys.exit(call({command!r}))"],
                              cwd=REPO_ROOT, start_new_session=True)
    while not (note.exists() and note.read_text() == "started"):
        assert parent.poll() is None
        time.sleep(0.02)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(60) == 130 and note.read_text() == "saved 1"


def test_printed_command_names_the_python_of_venv_where_that_is_running(monkeypatch):
    text = ("see: LABEL=x python -m scripts.gates, `python -m nanochat.dataset -n 8`; "
            "/a/b/python -m scripts.x, python x.py")
    monkeypatch.setattr(sys, "prefix", str(REPO_ROOT.parent / "elsewhere"))
    assert to_paste(text) == text
    monkeypatch.setattr(sys, "prefix", str(REPO_ROOT / ".venv"))
    pasted = to_paste(text)
    assert pasted == (f"see: LABEL=x {VENV_PYTHON} -m scripts.gates, `{VENV_PYTHON} -m nanochat.dataset -n 8`; "
                      "/a/b/python -m scripts.x, python x.py")
    assert to_paste(pasted) == pasted and pasted.count("python -m") == 3
