"""
--quiet-start: no scalar takes a step on rounding alone, and smear and backout learn at a rate that follows the batch.

    python -m pytest tests/test_quiet_start.py -q
"""


import pytest
import torch

from nanochat import run_log
from nanochat.checkpoint_manager import restore_model
from nanochat.gpt import GPTConfig, build_model
from nanochat.optim import SMEAR_LR
from nanochat.record import read_metrics, read_record
from nanochat.run_setup import LoopState
from tests.tiny import make_base
from tests.train_case import assert_same_run, checkpoint, run

SCALARS = ("resid_lambdas", "x0_lambdas", "backout_lambda")


@pytest.fixture
def base(base_dir):
    make_base(base_dir)
    return base_dir


def gradients(depth, moved=False) -> dict[str, float]:
    """{parameter: norm of its gradient} in float64, where rounding is 1e-16. moved: away from the initial weights."""
    config = GPTConfig(sequence_len=16, vocab_size=64, n_layer=depth, n_head=2, n_kv_head=2, n_embd=32)
    model = build_model(config, "cpu", torch.float64, seed=1).double()
    if moved:
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    idx = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(0))
    model(idx[:, :-1], idx[:, 1:]).backward()
    return {name: p.grad.norm().item() for name, p in model.named_parameters()}


# -----------------------------------------------------------------------------
# Which gradients are rounding

@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_at_step_0_the_scalars_that_are_held_have_no_gradient_and_no_other_scalar_is_held(depth):
    found = gradients(depth)
    # The norm's epsilon breaks the invariance of the scale by its share of the mean square, about 1e-7.
    assert all(found[name] < 1e-6 * found["lm_head.weight"] for name in SCALARS)
    held = held_names(depth, step=0)
    assert held == set(SCALARS)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 6])
def test_later_only_the_backout_of_a_last_middle_layer_has_no_gradient(depth):
    found = gradients(depth, moved=True)
    without = {name for name in SCALARS if found[name] < 1e-6 * found["lm_head.weight"]}
    assert without == held_names(depth, step=1) == ({"backout_lambda"} if depth <= 2 else set())


def held_names(depth, step) -> set[str]:
    model = build_model(GPTConfig(sequence_len=16, vocab_size=64, n_layer=depth, n_head=2, n_kv_head=2, n_embd=32),
                        "cpu", seed=1)
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)] for p in model.rounding_only(step)}


@pytest.mark.parametrize("off", [["--no-lambdas"], ["--no-backout"], ["--no-lambdas", "--no-backout", "--no-smear"]])
def test_parts_that_a_model_does_not_have_are_not_held(base, off):
    assert run("--model-tag=a", "--num-iterations=2", "--quiet-start", *off)["status"] == "ok"


# -----------------------------------------------------------------------------
# Twins: two runs that differ by rounding

def bpb_of_twins(*flags) -> list[float]:
    facts = [run("--model-tag=t", "--depth=4", "--num-iterations=40", *flags, f"--perturb={amount}")
             for amount in (0, 1e-7)]
    return [twin["results"]["val_bpb"] for twin in facts]


def test_twins_end_alike_with_it_and_apart_without(base):
    a, b = bpb_of_twins("--quiet-start")
    assert 0 < abs(a - b) < 1e-5
    a, b = bpb_of_twins()
    assert abs(a - b) > 1e-3  # if this fails, upstream's recipe has become quiet, and the flag is not needed


def test_the_perturbation_is_relative_repeatable_and_of_the_embedding_alone(base):
    models = {}
    for tag, amount in (("plain", 0), ("moved", 1e-3), ("again", 1e-3)):
        run(f"--model-tag={tag}", "--num-iterations=1", "--embedding-lr=1e-30", f"--perturb={amount}")
        models[tag] = checkpoint(base, tag, 1)[0]["transformer.wte.weight"]
    assert torch.equal(models["moved"], models["again"])
    relative = models["moved"] / models["plain"] - 1
    assert relative.std().item() == pytest.approx(1e-3, rel=0.05) and abs(relative.mean().item()) < 1e-4


# -----------------------------------------------------------------------------
# Steps and rates

def test_no_scalar_moves_in_the_first_step_but_by_its_decay(base):
    run("--model-tag=quiet", "--num-iterations=1", "--depth=4", "--quiet-start")
    run("--model-tag=off", "--num-iterations=1", "--depth=4")
    quiet, off = (checkpoint(base, tag, 1) for tag in ("quiet", "off"))
    start = dict(resid_lambdas=[1.15 - 0.1 * i / 3 for i in range(4)],
                 x0_lambdas=[0.2 - 0.15 * i / 3 for i in range(4)], backout_lambda=[0.2])
    for name in SCALARS:
        assert quiet[0][name].tolist() == pytest.approx(start[name], rel=1e-4)
    assert abs(off[0]["backout_lambda"].item() - 0.2) > 0.05


def test_at_depth_2_backout_stays_where_it_started(base):
    run("--model-tag=quiet", "--quiet-start")
    run("--model-tag=off")
    assert checkpoint(base, "quiet")[0]["backout_lambda"].item() == pytest.approx(0.2)
    assert abs(checkpoint(base, "off")[0]["backout_lambda"].item() - 0.2) > 0.1


@pytest.mark.parametrize("flags, scaled", [([], False), (["--quiet-start"], True)])
def test_the_rate_of_smear_and_backout_follows_batch_and_multiplier_only_with_it(base, flags, scaled):
    facts = run("--model-tag=a", "--lr-multiplier=3", *flags)
    groups = checkpoint(base, "a")[1]["param_groups"]
    scale = facts["resolved"]["batch_lr_scale"] * 3
    assert scale != 1 and [g["initial_lr"] for g in groups if SMEAR_LR * 0.99 < g["initial_lr"] < SMEAR_LR * 1.01] == (
        [] if scaled else [SMEAR_LR])
    smear = [group["initial_lr"] for group in groups if group["initial_lr"] == pytest.approx(SMEAR_LR * scale)]
    assert bool(smear) == scaled


def test_a_run_that_is_stopped_resumes_to_the_last_bit(base):
    flags = ("--quiet-start", "--depth=4", "--save-every=5")
    run("--model-tag=whole", *flags)
    run("--model-tag=parts", *flags)
    run("--model-tag=parts", *flags, "--resume-from-step=5")
    assert_same_run(base, "whole", "parts")


def test_embeddings_stay_in_fp32_where_asked_also_over_a_resume(base):
    flags = ("--dtype=bfloat16", "--save-every=5")
    for tag, more in (("plain", ()), ("whole", ("--fp32-updates",)), ("parts", ("--fp32-updates",))):
        run(f"--model-tag={tag}", *flags, *more)
    run("--model-tag=parts", *flags, "--fp32-updates", "--resume-from-step=5")
    assert_same_run(base, "whole", "parts")
    for tag, dtype in (("plain", torch.bfloat16), ("whole", torch.float32)):
        weights, optimizer, meta = checkpoint(base, tag)
        names = [name for name in weights if "wte" in name or "value_embeds" in name]
        assert names and {weights[name].dtype for name in names} == {dtype}
        moments = {state["exp_avg"].dtype for state in optimizer["state"].values() if "exp_avg" in state}
        assert (torch.bfloat16 in moments) == (dtype == torch.bfloat16)
        model = restore_model(weights, meta, "cpu", torch.bfloat16)
        assert {model.state_dict()[name].dtype for name in names} == {dtype}
        assert torch.equal(model.transformer.wte.weight, weights["transformer.wte.weight"])


# -----------------------------------------------------------------------------
# Spikes of the gradient norm

class FakeRun:
    def __init__(self):
        self.state, self.step, self.lines = LoopState(), 0, []


def test_a_norm_above_ten_times_the_running_median_is_counted_and_told():
    fake = FakeRun()
    for norm in (1.0, 100.0, 1.0, 1.0, 1.0, 9.9, 10.1, 1.0):  # the first five have no median to be above
        run_log._count_spike(fake, norm)
        fake.step += 1
    assert fake.state.grad_spikes == 1 and len(fake.state.grad_norms) == 8
    assert fake.lines == ["Warning: gradient norm 10.1 at step 6 is 10 times its running median"]


def test_many_spikes_are_told_only_so_often():
    fake = FakeRun()
    for norm in [1.0] * 30 + [20.0] * 12:
        run_log._count_spike(fake, norm)
    assert fake.state.grad_spikes == 12 and len(fake.lines) == run_log.SPIKES_TOLD
    assert fake.lines[-1].endswith("further ones are only counted")


def test_the_record_counts_the_spikes_and_a_resumed_run_goes_on_counting(base, monkeypatch):
    monkeypatch.setattr(run_log, "SPIKE", 0.5)  # so that ordinary steps are spikes
    flags = ("--save-every=5",)
    whole = run("--model-tag=whole", *flags)
    run("--model-tag=parts", *flags)
    parts = run("--model-tag=parts", *flags, "--resume-from-step=5")
    assert whole["results"]["grad_spikes"] == parts["results"]["grad_spikes"] > 0
    norms = [row["train/grad_norm"] for row in read_metrics(base / "records/parts/metrics.jsonl") if
             "train/grad_norm" in row]
    assert checkpoint(base, "parts")[2]["loop_state"]["grad_norms"] == norms
    assert read_record(base, "parts")["results"]["grad_spikes"] == whole["results"]["grad_spikes"]


