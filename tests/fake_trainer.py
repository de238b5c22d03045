"""
Stands in for scripts.base_train in the protocol's tests: parses the same flags and leaves the same kind of record,
in milliseconds. FAKE_PLAN in the environment is JSON, {run tag: how it behaves}; the rest end ok.

    ok      | a record, exit code 0          wait    | trains until it is told to stop, then saves and exits 130
    diverged, oom | as the trainer does      crash   | exit code 1, and a record that still says "running"
    silent  | exit code 9 and no record      liar    | exit code 0 and no record     deaf | ignores SIGINT
    meet    | goes on when a second run has begun
    slow    | steps until the file go_on is there, then ends ok      late    | sleeps before it takes its lock
    stopped | steps a little, then stands still until the file go_on is there
    torn down | is killed when its record says ok
As the trainer does, it holds the lock of its tag, and ends with exit code 2 where another process holds it.
"""

import json
import os
import shlex
import signal
import sys
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from nanochat.common import get_base_dir
from nanochat.config import config_hash, parse, profile_hash
from nanochat.machine import cpu_name
from nanochat.record import RunRecord, read_record
from nanochat.stage import BASE

EXIT = {"diverged": 3, "oom": 4}
LATE_SEC = 1.5


def val_bpb(config, step):
    gate = (10 + config.seed % 3) * config.symplectic_gate_mix if config.symplectic_gate else 0
    return 3.0 - 0.01 * step + 0.001 * (config.seed % 7) + 0.01 * gate


def open_record(config, resumed_from):
    ids = "data", "tok"
    facts = dict(
        config=asdict(config), command=shlex.join(["python", "-m", "scripts.base_train", *sys.argv[1:]]),
        resumed_from_step=resumed_from, error=None,
        config_hash=config_hash(config, *ids, os.environ["FAKE_TREE"]), profile_hash=profile_hash(config, "cpu", *ids),
        threads=int(os.environ.get("OMP_NUM_THREADS", 0)) or None,
        device={"kind": "cpu", "name": cpu_name()}, tree_hash=os.environ["FAKE_TREE"],
        dataset_id=ids[0], tokenizer_id=ids[1],
        load_start=0.5, load_end=float(os.environ.get("FAKE_LOAD", 0.5)),
        started_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        resolved={"num_iterations": config.num_iterations}, pid=os.getpid())
    record = RunRecord(get_base_dir(), config.model_tag, facts)
    record.cut_back(resumed_from or 0)
    record.update()
    return record


def main():
    config = parse()
    behaviour = json.loads(os.environ.get("FAKE_PLAN", "{}")).get(config.model_tag, "ok")
    print(f"training {config.model_tag}: {behaviour}", flush=True)
    if behaviour in ("silent", "liar"):
        return 9 if behaviour == "silent" else 0
    time.sleep(LATE_SEC if behaviour == "late" else 0)
    BASE.root(get_base_dir()).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(BASE.lock(get_base_dir(), config.model_tag), timeout=1):
            return train(config, behaviour)
    except Timeout:
        return 2


def go_on() -> bool:
    return Path(os.environ["FAKE_GO_ON"]).exists()


def train(config, behaviour):
    before = (read_record(get_base_dir(), config.model_tag) or {}).get("results") or {}
    start = before.get("steps") if config.resume else None
    record = open_record(config, start)
    while behaviour == "meet" and len(list((get_base_dir() / "records").iterdir())) < 2:
        time.sleep(0.01)
    stop = []
    signal.signal(signal.SIGINT, lambda *_: behaviour != "deaf" and stop.append(1))
    for step in range(start or 0, config.num_iterations + 1, config.eval_every):
        record.log({"step": step, "val/bpb": val_bpb(config, step), "total_training_time": 0.1 * step})
        while behaviour == "slow" and step >= config.eval_every and not go_on() or \
                behaviour == "stopped" and step >= 3 * config.eval_every and not go_on():
            time.sleep(0.01)
        time.sleep(0.3 if behaviour == "stopped" else 0)
        if behaviour in ("wait", "deaf") and step >= config.eval_every:
            while not stop:
                time.sleep(0.01)
            record.finish("interrupted", error="SIGINT", results={"steps": step, "val_bpb": val_bpb(config, step)})
            return 130
    if behaviour == "crash":
        raise RuntimeError("made up")
    if behaviour in EXIT:
        record.finish(behaviour, error="step 3: made up", results={"steps": 3, "val_bpb": 2.99, "min_val_bpb": 2.99})
        return EXIT[behaviour]
    speed = 900.0 if config.symplectic_gate else 1000.0
    bpb = val_bpb(config, config.num_iterations)
    record.finish("ok", clocks={"wall_time_sec": 1.5, "total_training_time": 1.0},
                  results={"val_bpb": bpb, "min_val_bpb": bpb, "avg_tok_per_sec": speed, "steps": config.num_iterations,
                           "trained_tokens": config.num_iterations * config.total_batch_size})
    if behaviour == "torn down":
        os.kill(os.getpid(), signal.SIGKILL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
