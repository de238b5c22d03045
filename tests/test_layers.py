"""
Attention, rotary embeddings, MLP, Linear and decode cache against naive loops and closed forms.

python -m pytest tests/test_layers.py -q
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from closed_form import TINY, uniform

from nanochat.gpt import Context
from nanochat.gpt_config import GPTConfig
from nanochat.layers import linear as linear_module
from nanochat.layers.attention import QK_SCALE, CausalSelfAttention, RotateAndNorm, attend, rotary_table, rotate
from nanochat.layers.cache import DecodeCache
from nanochat.layers.layer import roles_of
from nanochat.layers.linear import Linear, WidenedLinear, product
from nanochat.layers.mlp import ReluSquaredMLP
from nanochat.layers.norm import Norm

torch.set_num_threads(1)


def naive_attention(q, k, v, window):
    """Loops in float64; positions are counted from the end of k."""
    q, k, v = (a.double().numpy() for a in (q, k, v))
    (B, T, H, D), (S, G) = q.shape, k.shape[1:3]
    y = np.zeros((B, T, H, D))
    for b in range(B):
        for t in range(T):
            for h in range(H):
                g, pos = h // (H // G), S - T + t
                seen = [s for s in range(S) if 0 <= pos - s <= window]
                scores = np.array([q[b, t, h] @ k[b, s, g] for s in seen]) / math.sqrt(D)
                p = np.exp(scores - scores.max())
                y[b, t, h] = sum(p_s * v[b, s, g] for p_s, s in zip(p / p.sum(), seen))
    return y


@pytest.mark.parametrize("T, S", [(9, 9), (4, 9), (1, 9), (1, 1)])
@pytest.mark.parametrize("window", [0, 3, 7, 8, 9, 100])
@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (4, 1)])
def test_attend_equals_a_naive_loop(T, S, window, heads, kv_heads):
    shapes = dict(q=(2, T, heads, 6), k=(2, S, kv_heads, 6), v=(2, S, kv_heads, 6))
    q, k, v = (3 * uniform(shape, name) for name, shape in shapes.items())
    assert np.abs(attend(q, k, v, window).double().numpy() - naive_attention(q, k, v, window)).max() < 1e-5


def test_rotary_turns_pairs_by_minus_position_times_frequency():
    cos, sin = rotary_table(50, 8, 100000.0, "cpu", torch.float32)
    assert cos.shape == sin.shape == (1, 50, 1, 4)
    x = uniform((1, 50, 3, 8), "x")
    y = rotate(x, cos, sin).double().numpy()
    z = x[..., :4].double().numpy() + 1j * x[..., 4:].double().numpy()
    for t in range(50):
        for i in range(4):
            turned = z[0, t, :, i] * np.exp(-1j * t / 100000.0 ** (2 * i / 8))
            assert np.abs(y[0, t, :, i] + 1j * y[0, t, :, i + 4] - turned).max() < 1e-5


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("size", [1.0, 1e-3], ids=["", "eps-matters"])
def test_norm_of_queries_written_out_is_torchs_to_the_last_bit_with_its_gradient(dtype, tolerance, size):
    x, grad = (size * uniform((2, 9, 3, 16), "x")).to(dtype).requires_grad_(), uniform((2, 9, 3, 16), "grad").to(dtype)
    cos, sin = rotary_table(9, 16, 100000.0, "cpu", dtype)
    ours, theirs = RotateAndNorm.apply(x, cos, sin, QK_SCALE), F.rms_norm(rotate(x, cos, sin), (16,)) * QK_SCALE
    assert torch.equal(ours, theirs)
    dx, expected = (torch.autograd.grad(y, x, grad)[0] for y in (ours, theirs))
    assert (dx - expected).abs().max() <= tolerance * expected.abs().max() and dx.abs().max() > 0


def test_norm_of_queries_written_out_has_the_slope_of_finite_differences():
    table = rotary_table(4, 6, 100.0, "cpu", torch.float64)
    x = uniform((2, 4, 2, 6), "x").double().requires_grad_()
    torch.autograd.gradcheck(lambda x: RotateAndNorm.apply(x, *table, QK_SCALE), x, eps=1e-4, atol=1e-3)


def test_rotary_scores_depend_on_the_distance_only():
    cos, sin = rotary_table(60, 16, 10000.0, "cpu", torch.float32)
    q, k = (uniform((1, 1, 1, 16), name).expand(1, 60, 1, 16) for name in "qk")
    scores = (rotate(q, cos, sin)[0, :, 0] @ rotate(k, cos, sin)[0, :, 0].T).numpy()
    for distance in (0, 1, 17):
        diagonal = np.diagonal(scores, -distance)
        assert np.ptp(diagonal) < 1e-5 and abs(diagonal[0] - scores[30, 29 - distance]) > 1e-4


def norm(x):
    return F.rms_norm(x, (x.size(-1),))


def context(config, T, ve=None, cache=None):
    table = rotary_table(T, config.n_embd // config.n_head, config.rope_base, "cpu", torch.float32)
    return Context(table, ve, cache, torch.zeros(()))


def attention(**changes):
    """(layer 3 of the tiny model, which has value embeddings, with weights set; its config)"""
    config = GPTConfig(**{**TINY, **changes})
    layer = CausalSelfAttention(config, 3)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.copy_(uniform(p.shape, name) * (3 / p.shape[1]) ** 0.5)
    return layer, config


@torch.no_grad()
def test_attention_norms_and_sharpens_q_and_k_after_turning_them():
    """y is unchanged by a rescaling of W_q and W_k, and is softmax attention at 1.44 times the usual sharpness."""
    layer, config = attention(value_embeds=False)
    x = uniform((2, 7, 48), "x")
    y, aux = layer(x, context(config, 7))
    assert aux == {} and QK_SCALE == 1.2
    q, k = (rotate(w(x).view(2, 7, -1, 12), *context(config, 7).cos_sin) for w in (layer.c_q, layer.c_k))
    q, k = (a / (a.square().mean(-1, keepdim=True) + 1.1920929e-07).sqrt() for a in (q, k))
    heads = naive_attention(1.44 * q, k, layer.c_v(x).view(2, 7, 2, 12), 1000).reshape(2, 7, 48)
    expected = heads @ layer.c_proj.weight.double().numpy().T
    assert np.abs(y.double().numpy() - expected).max() < 1e-5
    layer.c_q.weight.mul_(5)
    layer.c_k.weight.mul_(0.2)
    assert (layer(x, context(config, 7))[0] - y).abs().max() < 1e-4


@torch.no_grad()
def test_value_embedding_joins_v_with_a_gate_for_each_head():
    layer, config = attention()
    x, ve = uniform((2, 7, 48), "x"), uniform((2, 7, 24), "ve")
    y, _ = layer(x, context(config, 7, ve))
    logits = x[..., :12].double().numpy() @ layer.ve_gate.weight.double().numpy().T
    gate = 3 / (1 + np.exp(-logits))  # [2,7,2] in (0, 3)
    v = layer.c_v(x).view(2, 7, 2, 12).double().numpy() + gate[..., None] * ve.view(2, 7, 2, 12).double().numpy()
    q, k = (1.2 * norm(rotate(w(x).view(2, 7, -1, 12), *context(config, 7).cos_sin)) for w in (layer.c_q, layer.c_k))
    heads = naive_attention(q, k, torch.from_numpy(v), 1000).reshape(2, 7, 48)
    expected = heads @ layer.c_proj.weight.double().numpy().T
    assert np.abs(y.double().numpy() - expected).max() < 1e-5


@torch.no_grad()
def test_window_of_the_layer_reaches_the_attention():
    layer, config = attention(value_embeds=False)
    assert layer.window == config.window(3)
    layer.window = 3
    x = uniform((1, 9, 48), "x")
    other = x.clone()
    other[0, 0] += 1
    change = (layer(x, context(config, 9))[0] - layer(other, context(config, 9))[0]).abs().amax(dim=-1)[0]
    assert (change[:4] > 1e-4).all() and change[4:].max() < 1e-6


@torch.no_grad()
def test_mlp_is_relu_squared():
    mlp = ReluSquaredMLP(GPTConfig(**TINY), 0)
    w_in, w_out = mlp.c_fc.weight, mlp.c_proj.weight
    assert (w_in.shape, w_out.shape) == ((192, 48), (48, 192))
    x = uniform((2, 5, 48), "x")
    y, aux = mlp(x, None)
    hidden = np.maximum(x.double().numpy() @ w_in.double().numpy().T, 0) ** 2
    assert aux == {} and np.abs(y.double().numpy() - hidden @ w_out.double().numpy().T).max() < 1e-5


@torch.no_grad()
def test_initial_weights_have_their_range_and_standard_deviation():
    config = GPTConfig(**{**TINY, "n_embd": 240})
    layer, mlp = CausalSelfAttention(config, 3), ReluSquaredMLP(config, 3)
    layer.init_weights(), layer.init_gate(), mlp.init_weights()
    for linear, factor in ((layer.c_q, 1), (layer.c_k, 1), (layer.c_v, 1), (mlp.c_fc, 0.4)):
        bound = factor * math.sqrt(3 / 240)
        assert 0.99 * bound < linear.weight.abs().max() <= bound and abs(linear.weight.mean()) < 0.02 * bound
        assert linear.weight.std().item() == pytest.approx(factor / math.sqrt(240), rel=0.02)
    assert layer.c_proj.weight.count_nonzero() == mlp.c_proj.weight.count_nonzero() == 0
    assert 0 <= layer.ve_gate.weight.min() and 0.01 < layer.ve_gate.weight.max() <= 0.02


def naive_norm(x, gain, eps):
    """In float64, one row of the last dimension after the other."""
    rows = x.double().flatten(0, -2)
    normed = [[g * v / math.sqrt(sum(w * w for w in row) / len(row) + eps) for g, v in zip(gain, row)]
              for row in rows.tolist()]
    return torch.tensor(normed, dtype=torch.float64).view(x.shape)


def test_norm_without_gain_is_torchs_to_the_last_bit_and_owns_nothing():
    x, layer = 5 * uniform((3, 4, 10), "x"), Norm(10)
    layer.init_weights()
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(layer(x.to(dtype)), F.rms_norm(x.to(dtype), (10,)))
    assert (layer(x) - naive_norm(x, [1.0] * 10, torch.finfo(torch.float32).eps)).abs().max() < 1e-6
    assert layer(torch.zeros(1, 10)).count_nonzero() == 0
    assert layer.state_dict() == {} and layer.is_default


@torch.no_grad()
def test_norm_with_gain_starts_at_one_and_multiplies():
    x, layer = 0.1 * uniform((3, 4, 10), "x"), Norm(10, gain=True, eps=0.01)
    layer.weight.fill_(math.nan)
    layer.init_weights()
    assert (layer(x) - naive_norm(x, [1.0] * 10, 0.01)).abs().max() < 1e-6
    layer.weight.copy_(uniform((10,), "gain"))
    assert (layer(x) - naive_norm(x, layer.weight.tolist(), 0.01)).abs().max() < 1e-6
    assert layer(x.bfloat16()).dtype == torch.bfloat16 and layer.weight.dtype == torch.float32
    assert roles_of(layer) == {"weight": "gain"} and not layer.is_default


def test_norm_of_queries_with_gain_is_trained_and_not_the_one_written_out():
    layer, config = attention(value_embeds=False)
    layer.qk_norm = Norm(12, gain=True)
    layer.qk_norm.init_weights()
    x = uniform((2, 7, 48), "x")
    y, _ = layer(x, context(config, 7))
    y.sum().backward()
    assert layer.qk_norm.weight.grad.count_nonzero() > 0
    layer.qk_norm = Norm(12)
    assert (layer(x, context(config, 7))[0] - y).abs().max() < 1e-6


def test_linear_keeps_float32_and_multiplies_in_the_dtype_of_its_input():
    linear = Linear(8, 4)
    assert linear.bias is None and linear.weight.dtype == torch.float32
    x = uniform((3, 8), "x").bfloat16()
    y = linear(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, x @ linear.weight.detach().bfloat16().T)
    y.sum().backward()
    assert linear.weight.grad.dtype == torch.float32


# -----------------------------------------------------------------------------
# Decode cache

@torch.no_grad()
def test_expanded_cache_decodes_like_the_single_row_and_rows_do_not_share_memory():
    layer, config = attention(value_embeds=False)
    x = uniform((1, 5, 48), "x")

    def decode(cache, x, start):
        table = tuple(t[:, start:start + x.size(1)] for t in context(config, 9).cos_sin)
        y, _ = layer(x, Context(table, None, cache, torch.zeros(())))
        cache.pos += x.size(1)
        return y
    one = DecodeCache(1, 9)
    decode(one, x, 0)
    three = one.expand(3)
    assert (three.batch_size, three.pos, three.max_seq_len) == (3, 5, 9)
    following = uniform((3, 1, 48), "next")
    rows = decode(three, following, 5)
    for i in range(3):
        assert (decode(one.expand(1), following[i:i + 1], 5) - rows[i:i + 1]).abs().max() < 1e-6
    assert (rows[0] - rows[1]).abs().max() > 1e-3
    assert one.pos == 5, "decoding a copy moved the original"
    pairs = zip(three.of(layer).values(), one.of(layer).values())
    assert all(not t.is_shared() and t.data_ptr() != s.data_ptr() for t, s in pairs)


def test_cache_of_several_rows_is_not_expanded():
    with pytest.raises(AssertionError):
        DecodeCache(2, 4).expand(4)


@torch.no_grad()
def test_full_cache_refuses_one_more_token():
    layer, config = attention(value_embeds=False)
    cache = DecodeCache(1, 5)
    layer(uniform((1, 5, 48), "x"), context(config, 5, cache=cache))
    cache.pos = 5
    with pytest.raises(ValueError, match="holds 5 tokens, 6"):
        layer(uniform((1, 1, 48), "x"), context(config, 1, cache=cache))


@torch.no_grad()
def test_wrong_order_of_tokens_gives_another_result():
    """Guards the tests above against an attention that ignores positions."""
    layer, config = attention(value_embeds=False)
    x = uniform((1, 8, 48), "x")
    swapped = x[:, [1, 0, *range(2, 8)]]
    assert (layer(x, context(config, 8))[0][:, -1] - layer(swapped, context(config, 8))[0][:, -1]).abs().max() > 1e-3


def test_bf16_products_made_in_fp32_are_rounded_like_those_made_in_bf16(monkeypatch):
    """Against the exact product of the same bf16 operands: every result and gradient is its nearest bf16, give or take
    a tie."""
    shapes = dict(x=(2, 5, 48), w=(24, 48))
    x, weight = (uniform(shape, name).bfloat16().requires_grad_() for name, shape in shapes.items())
    dy = uniform((2, 5, 24), "dy").bfloat16()
    y = WidenedLinear.apply(x, weight)
    dx, dw = torch.autograd.grad(y, (x, weight), dy)
    X, W, D = x.detach().double(), weight.detach().double(), dy.double()
    for ours, exact in ((y, X @ W.T), (dx, D @ W), (dw, torch.einsum("btn,btk->nk", D, X))):
        assert ours.dtype == torch.bfloat16 and ((ours.double() - exact).abs() <= exact.abs() / 256 + 1e-6).all()
    monkeypatch.setattr(linear_module, "CPU_MULTIPLIES_BF16", False)
    assert torch.equal(product(x[0], weight.T), y[0])
    assert linear_module.widened(x) and not linear_module.widened(x.float())
