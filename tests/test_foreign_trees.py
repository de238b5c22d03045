"""
Trees that are not quite nanochat: flags under other names, output in any encoding, a trainer that fails, no trainer.

python -m pytest tests/test_foreign_trees.py -q
"""

import os
import shutil
import time
from pathlib import Path

import pytest

from nanochat.lab.protocol.protocol import run
from nanochat.lab.trees import flags
from nanochat.lab.trees.flags import known_flags
from nanochat.lab.trees.tree_arms import split_spec
from tests.tree_case import COMMON, FILES, arms_of, commit, enter_with_tree, make, make_repo, record_of, write

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="no git")
TRAINER = "scripts/base_train.py"
LR = [*COMMON, "--matrix-lr=0.03"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    enter_with_tree(tmp_path, monkeypatch)


def other_tree(*edits, name="other"):
    """A tree whose trainer has each text `old` as `new`."""
    tree, text = make_repo(name), FILES[TRAINER]
    for old, new in edits:
        assert text.count(old) == 1
        text = text.replace(old, new)
    write(tree / TRAINER, text)
    commit(tree, "other")
    return tree


RENAMED = (('"matrix-lr"', '"lr-matrix"'),
           ('("save-every", -1), ', ""),
           ('parser.add_argument("--run"', 'parser.add_argument("--checkpoint-every", dest="save_every", type=int, '
            'default=-1)\nparser.add_argument("--run"'))
MAPPED = "control: tree=other rename=matrix-lr:lr-matrix rename=save_every:--checkpoint-every"


def test_flag_that_the_tree_has_under_another_name_is_suggested():
    other_tree(*RENAMED)
    with pytest.raises(ValueError, match="has no flag --matrix-lr, and the arms are to run with --matrix-lr=0.03; did "
                                         "you mean --lr-matrix. Then add rename=matrix-lr:lr-matrix to the arm"):
        arms_of("control: tree=other", common=LR)
    with pytest.raises(ValueError, match="has no flag --expert; did you mean --experts[?]$"):
        arms_of("control: tree=other flags=--expert=4")


def test_mapped_flags_reach_the_trainer_and_the_record_and_the_hash_says_so():
    other_tree(*RENAMED)
    made = make(MAPPED, common=LR, seeds=[42])
    assert run(made) == 0
    record = record_of("control_s42")
    assert "--lr-matrix=0.03" in record["argv"] and not [word for word in record["argv"] if "matrix-lr" in word]
    assert [word for word in record["argv"] if word.startswith("--checkpoint-every=")]
    assert record["renames"] == {"--matrix-lr": "--lr-matrix", "--save-every": "--checkpoint-every"}
    assert record["results"]["steps"] == 20 and "--lr-matrix=0.03" in record["command"]
    half, = arms_of("control: tree=other rename=matrix-lr:lr-matrix", common=LR)
    assert half.argv == made.arms[0].argv and half.tree_id != made.arms[0].tree_id
    faster, = arms_of("control: tree=other rename=matrix-lr:lr-matrix flags=--matrix-lr=0.05")
    assert "--matrix-lr=0.05" in faster.argv and faster.config.matrix_lr == 0.05
    assert made.arms[0].argument == f"--arm={MAPPED}"


def test_mapped_flag_that_is_never_given_makes_no_other_candidate():
    """Else each spare mapping would be a first label of its own, with the whole level of a first label."""
    other_tree(*RENAMED)
    plain, = arms_of("control: tree=other")
    spare, = arms_of("control: tree=other rename=matrix-lr:lr-matrix")
    used, = arms_of("control: tree=other rename=matrix-lr:lr-matrix", common=LR)
    assert spare.argv == plain.argv and spare.tree_id == plain.tree_id != used.tree_id


def test_arm_without_renames_keeps_its_hash():
    """Cells that were run before flags could be mapped are reused."""
    arm, = arms_of("control: tree=tree")
    from nanochat.common import hash_json
    assert arm.tree_id == hash_json({"commit": arm.tree.commit, "patches": [], "content": arm.tree.content,
                                     "argv": arm.argv, "environment": arm.environment})


@pytest.mark.parametrize("rename, message", [
    ("matrix-lr", "expected OURS:THEIRS"), ("matrix-lr:", "expected OURS:THEIRS"),
    ("matrix-rl:lr-matrix", "the trainer of this project has no --matrix-rl; did you mean --matrix-lr"),
    ("matrix-lr:lr-matrices", "the trainer of the tree has no --lr-matrices; did you mean --lr-matrix"),
    ("depth:experts", "the tree has --depth itself")])
def test_rename_that_means_nothing_is_refused(rename, message):
    other_tree(*RENAMED)
    with pytest.raises(ValueError, match=f"arm control: rename={rename}: {message}"):
        arms_of(f"control: tree=other rename={rename}")


def test_switch_takes_its_no_form_along():
    switch = 'parser.add_argument("--jit", action=argparse.BooleanOptionalAction, default=True)\n'
    other_tree(('parser.add_argument("--run"', f'{switch}parser.add_argument("--run"'))
    arm, = arms_of("control: tree=other rename=compile:jit")
    assert arm.renames == {"--compile": "--jit", "--no-compile": "--no-jit"}
    assert "--no-compile" in arm.argv and "TORCHDYNAMO_DISABLE" not in arm.environment


def test_folder_that_is_no_nanochat_is_told_so():
    Path("plain").mkdir()
    with pytest.raises(ValueError, match="arm x: tree=plain is no nanochat: it has no scripts/base_train.py"):
        arms_of("x: tree=plain")


def test_trainer_that_fails_at_help_shows_its_last_line():
    other_tree(("import argparse, json", "import no_such_package\nimport argparse, json"))
    with pytest.raises(ValueError) as caught:
        arms_of("x: tree=other")
    assert "its last line: ModuleNotFoundError: No module named 'no_such_package'" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("edit, why", [("while True: print('x' * 65536)", "prints more than 4 MiB"),
                                       ("time.sleep(600)", "took longer than 3 s")])
def test_trainer_whose_help_never_ends_is_ended(edit, why, monkeypatch):
    monkeypatch.setattr(flags, "HELP_SEC", 3 if "sleep" in edit else 60)
    tree = other_tree(("parser = argparse", f"{edit}\nparser = argparse"))
    with pytest.raises(ValueError, match=f"--help of {tree} {why}; run it by hand"):
        known_flags(tree, edit)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
def test_process_that_a_trainer_leaves_behind_at_help_is_not_waited_for_and_ends(tmp_path):
    pid = tmp_path / "pid"
    tree = other_tree(("parser = argparse", "if os.fork() == 0:\n    time.sleep(600)\n"
                       f"open({str(pid)!r}, 'w').write(str(os.getpid()))\nparser = argparse"))
    started = time.monotonic()
    assert "--depth" in known_flags(tree, "forks") and time.monotonic() - started < 60
    for _ in range(200):
        try:
            os.killpg(int(pid.read_text()), 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("the process lives on")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_banner_of_a_trainer_is_printed_and_read_whatever_the_encoding_here(encoding, monkeypatch):
    """On Windows a pipe is cp1252, which has no block letters; upstream's trainer prints some."""
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    banner = 'print("\\u2588\\u2591 banner")\nsys.stdout.buffer.write(b"\\xff\\n")\n'
    tree = other_tree(("parser = argparse", f"{banner}parser = argparse"))
    assert {"--depth", "--experts"} <= known_flags(tree, encoding)


@pytest.mark.parametrize("text, tree", [
    (r"tree=C:\Users\me\nanochat flags=--depth=4", r"C:\Users\me\nanochat"),
    (r'tree="C:\Users\me\My nanochat"', r"C:\Users\me\My nanochat"),
    (r'tree="C:\Users\me\My nanochat\" patch=C:\new\x.patch', "C:\\Users\\me\\My nanochat\\"),
    (r"tree=../My\ nanochat", "../My nanochat"),
    ("tree='../it is' patch=a.patch", "../it is")])
def test_path_keeps_its_backslashes_where_it_is_a_windows_path(text, tree):
    assert split_spec(text).tree == tree
