"""
Run one cell on another tree and leave a record like ours:

    python -m nanochat.lab.trees.run ORDER.json   (nanochat/lab/trees/orders.py writes it)

Some trainers keep records as ours does. Then the run's own record only gets the hash of the cell. Other trainers,
such as upstream's, leave a meta file for each checkpoint (trees/metas.py), with validation, training seconds and
smoothed loss. While the run goes on, these become lines of metrics.jsonl, and only the newest weights are kept. The
mean step time is known for each stretch between two meta files; the median step time is the median over stretches.
A value that meta files do not hold stays null. A run that ended ok is scored (trees/score.py). Exit codes are those of
scripts.base_train.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from nanochat.code_identity import tree_hash, tree_hash_of_0_1
from nanochat.common import read_json, write_json
from nanochat.lab.commands import EXIT_BAD_INPUT
from nanochat.lab.trees.flags import rename_words, trainer_environment
from nanochat.lab.trees.metas import (
    Meta,
    drop,
    finite,
    is_whole,
    last_whole_step,
    meta_path,
    meta_steps,
    read_meta,
    set_aside,
)
from nanochat.lab.trees.orders import order_lock
from nanochat.lab.trees.score import add_score, is_scored
from nanochat.record import (
    EXIT_CODES,
    RunRecord,
    last_metrics_row,
    read_metrics,
    read_record,
    record_dir,
    record_stamp,
    versions,
)
from nanochat.schedule import TIMED_FROM_STEP
from nanochat.stage import BASE

POLL_SEC = 0.5
GRACE_SEC = 150  # less than the protocol's: the trainer must not outlive us


class Stop:
    """Notes the time of the first SIGINT or SIGTERM; later signals change nothing."""

    def __init__(self):
        self.asked_at = None
        for name in ("SIGINT", "SIGTERM"):
            signal.signal(getattr(signal, name), self.ask)

    def ask(self, *_):
        self.asked_at = self.asked_at or time.monotonic()


def train(order: dict, more, each_poll, stop: Stop) -> int:
    """Run the trainer to its end; returns its exit code. each_poll() is called while it runs."""
    more = rename_words(more, order.get("renames") or {})
    child = subprocess.Popen([sys.executable, "-m", BASE.command, *order["argv"], *more], cwd=order["tree"],
                             env=trainer_environment(order["environment"]), stdin=subprocess.DEVNULL)
    told = False
    while child.poll() is None:
        if stop.asked_at and not told:
            told = True
            if os.name != "nt":  # there the console has told it already
                child.send_signal(signal.SIGINT)
        if stop.asked_at and time.monotonic() - stop.asked_at > GRACE_SEC:
            child.kill()
        each_poll()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SEC)
    return child.returncode


def main(argv=None) -> int:
    path, = sys.argv[1:] if argv is None else argv
    order, stop = {**read_json(path), "path": os.path.abspath(path)}, Stop()
    try:
        with FileLock(order_lock(order["home"], order["tag"]), timeout=1):  # a protocol holds it, to ask who runs
            return EXIT_CODES.get(carry_out(order, stop), 1)
    except Timeout:
        print(f"error: another process carries out {path}; wait for it", file=sys.stderr)
        return EXIT_BAD_INPUT


def carry_out(order: dict, stop: Stop) -> str:
    """Returns the status of the run."""
    if order["resume"] and _waits_for_score(order):
        return score_again(order, stop)
    return (adopt_record if order["keeps_record"] else make_record)(order, stop)


def _waits_for_score(order) -> bool:
    record = read_record(order["home"], order["tag"]) or {}
    same = record.get("config_hash") == order["facts"]["config_hash"]
    return same and not is_scored(record, order["facts"]["config"]["eval_every"])


def score_again(order, stop) -> str:
    """Score a complete run of a version that did not score, without training it again."""
    record = read_record(order["home"], order["tag"])
    scored = {**record, **add_score(order, record, stop)}
    if scored["status"] == "ok":
        write_json(record_dir(order["home"], order["tag"]) / "run.json", scored)
    return scored["status"]


# -----------------------------------------------------------------------------
# A trainer that keeps records

def adopt_record(order, stop) -> str:
    """Run a trainer that keeps records, and add the cell's hash and the origin of the code to its record.

    Returns the status of the run.
    """
    home, tag = order["home"], order["tag"]
    before = record_stamp(home, tag)
    resume = order["can_resume"] and _may_resume(order, ("tree_hash",))  # it compares the options itself
    code = train(order, ["--resume"] if resume else [], lambda: None, stop)
    record = read_record(home, tag)
    if record is None or record_stamp(home, tag) == before:
        return "interrupted" if stop.asked_at else "crash"
    kept = {"device": record.get("device"), "config": record.get("config"), "argv": record.get("argv")}
    status = "crash" if record.get("status") == "ok" and code else record.get("status")
    record.update({**order["facts"], **kept, **_if_edited(order, {"status": status})})
    record.update(add_score(order, record, stop))
    write_json(record_dir(home, tag) / "run.json", record)
    return record["status"]


def _may_resume(order, keys) -> bool:
    """True if the run under this tag was begun by the same cell, so that it may be resumed.

    An order alone is not enough: it may have been written and never begun.
    """
    record = read_record(order["home"], order["tag"]) or {}
    same = {key: record.get(key) == order["facts"][key] for key in keys}
    same["tree_hash"] = record.get("tree_hash") in (order["facts"]["tree_hash"], tree_hash_of_0_1(order["tree"]))
    return order["resume"] and all(same.values())


def _if_edited(order, facts) -> dict:
    if facts["status"] == "ok" and tree_hash(order["tree"]) != order["facts"]["tree_hash"]:
        return {**facts, "status": "crash", "error": f"{order['tree']} was edited while it ran; run it again"}
    return facts


# -----------------------------------------------------------------------------
# A trainer that leaves meta files

def make_record(order, stop) -> str:
    step = last_whole_step(checkpoints(order)) if _may_resume(order, ("tree_hash", "config_hash")) else None
    earlier = (read_record(order["home"], order["tag"]) or {}) if step else {}
    if step is None:
        for folder in (checkpoints(order), record_dir(order["home"], order["tag"])):
            set_aside(folder)
    else:
        for later in [s for s in meta_steps(checkpoints(order)) if s > step]:
            drop(checkpoints(order), later, "meta", "model", "optim")
    facts = {**order["facts"], **_machine(), "resumed_from_step": step, "error": None}
    record = RunRecord(order["home"], order["tag"], facts)
    record.cut_back(step + 1 if step else 0)
    run = MetaRun(order, record, (earlier.get("clocks") or {}).get("wall_time_sec") or 0.0)
    run.collect()
    record.update(**run.summary())
    code = train(order, [f"--resume-from-step={step}"] if step else [], run.collect, stop)
    run.collect()
    facts = {"load_end": _load(), **_if_edited(order, run.judge(code, bool(stop.asked_at))), **run.summary()}
    facts |= add_score(order, facts, stop)
    record.finish(facts.pop("status"), **facts)
    return record.facts["status"]


def checkpoints(order) -> Path:
    return BASE.folder(order["home"], order["tag"])


def step_sec(times: dict) -> float | None:
    """Median over the stretches between checkpoints of the mean seconds of a step.

    times: {step: training seconds so far}

    >>> step_sec({10: 0, 20: 4.5, 30: 9.0, 40: 99.0})  # the clock starts at step 11
    0.5
    """
    ends = [(step, sec) for step, sec in sorted(times.items()) if sec is not None and step > TIMED_FROM_STEP]
    begins = [(TIMED_FROM_STEP, 0.0), *ends]
    means = [(t1 - t0) / (s1 - s0) for (s0, t0), (s1, t1) in zip(begins, ends)]
    return statistics.median(means) if means else None


class MetaRun:
    """The record of a run, from the meta files that it has left so far."""

    def __init__(self, order, record: RunRecord, wall_sec: float):
        self.folder, self.record, self.config = checkpoints(order), record, order["facts"]["config"]
        # A killed run may have left later files, which were not read.
        self.step = (last_metrics_row(record.metrics_path) or {"step": 0})["step"]
        self.meta = read_meta(meta_path(self.folder, self.step))
        self.times = {row["step"]: row.get("total_training_time") for row in read_metrics(record.metrics_path)}
        self.started, self.wall_sec = time.monotonic(), wall_sec
        asked = self.config["num_iterations"]
        self.total = asked if asked > 0 else None  # None: known when it has ended

    def collect(self):
        """A metrics line for each new meta file, in order; then drop the weights that it makes old."""
        for step in meta_steps(self.folder):
            if step <= self.step:
                continue
            if (meta := read_meta(meta_path(self.folder, step))) is None:
                return
            self.step, self.meta = step, meta
            self.times[step] = finite(meta.training_sec)
            if finite(meta.val_bpb) is not None and self.config["eval_every"] > 0:
                self.record.log({"step": step, "val/bpb": meta.val_bpb, "total_training_time": self.times[step]})
            self.record.update(**self.summary())
        self._prune()

    def _prune(self):
        """Keep the newest --keep-last whole sets, or one: a stopped run goes on from it.

        There is a set for each validation, and the disk may not hold them all. Meta files are small and stay."""
        whole = [step for step in meta_steps(self.folder) if is_whole(self.folder, step)]
        for step in whole[:-max(1, self.config["keep_last"])]:
            drop(self.folder, step, "model", "optim")

    def summary(self) -> dict:
        """clocks, results and resolved, as in our trainer's records. A value that no meta file holds is None."""
        meta = self.meta or Meta(self.step)
        seconds, tokens, dt = finite(meta.training_sec), meta.total_batch_size, step_sec(self.times)
        timed = self.step - TIMED_FROM_STEP
        results = {
            "peak_mem_mib": None, "epochs_used": None, "dt_median_ms": 1000 * dt if dt else None,
            "tok_per_sec_median": tokens / dt if tokens and dt else None,
            "val_bpb": finite(meta.val_bpb), "min_val_bpb": finite(meta.min_val_bpb),
            "final_train_loss": finite(meta.train_loss),
            "avg_tok_per_sec": tokens * timed / seconds if tokens and seconds and timed > 0 else None,
            "trained_tokens": meta.trained_tokens, "steps": self.step if self.meta else None}
        clocks = {"wall_time_sec": self.wall_sec + time.monotonic() - self.started, "total_training_time": seconds,
                  "setup_sec": None, "compile_sec": None, "eval_sec": None, "save_sec": None}
        resolved = {"num_iterations": self.total, "total_batch_size": tokens, "model_config": meta.model_config}
        return {"results": results, "clocks": clocks, "resolved": resolved}

    def judge(self, code: int, stopped: bool) -> dict:
        """status and error of a run that has ended."""
        if self.meta and not self.meta.is_finite:
            return {"status": "diverged", "error": f"a loss that is not finite, first seen at step {self.step}"}
        if code == 0 and self.meta and self.total in (None, self.step):
            self.total = self.step
            return {"status": "ok", "error": None}
        if stopped:
            step = last_whole_step(self.folder) or 0
            return {"status": "interrupted", "error": f"stopped; goes on from step {step}"}
        missing = "" if code else ", and no checkpoint of the last step"
        return {"status": "crash", "error": f"exit code {code}{missing}"}


def _load():
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _machine() -> dict:
    """Facts of this machine that are known without torch. The trainer runs in this same interpreter."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return {"versions": versions(), "threads": int(threads) if threads.isdigit() else None,
            "load_start": _load(), "load_end": None, "pid": os.getpid(),
            "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds")}


if __name__ == "__main__":
    sys.exit(main())
