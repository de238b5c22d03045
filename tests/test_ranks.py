"""
Decisions, sums and files of several ranks, as two processes on this machine over gloo.

python -m pytest tests/test_ranks.py -q
"""

import json
import os
import subprocess
import sys

import pytest

from nanochat.ranks import ONE_RANK, Ranks
from tests.conftest import REPO_ROOT

START = """
import datetime, json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from nanochat.ranks import Ranks
store, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{store}/rendezvous", rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=60))
ranks = Ranks(rank, rank, 2)
"""
END = """
(store / f"{rank}.json").write_text(json.dumps(found))
dist.destroy_process_group()
"""


def two_ranks(tmp_path, code) -> list:
    """`found` of both ranks after they have run the code, which has `ranks` and an empty folder `store`."""
    if os.name == "nt":
        pytest.skip("gloo meets over a file URL of POSIX")
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else dict(os.environ)
    processes = [subprocess.Popen([sys.executable, "-c", START + code + END, str(tmp_path), str(rank)], cwd=REPO_ROOT,
                                  env=env, stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for process in processes:
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 0, error
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]


def test_one_rank_gets_back_what_it_gave_and_imports_no_torch():
    obj = object()
    assert ONE_RANK == Ranks(0, 0, 1)
    assert ONE_RANK.sum(0.1) == 0.1 and ONE_RANK.any(True) is True and ONE_RANK.any(False) is False
    assert ONE_RANK.broadcast(obj) is obj
    code = "import sys; from nanochat.ranks import ONE_RANK as r; r.sum(1.5), r.any(True), r.broadcast({})\n" \
           "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT).returncode == 0


def test_ranks_are_read_from_the_environment_as_torchrun_sets_it(monkeypatch):
    assert Ranks.from_environment() == ONE_RANK
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == Ranks(rank=3, local_rank=1, world_size=8)


def test_two_ranks_agree_on_sums_flags_and_objects(tmp_path):
    found = two_ranks(tmp_path, """
big = 2 ** 53 + 1  # the first integer that float64 has not
found = dict(int=ranks.sum(big if rank == 0 else 0), float=ranks.sum([0.1, 0.2][rank]),
             some=ranks.any(rank == 1), none=ranks.any(False), all=ranks.any(True),
             word=ranks.broadcast(["wall", None][rank]), nothing=ranks.broadcast([None, "wall"][rank]),
             nan=ranks.any(ranks.sum([1.0, float("nan")][rank]) != 1.0))
""")
    assert found[0] == found[1] == {"int": 2 ** 53 + 1, "float": 0.1 + 0.2, "some": True, "none": False, "all": True,
                                    "word": "wall", "nothing": None, "nan": True}


def test_two_ranks_measure_the_bpb_of_all_batches_together(tmp_path):
    found = two_ranks(tmp_path, """
from nanochat.loss_eval import evaluate_bpb
def model(x, y, loss_reduction):
    return x.double().view(-1)  # made-up nats of each token
sizes = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
batches = [(torch.tensor([[n, n + 1, 5]]), torch.tensor([[1, 2 + n % 2, 0]])) for n in range(5)]
found = [evaluate_bpb(model, batches[rank::2], sizes, ranks), evaluate_bpb(model, batches, sizes)]
""")
    assert found[0] == found[1] and found[0][0] == pytest.approx(found[0][1], rel=1e-15)


def test_two_ranks_write_one_whole_checkpoint_with_an_optimizer_file_each(tmp_path):
    found = two_ranks(tmp_path, """
from nanochat.checkpoint_manager import is_whole, load_checkpoint, save_checkpoint
for step in (1, 2):
    save_checkpoint(store / "c", step, {"w": torch.ones(3)}, {"mine": rank}, {"step": step}, keep_last=1, ranks=ranks)
ranks.any(False)  # rank 0 has written the manifest
found = [is_whole(store / "c", 2), load_checkpoint(store / "c", 2, "cpu", load_optimizer=True, rank=rank)[1],
         sorted(path.name for path in (store / "c").iterdir())]
""")
    names = ["manifest_000002.json", "meta_000002.json", "model_000002.pt", "optim_000002_rank0.pt",
             "optim_000002_rank1.pt"]
    assert found == [[True, {"mine": 0}, names], [True, {"mine": 1}, names]]
    assert set(json.loads((tmp_path / "c" / names[0]).read_text())["files"]) == set(names[1:])


def test_a_signal_to_one_rank_stops_both(tmp_path):
    found = two_ranks(tmp_path, """
import signal
from types import SimpleNamespace
from nanochat.run_guard import signal_name, stop_asked
run = SimpleNamespace(ranks=ranks, stop_signal=None)
found = [stop_asked(run)]
run.stop_signal = signal.SIGTERM if rank == 1 else None
found += [stop_asked(run), signal_name(run)]
""")
    assert found == [[False, True, "a signal to another rank"], [False, True, "SIGTERM"]]
