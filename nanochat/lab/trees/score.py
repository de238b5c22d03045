"""
The score of a run on another tree, by this repository's evaluator.

Example: a tree reports val_bpb 2.6100 and the evaluator finds 2.6364. The run keeps both numbers. Gates compare the
second one, and the run has a fault that refuses its candidate. nanochat/tree_score.py computes the score in a process
of its own, because it needs torch.

Some trees cannot be scored: their checkpoint manager has neither restore_model (this project) nor build_model
(upstream), or their model does not give logits. The evaluator of such a run is "own", and every table says so.
"""

import contextlib
import math
import subprocess
import sys
from pathlib import Path

from nanochat.common import REPO_ROOT, read_json
from nanochat.lab.trees.flags import trainer_environment
from nanochat.record import record_dir

SCORER = "nanochat/tree_score.py"
SERVER = "nanochat/tree_logits.py"  # it runs inside the tree, and no import names it
LOADER = "nanochat/checkpoint_manager.py"  # of the tree: it builds the model
ADDED = ("evaluator", "scored_val_bpb", "fault")  # to the results in a record; no tree says them of itself
POLL_SEC = 0.2
# Largest relative difference between the tree's val_bpb and ours. The gate compares ours, so a smaller difference
# cannot help a candidate. Measured on a CPU: 2e-10 in fp32, 7e-8 where upstream adds up in fp32, 2e-9 in bf16. A run
# that was compiled in bf16 rounds otherwise than the plain model that is scored: 2e-5, the score being the larger one.
# A card with bf16 or TF32 was not measured.
AGREE = {"cpu": {"float32": 1e-4}}
AGREE_ROUNDED = 1e-3
# Largest change of a logit that counts as rounding. On a CPU equal shapes gave equal bits, in fp32 and in bf16.
SAME_LOGIT, SAME_LOGIT_ROUNDED = 1e-4, 2e-2


def add_score(order: dict, record: dict, stop) -> dict:
    """What the score changes in the record of a run that ended ok: its results, and where it was stopped its status.

    order: with its own "path". record: its status and results. A run that was never validated is not scored.
    """
    results = {name: value for name, value in (record.get("results") or {}).items() if name not in ADDED}
    if record["status"] != "ok" or order["facts"]["config"]["eval_every"] <= 0:
        return {"results": results}
    path = record_dir(order["home"], order["tag"]) / "score.json"
    path.unlink(missing_ok=True)
    dtype = (record.get("resolved") or {}).get("dtype") or "float32"  # upstream's is in the environment
    code = _run(order, ["nanochat.tree_score", order["path"], str(results["steps"]), dtype, str(path)], stop)
    if code and stop.asked_at:
        return {"status": "interrupted", "error": "stopped while it was scored; the same command goes on"}
    if code:
        print(f"{order['tree']}: the control's evaluator cannot score it. Its own val_bpb is kept, and marked as such",
              flush=True)
        return {"results": {**results, "evaluator": "own"}}
    found = read_json(path)
    print(f"val_bpb: {results.get('val_bpb')} by the tree, {found['val_bpb']} by the control's evaluator", flush=True)
    why = fault(found, results.get("val_bpb"), order["facts"]["device"]["kind"])
    return {"results": {**results, "evaluator": "control", "scored_val_bpb": found["val_bpb"], "fault": why}}


def is_scored(record: dict, eval_every: int) -> bool:
    """False for a complete run of a version that did not score: it is scored when it is asked for again."""
    return record.get("status") != "ok" or eval_every <= 0 or "evaluator" in (record.get("results") or {})


def _run(order, words, stop) -> int:
    """Exit code of python -m WORDS in this repository. It is killed when the run is asked to stop."""
    if not (Path(order["tree"]) / LOADER).is_file():
        print(f"{order['tree']} has no {LOADER}", flush=True)
        return 1
    child = subprocess.Popen([sys.executable, "-m", *words], cwd=REPO_ROOT, stdin=subprocess.DEVNULL,
                             env=trainer_environment(order["environment"]))
    while child.poll() is None:
        if stop.asked_at:
            child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SEC)
    return child.returncode


def fault(found: dict, own: float | None, device: str) -> str | None:
    """Why the run can show nothing, or None. found: what nanochat/tree_score.py wrote. own: val_bpb as the tree says.

    >>> fault({"val_bpb": 2.64, "dtype": "float32", "repeated": 0.0, "before_cut": 0.0}, 2.61, "cpu")[:70]
    "the tree reports val_bpb 2.61, the control's evaluator finds 2.64 on t"
    """
    if None in (found["val_bpb"], found["repeated"], found["before_cut"]):
        return "the model's logits are not finite on the validation tokens: repair it, and run it again"
    exact = found["dtype"] in AGREE.get(device, {})
    agree, same = (AGREE[device][found["dtype"]], SAME_LOGIT) if exact else (AGREE_ROUNDED, SAME_LOGIT_ROUNDED)
    if found["repeated"] > same:
        return (f"the model gives other logits for the same tokens (by {found['repeated']:.3g}): switch off what is "
                "random in evaluation, and run it again")
    if found["before_cut"] > same:
        return (f"the model looks ahead: a logit changes by {found['before_cut']:.3g} when only later tokens change; "
                "mask what follows a token, and run it again")
    if own is not None and not math.isclose(own, found["val_bpb"], rel_tol=agree):
        return (f"the tree reports val_bpb {own:.6g}, the control's evaluator finds {found['val_bpb']:.6g} on the same "
                f"tokens (relative difference {abs(own / found['val_bpb'] - 1):.2g}, at most {agree:g} is rounding): "
                "undo what the tree changes in its evaluation, and run it again")
    return None
