"""
Shares of the verdicts, and the effect of missed targets on them, on made-up runs that gates.judge decides.

made_up_runs.py measures the rules in bulk, on arrays of protocols. Here each protocol is a declaration and its runs. So
the table of verdicts is measured as it stands in the code. A protocol has one candidate and one gate, and its runs have
unit spread. Its bank has nu + 1 runs, of which only the spread is used. A real bank must also have reached the target
in each of its runs; a made-up bank need not. Every cell of ideas/verdict_targets.csv has a random generator of its own.
Command line: scripts/simulate_gates.py --table verdicts, missed
"""

import csv
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np
from scipy.special import ndtri

from nanochat.lab.arms import CONTROL, make_arms
from nanochat.lab.metrics import METRICS
from nanochat.lab.runs import RunSummary
from nanochat.lab.simulation.made_up_runs import FALSE_WITHIN, SEED
from nanochat.lab.verdict.declaration import PRIMARY, Proposal, declare
from nanochat.lab.verdict.facts import Declaration, MetricNoise, Noise, Target
from nanochat.lab.verdict.gates import judge

VERDICTS = ("promote", "reject", "inconclusive")
MEASURES = (*VERDICTS, "seeds")
SHARE_WITHIN = 2.0  # points beyond the target's; FALSE_WITHIN where a promotion is false
ERRORS_WITHIN, SEEDS_WITHIN = 3.0, 0.3  # standard errors at the target; seeds
LEVEL, SD_LOG = 100.0, 0.05  # of a made-up loss, whose sd is 1; sd of the logarithm of a made-up time in seconds
WHEN = "2026-01-01T00:00:00+00:00"


@dataclass(frozen=True)
class Cell:
    """A row of the targets.

    reached: share of the control's runs that reach a target, 1 where the metric is a loss. most: number of seeds.
    peeking: True if there is a look after each seed. gain: in sd of a run. targets: {measure: (low, high)}; low and
    high are equal where the target is a single number.
    """
    table: str
    reached: float
    nu: int
    most: int
    peeking: bool
    gain: float
    targets: dict = field(compare=False)

    @property
    def name(self) -> str:
        peeking = " peeking" * self.peeking
        return f"{self.table} reached={self.reached:g} nu={self.nu} n={self.most}{peeking} gain={self.gain:g}"


def read_targets(path) -> list[Cell]:
    with open(path, newline="", encoding="utf-8") as f:
        return [Cell(row["table"], float(row["reached"]), int(row["nu"]), int(row["looks"].rpartition("-")[2]),
                     "-" in row["looks"], float(row["gain"]),
                     {name: _range(row[name]) for name in MEASURES if row[name]})
                for row in csv.DictReader(f)]


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    return float(low), float(high or low)


# -----------------------------------------------------------------------------
# A protocol

def declaration_of(cell: Cell, s_b: float) -> Declaration:
    """As scripts.protocol declares it, with the bank's spread s_b.

    The targets have no floors, and any gain counts there; simulation/labels.py measures the margin of 0.1 sd.
    """
    metric = "val_bpb" if cell.reached == 1 else "time_to_target"
    scale, target = (1.0, None) if cell.reached == 1 else (SD_LOG, Target("val_bpb", LEVEL))
    arms = make_arms(["candidate: --matrix-lr=0.03"], [])
    plan = Proposal("made up", "smoke-cpu", arms, list(range(cell.most)), metric, min_gain=scale,
                    until_decided=cell.peeking, target=target)
    noise = Noise("bank", metrics={metric: MetricNoise(scale * s_b, cell.nu)})
    return replace(declare(plan, {}, noise, WHEN), floors=[], margin=PRIMARY[metric],
                   margin_in_own_sd=None)


def runs_of(cell: Cell, z) -> list[RunSummary]:
    """The runs of a protocol. A time above the budget counts as a missed target.

    z: [2, most], control and candidate in sd, after the gain was subtracted from the candidate.
    """
    budget = math.exp(SD_LOG * float(ndtri(cell.reached))) if cell.reached < 1 else 1.0
    if cell.reached == 1:
        name, values = METRICS["val_bpb"].key, (LEVEL + z).tolist()
    else:
        name, times = METRICS["time_to_target"].key, np.exp(SD_LOG * z).tolist()
        values = [[t if t <= budget else None for t in row] for row in times]
    run = RunSummary(run_status="ok", profile_hash="made up", declared_at=WHEN, started_at=WHEN, training_sec=budget)
    return [replace(run, arm=arm, seed=seed, **{name: value})
            for arm, row in zip((CONTROL, "candidate"), values) for seed, value in enumerate(row)]


def measure(cell: Cell, protocols: int, seed: int = SEED) -> dict:
    """{measure: value} for each measure with a target in this cell: shares of verdicts in percent, mean seeds."""
    rng, verdicts, seeds = np.random.default_rng([seed, crc32(cell.name.encode())]), Counter(), 0
    for _ in range(protocols):
        z, s_b = rng.standard_normal((2, cell.most)), float(rng.standard_normal(cell.nu + 1).std(ddof=1))
        z[1] -= cell.gain
        entry, = judge(declaration_of(cell, s_b), runs_of(cell, z))
        verdicts[entry.verdict] += 1
        seeds += entry.n
    found = {name: 100 * verdicts[name] / protocols for name in VERDICTS} | {"seeds": seeds / protocols}
    return {name: found[name] for name in cell.targets}


def check(cell: Cell, found: dict, protocols: int) -> list[dict]:
    """A row for each measure: found value, target, distance outside the target, tolerance, True if inside."""
    rows = []
    for name, value in found.items():
        low, high = cell.targets[name]
        share = min(max(high, 1.0), 99.0) / 100
        luck = 100 * math.sqrt(share * (1 - share) / protocols)
        least = FALSE_WITHIN if name == "promote" and cell.gain <= 0 else SHARE_WITHIN
        within = SEEDS_WITHIN if name == "seeds" else max(least, ERRORS_WITHIN * luck)
        off = value - min(max(value, low), high)
        rows.append({"table": cell.table, "cell": cell.name, "measure": name, "found": value, "target": [low, high],
                     "difference": off, "within": within, "inside": abs(off) <= within})
    return rows
