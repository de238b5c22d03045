"""
Every row of MIXERS, MLPS and RESIDUALS, with upstream's extras on, off one by one and all off.

python -m pytest tests/test_gpt.py -q
"""

import math
from dataclasses import fields
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn as nn
from closed_form import RATES, TINY, targets, tokens
from rows_case import OFF, ROWS, config_of, make

from nanochat.gpt import RESIDUALS, ROTARY_REACH, build_model
from nanochat.gpt_config import GPTConfig
from nanochat.layers.cache import DecodeCache
from nanochat.optim import setup_optimizer

torch.set_num_threads(1)
OWNED = {  # what an extra that is on owns
    "value_embeds": ("value_embeds.", "ve_gate."), "smear": ("smear_gate.", "smear_lambda"),
    "lambdas": ("resid_lambdas", "x0_lambdas"), "backout": ("backout_lambda",), "qk_norm": (), "logit_softcap": ()}
GATE = dict(residual="symplectic", symplectic_gate_mix=0.6)
VARIANTS = {
    **ROWS,
    **{f"no_{name}": {name: value} for name, value in OFF.items()},
    **{f"{residual}-all_off": dict(OFF, residual=residual) for residual in RESIDUALS},
    "gate_of_odd_layers": dict(GATE, symplectic_gate_layers="odd"),
    "gate_in_its_ramp": dict(GATE, symplectic_gate_ramp_start=2, symplectic_gate_ramp_steps=8),
    "one_layer": dict(n_layer=1),
}
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)


def test_the_extras_tested_here_are_all_there_are():
    """Upstream's, which are on by default. A switch of a new layer is off by default, and no extra."""
    switches = {f.name for f in fields(GPTConfig) if f.default is True} | {"logit_softcap"}
    assert set(OFF) == switches == set(OWNED)


@every_variant
@torch.no_grad()
def test_tokens_to_come_change_no_logit(changes):
    model, x = make(changes), tokens((2, 160), 70)
    logits = model(x)
    for t in (0, 1, 77, 130, 158):
        other = x.clone()
        other[:, t + 1:] = (other[:, t + 1:] + 1 + tokens((2, 159 - t), 69, "other")) % 70
        changed = model(other)
        assert (changed[:, :t + 1] - logits[:, :t + 1]).abs().max() <= 1e-6, t
        assert ((changed[:, t + 1] - logits[:, t + 1]).abs().amax(dim=-1) > 1e-3).all(), "the change did nothing"


@every_variant
def test_gradients_are_finite_and_after_two_steps_none_is_zero(changes):
    model = build_model(config_of(changes), "cpu", seed=0)
    optimizer = setup_optimizer(model, **RATES)
    for step in range(3):
        model.step.fill_(step + 3)
        model.zero_grad()
        model(tokens((2, 160), 70, f"x{step}"), targets((2, 160), 70, f"y{step}")).backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), name
            assert step < 2 or p.grad.count_nonzero() > 0, f"{name} gets no gradient"
        optimizer.step()
        assert all(p.isfinite().all() for p in model.parameters())


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_init_weights_writes_every_parameter_and_buffer(changes, dtype, monkeypatch):
    allocate = nn.Module.to_empty

    def allocate_nan(module, **kwargs):
        allocate(module, **kwargs)
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.data.fill_(math.nan)
        return module
    monkeypatch.setattr(nn.Module, "to_empty", allocate_nan)
    model = build_model(config_of(changes), "cpu", dtype, seed=0)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor.numel() and tensor.isfinite().all(), name


@every_variant
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=["fp32", "bf16"])
@torch.no_grad()
def test_decode_equals_the_full_forward(changes, dtype, tolerance):
    """A prompt at once, chunks on top, and single tokens, on both sides of the S window's end."""
    model, x = make(changes, dtype), tokens((2, 150), 70)
    full, cache, parts = model(x), DecodeCache(2, 150), []
    for start, end in ((0, 90), (90, 91), (91, 127), *((t, t + 1) for t in range(127, 133)), (133, 150)):
        assert cache.pos == start
        parts.append(model(x[:, start:end], cache=cache))
    gap = torch.cat(parts, dim=1) - full
    assert gap.norm() <= tolerance * full.norm()
    if dtype == torch.float32:
        assert gap.abs().max() <= 1e-5 * max(1.0, full.abs().max().item())


@every_variant
@torch.no_grad()
def test_prompt_of_one_token_decodes_too(changes):
    model, x = make(changes), tokens((2, 3), 70)
    cache = DecodeCache(2, 3)
    one_by_one = torch.cat([model(x[:, t:t + 1], cache=cache) for t in range(3)], dim=1)
    assert (one_by_one - model(x)).abs().max() <= 1e-5
    assert (model(x[:, :1]) - one_by_one[:, :1]).abs().max() <= 1e-5


@pytest.mark.parametrize("extra", OFF)
def test_extra_that_is_off_owns_no_parameter(extra):
    configs = GPTConfig(**TINY), GPTConfig(**TINY, **{extra: OFF[extra]})
    on, off = (dict(build_model(config, "cpu", seed=0).state_dict()) for config in configs)
    gone = {name for name in on if any(part in name for part in OWNED[extra])}
    assert set(on) - set(off) == gone and set(off) <= set(on)
    assert bool(gone) == bool(OWNED[extra])


def test_all_extras_off_leave_only_embedding_blocks_and_head():
    names = set(build_model(GPTConfig(**TINY, **OFF), "cpu", seed=0).state_dict())
    per_block = [f"attn.{x}.weight" for x in ("c_q", "c_k", "c_v", "c_proj")] + ["mlp.c_fc.weight", "mlp.c_proj.weight"]
    blocks = {f"transformer.h.{i}.{name}" for i in range(4) for name in per_block}
    assert names == {"transformer.wte.weight", "lm_head.weight"} | blocks


def test_all_extras_off_is_the_textbook_transformer():
    """Against a naive transformer in float64, written from the papers: pre-norm, rotary, grouped queries, relu^2."""
    model, T, H, G, D = make(dict(OFF, n_layer=2)), 20, 4, 2, 12
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    x = tokens((1, T), 70)

    def rms_norm(a):
        return a / np.sqrt((a ** 2).mean(-1, keepdims=True) + np.finfo(np.float32).eps)

    def turned(a):  # [T, heads, D] as complex pairs, turned by minus t * base^(-2i/D)
        angles = np.arange(T)[:, None] * 100000.0 ** (-np.arange(0, D, 2) / D)
        z = (a[..., :D // 2] + 1j * a[..., D // 2:]) * np.exp(-1j * angles)[:, None, :]
        return np.concatenate([z.real, z.imag], axis=-1)

    s = rms_norm(w["transformer.wte.weight"][x[0].numpy()])
    for i in range(2):
        a = f"transformer.h.{i}."
        h = rms_norm(s)
        q, k, v = ((h @ w[f"{a}attn.c_{n}.weight"].T).reshape(T, -1, D) for n in "qkv")
        q, k, y = turned(q), turned(k), np.zeros((T, H, D))
        for head, t in product(range(H), range(T)):
            scores = np.array([q[t, head] @ k[u, head // (H // G)] for u in range(t + 1)]) / math.sqrt(D)
            p = np.exp(scores - scores.max())
            y[t, head] = (p / p.sum()) @ v[:t + 1, head // (H // G)]
        s = s + y.reshape(T, -1) @ w[f"{a}attn.c_proj.weight"].T
        s = s + np.maximum(rms_norm(s) @ w[f"{a}mlp.c_fc.weight"].T, 0) ** 2 @ w[f"{a}mlp.c_proj.weight"].T
    expected = (rms_norm(s) @ w["lm_head.weight"].T)[:, :70]
    with torch.no_grad():
        assert np.abs(model(x)[0].double().numpy() - expected).max() < 2e-5


# -----------------------------------------------------------------------------
# Windows, padding, limits

def test_short_window_is_a_quarter_in_tiles_of_128_and_the_last_layer_is_full():
    config = GPTConfig(sequence_len=2048, n_layer=8, window_pattern="SSSL")
    assert [config.window(i) for i in range(8)] == [512, 512, 512, 2048] * 2
    lengths = (64, 256, 512, 513, 1024, 1536, 2049)
    assert [GPTConfig(sequence_len=T, n_layer=2, window_pattern="S").window(0) for T in lengths] \
        == [128, 128, 128, 256, 256, 384, 640]
    for pattern, windows in (("s", [256, 256, 1024]), ("l", [1024] * 3)):
        config = GPTConfig(sequence_len=1024, n_layer=3, window_pattern=pattern)
        assert [config.window(i) for i in range(3)] == windows


@torch.no_grad()
def test_short_window_hides_what_is_further_back():
    """Position t of an S layer sees t - 128, and not t - 129."""
    model = make(dict(n_layer=2, smear=False, value_embeds=False))
    seen = []
    model.transformer.h[0].register_forward_hook(lambda module, args, out: seen.append(out[0]))
    x = tokens((1, 140), 70)
    other = x.clone()
    other[0, 0] = (other[0, 0] + 1) % 70
    model(x), model(other)
    changed = (seen[0] - seen[1]).abs().amax(dim=-1)[0]
    assert changed[0] > 1e-3 and changed[128] > 0 and changed[129:].max() == 0


def test_value_embeddings_sit_on_every_other_layer_with_the_last():
    for n in (1, 2, 3, 4, 5):
        config = GPTConfig(**{**TINY, "n_layer": n})
        assert [i for i in range(n) if config.has_ve(i)] == list(range(n - 1, -1, -2))[::-1]


def test_vocabulary_is_padded_inside_and_cropped_outside():
    model = make({})
    assert model.transformer.wte.weight.shape == model.lm_head.weight.shape == (128, 48)
    assert model(tokens((2, 5), 70)).shape == (2, 5, 70)
    model(tokens((2, 5), 70), targets((2, 5), 70)).backward()
    assert model.lm_head.weight.grad[70:].count_nonzero() == 0 and model.lm_head.weight.grad[:70].count_nonzero() > 0


def test_logits_are_float32_and_inside_the_soft_cap():
    for dtype in (torch.float32, torch.bfloat16):
        model = make({}, dtype)
        with torch.no_grad():
            model.lm_head.weight.mul_(100)
            logits = model(tokens((2, 50), 70))
        assert logits.dtype == torch.float32 and 14 < logits.abs().max() <= 15


def test_losses_agree_with_the_logits():
    model, x, y = make({}), tokens((2, 160), 70), targets((2, 160), 70)
    with torch.no_grad():
        losses, loss, logits = model(x, y, loss_reduction="none"), model(x, y), model(x).double()
    rows = logits.log_softmax(dim=-1).view(-1, 70)
    nats = [-rows[i, t].item() if t >= 0 else 0.0 for i, t in enumerate(y.flatten().tolist())]
    expected = torch.tensor(nats, dtype=torch.float64)
    assert losses.shape == (320,) and (losses - expected).abs().max() < 1e-5
    assert loss.item() == pytest.approx(expected.sum().item() / int((y >= 0).sum()), rel=1e-6)


def test_compute_dtype_is_that_of_embeddings_and_tables_while_matrices_stay_float32():
    model = make({}, torch.bfloat16)
    for name, p in model.named_parameters():
        assert p.dtype == (torch.bfloat16 if "wte" in name or "value_embeds" in name else torch.float32), name
    assert model.cos.dtype == model.sin.dtype == torch.bfloat16


def test_text_longer_than_the_rotary_table_is_refused():
    model, reach = make({}), ROTARY_REACH * TINY["sequence_len"]
    with torch.no_grad():
        assert model(torch.zeros(1, reach, dtype=torch.long)).shape == (1, reach, 70)
        with pytest.raises(ValueError, match=str(reach + 1)):
            model(torch.zeros(1, reach + 1, dtype=torch.long))


def test_config_dicts_split_upstreams_keys_from_ours():
    config = GPTConfig(**TINY, **GATE, smear=False)
    assert config.upstream_dict() == TINY
    assert config.variant_dict() == dict(residual="symplectic", symplectic_gate_mix=0.6, smear=False)
    assert GPTConfig(**TINY).variant_dict() == {}
    assert GPTConfig(**config.upstream_dict(), **config.variant_dict()) == config


def test_one_seed_gives_one_set_of_weights():
    a, b, c = (build_model(GPTConfig(**TINY), "cpu", seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])
