"""
The default model, its optimizer, schedules and scaling laws are upstream nanochat's.

python -m pytest tests/test_parity.py -q
NANOCHAT_UPSTREAM=PATH python -m pytest tests/test_parity.py -q   (also runs a checkout of upstream beside ours)

Golden figures: tests/make_golden.py. Tolerances: a few roundings of fp32 where sums may be taken in another order
on another CPU; the bars of the issue (1e-4, 1e-5, 3e-2) where whole tensors are compared on one machine.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from closed_form import CASES, RATES, figures, forward, initial_weights, updates
from make_golden import GOLDEN

from nanochat import schedule
from nanochat.config import FIELDS, TrainConfig, parse
from nanochat.cost import count_params, gpt_config, meta_model, resolve
from nanochat.gpt import GPTConfig, build_model
from nanochat.optim import setup_optimizer

torch.set_num_threads(1)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NORMAL = ("transformer.wte.weight", "lm_head.weight")
golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
trainings = pytest.mark.parametrize("theirs", golden["trainings"],
                                    ids=lambda row: row["flags"].replace("--", "").replace(" ", ","))


def run_ours(case, dtype):
    config = CASES[case]
    model = build_model(GPTConfig(**config), "cpu", DTYPES[dtype], seed=42)
    init = {name: p.detach().clone() for name, p in model.named_parameters()}
    sums = initial_weights(model)
    out = forward(model, config)
    moved = updates(model, setup_optimizer(model, polar_dtype=DTYPES[dtype], **RATES))
    return dict(init=init, updates=moved, **out), dict(init=sums, **figures(out, moved))


@pytest.fixture(scope="module", ids="-".join, params=[("d4", "float32"), ("d3", "float32"), ("d3", "bfloat16"),
                                                      pytest.param(("d4", "bfloat16"), marks=pytest.mark.slow)])
def pair(request):
    """(case, dtype, our figures, upstream's figures)"""
    case, dtype = request.param
    return case, dtype, run_ours(case, dtype)[1], golden[dtype][case]


def gap(ours, theirs):
    """||ours - theirs|| / ||theirs|| of two lists."""
    ours, theirs = torch.tensor(ours, dtype=torch.float64), torch.tensor(theirs, dtype=torch.float64)
    return ((ours - theirs).norm() / theirs.norm()).item()


def test_names_of_all_parameters_are_upstreams(pair):
    _, _, ours, theirs = pair
    assert list(ours["init"]) == list(theirs["init"])


def test_seed_42_draws_upstreams_initial_weights(pair):
    """In the same order. Torch's normal_ is another function on CPUs without AVX2: there only the uniform draws are
    compared."""
    _, dtype, ours, theirs = pair
    compared = [name for name in theirs["init"] if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
                or name not in NORMAL]
    assert set(NORMAL) < set(theirs["init"]) and len(compared) >= len(theirs["init"]) - 2
    for name in compared:
        assert ours["init"][name] == pytest.approx(theirs["init"][name], rel=1e-5, abs=1e-4 if dtype == "float32"
                                                   else 1e-2), name


def test_logits_and_losses_are_upstreams(pair):
    _, dtype, ours, theirs = pair
    if dtype == "float32":
        assert ours["logits"] == pytest.approx(theirs["logits"], abs=1e-4)
        assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-4)
    assert gap(ours["logits"], theirs["logits"]) < (1e-5 if dtype == "float32" else 2e-2)
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6 if dtype == "float32" else 1e-3)
    assert ours["mean_abs_logit"] == pytest.approx(theirs["mean_abs_logit"], rel=1e-6 if dtype == "float32" else 1e-3)


def test_gradient_norms_are_upstreams(pair):
    _, dtype, ours, theirs = pair
    for name, expected in theirs["grad_norms"].items():
        assert (expected > 0
                and ours["grad_norms"][name] == pytest.approx(expected, rel=1e-4 if dtype == "float32" else 3e-2)), name


def test_three_optimizer_steps_move_every_tensor_as_upstreams_do(pair):
    _, dtype, ours, theirs = pair
    for name, expected in theirs["updates"].items():
        mine, rel = ours["updates"][name], 1e-4 if dtype == "float32" else 3e-2
        assert mine["norm"] == pytest.approx(expected["norm"], rel=rel), name
        assert mine["moved"] == pytest.approx(expected["moved"], rel=rel), name
        assert gap(mine["samples"], expected["samples"]) < rel, name


# -----------------------------------------------------------------------------
# The trainer's numbers

def config_of(theirs) -> TrainConfig:
    return parse(theirs["flags"].split())


@trainings
def test_parameter_counts_and_flops_are_upstreams(theirs):
    config = config_of(theirs)
    assert count_params(meta_model(gpt_config(config, theirs["vocab_size"]))) == theirs["param_counts"]
    assert resolve(config, theirs["vocab_size"]).flops_per_token == theirs["num_flops_per_token"]


@trainings
def test_resolved_horizon_batch_rate_and_decay_are_upstreams(theirs):
    r = resolve(config_of(theirs), theirs["vocab_size"])
    assert (r.num_iterations, r.total_batch_size, r.grad_accum_steps, r.total_tokens, r.num_scaling_params,
            r.num_params) == tuple(
        theirs[k] for k in ("num_iterations", "total_batch_size", "grad_accum_steps", "total_tokens",
                            "num_scaling_params")) + (
        theirs["param_counts"]["total"],)
    assert (r.batch_lr_scale,
            r.weight_decay) == pytest.approx((theirs["batch_lr_scale"], theirs["weight_decay_scaled"]), rel=1e-11)
    assert r.effective_ratio == pytest.approx(theirs["total_tokens"] / theirs["num_scaling_params"], rel=1e-12)


@trainings
def test_schedules_are_upstreams(theirs):
    config, n = config_of(theirs), theirs["num_iterations"]
    assert len(theirs["schedule"]) >= 10
    for it, lrm, momentum, decay in theirs["schedule"]:
        ours = schedule.lr_multiplier(it, n, config.warmup_steps, config.warmdown_ratio, config.final_lr_frac)
        assert ours == pytest.approx(lrm, rel=1e-11)
        assert schedule.muon_momentum(it, n, config.warmdown_ratio) == pytest.approx(momentum, rel=1e-11)
        ours = theirs["weight_decay_scaled"] * schedule.weight_decay_multiplier(it, n)
        assert ours == pytest.approx(decay, rel=1e-10, abs=1e-20)


def test_every_flag_of_upstream_is_ours_with_its_default():
    # upstream's CORE metric is not here yet, and its flag is refused; no flag here may default to None
    differ = {"core_metric_every": (2000, -1), "model_tag": (None, "")}
    theirs = {**golden["trainings"][2]["args"], "depth": 20}
    assert golden["trainings"][2]["flags"] == "--depth=12" and len(theirs) > 25
    for name, value in theirs.items():
        if name != "fp8_recipe":  # FP8 is refused altogether
            assert (value, FIELDS[name].default) == differ.get(name, (value, value)), name


# -----------------------------------------------------------------------------
# A checkout of upstream, beside ours

@pytest.fixture(scope="module", params=DTYPES)
def live(request, tmp_path_factory):
    """(dtype, upstream's whole tensors): logits, loss, gradients and updates of each case, made in a process of its
    own."""
    checkout = (os.environ.get("NANOCHAT_UPSTREAM")
                or pytest.skip("NANOCHAT_UPSTREAM names no checkout of upstream nanochat"))
    path = tmp_path_factory.mktemp("upstream") / "tensors.pt"
    script = GOLDEN.with_name("make_golden.py")
    subprocess.run([sys.executable, script, checkout, f"--tensors={path}"], check=True, capture_output=True,
                   env={**os.environ, "NANOCHAT_DTYPE": request.param, "TORCHDYNAMO_DISABLE": "1"})
    return request.param, torch.load(path, weights_only=True)


@pytest.mark.parametrize("case", CASES)
def test_live_upstream_agrees_in_whole_tensors(live, case):
    dtype, theirs = live[0], live[1][case]
    ours = run_ours(case, dtype)[0]
    fp32 = dtype == "float32"
    for name, weight in theirs["init"].items():
        assert torch.equal(ours["init"][name], weight), f"initial weights of {name}"
    assert (ours["logits"] - theirs["logits"]).abs().max() <= (1e-4 if fp32 else 0.2)
    assert (ours["losses"] - theirs["losses"]).abs().max() <= (1e-4 if fp32 else 0.2)
    for name, grad in theirs["grads"].items():
        assert ((ours["grads"][name] - grad).double().norm()
                <= (1e-5 if fp32 else 3e-2) * grad.double().norm()), f"gradient of {name}"
    for name, (moved, _) in theirs["updates"].items():
        muon = name.startswith("transformer.h.")
        assert ((ours["updates"][name][0] - moved).norm()
                <= (1e-5 if fp32 else 3e-2 if muon else 1e-2) * moved.norm()), f"update of {name}"
