"""
The memory calculator against the memory of real tensors. Run:

    python -m pytest tests/test_vram.py
"""

from dataclasses import replace

import pytest
import torch

from nanochat.gpt import GPTConfig, build_model
from nanochat.layers import linear
from nanochat.optim import setup_optimizer
from nanochat.vram import RATES, MemoryTracker, estimate, measure, predict, saved_bytes
from scripts import vram

TINY = dict(sequence_len=256, vocab_size=2048, n_layer=3, n_head=4, n_kv_head=4, n_embd=128)
VARIANTS = {
    "upstream": {},  # SSSL: two masked layers
    "full attention, gqa": dict(window_pattern="L", n_kv_head=2),
    "gate": dict(residual="symplectic"),
    "no extras": dict(value_embeds=False, smear=False, lambdas=False, backout=False, qk_norm=False, logit_softcap=0.0),
}
DTYPES = [torch.float32, torch.bfloat16]
B = 4


@pytest.fixture(autouse=True)
def card_multiplies_bf16(monkeypatch):
    """The calculator counts for cards; a CPU without such instructions widens a product's operands for a moment."""
    monkeypatch.setattr(linear, "CPU_MULTIPLIES_BF16", True)


@pytest.mark.parametrize("variant, dtype",
                         [("upstream", torch.float32), *((variant, torch.bfloat16) for variant in VARIANTS)], ids=str)
def test_saved_bytes_on_the_meta_device_equal_those_of_real_tensors(variant, dtype):
    config = GPTConfig(**{**TINY, **VARIANTS[variant]})
    model = build_model(config, "cpu", dtype, seed=0)
    kept, own = {}, {p.data_ptr() for p in model.parameters()}

    def note(t):  # by address and allocated bytes: what `saved_bytes` cannot use on the meta device
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    ids = torch.zeros(B, config.sequence_len, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = model(ids, ids)
    assert loss.requires_grad and predict(config, dtype, B).activations == sum(kept.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_step_on_the_meta_device_equals_a_real_one(dtype):
    config = GPTConfig(**TINY)
    with MemoryTracker() as tracker:
        real = measure(build_model(config, "cpu", dtype, seed=0), B, tracker)
    assert predict(config, dtype, B) == real


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_gradients_and_state_are_those_of_the_real_objects(dtype):
    config = GPTConfig(**TINY)
    model = build_model(config, "cpu", dtype, seed=0)
    optimizer = setup_optimizer(model, **RATES)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    state = [t for entry in optimizer.state.values() for t in entry.values() if torch.is_tensor(t)]

    def size(tensors):
        return sum(t.numel() * t.element_size() for t in tensors)
    found = predict(config, dtype, 1)
    assert found.weights == size([*model.parameters(), *model.buffers()])
    assert found.gradients == size(model.parameters()) and found.optimizer == size(state)


def allocator_peak(work) -> int:
    """Most bytes that torch's CPU allocator had handed out at once during `work`, above what it had before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_peak_is_what_the_allocator_hands_out(dtype):
    config = GPTConfig(**TINY)
    model = build_model(config, "cpu", dtype, seed=0)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    ids = torch.zeros(B, config.sequence_len, dtype=torch.long)
    measured = allocator_peak(lambda: model(ids, ids).backward())
    found = predict(config, dtype, B)
    predicted = max(found.forward, found.loss_backward,
                    found.backward) - found.weights - found.gradients - found.optimizer
    assert predicted == pytest.approx(measured, rel=0.05)


@pytest.fixture(scope="module")
def found():
    return estimate(GPTConfig(**TINY), torch.bfloat16, compile=False)


def test_memory_is_linear_in_the_batch(found):
    for batch_size in (8, 40):
        direct = predict(found.config, torch.bfloat16, batch_size)
        assert found.at(batch_size).activations == direct.activations
        assert found.at(batch_size).peak == pytest.approx(direct.peak, rel=0.02)


def test_compiled_code_keeps_logits(found):
    compiled = replace(found, compile=True)
    assert found.logits(8) == 0 and compiled.logits(8) == 2 * 8 * 256 * 2048 * 2
    assert compiled.at(8).loss_backward - found.at(8).loss_backward == compiled.logits(8)


def test_largest_batch_just_fits(found):
    for budget in (2 ** 28, 2 ** 30, 2 ** 33):
        largest = found.largest_batch(budget)
        assert found.at(largest).peak <= budget < found.at(largest + 1).peak
    assert found.largest_batch(found.at(1).peak) == 1 and found.largest_batch(found.at(1).peak - 1) == 0


def test_saved_bytes_counts_each_storage_once_and_no_parameter():
    linear = torch.nn.Linear(8, 8, bias=False)
    x = torch.randn(4, 8)
    assert saved_bytes(linear, lambda: (linear(x) + linear(x)).sum())[1] == 4 * 8 * 4


def test_table_of_a_configuration(capsys):
    vram.main(["--depth=2", "--model_dim=64", "--head-dim=32", "--max-seq-len=128", "--vocab-size=512",
               "--total-batch-size=4096", "--device-batch-size=4", "--num-iterations=5", "--dtype=float32",
               "--no-compile"])
    out = capsys.readouterr().out
    mib = {line[:16].strip(): float(line[16:28].replace(",", "")) for line in out.splitlines() if line[28:32] == " MiB"}
    parts = [mib[name] for name in ("weights", "gradients", "optimizer state", "activations", "logits", "temporaries")]
    assert sum(parts) == pytest.approx(mib["peak"], abs=0.4) and mib["logits"] == 0 and mib["weights"] > 0.5
    assert "Not included: the CUDA context" in out and "divides a total batch of 4,096 tokens" in out
    fits, divides = next(line for line in out.splitlines() if line.startswith("   8 GB")).split()[2:]
    assert int(fits) > 32 and divides == "32"  # all 4,096 tokens in one micro-batch


@pytest.mark.parametrize("argv, message", [
    (["--depht=3"], "unknown flag --depht=3; did you mean --depth?"), (["--vocab-size=0"], "--vocab-size=0"),
    (["--depth=4", "--model-dim=100"], "--head-dim=128"),
    (["--total-batch-size=100", "--num-iterations=1"], "--total-batch-size=100")])
def test_bad_input_is_one_line_and_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        vram.main(argv)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("vram: error: ") and message in err and err.count("\n") == 1
