"""
Parameters, FLOPs and resolve() against hand formulas. Upstream's own figures: tests/test_parity.py.

python -m pytest tests/test_cost.py -q
"""

from dataclasses import asdict

import pytest
import torch
from closed_form import TINY

from nanochat.config import parse
from nanochat.cost import count_params, count_plain, flops_per_token, gpt_config, meta_model, resolve, scaling_params
from nanochat.gpt import MIXERS, MLPS, build_model
from nanochat.gpt_config import GPTConfig
from nanochat.layers.layer import Layer
from nanochat.layers.linear import Linear
from nanochat.layers.norm import Norm

OFF = dict(value_embeds=False, smear=False, lambdas=False, backout=False)


def counts(*argv, vocab_size=32768):
    return count_params(meta_model(gpt_config(parse(argv), vocab_size)))


# -----------------------------------------------------------------------------
# Parameters

def test_tiny_target_of_the_plans_has_37_748_736_plain_parameters():
    """4 layers x 512 wide x 8 heads of 64, vocabulary 24576, untied; value embeddings and scalars listed apart."""
    c = counts("--depth=4", "--model-dim=512", "--head-dim=64", vocab_size=24576)
    gates = 2 * 8 * 12  # of the value embeddings, in the blocks
    assert (c["wte"], c["transformer_matrices"] - gates, c["lm_head"]) == (12_582_912,) * 3
    assert c["wte"] + c["transformer_matrices"] - gates + c["lm_head"] == 37_748_736
    assert c["value_embeds"] == 2 * 24576 * 512 and c["scalars"] == 4 + 4 + 24 + 1 + 1
    listed = count_plain(meta_model(gpt_config(parse(["--depth=4", "--model-dim=512", "--head-dim=64"]), 24576)))
    assert listed["plain"] == 37_748_736 == listed["wte"] + listed["matrices"] + listed["lm_head"]
    assert listed["gates"] == gates
    assert sum(listed[k] for k in ("plain", "value_embeds", "gates", "scalars")) == listed["all"] == c["total"]
    plain = meta_model(GPTConfig(vocab_size=24576, n_layer=4, n_head=8, n_kv_head=8, n_embd=512, **OFF))
    assert count_params(plain)["total"] == 37_748_736 == sum(p.numel() for p in plain.parameters())


def test_depth_alone_gives_256_wide_with_2_heads_and_15_728_640():
    config = gpt_config(parse(["--depth=4"]), 24576)
    assert (config.n_embd, config.n_head) == (256, 2)
    c = counts("--depth=4", vocab_size=24576)
    assert c["wte"] + c["transformer_matrices"] - 2 * 2 * 12 + c["lm_head"] == 15_728_640


@pytest.mark.parametrize("changes", [
    {}, OFF, dict(n_layer=3), dict(n_layer=1), dict(n_kv_head=4), dict(vocab_size=64), dict(residual="symplectic"),
    *({name: value} for name, value in OFF.items())], ids=str)
def test_counts_add_up_and_equal_a_hand_formula_and_the_built_model(changes):
    config = GPTConfig(**{**TINY, **changes})
    L, C, padded, kv = config.n_layer, config.n_embd, -(-config.vocab_size // 64) * 64, config.n_kv_head * 12
    ves = len(range(L - 1, -1, -2)) if config.value_embeds else 0
    expected = dict(wte=padded * C, value_embeds=ves * padded * kv, lm_head=padded * C,
                    transformer_matrices=L * (2 * C * C + 2 * C * kv + 8 * C * C) + ves * config.n_kv_head * 12,
                    scalars=2 * L * config.lambdas + 25 * config.smear + config.backout)
    found = count_params(meta_model(config))
    assert found == {**expected, "total": sum(expected.values())}
    assert found["total"] == sum(p.numel() for p in build_model(config, "cpu", seed=0).parameters())
    assert scaling_params(meta_model(config)) == expected["transformer_matrices"] + expected["lm_head"]


def test_counting_allocates_nothing():
    model = meta_model(gpt_config(parse(["--depth=80"]), 2 ** 17))
    assert all(p.is_meta for p in model.parameters()) and count_params(model)["total"] > 3e10


# -----------------------------------------------------------------------------
# FLOPs

def hand_flops(L, C, kv, head, padded, ves, windows, T):
    matmul = L * (2 * C * C + 2 * C * kv + 8 * C * C) + C * padded + 24 + ves * (kv // head) * 12
    return 6 * matmul + sum(12 * C * min(w, T) for w in windows)


def test_flops_equal_a_hand_formula():
    config = GPTConfig(sequence_len=2048, vocab_size=32768, n_layer=12, n_head=6, n_kv_head=6, n_embd=768,
                       window_pattern="SSSL")
    expected = hand_flops(12, 768, 768, 128, 32768, 6, [512, 512, 512, 2048] * 3, 2048)
    assert flops_per_token(meta_model(config)) == expected
    config = GPTConfig(sequence_len=96, vocab_size=1000, n_layer=3, n_head=4, n_kv_head=2, n_embd=64,
                       window_pattern="S")  # a window is at most the context
    assert flops_per_token(meta_model(config)) == hand_flops(3, 64, 32, 16, 1024, 2, [96, 96, 96], 96)


class Mean(Layer):
    """A mixer without attention: W times the mean of the past. Vectors cost nothing."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.proj, self.norm = Linear(config.n_embd, config.n_embd), Norm(config.n_embd, gain=True)


class OneOfFour(Layer):
    """Four experts, of which a token passes one."""
    roles = {"experts": "matrix"}

    def __init__(self, config, layer_idx):
        super().__init__()
        self.experts = torch.nn.Parameter(torch.empty(4, config.n_embd, config.n_embd))

    def active_params(self):
        return self.experts[0].numel()


def test_mixer_without_attention_is_charged_none(monkeypatch):
    monkeypatch.setitem(MIXERS, "mean", Mean)
    config = GPTConfig(**{**TINY, **OFF, "mixer": "mean,attention", "window_pattern": "L"})
    C, kv, padded, T = 48, 24, 128, 160
    matmul = 2 * C * C + 2 * (2 * C * C + 2 * C * kv) + 4 * 8 * C * C + C * padded
    assert flops_per_token(meta_model(config)) == 6 * matmul + 2 * 12 * C * T
    assert scaling_params(meta_model(config)) == matmul
    assert count_params(meta_model(config))["scalars"] == 2 * C, "a gain is no matrix"


def test_flops_and_laws_count_what_a_token_passes_and_parameters_all_there_are(monkeypatch):
    monkeypatch.setitem(MLPS, "experts", OneOfFour)
    dense, sparse = (meta_model(GPTConfig(**{**TINY, "mlp": mlp})) for mlp in ("relu_squared", "experts"))
    mlps = 4 * 8 * 48 * 48
    assert scaling_params(sparse) == scaling_params(dense) - mlps + 4 * 48 * 48
    assert flops_per_token(sparse) == flops_per_token(dense) - 6 * (mlps - 4 * 48 * 48)
    assert count_params(sparse)["total"] == count_params(dense)["total"] - mlps + 4 * 4 * 48 * 48


def test_flops_follow_what_the_modules_multiply():
    """Torch's own counter on a forward pass of one sequence: 2 per weight and token; attention is counted apart."""
    from torch.utils.flop_counter import FlopCounterMode
    config = GPTConfig(**{**TINY, "window_pattern": "L"})
    model, T = build_model(config, "cpu", seed=0), 160
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, T, dtype=torch.long))
    by_op = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    matmul = sum(n for op, n in by_op.items() if "mm" in op)
    attention = 4 * T * T * 12 * 4 * 4  # q k and p v, without the causal half: 4 T^2 D for each of 4 heads in 4 layers
    smear = 2 * 24  # not at position 0
    assert 3 * (matmul + smear + attention) == flops_per_token(model) * T


# -----------------------------------------------------------------------------
# resolve

def test_horizon_is_the_first_that_is_given():
    steps, flops, ratio = "--num-iterations=77", "--target-flops=3e15", "--target-param-data-ratio=3"
    base = ["--depth=4", "--total-batch-size=65536"]
    r = resolve(parse([*base, ratio, flops, steps]), 4096)
    assert (r.horizon, r.num_iterations) == ("num_iterations", 77)
    r = resolve(parse([*base, ratio, flops]), 4096)
    assert (r.horizon, r.num_iterations) == ("target_flops", round(3e15 / (r.flops_per_token * 65536)))
    r = resolve(parse([*base, ratio]), 4096)
    assert (r.horizon, r.num_iterations) == ("target_param_data_ratio", 3 * r.num_scaling_params // 65536)
    assert r.total_tokens == 65536 * r.num_iterations and 2.9 < r.effective_ratio <= 3


def test_nothing_is_left_to_choose():
    """No -1 comes out, whatever was left open; the given batch is kept."""
    for argv in ("", "--depth=4", "--num-iterations=5 --target-param-data-ratio=-1",
                 "--target-flops=1e19 --target-param-data-ratio=-1", "--total-batch-size=131072"):
        r = resolve(parse(argv.split()), 32768)
        assert all(value > 0 for value in asdict(r).values() if type(value) in (int, float)) and r.tau is not None, argv
    assert r.total_batch_size == 131072 and r.grad_accum_steps == 2


def test_model_shape_moves_the_laws_but_not_their_reference():
    """The reference is the d12 that depth and aspect ratio give, whatever --model-dim and --n-kv-head say."""
    reference = scaling_params(meta_model(gpt_config(parse(["--depth=12", "--head-dim=64"]), 24576)))
    for kv in ([], ["--n-kv-head=2"]):
        config = parse(["--depth=4", "--model-dim=512", "--head-dim=64", *kv, "--total-batch-size=524288"])
        r = resolve(config, 24576)
        assert r.weight_decay == pytest.approx(0.28 * reference / r.num_scaling_params, rel=1e-6)
        assert gpt_config(config, 24576, depth=12).n_embd == 768 and gpt_config(config, 24576, depth=12).n_kv_head == 12


def test_laws_without_a_ratio_are_those_of_any_ratio():
    """Only D / D_ref enters them, and the ratio cancels: an upstream run with ratio -1 would get a negative decay."""
    given = ["--depth=8", "--num-iterations=100"]
    expected = resolve(parse(given), 8192)
    for ratio in ("-1", "3.5", "20"):
        r = resolve(parse([*given, f"--target-param-data-ratio={ratio}"]), 8192)
        assert (r.total_batch_size, r.batch_lr_scale) == (expected.total_batch_size, expected.batch_lr_scale)
        assert r.weight_decay == pytest.approx(expected.weight_decay, rel=1e-6)


def test_tau_is_what_the_run_really_has():
    r = resolve(parse(["--depth=4", "--num-iterations=60", "--total-batch-size=65536", "--matrix-lr=0.03"]), 4096)
    assert r.tau == pytest.approx(65536 / (0.03 * (65536 / 2 ** 19) ** 0.5 * r.weight_decay * 65536 * 60))
    assert resolve(parse(["--depth=4", "--num-iterations=60", "--weight-decay=0"]), 4096).tau is None


def test_500_million_tokens_are_954_iterations():
    r = resolve(parse(["--depth=4", "--num-iterations=954", "--total-batch-size=524288"]), 24576)
    assert r.total_tokens == 954 * 524288 == 500_170_752


def test_less_than_one_step_is_refused_by_the_name_of_the_horizon():
    with pytest.raises(ValueError, match="--target-flops gives less than one step of 65536 tokens"):
        resolve(parse(["--depth=4", "--total-batch-size=65536", "--target-flops=1e3"]), 4096)
    with pytest.raises(ValueError, match="--target-param-data-ratio gives less than one step"):
        resolve(parse(["--depth=4", "--total-batch-size=65536", "--target-param-data-ratio=0.001"]), 4096)


def test_automatic_batch_that_does_not_fit_the_device_batch_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match="device batch sizes that divide it: .*64"):
        resolve(parse(["--depth=12", "--device-batch-size=48"]), 32768)
    with pytest.raises(ValueError, match="4096 ranks"):
        resolve(parse(["--depth=12"]), 32768, world_size=4096)


def test_gate_reaches_the_model_configuration_and_costs_no_parameter_and_no_matmul():
    flags = ["--symplectic-gate", "--symplectic-gate-layers=odd"]
    plain, gated = (resolve(parse(["--depth=4", *gate]), 4096) for gate in ([], flags))
    assert plain == gated
    assert gpt_config(parse(["--symplectic-gate"]), 4096).residual == "symplectic"
    assert gpt_config(parse([]), 4096).residual == "plain"
