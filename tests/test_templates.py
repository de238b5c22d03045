"""
The templates A to G, run with a `python` that only writes down its arguments. Every arm parses with the trainer's
parser, no two arms of a template are the same run, and all of them are comparable with their control.

python -m pytest tests/test_templates.py -q
"""

import os
import shlex
import shutil
from dataclasses import asdict

import pytest
from test_runs import ROOT, Stage

from nanochat.cost import resolve
from nanochat.lab.arms import make_arms, profile_changes, refuse_rounded
from nanochat.lab.profiles import PROFILES

pytestmark = pytest.mark.skipif(os.name == "nt" or not shutil.which("bash") or not shutil.which("awk"),
                                reason="no POSIX bash or no awk")

ON_CPU = {"theory_slice": {"BATCH": "2"}, "warmdown": {}, "batch": {}, "lr_wd": {}, "horizon": {"RATIOS": "0.02 0.03"},
          "shape": {"DEPTH": "4", "TARGET_FLOPS": "4e12"}}  # as the headers of the templates say
CASES = [(name, profile) for name in ON_CPU for profile in ("protocol-16gb", "smoke-cpu")]
VOCAB = {"protocol-16gb": 32768, "smoke-cpu": 4096}
each_case = pytest.mark.parametrize("name, profile", CASES, ids=lambda value: value)


@pytest.fixture
def stage(tmp_path, base_dir):
    return Stage(tmp_path, base_dir)


def values(call, flag):
    return [word.partition("=")[2] for word in call if word.startswith(flag + "=")]


def protocols(stage, name, profile="protocol-16gb", **env):
    """[(label, arms)] of every protocol that the template asks for."""
    env = {**(ON_CPU[name] if profile == "smoke-cpu" else {}), **env}
    calls = stage.run(ROOT / "runs" / f"{name}.sh", PROFILE=profile, **env)
    assert stage.result.returncode == 0, stage.result.stderr
    assert all(call[:2] == ["-m", "scripts.protocol"] and values(call, "--profile") == [profile] for call in calls)
    out = []
    for call in calls:
        flags, = values(call, "--flags")
        label, = values(call, "--label")
        out.append((label, make_arms(values(call, "--candidate"), [*PROFILES[profile].flags, *shlex.split(flags)])))
    return out


def resolved(arm, profile):
    return resolve(arm.config, VOCAB[profile])


@each_case
def test_every_arm_is_another_run_and_gets_a_verdict(name, profile, stage):
    for _, arms in protocols(stage, name, profile):
        facts = [asdict(resolved(arm, profile)) for arm in arms]
        refuse_rounded(arms, facts)
        options = ("depth", "lr_multiplier", "warmdown_ratio", "warmdown_shape", "final_lr_frac")
        runs = [(run["num_iterations"], run["total_batch_size"], run["n_embd"], run["n_head"],
                 round(run["weight_decay"], 9), *(getattr(arm.config, option) for option in options))
                for arm, run in zip(arms, facts)]
        assert len(set(runs)) == len(arms) > 2
        assert all(profile_changes(arms[0], arm) == [] for arm in arms)


@pytest.mark.parametrize("name", ["theory_slice", "warmdown", "batch", "lr_wd"])
def test_sweeps_compare_at_equal_tokens(name, stage):
    for _, arms in protocols(stage, name):
        tokens = [resolved(arm, "protocol-16gb").total_tokens for arm in arms]
        assert max(tokens) / min(tokens) - 1 < 1e-3


def test_theory_slice_has_the_arms_of_the_plan_and_the_bundle_is_all_of_them(stage):
    (label, arms), = protocols(stage, "theory_slice")
    assert (label, [arm.name for arm in arms]) == ("theory_slice", ["control", "warmdown", "batch", "lr_wd", "bundle"])
    flags = [set(arm.flags.split()) for arm in arms]
    assert flags[4] == flags[1] | flags[2] | flags[3] and not flags[1] & flags[2] | flags[2] & flags[3]
    tau = [resolved(arm, "protocol-16gb").tau for arm in arms]
    assert tau[3] == pytest.approx(tau[0], rel=2e-3), "learning rate and decay move together: tau stays"


@pytest.mark.parametrize("profile", list(VOCAB))
def test_batch_is_centred_on_the_predicted_optimum(profile, stage):
    (_, arms), = protocols(stage, "batch", profile)
    base, = make_arms([], list(PROFILES[profile].flags))
    run = resolved(base, profile)
    d12 = 12 * 12 * 768 ** 2 + VOCAB[profile] * 768  # matrices and lm_head of the reference
    predicted = 2 ** 19 * (run.total_tokens / (12 * d12)) ** 0.383
    batches = [resolved(arm, profile).total_batch_size for arm in arms]
    assert 2 ** -0.5 < predicted / batches[0] < 2 ** 0.5, "the nearest power of two"
    assert [b / batches[0] for b in batches] == pytest.approx([1, 0.7, 1.4], abs=0.06)  # whole micro-batches
    rates = [resolved(arm, profile).matrix_lr for arm in arms]
    assert ([r / rates[0] for r in rates]
            == pytest.approx([(b / batches[0]) ** 0.5 for b in batches])), "rates follow the batch"


def test_batch_that_rounds_to_the_control_is_refused_by_name(stage):
    with pytest.raises(ValueError, match="arm batch07: --batch-multiplier=0.7 rounds to the same batch"):
        protocols(stage, "batch", "smoke-cpu", BATCH="1")


def test_warmdown_and_lr_wd_are_the_grids_of_the_plan(stage):
    (_, arms), = protocols(stage, "warmdown")
    assert {(arm.config.warmdown_ratio, arm.config.warmdown_shape) for arm in arms[1:]} == {
        (ratio, shape) for ratio in (0.2, 0.3, 0.4, 0.5) for shape in ("linear", "cosine")}
    (_, arms), = protocols(stage, "lr_wd")
    grid = {(lr, wd) for lr in (0.9, 1.0, 1.1) for wd in (0.7, 1.0, 1.4)}
    assert {(arm.config.lr_multiplier, arm.config.wd_multiplier) for arm in arms} == grid and len(arms) == 9
    assert (arms[0].config.lr_multiplier, arms[0].config.wd_multiplier) == (1, 1)
    (_, arms), = protocols(stage, "lr_wd", LR="1.1", WD="0.5")  # around a winner
    found = sorted((arm.config.lr_multiplier, arm.config.wd_multiplier) for arm in arms)
    assert [x for pair in found
            for x in pair] == pytest.approx([x for lr, wd in sorted(grid) for x in (1.1 * lr, 0.5 * wd)])


def test_each_length_of_the_horizon_is_a_label_with_its_own_control(stage):
    found = protocols(stage, "horizon", RATIOS="2 4", LABEL="mine")
    assert [label for label, _ in found] == ["mine_r2", "mine_r4"]
    for ratio, (_, arms) in zip((2, 4), found):
        assert {arm.config.target_param_data_ratio for arm in arms} == {ratio}
        assert resolved(arms[0], "protocol-16gb").effective_ratio == pytest.approx(ratio, rel=1e-3)
        pairs = [(arm.config.final_lr_frac, arm.config.warmdown_ratio) for arm in arms[1:]]
        assert pairs == sorted(pairs), "the higher the rate ends, the longer it falls"


def test_shapes_cost_the_same_flops(stage):
    (_, arms), = protocols(stage, "shape")
    runs = [resolved(arm, "protocol-16gb") for arm in arms]
    assert len({(arm.config.depth, run.n_embd, run.n_head) for arm, run in zip(arms, runs)}) == 4
    for run in runs:
        assert run.flops_per_token * run.total_tokens == pytest.approx(1.8e16, rel=0.02)


def test_shapes_may_share_a_wall_budget_instead(stage):
    (_, arms), = protocols(stage, "shape", WALL_BUDGET_SEC="600")
    assert {arm.config.wall_budget_sec for arm in arms} == {600} and {arm.config.target_flops for arm in arms} == {-1}
    assert all(profile_changes(arms[0], arm) == [] for arm in arms)


def test_fusion_says_that_its_flags_come_later_and_runs_nothing(stage):
    assert stage.run(ROOT / "runs" / "fusion.sh") == []
    assert stage.result.returncode != 0
    assert "no --fused-rmsnorm and no --chunked-ce yet, so nothing was run" in stage.result.stderr


def test_seeds_are_added_until_decided_unless_they_are_given(stage):
    call, = stage.run(ROOT / "runs" / "batch.sh")
    assert {"--until=decided", "--max-seeds=12", "--noise=bank"} <= set(call) and not values(call, "--seeds")
    call, = stage.run(ROOT / "runs" / "batch.sh", SEEDS="1 2", NOISE="own", PRIMARY="wall_time", TARGET_BPB="1.1")
    assert ({"--seeds=1 2", "--noise=own", "--primary=wall_time", "--target-bpb=1.1"} <= set(call)
            and "--until=decided" not in call)


def test_flags_of_the_caller_are_for_every_arm(stage):
    (_, arms), = protocols(stage, "warmdown", FLAGS="--lr-multiplier=1.1 --num-iterations=2000")
    assert {(arm.config.lr_multiplier, arm.config.num_iterations) for arm in arms} == {(1.1, 2000)}
