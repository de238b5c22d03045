"""
Arms and cells: everything a user can get wrong is found before the first run, by name.

python -m pytest tests/test_arms.py -v
"""

from dataclasses import asdict

import pytest

from nanochat.config import config_hash
from nanochat.cost import resolve
from nanochat.lab.arms import (
    Inputs,
    horizons_differ,
    make_arms,
    make_cells,
    matched_budget,
    parse_seeds,
    profile_changes,
    refuse_rounded,
    same_options,
)

COMMON = ["--depth=4", "--no-compile", "--num-iterations=60"]


def cells_of(candidates, seeds, label="x"):
    return make_cells(make_arms(candidates, COMMON), seeds, label, Inputs("data", "tok", "tree"))


def test_arms_take_turns_to_go_first_within_each_seed():
    order = [(cell.arm.name, cell.seed) for cell in cells_of(["a: --matrix-lr=0.03"], [1, 2, 3])]
    assert order == [("control", 1), ("a", 1), ("a", 2), ("control", 2), ("control", 3), ("a", 3)]
    three = [cell.arm.name for cell in cells_of(["a: --matrix-lr=0.03", "b: --matrix-lr=0.04"], [1, 2, 3])]
    assert three == ["control", "a", "b", "a", "b", "control", "b", "control", "a"]


def test_run_tags_name_label_depth_arm_and_seed():
    tags = {cell.tag for cell in cells_of(["mix005: --symplectic-gate"], [7])}
    assert tags == {"nc_x_d4_control_s7", "nc_x_d4_mix005_s7"}
    assert cells_of([], [7], label="")[0].tag == "nc_d4_control_s7"
    assert cells_of(["deep: --depth=6"], [7])[1].tag == "nc_x_d6_deep_s7"


def test_cells_carry_the_trainers_own_hash():
    for cell in cells_of(["--symplectic-gate"], [7, 8]):
        assert cell.config_hash == config_hash(cell.config, "data", "tok", "tree") and cell.config.seed == cell.seed
    assert len({cell.config_hash for cell in cells_of(["--symplectic-gate"], [7, 8])}) == 4


def test_unnamed_candidates_get_names_and_flags_may_hold_colons():
    arms = make_arms(["--symplectic-gate", "mix: --symplectic-gate --symplectic-gate-mix=0.3", "--run=a:b"], COMMON)
    assert [arm.name for arm in arms] == ["control", "candidate", "mix", "candidate2"]
    assert arms[2].config.symplectic_gate_mix == 0.3 and arms[3].config.run == "a:b" and arms[0].flags == ""


@pytest.mark.parametrize("candidates, message", [
    (["fast: --matrix-lrr=0.03"], "arm fast: unknown flag --matrix-lrr.*did you mean --matrix-lr"),
    (["--symplectic-gate-mix=1.5"], r"arm candidate: --symplectic-gate-mix=1.5: expected a number in \[0, 1\]"),
    (["--matrix-lr=0"], "arm candidate: .*a rate above 0"), (["a: --depth=x"], "arm a: .*--depth"),
    (["a: --help"], "arm a: not a training option"), (["a: --run='x"], "arm a: cannot read"),
    (["a: --seed=3"], "arm a: --seed=3 is set by the protocol"),
    (["--model_tag x"], "--model-tag is set by the protocol"),
    (["--resume"], "--resume is set by the protocol"), (["a: --run=x", "a: --run=y"], "arm a: the name is taken"),
    (["control: --run=x"], "arm control: the name is taken"), (["no good: --run=x"], "arm 'no good': expected a name"),
    (["a/b: --run=x"], "expected a name")])
def test_bad_arm_is_refused_by_name(candidates, message):
    with pytest.raises(ValueError, match=message):
        make_arms(candidates, COMMON)


def test_bad_common_flag_is_refused_before_any_candidate():
    with pytest.raises(ValueError, match="arm control: unknown flag --dept"):
        make_arms(["a: --run=x"], ["--dept=4"])


@pytest.mark.parametrize("words, message", [
    (["x"], "'x' is not a whole number"), (["1.5"], "not a whole number"), (["-1"], "not a whole number"),
    ([""], "no seeds"),
    ([], "no seeds"), (["1", "2", "1"], "a repeated seed"), (["7", "07"], "a repeated seed")])
def test_bad_seeds_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_seeds(words)


def test_equal_arms_and_other_workloads_are_noticed():
    control, same, deep, gate = make_arms(["", "deep: --depth=6", "gate: --symplectic-gate"], COMMON)
    assert same_options([control, same, deep, gate]) == [("control", "candidate")]
    assert profile_changes(control, deep) == ["--depth 4 -> 6"]
    assert profile_changes(control, gate) == [] == profile_changes(control, same)


# -----------------------------------------------------------------------------
# Matched budgets, and arms that rounding makes equal

FLOPS = ["--num-iterations=-1", "--target-flops=1e12"]


@pytest.mark.parametrize("budget", [FLOPS, ["--wall-budget-sec=60"]], ids=["flops", "wall"])
@pytest.mark.parametrize("flags", ["--depth=6", "--aspect-ratio=96", "--model-dim=512", "--head-dim=64",
                                   "--n-kv-head=1"])
def test_shape_is_a_treatment_under_one_budget_and_a_workload_without(budget, flags):
    control, arm = make_arms([flags], [*COMMON, *budget])
    assert profile_changes(control, arm) == []
    assert profile_changes(*make_arms([flags], COMMON)) != []


@pytest.mark.parametrize("flags", ["--max-seq-len=1024", "--eval-tokens=1048576", "--eval-every=5",
                                   "--dtype=bfloat16", "--compile", "--device-batch-size=16", "--data-order=file",
                                   "--window-pattern=L"])
def test_a_budget_matches_nothing_but_the_shape(flags):
    control, arm = make_arms([f"--depth=6 {flags}"], [*COMMON, *FLOPS])
    change, = profile_changes(control, arm)
    assert change.split()[0] in ("--" + flags.lstrip("-").partition("=")[0],)


@pytest.mark.parametrize("flags", ["--target-flops=2e12", "--num-iterations=7", "--wall-budget-sec=9"])
def test_arms_of_different_budgets_are_not_matched(flags):
    control, arm = make_arms([f"--depth=6 {flags}"], [*COMMON, *FLOPS])
    assert any(change.startswith("--depth") for change in profile_changes(control, arm))


def test_length_is_a_treatment_where_the_time_to_one_target_decides():
    candidates = ["longer: --num-iterations=90 --total-batch-size=65536", "deeper: --depth=6"]
    control, longer, deeper = make_arms(candidates, COMMON)
    assert profile_changes(control, longer, "time_to_target") == [] and len(profile_changes(control, longer)) == 2
    assert profile_changes(control, deeper, "time_to_target") == ["--depth 4 -> 6"]
    assert horizons_differ([control, longer]) and not horizons_differ([control, deeper])


def test_steps_are_no_budget_and_hide_one_of_flops():
    assert [matched_budget(make_arms([], [*COMMON, *flags])[0].config) for flags in (
        [], ["--target-flops=1e12"], FLOPS, ["--wall-budget-sec=60"], [*FLOPS, "--wall-budget-sec=60"])] == [
        None, None, "--target-flops=1e+12", "--wall-budget-sec=60", "--wall-budget-sec=60"]


RESOLVE = ["--depth=2", "--max-seq-len=64", "--device-batch-size=2", "--total-batch-size=256", "--num-iterations=-1",
           "--no-compile"]


@pytest.mark.parametrize("flags, common", [
    ("--target-flops=1e11", []),
    ("--total-batch-size=256 --batch-multiplier=1", ["--total-batch-size=128", "--batch-multiplier=2"]),
    ("--model-dim=128", []), ("--wd-multiplier=2 --weight-decay=0.14", [])])
def test_arm_that_resolves_to_another_is_refused_by_name(flags, common):
    arms = make_arms([f"a: {flags}"], [*RESOLVE, "--target-flops=1.001e11", *common])
    with pytest.raises(ValueError, match=f"arm a: {flags} resolves to the run of control"):
        refuse_rounded(arms, [asdict(resolve(arm.config, 1000)) for arm in arms])


def test_arms_that_differ_and_equal_arms_are_no_trap():
    candidates = ["aa:", "lr: --lr-multiplier=1.1", "gate: --symplectic-gate", "down: --warmdown-ratio=0.3",
                  "batch: --batch-multiplier=2"]
    arms = make_arms(candidates, [*RESOLVE, "--target-flops=1e11"])
    refuse_rounded(arms, [asdict(resolve(arm.config, 1000)) for arm in arms])
