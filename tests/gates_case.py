"""
Declarations and made-up runs, for test_gates.py and test_looks_of_gates.py.
"""

from nanochat.lab.arms import make_arms
from nanochat.lab.metrics import METRICS
from nanochat.lab.verdict.gates import declare

CONTROL = [1.1020, 1.1035, 1.1011, 1.1027, 1.1040]
BETTER = [1.1001, 1.1022, 1.1003, 1.1004, 1.1031]  # p 0.0038 by scipy's ttest_rel
BANK = {"metrics": {"val_bpb": {"s_b": 0.0013, "nu": 9}, "time_to_target": {"s_b": 0.01, "nu": 9}, "wall_time": {"s_b": 0.01, "nu": 9},
                    "final_train_loss": {"s_b": 0.002, "nu": 9}, "tok_per_sec": {"s_b": 0.004, "nu": 9}}}
WHEN = "2026-01-01T00:00:00+00:00"


def declared(n, names=("candidate",), changes=None, floors=False, **options):
    """floors False: the primary metric alone, for tests of what decides it."""
    arms = make_arms([f"{name}: --matrix-lr=0.03" for name in names], [])
    declaration = declare("label", "smoke-cpu", arms, list(range(n)), changes or {}, WHEN, **options)
    return declaration if floors else declaration | {"floors": []}


def make_runs(metric="val_bpb", **values):
    """control=[...], candidate=[...] -> runs[]; a string instead of a number is a status without a value."""
    field = METRICS[metric].key
    return [{"arm": arm, "seed": seed, "run_status": x if isinstance(x, str) else "ok", "profile_hash": "p", "val_bpb": None,
             "declared_at": WHEN, "started_at": WHEN, "training_sec": 600.0, field: None if isinstance(x, str) else x}
            for arm, row in values.items() for seed, x in enumerate(row)]
