"""
Arms on other trees, from their text to their worktree, flags and hash; with a made-up nanochat (tests/tree_case.py).

python -m pytest tests/test_tree_arms.py -q
"""

import os
import shutil
import subprocess
import sys

import pytest

from nanochat.common import REPO_ROOT
from nanochat.config import TrainConfig, read_config
from nanochat.lab.arms import profile_changes, same_options
from nanochat.lab.protocol.protocol import run
from nanochat.lab.trees.flags import check_values, settle
from nanochat.lab.trees.tree_arms import make_all_arms
from nanochat.options import spellings
from nanochat.record import read_record
from tests.tree_case import BETTER, COMMON, CONTROL, arms_of, commit, enter_with_tree, git, insert, make, write

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="no git")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    enter_with_tree(tmp_path, monkeypatch)


def test_tree_without_a_seed_gets_one_seed_and_the_hint():
    assert make("control: tree=tree", seeds=[42]).cells
    with pytest.raises(ValueError,
                       match="arm control: the trainer of .* has no --seed.*nanochat_seed.patch to EVERY arm"):
        make("control: tree=tree", seeds=[1, 2])
    with pytest.raises(ValueError, match="arm better"):
        make(CONTROL, "better: tree=tree patch=better.patch", seeds=[1, 2])


def test_unknown_flag_is_refused_by_name_before_anything_runs():
    with pytest.raises(ValueError, match="arm better: its trainer has no flag --expert; did you mean --experts"):
        make(CONTROL, BETTER + " flags=--expert=2")
    # Our trainer has the flag, theirs does not.
    with pytest.raises(ValueError, match="arm better: its trainer has no flag --symplectic-gate"):
        make(CONTROL, BETTER + " flags=--symplectic-gate")
    with pytest.raises(ValueError, match="arm better: the trainer of .* refuses its flags: "
                                         ".*--experts: invalid int value: 'many'"):
        make(CONTROL, BETTER + " flags=--experts=many")
    with pytest.raises(ValueError, match="arm control: its trainer has no flag --model-dim, "
                                         "and the arms are to run with --model-dim=128"):
        make(CONTROL, common=[*COMMON, "--model-dim=128"])
    with pytest.raises(ValueError, match="arm better: --seed=3 is set by the protocol"):
        make(CONTROL, BETTER + " flags=--seed=3")
    assert not os.path.exists("results/t")


def test_a_tree_without_a_quiet_start_runs_without_it_and_is_then_another_workload():
    control, other = make_all_arms([], ["a: tree=tree patch=seed.patch"], COMMON, "base")
    assert control.config.quiet_start and not other.config.quiet_start
    assert not [word for word in other.argv if "quiet" in word]
    assert "--quiet-start True -> False" in profile_changes(control, other)
    off = make_all_arms([], ["a: tree=tree patch=seed.patch"], [*COMMON, "--no-quiet-start"], "base")
    assert profile_changes(*off) == []


def test_a_part_of_the_model_that_the_trees_trainer_lacks():
    """At its default it is not passed on. Otherwise it is refused, in either spelling, --no-smear too."""
    plain, = arms_of("control: tree=tree")
    assert not [word for word in plain.argv if "smear" in word or "residual" in word or "mlp" in word]
    same, = arms_of("control: tree=tree", common=[*COMMON, "--smear", "--mlp=relu_squared", "--no-symplectic-gate"])
    assert same.argv == plain.argv
    for flags, named in (("--no-smear", "--smear"), ("--mlp=other", "--mlp"),
                         ("--residual=symplectic", "--symplectic-gate")):
        with pytest.raises(ValueError,
                           match=f"arm control: its trainer has no flag {named}, and the arms are to run with"):
            arms_of("control: tree=tree", common=[*COMMON, flags])


@pytest.mark.parametrize("text, message", [
    ("x: tree=nowhere", "arm x: tree=nowhere: no such folder"),
    ("x: tree=tree patch=no.patch", "arm x: patch .*cannot be read"),
    ("x: tree=tree tree=tree", "arm x: .* one tree"), ("x: tree=tree plus=1", "arm x: .*'plus=1' is not understood"),
    ("x: tree=tree patch=seed.patch patch=seed.patch", "arm x: .*applied once"),
    ("control: --depth=4", "the control is the profile"),
    ("no colon", "expected 'NAME:"), ("x: tree=tree flags=depth=4", "arm x: 'depth=4' is not a flag"),
    ("a b: tree=tree", "expected a name")])
def test_text_that_means_nothing_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        arms_of(text)


def test_patch_that_does_not_apply_is_refused_and_leaves_no_worktree():
    write(arms_of(CONTROL)[0].tree.source / "nanochat/model.py", "LOSS = 5.0\n")
    commit("tree", "moved on")
    with pytest.raises(ValueError, match="arm better: better.patch does not apply to .* after seed.patch"):
        arms_of(BETTER)
    assert len(git("tree", "worktree", "list").splitlines()) == 2  # the tree, and the control's of before


def test_worktree_is_made_once_per_commit_and_patches_and_again_when_it_was_not_finished():
    first = arms_of(CONTROL)[0].tree
    marker = first.path / "scripts" / "marker.txt"
    write(marker, "still the same folder")
    assert arms_of(CONTROL)[0].tree == first and marker.exists()
    first.path.with_name(f"{first.path.name}.json").unlink()
    assert arms_of(CONTROL)[0].tree == first and not marker.exists()
    shutil.rmtree(first.path)
    assert arms_of(CONTROL)[0].tree == first and first.path.is_dir()
    write(arms_of(CONTROL)[0].tree.source / "README.md", "second\n")
    commit("tree", "second")
    assert arms_of(CONTROL)[0].tree.path != first.path


def test_edited_worktree_is_refused_and_an_edit_in_the_course_of_a_protocol_too():
    made = make(CONTROL, seeds=[3])
    insert(made.arms[0].tree.path / "nanochat/model.py", "# the rest", "LOSS = 0.0\n")
    with pytest.raises(ValueError, match="arm control: .* changed since this protocol began"):
        run(made)
    with pytest.raises(ValueError, match="is not what it was made as"):
        arms_of(CONTROL)


def test_patched_arm_needs_a_clean_tree_and_a_plain_one_runs_what_is_there():
    source = arms_of(CONTROL)[0].tree.source
    clean = make("control: tree=tree", seeds=[42]).cells[0].config_hash
    insert(source / "nanochat/model.py", "# the rest", "LOSS -= 1\n")
    with pytest.raises(ValueError, match="arm control: .* has changes that are not committed"):
        arms_of(CONTROL)
    made = make("control: tree=tree", seeds=[42])
    assert made.cells[0].config_hash != clean and run(made) == 0
    record = read_record(made.home, made.cells[0].tag)
    assert (record["dirty"] is True and record["results"]["val_bpb"] == pytest.approx(1.8)
            and record["patch_hash"] is None)


def test_hash_of_a_cell_is_options_commit_patches_and_data():
    def hash_of(*texts, **options):
        return make(*texts, seeds=[3], **options).cells[-1].config_hash
    base = hash_of(CONTROL)
    assert hash_of(CONTROL) == base and len({base, hash_of(BETTER), hash_of(CONTROL + " flags=--experts=1"),
                                             hash_of(CONTROL, common=[*COMMON, "--depth=4", "--head-dim=64"])}) == 4
    write(arms_of(CONTROL)[0].tree.source / "README.md", "another commit\n")
    commit("tree", "second")
    assert hash_of(CONTROL) != base


def test_a_profile_that_an_arm_changes_is_seen_and_so_is_the_order_of_documents():
    control, seeded, plain, deep = make_all_arms(
        [], ["a: tree=tree patch=seed.patch", "b: tree=tree", "c: tree=tree flags=--depth=8"],
        [*COMMON, "--no-quiet-start"], "base")
    assert profile_changes(control, seeded) == []  # both shuffle by seed
    assert profile_changes(control, plain) == ["--data-order seed -> file"]
    assert "--depth 4 -> 8" in profile_changes(control, deep)
    in_order = make_all_arms([], ["b: tree=tree"], [*COMMON, "--no-quiet-start", "--data-order=file"], "base")
    assert profile_changes(*in_order) == []
    with pytest.raises(ValueError, match="--data-order=file: the tree's trainer orders documents by its --seed"):
        make_all_arms([], ["a: tree=tree patch=seed.patch"], [*COMMON, "--data-order=file"], "base")


def test_equal_options_on_other_code_are_no_a_a():
    arms = arms_of(CONTROL, "same: tree=tree patch=seed.patch", BETTER)
    assert same_options(arms) == [("control", "same")]


def test_command_of_the_protocol_names_trees_again():
    made = make(CONTROL, BETTER, "plain: flags=--weight-decay=0.1")
    words = made.command().replace("'", "")
    assert (f"--arm={CONTROL}" in words and f"--arm={BETTER}" in words
            and "--candidate=plain: --weight-decay=0.1" in words)


def test_protocol_command_takes_arms(tmp_path):
    """The real command, as far as its refusals: the steps after them need a corpus."""
    arm = f"x: tree={tmp_path / 'tree'} flags=--no"
    done = subprocess.run([sys.executable, "-m", "scripts.protocol", "--profile=smoke-cpu", "--arm", arm],
                          cwd=REPO_ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "arm x: its trainer has no flag --no" in done.stderr, done.stderr



@pytest.mark.parametrize("spelling", ["--residual=symplectic", "--symplectic-gate"])
def test_two_spellings_of_one_option_are_passed_on_as_one(spelling):
    """A tree that knows both spellings gets the switch alone: both at once are refused by its trainer."""
    common = [*COMMON, spelling]
    _, argv, _ = settle(read_config(common), common, [], set(spellings(TrainConfig)))
    assert [word for word in argv if word.startswith(("--residual", "--symplectic"))] == ["--symplectic-gate"]
    assert read_config(argv).residual == "symplectic"


def test_a_bad_value_is_found_by_this_repositorys_own_trainer_before_anything_runs():
    check_values(REPO_ROOT, ["--depth=4", "--dtype=float32"])
    with pytest.raises(ValueError, match="refuses its flags: .*--dtype.*'float99'"):
        check_values(REPO_ROOT, ["--depth=4", "--dtype=float99"])
