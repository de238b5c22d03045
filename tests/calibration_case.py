"""Made-up calibration runs on disk: records as the trainer writes them, their losses from an exact law."""

import json
from dataclasses import asdict

from nanochat.common import write_json
from nanochat.config import parse
from nanochat.cost import resolve
from tests import ledger_case

FLAGS = ("--device-type=cpu", "--no-compile", "--depth=2", "--max-seq-len=256", "--device-batch-size=4",
         "--total-batch-size=2048", "--eval-every=50", "--warmup-steps=5")
VOCAB, RATIO = 1024, 2.0
CORPUS = 60e6  # distinct tokens
FLOOR, A, ALPHA = 1.1, 8.0, 0.2


def loss(tokens):
    return FLOOR + A * tokens ** -ALPHA


def calibration_run(share=1.0, seed=1, *flags, run_id=None, status="ok", pinned=True, value=None,
                    **results) -> tuple[dict, list[dict]]:
    """(run.json, metrics) of a complete run at `share` of the default horizon. results: values that replace those of
    its end."""
    reference = [f"--ratio-ref={RATIO}"] if pinned else []
    config = parse([*FLAGS, f"--target-param-data-ratio={share * RATIO}", *reference, *flags, f"--seed={seed}"])
    done = asdict(resolve(config, VOCAB))
    steps, tokens = done["num_iterations"], done["total_tokens"]
    value = float(loss(tokens)) if value is None else value
    name = run_id or f"lane_{share:g}_s{seed}"
    made = ledger_case.record(seed, run_id=name, status=status) | {"config": asdict(config), "resolved": done}
    made["results"] |= {"val_bpb": value, "min_val_bpb": value, "steps": steps, "trained_tokens": tokens,
                        "epochs_used": tokens / CORPUS, "bound": "ratio", **results}
    return made, validations(steps, tokens, value)


def validations(steps, tokens, final, every=50):
    """A curve at full rate until the last third, which then comes down to its end.

    Every checkpoint but the last stands above the end of a complete run of that length.
    """
    rows = []
    for step in [*range(every, steps, every), steps]:
        own = float(loss(tokens * step / steps))
        rows.append({"step": step, "val/bpb": final if step == steps else own + 0.05 * min(1.0, 3 * (1 - step / steps)),
                     "total_training_time": 0.1 * step})
    return rows


def store(base_dir, run: tuple[dict, list[dict]]):
    """The run under <base dir>/records/<its id>; returns the id."""
    record, rows = run
    folder = base_dir / "records" / record["run_id"]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", record)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return record["run_id"]
