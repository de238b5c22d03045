"""
Declarations and made-up runs, for test_gates.py and test_gates_bank.py.
"""

from dataclasses import replace

from nanochat.lab.arms import make_arms
from nanochat.lab.metrics import METRICS
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict.declaration import PRIMARY, Proposal, declare
from nanochat.lab.verdict.facts import Declaration, MetricNoise, Noise

CONTROL = [1.1020, 1.1035, 1.1011, 1.1027, 1.1040]
BETTER = [1.1001, 1.1022, 1.1003, 1.1004, 1.1031]  # p 0.0038 by scipy's ttest_rel
BANK = Noise("bank", metrics={"val_bpb": MetricNoise(0.0013, 9), "time_to_target": MetricNoise(0.01, 9),
                              "wall_time": MetricNoise(0.01, 9), "final_train_loss": MetricNoise(0.002, 9),
                              "tok_per_sec": MetricNoise(0.004, 9)})
WHEN = "2026-01-01T00:00:00+00:00"


# Six parameters and the options of a Proposal: a test names only what it is about.
def declared(n, names=("candidate",), changes=None, floors=False, noise=None, worth=False, **options) -> Declaration:
    """floors False: the primary metric alone, for tests of what decides it. options: of the Proposal.

    worth False: any gain counts, as in the published cases; True: it has to clear the margin that a protocol declares.
    """
    arms = make_arms([f"{name}: --matrix-lr=0.03" for name in names], [])
    declaration = declare(Proposal("label", "smoke-cpu", arms, list(range(n)), **options), changes or {}, noise, WHEN)
    if not worth:
        declaration = replace(declaration, margin=PRIMARY[declaration.primary], margin_in_own_sd=None)
    return declaration if floors else replace(declaration, floors=[])


def make_runs(metric="val_bpb", **values) -> list[RunSummary]:
    """control=[...], candidate=[...] -> runs; a string instead of a number is a status without a value."""
    field = METRICS[metric].key
    run = RunSummary(run_status="ok", profile_hash="p", declared_at=WHEN, started_at=WHEN, training_sec=600.0)
    def of(arm, seed, x):
        run_status, x = (x, None) if isinstance(x, str) else ("ok", x)
        return replace(run, arm=arm, seed=seed, run_status=run_status, **{field: x})
    return [of(arm, seed, x) for arm, row in values.items() for seed, x in enumerate(row)]


def edit(runs: list[RunSummary], i: int, **changes):
    """Change one of the runs, in the list."""
    runs[i] = replace(runs[i], **changes)
