"""
Cached generation against the full forward, which knows no cache. Run:

    python -m pytest tests/test_engine.py
"""

from functools import cache

import pytest
import torch

from nanochat.engine import Engine, keep_rows, sample_next_token
from nanochat.gpt import GPTConfig, build_model
from nanochat.layers.cache import DecodeCache

BOS, ASSISTANT_END = 95, 94
TINY = dict(sequence_len=256, vocab_size=96, n_layer=3, n_head=4, n_kv_head=4, n_embd=64)
GATE = dict(residual="symplectic", symplectic_gate_mix=0.6)
VARIANTS = {
    "upstream": {},
    "windows": dict(window_pattern="SSSL", sequence_len=512),  # S is 128 tokens here: shorter than the test's 160
    "full attention": dict(window_pattern="L"),
    "gqa": dict(n_kv_head=2),
    "one kv head": dict(n_kv_head=1),
    "gate": GATE,
    "gate on odd layers": dict(**GATE, symplectic_gate_layers="odd"),
    "gate amid its ramp": dict(**GATE, symplectic_gate_ramp_start=10, symplectic_gate_ramp_steps=100),
    "gate, windows, gqa": dict(**GATE, window_pattern="SL", n_kv_head=2),
    "no extras": dict(value_embeds=False, smear=False, lambdas=False, backout=False, qk_norm=False, logit_softcap=0.0),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
LENGTH = 160


class FakeTokenizer:
    """Only the method that the engine calls."""

    def encode_special(self, name):
        return {"<|bos|>": BOS, "<|assistant_end|>": ASSISTANT_END}[name]


@cache
def make_model(variant="upstream", dtype=torch.float32):
    """Every weight random: as initialised, each sublayer ends in a matrix of zeros and would hide any error."""
    config = GPTConfig(**{**TINY, **VARIANTS[variant]})
    model = build_model(config, "cpu", dtype, seed=1).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    model.step.fill_(60)  # in the middle of the ramp
    return model


def engine_of(model):
    return Engine(model, FakeTokenizer())


def prompt(length, seed=0):
    return torch.randint(0, 90, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def decode_logits(model, ids, pieces):
    """Logits [1,T,V] of ids, fed to a cache in pieces of these lengths."""
    assert sum(pieces) == ids.size(1)
    cache = DecodeCache(1, ids.size(1))
    return torch.cat([model(piece, cache=cache) for piece in ids.split(pieces, dim=1)], dim=1)


@torch.no_grad()
def greedy_naive(model, tokens, steps):
    tokens = list(tokens)
    for _ in range(steps):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens


def relative_error(ours, reference):
    return ((ours - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_decode_equals_full_forward(variant, dtype):
    model = make_model(variant, dtype)
    ids = torch.tensor([prompt(LENGTH)])
    with torch.no_grad():
        full = model(ids)
    one_by_one = decode_logits(model, ids[:, :12], [1] * 12)
    prefill_first = decode_logits(model, ids, [LENGTH - 12] + [1] * 12)
    for ours, reference in ((one_by_one, full[:, :12]), (prefill_first, full)):
        assert relative_error(ours, reference) <= TOLERANCE[dtype]
        if dtype == torch.float32:
            assert (ours - reference).abs().max() <= TOLERANCE[dtype] * full.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_prefill_in_two_pieces_equals_one(variant):
    model = make_model(variant)
    ids = torch.tensor([prompt(LENGTH)])
    whole = decode_logits(model, ids, [LENGTH])
    for pieces in ([1, LENGTH - 1], [LENGTH // 2, LENGTH - LENGTH // 2], [LENGTH - 3, 3]):
        assert (decode_logits(model, ids, pieces) - whole).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_generation_equals_naive_argmax(variant):
    model = make_model(variant)
    for length in (1, 20):
        tokens = prompt(length, seed=length)
        rows, _ = engine_of(model).generate_batch(tokens, max_tokens=8, temperature=0)
        naive = greedy_naive(model, tokens, 8)
        ends = [i for i, token in enumerate(naive) if i >= length and token in (BOS, ASSISTANT_END)]
        assert rows[0] == (naive[:ends[0]] if ends else naive)


def test_gate_and_windows_change_the_logits():
    """The comparisons above would pass a feature that does nothing."""
    ids = torch.tensor([prompt(LENGTH)])
    with torch.no_grad():
        plain = make_model("full attention")(ids)
        for variant in ("gate", "gate on odd layers", "gate amid its ramp"):
            assert relative_error(make_model(variant)(ids), make_model("upstream")(ids)) > 1e-3
        windowed = make_model("windows")(ids)
    assert relative_error(windowed, plain) > 1e-3
    assert torch.allclose(windowed[:, :128], plain[:, :128], atol=1e-5)  # the window is 128: shorter prefixes see all


def test_all_samples_are_equal_at_temperature_0():
    engine = engine_of(make_model("gate, windows, gqa"))
    alone, _ = engine.generate_batch(prompt(20), max_tokens=10, temperature=0)
    rows, _ = engine.generate_batch(prompt(20), num_samples=4, max_tokens=10, temperature=0)
    assert rows == alone * 4


def test_top_1_equals_greedy():
    engine = engine_of(make_model())
    greedy = engine.generate_batch(prompt(9), max_tokens=20, temperature=0)
    assert engine.generate_batch(prompt(9), max_tokens=20, temperature=1.7, top_k=1) == greedy


def test_seeds_repeat_and_differ():
    engine = engine_of(make_model())

    def sample(seed):
        return engine.generate_batch(prompt(5), num_samples=3, max_tokens=16, seed=seed)[0]
    assert sample(1) == sample(1) != sample(2)
    assert len({tuple(row) for row in sample(1)}) == 3


def test_sampling_follows_the_probabilities():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).expand(20000, -1)
    rng = torch.Generator().manual_seed(0)
    for temperature, top_k in ((1.0, None), (0.5, 0), (1.0, 2), (2.0, 9)):
        expected = (logits[0] / temperature).softmax(-1)
        if top_k:
            expected[top_k:] = 0
            expected /= expected.sum()
        ids = sample_next_token(logits, rng, temperature, top_k)
        assert ids.shape == (20000, 1)
        assert torch.allclose(ids.flatten().bincount(minlength=4) / 20000, expected, atol=0.015)


class Scripted:
    """A model whose rows say these tokens one after the other; counts its forwards."""

    def __init__(self, rows):
        self.rows, self.batches = rows, []
        self.config = GPTConfig(**TINY)
        self.cos = torch.empty(1, 2560)

    def get_device(self):
        return torch.device("cpu")

    def trunk(self, ids, cache):
        cache.pos += ids.size(1)

    def __call__(self, ids, cache):
        state = cache.of("row")
        if not state:
            state["row"] = torch.arange(len(ids))
        self.batches.append(state["row"].tolist())
        said = [self.rows[row][len(self.batches) - 1] for row in state["row"]]
        return torch.nn.functional.one_hot(torch.tensor(said), 96).float()[:, None] * 100


def test_rows_end_on_their_own_and_are_then_not_computed():
    model = Scripted([[1, ASSISTANT_END], [2, 3, BOS], [4, 5, 6, BOS]])
    rows, masks = engine_of(model).generate_batch([7, 8], num_samples=3, max_tokens=9)
    assert rows == [[7, 8, 1], [7, 8, 2, 3], [7, 8, 4, 5, 6]]
    assert masks == [[0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1, 1]]
    assert model.batches == [[0, 1, 2], [0, 1, 2], [1, 2], [2]]
    model = Scripted([[1, ASSISTANT_END], [2, 3, BOS]])
    assert list(engine_of(model).generate([7], num_samples=2, max_tokens=9)) == [
        ([1, 2], [1, 1]), ([ASSISTANT_END, 3], [1, 1]), ([ASSISTANT_END, BOS], [0, 1])]


def test_no_forward_after_the_last_token():
    model = Scripted([[1, 2, 3]])
    assert engine_of(model).generate_batch([7, 8], max_tokens=3)[0] == [[7, 8, 1, 2, 3]]
    assert len(model.batches) == 3


def test_rows_that_go_on_keep_their_state():
    model = make_model("gate, windows, gqa")
    cache = DecodeCache(1, 40)
    with torch.no_grad():
        model(torch.tensor([prompt(20)]), cache=cache)
        kept = keep_rows(cache.expand(4), [1, 3], "cpu")
        assert kept.pos == 20 and kept.batch_size == 2
        two, alone = (model(torch.tensor([[5]] * c.batch_size), cache=c) for c in (kept, cache))
    assert torch.allclose(two, alone.expand(2, -1, -1), atol=1e-5)


def test_decoding_goes_past_the_training_context_up_to_the_rotary_table():
    config = GPTConfig(**{**TINY, "sequence_len": 8, "n_layer": 2})
    model = build_model(config, "cpu", seed=1).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    engine = engine_of(model)
    engine.end_ids = set()
    tokens, reach = prompt(5), model.cos.size(1)
    assert reach == 80
    assert (engine.generate_batch(tokens, max_tokens=reach + 1 - 5, temperature=0)[0][0]
            == greedy_naive(model, tokens, reach + 1 - 5))
    with pytest.raises(ValueError, match=r"max_tokens=77: expected at most 81 together.*trained on 8"):
        engine.generate(tokens, max_tokens=reach + 2 - 5)  # at the call, not at the first token
    assert len(engine.generate_batch(tokens)[0][0]) == 8  # without max_tokens: to the end of the context
    with pytest.raises(ValueError, match="fills the model's context of 8"):
        engine.generate(prompt(8))


@pytest.mark.parametrize("arguments, message", [
    (dict(tokens=[]), "0 prompt tokens"), (dict(num_samples=0), "num_samples=0"), (dict(max_tokens=0), "max_tokens=0"),
    (dict(max_tokens=1, temperature=-1), "temperature=-1")])
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        engine_of(make_model()).generate_batch(**{"tokens": [1], **arguments})


def test_a_temperature_that_fp32_cannot_divide_by_is_greedy():
    logits = torch.tensor([[0.1, 3.0, 2.0]])
    for temperature in (0, 1e-320, 1e-40):
        assert sample_next_token(logits, None, temperature).tolist() == [[1]]
