"""
scripts.base_eval and scripts.base_loss: figures against a plain loop, flags, and bad input. Run:

    python -m pytest tests/test_base_eval.py
"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_base import STEP, TAG, make_tiny_base

from nanochat.checkpoint_manager import load_model
from nanochat.dataloader import DataLoader
from nanochat.dataset import get_dataset_id, iter_texts
from nanochat.lab.horizon.entropy import draw_chunks, read_positions
from nanochat.run_eval import SAMPLE_PROMPTS
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer_id
from scripts import base_eval, base_loss

B, T, STEPS = 4, 64, 3
FLAGS = [f"--device-batch-size={B}", f"--split_tokens={B * T * STEPS + 100}", "--device-type=cpu"]


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory):
    return make_tiny_base(tmp_path_factory.mktemp("eval") / "base", T)


@pytest.fixture
def tiny(tiny_base, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tiny_base))
    return tiny_base


@torch.no_grad()
def naive(split):
    """(nats per token, bits per byte), token by token from the logits; bytes counted by decoding."""
    model, tokenizer, _ = load_model("base", "cpu", TAG, STEP)
    specials = {tokenizer.encode_special(name) for name in tokenizer.get_special_tokens()}
    loader = DataLoader(tokenizer, B, T, split, data_order="file")
    nats = counted = num_bytes = 0
    for _ in range(STEPS):
        x, y = next(loader)
        losses = F.cross_entropy(model(x).double().flatten(0, 1), y.flatten(), reduction="none").tolist()
        for token, loss in zip(y.flatten().tolist(), losses):
            nats += loss
            if token not in specials:
                counted += loss
                num_bytes += len(tokenizer.decode_single_token_bytes(token))
    return nats / (B * T * STEPS), counted / math.log(2) / num_bytes


def test_bpb_equals_a_plain_loop(tiny, tmp_path, capsys):
    base_eval.main(["--eval=bpb", "--output-json", str(tmp_path / "new" / "eval.json"), *FLAGS])
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "new" / "eval.json").read_text())
    for split in ("train", "val"):
        assert results[f"{split}_bpb"] == pytest.approx(naive(split)[1], rel=1e-5)
        assert f"\n{split} bpb: {results[f'{split}_bpb']:.6f}\n" in out
    assert f"Adjusted split_tokens to {B * T * STEPS} (must be divisible by {B * T})" in out
    assert f"Evaluating model: base_model (step {STEP})" in out and "Eval modes: bpb\n" in out
    assert (results["model_tag"], results["step"], results["split_tokens"]) == (TAG, STEP, B * T * STEPS)
    said = (results["tokenizer_id"], results["dataset_id"], results["samples"])
    assert said == (get_tokenizer_id(), get_dataset_id(), None)


def test_loss_and_bpb_equal_a_plain_loop(tiny, tmp_path, capsys):
    base_loss.main(["--output-json", str(tmp_path / "loss.json"), *FLAGS])
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "loss.json").read_text())
    for split in ("train", "val"):
        loss, bpb = naive(split)
        assert results[split]["loss"] == pytest.approx(loss, rel=1e-5)
        assert results[split]["bpb"] == pytest.approx(bpb, rel=1e-5)
        assert results[split]["tokens"] == B * T * STEPS
        assert f"\n{split} loss: {loss:.4f}"[:-1] in out and f"\n{split} bpb: {bpb:.4f}"[:-1] in out


def test_one_split_alone(tiny, capsys):
    base_loss.main(["--split=val", *FLAGS])
    out = capsys.readouterr().out
    assert "val loss: " in out and "train" not in out


def test_token_losses_are_those_of_the_mean(tiny):
    model, tokenizer, _ = load_model("base", "cpu", TAG, STEP)
    batch = next(DataLoader(tokenizer, B, T, "val"))
    (y, losses), = base_loss.token_losses(model, [batch])
    assert losses.shape == y.shape == (B, T)
    assert losses.mean().item() == pytest.approx(model(*batch).item(), rel=1e-5)


@torch.no_grad()
def test_loss_by_position_equals_a_plain_loop(tiny, tmp_path, capsys):
    path = tmp_path / "positions.json"
    base_loss.main(["--split=val", "--device-batch-size=4", "--split-tokens=5000", "--device-type=cpu", "--seed=3",
                    "--per-position", str(path)])
    facts, curve = json.loads(path.read_text()), read_positions(path)
    model, tokenizer, _ = load_model("base", "cpu", TAG, STEP)
    documents = tokenizer.encode(list(iter_texts("val")))
    width, chunks = len(curve.context), []
    stream = [(d, i) for d, document in enumerate(documents) for i in range(len(document))]
    lengths = np.array([len(document) for document in documents])
    assert lengths.sum() > 5000
    expected_width, starts = draw_chunks(lengths[:256], T, 5000, seed=3)
    assert width == expected_width < T and facts["num_chunks"] == len(starts) == 5000 // width // 32 * 32
    for start in starts.tolist():
        d, i = stream[start]
        chunk = documents[d][i:i + width]
        assert len(chunk) == width  # the whole chunk stands in that document
        logits = model(torch.tensor([[tokenizer.get_bos_token_id(), *chunk[:-1]]]))[0].double()
        chunks.append(F.cross_entropy(logits, torch.tensor(chunk), reduction="none").numpy())
    blocks = np.array(chunks).reshape(32, -1, width).mean(axis=1)
    np.testing.assert_allclose(curve.blocks, blocks, atol=1e-4)
    np.testing.assert_allclose(curve.loss, np.mean(chunks, axis=0), atol=1e-4)
    assert (facts["model_tag"], facts["step"], facts["split"], facts["seed"]) == (TAG, STEP, "val", 3)
    assert (facts["tokenizer_id"], facts["dataset_id"]) == (get_tokenizer_id(), get_dataset_id())
    assert f"written to: {path}" in capsys.readouterr().out


def test_split_without_bytes_has_no_bpb():
    rows = [(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3))]
    found = base_loss.summarize(rows, torch.zeros(4, dtype=torch.int32))
    assert found == dict(loss=1.0, bpb=None, tokens=6, bytes=0)


def test_samples_are_printed_and_recorded(tiny, tmp_path, capsys):
    base_eval.main(["--eval", "sample", "--output-json", str(tmp_path / "eval.json"), "--device-type=cpu"])
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "eval.json").read_text())
    assert len(results["samples"]) == len(SAMPLE_PROMPTS) and len(results["unconditioned_samples"]) == 8
    for prompt, sample in zip(SAMPLE_PROMPTS, results["samples"]):
        assert sample.startswith("<|bos|>" + prompt) and len(sample) > len(prompt) + 8 and sample in out
    assert len(set(results["unconditioned_samples"])) == 8
    assert results["val_bpb"] is None and "BPB" not in out


def error_of(script, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(argv)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    name = script.__name__.split(".")[1]
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith(f"{name}: error: "), (out, err)
    return lines[0]


@pytest.mark.parametrize("argv, message", [
    (["--eval=core,bpb"], "CORE is not here yet"), (["--max-per-task=5"], "CORE is not here yet"),
    (["--eval=bpd"], "bpd is unknown"),
    (["--device-batch-size=0"], "--device-batch-size=0"), (["--split-tokens=-1"], "--split-tokens=-1")])
def test_what_cannot_be_done_stops_before_any_work(argv, message, capsys):
    assert message in error_of(base_eval, argv, capsys)  # there is not even a checkpoint


@pytest.mark.parametrize("script", [base_eval, base_loss], ids=lambda m: m.__name__)
def test_bad_input_is_one_line_and_status_2(script, tiny, tmp_path, capsys, monkeypatch):
    assert f"less than one batch of --device-batch-size 32 x {T}" in error_of(script, ["--split-tokens=100"], capsys)
    if script is base_loss:
        assert "too few for 32 chunks" in error_of(script, ["--per-position", str(tmp_path / "p.json"), *FLAGS], capsys)
    assert "no whole checkpoint" in error_of(script, ["--model-tag=nope"], capsys)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "more than one rank" in error_of(script, [], capsys)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("NANOCHAT_DTYPE", "float16")
    assert "NANOCHAT_DTYPE=float16" in error_of(script, [], capsys)
    monkeypatch.delenv("NANOCHAT_DTYPE")
    base = shutil.copytree(tiny, tmp_path / "copy")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    shutil.rmtree(base / "base_data_climbmix")
    assert "python -m nanochat.dataset" in error_of(script, FLAGS, capsys)
    shutil.rmtree(base / "tokenizer")
    assert "python -m scripts.tok_train" in error_of(script, FLAGS, capsys)
    RustBPETokenizer.train_from_iterator(["other text " * 9], 266).save(base / "tokenizer")
    assert "is not the one that" in error_of(script, FLAGS, capsys)
    shutil.rmtree(base / "base_checkpoints")
    assert "python -m scripts.base_train" in error_of(script, FLAGS, capsys)
