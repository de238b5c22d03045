"""
Checkpoints that are damaged, left half-written by a kill, beside upstream's, or written on a full disk.

python -m pytest tests/test_checkpoint_damage.py -q
"""

import json
import multiprocessing
import os
import signal

import pytest
import torch

from nanochat import checkpoint_manager as cm
from tests.checkpoint_case import assert_usable, save, states


def test_keep_last_never_deletes_what_was_just_written(tmp_path):
    for step in (3, 6, 9):
        save(tmp_path, step)
    flip_a_bit(tmp_path / "model_000009.pt", 200)
    save(tmp_path, 7, keep_last=1)  # a run that was resumed from step 6
    assert cm.find_last_step(tmp_path) == 7 and cm.manifest_steps(tmp_path) == [7, 9]


def test_a_step_saved_by_the_clock_gives_way_to_the_next_one_and_other_steps_stay(tmp_path):
    for step, timed in ((1, True), (2, False), (3, True), (4, True), (5, False)):
        save(tmp_path, step, timed=timed)
        assert cm.manifest_steps(tmp_path)[-1] == step
    assert cm.manifest_steps(tmp_path) == [2, 5]


def flip_a_bit(path, place, bit=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


DAMAGED = {"a list": b"[]", "null": b"null", "no files": b'{"step": 6, "files": {}}', "nested": b"[" * 100000,
           "files null": b'{"step": 6, "files": null}', "files a list": b'{"step": 6, "files": ["model_000006.pt"]}',
           "entries null": b'{"step": 6, "files": {"optim_000006_rank0.pt": null, "meta_000006.json": null, '
                           b'"model_000006.pt": null}}', "empty": b"", "torn": b'{"step": 6, "fi',
           "a name with NUL": b'{"step": 6, "files": {"a\\u0000": {"bytes": 1, "sha256": "x"}}}'}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=list(DAMAGED))
def test_a_damaged_manifest_is_told_and_the_step_before_is_taken(tmp_path, capsys, content):
    for step in (3, 6):
        save(tmp_path, step)
    cm.manifest_path(tmp_path, 6).write_bytes(content)
    assert cm.find_last_step(tmp_path) == 3
    assert "Skipping step 6" in capsys.readouterr().out
    with pytest.raises(ValueError, match="step 6 .* is damaged"):
        cm.load_checkpoint(tmp_path, 6, "cpu")


def test_a_manifest_counts_only_with_exactly_the_files_of_its_step(tmp_path):
    for step in (3, 6):
        save(tmp_path, step)
    path = cm.manifest_path(tmp_path, 6)
    good = json.loads(path.read_text())
    assert cm.is_whole(tmp_path, 6)
    for change in ({"step": 3}, json.loads(cm.manifest_path(tmp_path, 3).read_text()),
                   {"files": {k: v for k, v in good["files"].items() if "optim" not in k} | {"x": {}}},
                   {"files": {k: v for k, v in good["files"].items() if "meta" not in k}},
                   {"files": {**good["files"], "model_000003.pt": {}}}):
        path.write_text(json.dumps({**good, **change}))
        assert not cm.is_whole(tmp_path, 6), change
    path.write_text(json.dumps({**good, "files": {k: v for k, v in good["files"].items() if "optim" not in k}}))
    assert cm.is_whole(tmp_path, 6), "a model alone, without its optimizer"


def test_every_single_flipped_bit_of_a_manifest_leaves_a_step_to_resume_from(tmp_path):
    for step in (3, 6):
        save(tmp_path, step)
    path = cm.manifest_path(tmp_path, 6)
    good = path.read_bytes()
    for place in range(len(good)):
        for bit in (0, 5, 7):
            flip_a_bit(path, place, bit)
            assert cm.find_last_step(tmp_path) in (3, 6)  # 6: white space, or a letter of a hash in capitals
            path.write_bytes(good)


def test_an_upstream_folder_with_a_damaged_meta_file_gives_the_step_before(tmp_path):
    for step in (3, 6):
        save(tmp_path, step)
        cm.manifest_path(tmp_path, step).unlink()
    (tmp_path / "meta_000006.json").write_text("{")
    assert cm.find_last_step(tmp_path) == 3


def test_a_torn_model_of_upstream_is_one_line(tmp_path):
    save(tmp_path, 3)
    cm.manifest_path(tmp_path, 3).unlink()
    model = tmp_path / "model_000003.pt"
    for size in (0, 100, model.stat().st_size - 50):
        model.write_bytes(model.read_bytes()[:size] if size else b"")
        with pytest.raises(ValueError, match="model_000003.pt cannot be read .*name another step"):
            cm.load_checkpoint(tmp_path, 3, "cpu")
        save(tmp_path, 3)
        cm.manifest_path(tmp_path, 3).unlink()


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and fork are POSIX")
def test_what_killed_saves_leave_is_swept_by_the_next_save(tmp_path):
    def killed(step, renames):
        real, calls = os.replace, []

        def stop(source, target):
            calls.append(1)
            if len(calls) == renames:
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)
        os.replace = stop
        cm.save_checkpoint(tmp_path, step, *states(step)[:2], {"step": step, "run_id": "ours"}, keep_last=1)
    for step, renames in enumerate((1, 2, 3, 4), 1):  # 4: all files but the manifest
        process = multiprocessing.get_context("fork").Process(target=killed, args=(step, renames))
        process.start()
        process.join()
    assert len(list(tmp_path.iterdir())) >= 8
    save(tmp_path, 9)
    assert sorted({path.name.split(".")[0] for path in tmp_path.iterdir()}) == [
        "manifest_000009", "meta_000009", "model_000009", "optim_000009_rank0"]


def test_upstream_steps_and_foreign_files_are_never_swept(tmp_path):
    save(tmp_path, 4)
    cm.manifest_path(tmp_path, 4).unlink()
    (tmp_path / "notes.tmp").write_text("mine")
    (tmp_path / "tensorboard").mkdir()
    before = {path.name for path in tmp_path.iterdir()}
    save(tmp_path, 9, keep_last=1)
    assert before <= {path.name for path in tmp_path.iterdir()}
    assert_usable(tmp_path, 4)


def test_a_full_disk_while_a_step_is_written_again_leaves_the_step_as_it_was(tmp_path, monkeypatch):
    save(tmp_path, 1)
    real = torch.save

    def full(obj, f):
        if "optim" in str(f.name):  # the last to be written
            raise OSError(28, "No space left on device")
        real(obj, f)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 1)
    assert_usable(tmp_path, 1)
    assert cm.is_whole(tmp_path, 1) and len(list(tmp_path.iterdir())) == 4
