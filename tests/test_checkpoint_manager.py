"""
python -m pytest tests/test_checkpoint_manager.py -q
"""

import builtins
import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

import nanochat.common
from nanochat import checkpoint_manager as cm
from nanochat.gpt import GPTConfig, build_model
from nanochat.optim import setup_optimizer
from tests.checkpoint_case import assert_usable, save

RATES = dict(unembedding_lr=0.01, embedding_lr=0.1, matrix_lr=0.02, scalar_lr=0.1, weight_decay=0.1)
CONFIG = GPTConfig(sequence_len=16, vocab_size=70, n_layer=2, n_head=2, n_kv_head=2, n_embd=32, window_pattern="L")


def test_every_file_is_written_fsynced_renamed_and_its_folder_fsynced_in_order(tmp_path, monkeypatch):
    events, names = [], {}
    real = {name: getattr(os, name) for name in ("fsync", "replace", "open")}
    real_open = builtins.open

    class Spy:  # tells when bytes reach a temporary file
        def __init__(self, f, name):
            self.f, self.name = f, name
            names[f.fileno()] = name

        def write(self, data):
            if ("write", self.name) not in events[-1:]:
                events.append(("write", self.name))
            return self.f.write(data)

        def __getattr__(self, attribute):
            return getattr(self.f, attribute)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.f.close()

    def spy_open(path, mode="r", *args, **kwargs):
        f = real_open(path, mode, *args, **kwargs)
        return Spy(f, str(path)) if "w" in mode and "b" in mode else f

    def spy_os_open(path, *args, **kwargs):
        fd = real["open"](path, *args, **kwargs)
        names[fd] = str(path)
        return fd

    monkeypatch.setattr(nanochat.common, "open", spy_open, raising=False)
    monkeypatch.setattr(os, "open", spy_os_open)
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(("fsync", names[fd])), real["fsync"](fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(("rename", str(b))), real["replace"](a, b)))
    save(tmp_path, 7)

    renamed = [os.path.basename(path) for kind, path in events if kind == "rename"]
    assert renamed == ["optim_000007_rank0.pt", "meta_000007.json", "model_000007.pt", "manifest_000007.json"]
    for name in renamed:
        kinds = [(kind, path) for kind, path in events if name in path]
        assert [kind for kind, _ in kinds] == ["write", "fsync", "rename"], kinds
        assert all(path.endswith(".tmp") for kind, path in kinds if kind != "rename")
        after = events[events.index(("rename", str(tmp_path / name))) + 1]
        assert after == ("fsync", str(tmp_path))


def save_for_ever(folder, first):
    for step in range(first, first + 10 ** 6):
        save(folder, step, keep_last=2)


def kill_while_saving(folder, kills, seed):
    """SIGKILL a process that saves as fast as it can, at random moments; after each, the latest must be usable."""
    rng, step, seen = random.Random(seed), 1, set()
    for _ in range(kills):
        process = multiprocessing.get_context("fork").Process(target=save_for_ever, args=(folder, step), daemon=True)
        process.start()
        time.sleep(rng.uniform(0.01, 0.12))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        last = cm.find_last_step(folder)
        if last is not None:
            assert_usable(folder, last)
            assert last >= step - 1  # nothing that was acknowledged is lost
            step = last + 1
        seen.add(tuple(sorted(p.name.split("_")[0] for p in folder.iterdir() if f"{step:06d}" in p.name)))
    return step, seen


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and fork are POSIX")
def test_20_kills_at_random_moments_leave_a_usable_latest_checkpoint(tmp_path):
    step, _ = kill_while_saving(tmp_path, 20, seed=0)
    assert step > 5


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and fork are POSIX")
def test_200_kills_at_random_moments_leave_a_usable_latest_checkpoint(tmp_path):
    step, seen = kill_while_saving(tmp_path, 200, seed=1)
    assert step > 50
    assert len(seen) > 2, f"the kills hit too few different moments of a save: {seen}"


def test_the_latest_is_the_newest_whole_step_not_the_newest_file(tmp_path):
    for step in (3, 5, 9):
        save(tmp_path, step)
    os.utime(tmp_path / "model_000003.pt")
    assert cm.find_last_step(tmp_path) == 9
    with open(tmp_path / "model_000009.pt", "r+b") as f:  # one byte, same size
        f.seek(900)
        byte = f.read(1)
        f.seek(900)
        f.write(bytes([byte[0] ^ 1]))
    assert cm.find_last_step(tmp_path) == 5
    (tmp_path / "optim_000005_rank0.pt").unlink()
    assert cm.find_last_step(tmp_path) == 3
    with pytest.raises(ValueError, match="step 9 .* damaged"):
        cm.load_checkpoint(tmp_path, 9, "cpu")


def test_a_set_without_manifest_is_readable_when_named_but_never_the_latest_beside_manifests(tmp_path):
    save(tmp_path, 4)
    save(tmp_path, 8)
    cm.manifest_path(tmp_path, 8).unlink()
    assert cm.find_last_step(tmp_path) == 4
    assert_usable(tmp_path, 8)
    cm.manifest_path(tmp_path, 4).unlink()
    assert cm.find_last_step(tmp_path) == 8  # upstream's folder: no manifest at all


def test_keep_last_deletes_whole_old_steps(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step, keep_last=2)
    assert cm.manifest_steps(tmp_path) == [4, 5]
    assert len(list(tmp_path.iterdir())) == 8


def test_a_full_disk_leaves_the_earlier_checkpoint_and_no_debris(tmp_path, monkeypatch):
    save(tmp_path, 1)
    before = sorted(p.name for p in tmp_path.iterdir())

    def full(obj, f):
        f.write(b"x" * 1000)
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == before and cm.find_last_step(tmp_path) == 1


def test_missing_steps_are_named_with_those_that_exist(tmp_path):
    save(tmp_path, 6)
    with pytest.raises(FileNotFoundError, match=r"model_000007.pt is missing; steps in this folder: \[6\]"):
        cm.load_checkpoint(tmp_path, 7, "cpu")


def test_pickled_code_in_a_checkpoint_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch " + str(tmp_path / "hacked"),)
    save(tmp_path, 1)
    torch.save({"w": Evil()}, tmp_path / "model_000001.pt")
    cm.manifest_path(tmp_path, 1).unlink()
    with pytest.raises(Exception, match="[Ww]eights"):
        cm.load_checkpoint(tmp_path, 1, "cpu")
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_and_its_optimizer_survive_the_round_trip_to_the_last_bit(tmp_path, dtype):
    model = build_model(CONFIG, "cpu", dtype, seed=1)
    optimizer = setup_optimizer(model, polar_dtype=dtype, **RATES)
    x = torch.arange(32).view(2, 16)
    for _ in range(2):
        model(x, x).backward()
        optimizer.step()
        model.zero_grad()
    meta = dict(step=2, model_config=CONFIG.upstream_dict(), variant=CONFIG.variant_dict())
    cm.save_checkpoint(tmp_path, 2, model.state_dict(), optimizer.state_dict(), meta)
    model_state, optim_state, meta = cm.load_checkpoint(tmp_path, 2, "cpu", load_optimizer=True)
    again = cm.restore_model(model_state, meta, "cpu", dtype)
    assert torch.equal(model(x), again(x))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other = setup_optimizer(again, polar_dtype=dtype, **RATES)
    other.load_state_dict(optim_state)
    for m, o in ((model, optimizer), (again, other)):
        m(x, x).backward()
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_model_config_holds_exactly_upstreams_seven_keys_and_the_variant_the_rest(tmp_path):
    gated = GPTConfig(residual="symplectic", symplectic_gate_mix=0.05)
    assert list(gated.upstream_dict()) == ["sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd",
                                           "window_pattern"]
    assert gated.variant_dict() == {"residual": "symplectic", "symplectic_gate_mix": 0.05}
    assert GPTConfig().variant_dict() == {}
    meta = json.loads(json.dumps(dict(model_config=gated.upstream_dict(), variant=gated.variant_dict())))
    assert cm.model_config_of(meta) == gated


def test_the_largest_model_is_the_deepest_then_the_newest(tmp_path):
    with pytest.raises(FileNotFoundError, match="scripts.base_train"):
        cm.find_largest_model(tmp_path)
    for tag in ("d4", "d12", "nc_x"):
        save(tmp_path / tag, 1)
    (tmp_path / "d20").mkdir()  # empty: a run that has saved nothing yet
    assert cm.find_largest_model(tmp_path) == "d12"
