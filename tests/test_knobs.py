"""
The experiment knobs: closed forms, refusals, and tiny runs that show what each changes and what none may change.

python -m pytest tests/test_knobs.py -q
"""

import math
import re
from dataclasses import asdict

import pytest

from nanochat.config import FIELDS, parse
from nanochat.cost import gpt_config, meta_model, resolve, scaling_params
from nanochat.record import read_metrics, read_record
from nanochat.schedule import (
    B_REF,
    budget_position,
    ema_time_scale,
    lr_multiplier,
    multiplied_batch,
    muon_momentum,
    training_clock,
    weight_decay_multiplier,
)
from tests.tiny import make_base
from tests.train_case import assert_same, assert_same_run, checkpoint, metrics, run

D4 = ["--depth=4", "--device-batch-size=4"]  # 16 micro-batches in 131072 tokens
VOCAB = 32768


def resolved(*flags, vocab_size=VOCAB):
    return resolve(parse([*D4, *flags]), vocab_size)


# -----------------------------------------------------------------------------
# Closed forms

def test_warmdown_shapes_are_the_plans_formulas():
    N, share, final = 200, 0.4, 0.1
    for it in range(N + 1):
        progress = min(1.0, (N - it) / (share * N))
        for shape, m in (("linear", progress), ("cosine", 0.5 * (1 + math.cos(math.pi * (1 - progress))))):
            assert lr_multiplier(it, N, 0, share, final, shape) == pytest.approx(
                m + (1 - m) * final, abs=1e-12), (shape, it)
    linear, cosine = ([lr_multiplier(it, N, 0, share, final, shape) for it in range(N + 1)]
                      for shape in ("linear", "cosine"))
    assert (all(c > x for c, x in zip(cosine[121:160], linear[121:160]))
            and all(c < x for c, x in zip(cosine[161:200], linear[161:200])))
    assert (cosine[120] == linear[120] == 1 and cosine[160] == pytest.approx(linear[160])
            and cosine[200] == linear[200] == 0.1)


def test_a_position_is_where_in_the_schedule_a_run_is_and_warm_ups_go_by_steps():
    N = 2000
    for step, position in ((450, 450.0), (450, 1400.5), (500, 2000)):
        assert (lr_multiplier(step, N, 40, 0.5, 0.1, "cosine", position)
                == lr_multiplier(position, N, 40, 0.5, 0.1, "cosine"))
        assert muon_momentum(step, N, 0.5, position) == muon_momentum(position, N, 0.5)
    assert (lr_multiplier(9, N, 40, 0.5, 0.1, "linear", 1500.0) == 0.25
            and muon_momentum(200, N, 0.5, 1500.0) == muon_momentum(200, N, 0.5))
    assert weight_decay_multiplier(budget_position(10, N, 30.0, 60.0), N) == pytest.approx(0.5)
    for spent, expected in ((0.0, 700), (20.9, 700), (30.0, 1000), (60.0, 2000), (61.0, 2000)):
        assert budget_position(700, N, spent, 60.0) == pytest.approx(expected)
    assert [budget_position(s, N, 1e9, -1) for s in (0, 7)] == [0, 7]


def test_the_wall_budgets_clock_charges_a_resumed_runs_first_step_at_the_mean():
    assert training_clock(11, 0.0, 0) == 0.0
    assert training_clock(31, 0.1 + 0.2, 20) == 0.1 + 0.2, "nothing was left out: the sum itself, to the last bit"
    assert training_clock(31, 19 * 0.5, 19) == 10.0


def test_multiplied_batch_is_the_nearest_multiple_and_a_refusal_names_the_nearest_that_are_none():
    refused = 0
    for accum in range(1, 34):
        for multiplier in (0.03, 0.5, 0.7, 0.97, 0.999, 1.01, 1.4, 1.5, 2.0, 7.3):
            multiples = [k for k in range(1, 300)]
            best = min(abs(k - multiplier * accum) for k in multiples)
            nearest = [k for k in multiples if abs(k - multiplier * accum) == best]
            try:
                assert multiplied_batch(accum * 96, multiplier, 3, 32) // 96 in nearest
                assert nearest != [accum]
            except ValueError as e:
                refused += 1
                assert nearest == [accum] or multiplier * accum <= 0.5 or accum in nearest, (accum, multiplier)
                named = [float(word) for word in re.search(r"do not: ([^;]*);", str(e))[1].split(" and ")]
                batches = {multiplied_batch(accum * 96, value, 3, 32) // 96 for value in named}
                assert batches and accum not in batches
                if "the same batch" in str(e):
                    assert batches == {k for k in (accum - 1, accum + 1) if k}
    assert refused > 50 and multiplied_batch(96, 1.0, 3, 32) == 96


def test_batch_multiplier_keeps_the_tokens_and_rates_and_decay_follow_the_effective_batch():
    flops = 131072 * 80 * resolved("--num-iterations=1").flops_per_token
    for horizon in ("--num-iterations=80", f"--target-flops={flops}", "--target-param-data-ratio=0.5"):
        one = resolved("--total-batch-size=131072", horizon)
        for asked, got in ((0.7, 11 / 16), (1.4, 22 / 16), (2.0, 2.0)):
            r = resolved("--total-batch-size=131072", horizon, f"--batch-multiplier={asked}")
            assert r.total_batch_size == 131072 * got == r.grad_accum_steps * 8192 and r.batch_multiplier == got
            assert abs(r.total_tokens - one.total_tokens) <= r.total_batch_size
            assert (r.matrix_lr == pytest.approx(one.matrix_lr * got ** 0.5)
                    and r.batch_lr_scale == (r.total_batch_size / B_REF) ** 0.5)
            assert r.weight_decay == pytest.approx(one.weight_decay * got ** 0.5)
            assert r.tau == pytest.approx(one.tau * one.total_tokens / r.total_tokens), "B, eta and lambda cancel"
    assert resolved("--batch-multiplier=1.4").total_batch_size == round(1.4 * resolved().total_batch_size / 8192) * 8192


def test_rate_and_decay_multipliers_are_effective_values_and_move_tau():
    plain, both = (resolved("--num-iterations=50"),
                   resolved("--num-iterations=50", "--lr-multiplier=0.9", "--wd-multiplier=1.4"))
    assert (both.matrix_lr, both.weight_decay) == pytest.approx((0.9 * plain.matrix_lr, 1.4 * plain.weight_decay))
    assert both.tau == pytest.approx(plain.tau / (0.9 * 1.4)) and both.batch_lr_scale == plain.batch_lr_scale
    assert plain.tau == ema_time_scale(plain.total_batch_size, plain.matrix_lr, plain.weight_decay, plain.total_tokens)
    assert resolved("--num-iterations=50", "--wd-multiplier=0").tau is None


def test_neutral_values_resolve_to_the_same_bits():
    neutral = ["--warmdown-shape=linear", "--batch-multiplier=1", "--lr-multiplier=1", "--wd-multiplier=1",
               "--ratio-ref=-1", "--wall-budget-sec=-1", "--target-bpb=-1", "--eval-near-target=-1"]
    for flags in ([], ["--num-iterations=33"], ["--target-flops=1e17"], ["--total-batch-size=524288"]):
        assert asdict(resolved(*flags, *neutral)) == asdict(resolved(*flags))


# -----------------------------------------------------------------------------
# The reference of the laws

def test_pinned_reference_holds_tau_for_every_horizon_and_the_unpinned_one_goes_as_1_over_ratio():
    d12 = scaling_params(meta_model(gpt_config(parse(["--depth=12"]), VOCAB)))
    expected = B_REF / (0.02 * 0.28 * 12 * d12)
    for depth in (12, 6):
        base = [f"--depth={depth}", "--device-batch-size=4"]
        ratios = [[f"--target-param-data-ratio={ratio}"] for ratio in (3, 12, 40)]
        others = [["--target-flops=3e18"], ["--num-iterations=700", "--total-batch-size=262144"],
                  [*ratios[0], "--batch-multiplier=1.5"]]
        for flags in ratios + others:
            r = resolve(parse([*base, *flags, "--ratio-ref=12"]), VOCAB)
            assert r.tau == pytest.approx(expected, rel=1e-12) and r.ref_tokens == 12 * d12, flags
        taus = [resolve(parse([*base, *flags]), VOCAB).tau for flags in ratios]
        assert [t / taus[1] for t in taus] == pytest.approx([4, 1, 0.3], rel=5e-3), "up to the last, incomplete step"


def test_pinned_reference_at_the_runs_own_ratio_is_upstreams_and_away_from_it_the_batch_follows_the_tokens():
    plain, pinned = (resolve(parse(["--depth=12", *flags]), VOCAB) for flags in ([], ["--ratio-ref=12"]))
    assert (plain.total_batch_size, plain.num_iterations, plain.ref_tokens) == (
        B_REF, pinned.num_iterations, pinned.ref_tokens)
    assert pinned.total_batch_size == B_REF and pinned.weight_decay == pytest.approx(plain.weight_decay, rel=1e-3)
    # 4 and 12 times the tokens of the reference: 524288 x 4^0.383 = 891,551 and 524288 x 12^0.383 = 1,357,900
    for ratio, batch in ((48, 2 ** 20), (144, 2 ** 20), (1.5, 2 ** 18)):
        assert resolve(parse(["--depth=12", f"--target-param-data-ratio={ratio}", "--ratio-ref=12"]),
                       VOCAB).total_batch_size == batch
        assert resolve(parse(["--depth=12", f"--target-param-data-ratio={ratio}"]), VOCAB).total_batch_size == B_REF
    flops = 48 * plain.num_scaling_params * plain.flops_per_token
    assert resolve(parse(["--depth=12", f"--target-flops={flops}", "--ratio-ref=12"]),
                   VOCAB).total_batch_size == 2 ** 20


# -----------------------------------------------------------------------------
# Refusals

@pytest.mark.parametrize("flags, message", [
    ("--total-batch-size=2097152 --device-batch-size=32 --batch-multiplier=1.01",
     "rounds to the same batch: 2097152 tokens are 32 micro-batches of 65536; "
     "the nearest that do not: 0.96875 and 1.03125; a smaller --device-batch-size gives finer ones"),
    ("--total-batch-size=65536 --batch-multiplier=1.4", "1 micro-batches of 65536; the nearest that do not: 2;"),
    ("--total-batch-size=131072 --batch-multiplier=0.2", "rounds to no batch"),
    ("--warmdown-shape=cosine --warmdown-ratio=0", "--warmdown-shape=cosine: expected a warmdown"),
    ("--warmdown-shape=cosine --final-lr-frac=1", "--warmdown-shape=cosine: expected a warmdown"),
    ("--warmdown-shape=square", "'square'"),
    ("--wd-multiplier=2 --weight-decay=0", "--wd-multiplier=2.0: expected a --weight-decay above 0"),
    ("--ratio-ref=12 --weight-decay=0 --total-batch-size=65536",
     "--ratio-ref=12.0: expected an automatic batch or a weight decay"),
    ("--ratio-ref=12 --wd-multiplier=0 --total-batch-size=65536",
     "--ratio-ref=12.0: expected an automatic batch or a weight decay"),
    ("--ratio-ref=12 --num-iterations=5", "--ratio-ref=12.0: expected --total-batch-size beside --num-iterations"),
    ("--target-bpb=1", "--target-bpb=1.0: expected --eval-near-target beside it"),
    ("--eval-near-target=5", "--eval-near-target=5: expected --target-bpb beside it"),
    ("--eval-near-bpb=0.2", "--eval-near-bpb=0.2: expected --eval-near-target beside it"),
    ("--target-bpb=1 --eval-near-target=250", "--eval-near-target=250: expected less than --eval-every=250"),
    ("--target-bpb=1 --eval-near-target=5 --eval-every=-1", "expected less than --eval-every=-1"),
])
def test_a_knob_that_would_change_nothing_is_refused(capsys, flags, message):
    with pytest.raises(SystemExit):
        parse(flags.split())
    assert message in capsys.readouterr().err


def test_a_multiplier_that_rounds_away_on_the_automatic_batch_is_refused_too():
    batch = resolved().total_batch_size
    with pytest.raises(ValueError, match=f"the same batch: {batch} tokens"):
        resolved("--batch-multiplier=1.001")


def test_only_the_budget_is_another_workload():
    knobs = [name for name in FIELDS if name in ("wall_budget_sec", "warmdown_shape", "ratio_ref", "target_bpb")
             or name.endswith("_multiplier") or name.startswith("eval_near")]
    assert len(knobs) == 9 and [name for name in knobs if FIELDS[name].role == "workload"] == ["wall_budget_sec"]


# -----------------------------------------------------------------------------
# Runs

@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A base directory with the control's run in it."""
    path = tmp_path_factory.mktemp("knobs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(path))
        make_base(path)
        run("--model-tag=control")
    return path


@pytest.fixture
def base(home, base_dir, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(home))
    return home


def steps_of(base, tag):
    return [row for row in read_metrics(base / "records" / tag / "metrics.jsonl") if "train/loss" in row]


def evals_of(base, tag):
    return {row["step"]: row["val/bpb"] for row in read_metrics(base / "records" / tag / "metrics.jsonl")
            if "val/bpb" in row}


def test_a_budget_that_does_not_bind_and_evals_that_watch_change_no_bit(base):
    start, end = evals_of(base, "control")[0], evals_of(base, "control")[12]
    run("--model-tag=wall", "--wall-budget-sec=1e9")
    run("--model-tag=watch", f"--target-bpb={(start + end) / 2}", "--eval-near-target=1", "--eval-near-bpb=10")
    assert_same_run(base, "control", "wall")
    for part in (0, 1):
        a, b = checkpoint(base, "control")[part], checkpoint(base, "watch")[part]
        assert_same(a if part == 0 else a["state"], b if part == 0 else b["state"])
    without = [[row for row in metrics(base, tag) if "train/loss" in row] for tag in ("control", "watch")]
    assert without[0] == without[1] and len(evals_of(base, "watch")) > len(evals_of(base, "control")) == 4
    assert read_record(base, "wall")["results"]["bound"] == "iterations"


@pytest.mark.parametrize("flags, scale, decay", [
    (["--lr-multiplier=1.25"], 1.25, 1), (["--wd-multiplier=3"], 1, 3), (["--batch-multiplier=2"], 2 ** 0.5, 2 ** 0.5),
    (["--ratio-ref=0.05"], 1, None), (["--warmdown-shape=cosine"], 1, 1)],
    ids=lambda x: x[0] if isinstance(x, list) else "")
def test_every_knob_reaches_the_weights(base, flags, scale, decay):
    tag = flags[0].strip("-").replace("=", "_")
    facts, control = run(f"--model-tag={tag}", *flags), read_record(base, "control")
    assert (facts["status"] == "ok" and facts["profile_hash"] == control["profile_hash"]
            and facts["config_hash"] != control["config_hash"])
    last = facts["results"]["steps"]
    assert last == (6 if "--batch-multiplier=2" in flags else 12) and facts["results"]["trained_tokens"] == 12 * 128
    ours, theirs = checkpoint(base, tag, last), checkpoint(base, "control")
    assert any(not (ours[0][name] == theirs[0][name]).all() for name in theirs[0])
    groups = [[(g["kind"], g["initial_lr"]) for g in c[1]["param_groups"]] for c in (ours, theirs)]
    for (kind, a), (_, b) in zip(*groups, strict=True):
        assert a == pytest.approx(scale * b) or (a == b == 0.2 and kind == "adamw"), (
            "0.2 is the rate that no flag reaches")
    r, c = facts["resolved"], control["resolved"]
    assert r["matrix_lr"] == pytest.approx(scale * c["matrix_lr"]) == pytest.approx(dict(groups[0])["muon"])
    assert decay is None or r["weight_decay"] == pytest.approx(decay * c["weight_decay"])
    assert r["tau"] == pytest.approx(r["total_batch_size"] / (r["matrix_lr"] * r["weight_decay"] * r["total_tokens"]))


def test_a_rate_multiplier_of_a_half_is_half_of_each_rate_flag(base):
    run("--model-tag=half", "--lr-multiplier=0.5")
    run("--model-tag=halves", *(f"--{name.replace('_', '-')}={FIELDS[name].default / 2}" for name in FIELDS
                                if name.endswith("_lr")))
    assert_same_run(base, "half", "halves")
    assert metrics(base, "half") != metrics(base, "control")


def test_cosine_differs_where_the_rate_falls_and_nowhere_before(base):
    run("--model-tag=cosine", "--warmdown-shape=cosine")
    falls = 12 - round(0.65 * 12)  # the last step at the full rate
    for ours, theirs in zip(steps_of(base, "cosine"), steps_of(base, "control"), strict=True):
        progress = min(1.0, (12 - ours["step"]) / 8)
        m = 0.5 * (1 + math.cos(math.pi * (1 - progress)))
        assert ours["train/lrm"] == pytest.approx(0.5 * (ours["step"] + 1) if ours["step"] < 2 else m + (1 - m) * 0.05)
        same = ours["train/loss"] == theirs["train/loss"]
        assert same if ours["step"] <= falls + 1 else not same, (
            "the weights of the first changed step show in the next loss")


def test_the_record_says_which_bound_ended_the_run(base):
    r = read_record(base, "control")["resolved"]
    flops, ratio = r["flops_per_token"] * 128 * 5, 128 * 5 / r["num_scaling_params"]
    for tag, flags in (("flops", [f"--target-flops={flops}"]),
                       ("ratio", [f"--target-param-data-ratio={ratio * 1.01}"])):
        facts = run(f"--model-tag=by_{tag}", "--num-iterations=-1", *flags)
        assert (facts["results"]["bound"] == tag
                and facts["results"]["steps"] == 5 == facts["resolved"]["num_iterations"])
    assert read_record(base, "control")["results"]["bound"] == "iterations"
