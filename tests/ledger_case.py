"""Made-up records and ledger rows, for the tests of what reads them."""

from dataclasses import asdict

from nanochat.config import config_hash, parse, profile_hash
from nanochat.lab.ledger.experiments import row_of_record
from nanochat.options import to_argv

FLAGS = ("--device-type=cpu", "--no-compile", "--depth=4", "--max-seq-len=256", "--device-batch-size=8",
         "--total-batch-size=2048", "--num-iterations=60", "--eval-every=10")
DATA, TOKENIZER, TREE = "d" * 64, "e" * 64, "f" * 64


def record(seed=1, *flags, run_id=None, status="ok", kind="cpu", dataset_id=DATA, tree=TREE, **results) -> dict:
    """A run.json, as the trainer writes it; results: over the defaults below."""
    config = parse([*FLAGS, *flags, f"--seed={seed}"])
    ids = dataset_id, TOKENIZER
    return {
        "run_id": run_id or f"nc_t_d4_control_s{seed}", "status": status, "config": asdict(config),
        "command": " ".join(["python", "-m", "scripts.base_train", *to_argv(config)]),
        "config_hash": config_hash(config, *ids, tree), "profile_hash": profile_hash(config, kind, *ids),
        "dataset_id": dataset_id, "tokenizer_id": TOKENIZER, "tree_hash": tree,
        "git_commit": "c" * 40, "dirty": False, "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "device": {"kind": kind, "name": "a processor"}, "threads": 1, "load_start": 0.5, "load_end": 1.25,
        "started_at": f"2026-01-01T00:{seed % 60:02d}:00+00:00",
        "resolved": {"num_iterations": 60, "horizon": "num_iterations", "total_batch_size": 4096,
                     "effective_ratio": 0.0293, "tau": 36.3},
        "clocks": {"wall_time_sec": 70.0 + seed % 10, "total_training_time": 50.0 + seed % 10, "compile_sec": None,
                   "eval_sec": 13.0},
        "results": {"val_bpb": 2.6 + 0.001 * (seed % 10), "min_val_bpb": 2.6,
                    "final_train_loss": 6.7 + 0.01 * (seed % 10), "tok_per_sec_median": 2000.0 + seed % 10,
                    "dt_median_ms": 1024.0, "peak_mem_mib": 800.0, "trained_tokens": 122880, **results},
    }


def metrics(values=(3.0, 2.8, 2.6), every=20, sec=16.0) -> list[dict]:
    """Lines of a metrics.jsonl: one validation every `every` steps and `sec` seconds."""
    return [{"step": i * every, "val/bpb": value, "total_training_time": i * sec} for i, value in enumerate(values)]


def row(seed=1, *flags, label="noise", arm="control", number=None, **options) -> dict:
    made = row_of_record(record(seed, *flags, **options), metrics(), label=label, arm=arm, recipe="smoke-cpu")
    return made | {"row": seed if number is None else number}
