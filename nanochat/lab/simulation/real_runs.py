"""
How often a verdict promotes a change that does nothing, measured on real runs.

A pool of control runs is cut at random into A/A protocols, in which the candidate is a control too.

Every protocol draws its runs from the pool, each run at most once: a bank, the controls, and as many controls again
that stand for the candidate. The functions that decide real protocols judge it (stats.moderated_t and
lending.disagrees on every gate, looks.replay). So every promotion is a false promotion. The level is ALPHA, and any
gain counts: a label's own level and its least gain would make promotions rarer still. The simulation
(simulation/made_up_runs.py) assumes normal noise; these runs have the noise of real training.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import ndtri

from nanochat.lab.ledger.banked import banked_runs
from nanochat.lab.ledger.experiments import value_of
from nanochat.lab.simulation.many import AtLooks, p_at_looks, refusals
from nanochat.lab.table import looks_text, table
from nanochat.lab.verdict.declaration import FLOORS, PRIMARY
from nanochat.lab.verdict.gates import BANK_SEEDS
from nanochat.lab.verdict.looks import replay
from nanochat.lab.verdict.stats import ALPHA

FEWEST = 24  # runs of a pool
LOOKS = ((2,), (3,), (5,), tuple(range(3, 9)))
PROTOCOLS, SEED = 100_000, 20261121
CONFIDENCE = 0.90


class Rate(NamedTuple):
    """looks; share of protocols that the primary gate alone promotes, and its interval; share that every gate passes;
    share of the rule "better on every seed" (at the last look). A floor can only make a promotion rarer."""
    looks: tuple[int, ...]
    primary: float
    lo: float
    hi: float
    all_gates: float
    all_seeds: float


def pool_values(rows, profile_hash: str) -> dict[str, np.ndarray]:
    """{metric: its values in the order of the seeds, as gates compare them} of the banked runs.

    Raises ValueError below FEWEST.
    """
    runs, _ = banked_runs(rows, profile_hash)
    values = {metric: [value_of(row, metric) for row in runs] for metric in ("val_bpb", *FLOORS)}
    values = {metric: np.array(x) for metric, x in values.items() if x and None not in x}
    if len(runs) < FEWEST or "val_bpb" not in values:
        raise ValueError(f"{len(runs)} banked runs of profile {profile_hash[:8]}: a pool needs {FEWEST}; "
                         f"make noise SEEDS={FEWEST} adds them")
    return values


def runs_of(looks) -> int:
    """Runs that one protocol takes."""
    return BANK_SEEDS + 2 * looks[-1]


def false_promotions(values: dict, looks, protocols: int = PROTOCOLS, seed: int = SEED) -> Rate:
    """The share of A/A protocols drawn from a pool that promote, with one candidate and a bank of BANK_SEEDS runs.

    The interval is a jackknife over RUNS (Efron & Stein 1981, Ann. Stat. 9:586). Protocols of one pool share its runs,
    so a large number of protocols alone does not make the rate well known. The number of protocols is a second
    source of error, with variance p (1 - p) / protocols. The jackknife's sum contains it once for each run. So it is
    subtracted from that sum, and added once at the end.
    """
    R = len(values["val_bpb"])
    if runs_of(looks) >= R:  # without a run left out there is no telling how much the pool's own make-up matters
        raise ValueError(f"a pool of {R} runs: {looks[-1]} pairs and a bank of {BANK_SEEDS} need {runs_of(looks) + 1}")
    pools = np.tile(np.arange(R), (protocols, 1))
    drawn = np.random.default_rng([seed, *looks]).permuted(pools, axis=1)[:, :runs_of(looks)]
    found = promoted({"val_bpb": values["val_bpb"]}, drawn, looks)
    better = (_differences(values["val_bpb"][drawn], looks[-1]) > 0).all(axis=1)
    share, half = found.mean(), ndtri(0.5 + CONFIDENCE / 2) * _jackknife(found, drawn, R)
    return Rate(tuple(looks), float(share), max(0.0, share - half), min(1.0, share + half),
                float(promoted(values, drawn, looks).mean()), float(better.mean()))


def promoted(values: dict, drawn, looks) -> np.ndarray:
    """[protocols] of bool: True where the protocol promotes.

    drawn [protocols, runs_of(looks)]: positions in the pool, first the bank, then controls, then candidates.
    """
    margins = {"val_bpb": PRIMARY["val_bpb"]} | {metric: x for metric, x in FLOORS.items() if metric != "val_bpb"}
    found = AtLooks.of_all_gates([_at_looks(values[metric][drawn], metric, looks, margin)
                                  for metric, margin in margins.items() if metric in values])
    done = replay(found.p, looks, BANK_SEEDS - 1, ALPHA, found.for_chance, stop_futile=True)
    return done.promoted_at[:, 0] > 0


def _differences(x, N):
    """Control minus candidate [protocols, N] of x [protocols, bank + 2 N]."""
    return x[:, BANK_SEEDS:BANK_SEEDS + N] - x[:, BANK_SEEDS + N:]


def _at_looks(x, metric, looks, margin) -> AtLooks:
    s_b, N = x[:, :BANK_SEEDS].std(axis=1, ddof=1, keepdims=True), looks[-1]
    d = _differences(x, N) * (-1 if metric == "tok_per_sec" else 1)  # more of it is better
    refused = refusals(x[:, BANK_SEEDS:].reshape(-1, 2, N), s_b, BANK_SEEDS - 1, looks)
    return p_at_looks(d[:, None], s_b, BANK_SEEDS - 1, looks, margin, refused)


def _jackknife(found, drawn, R) -> float:
    """Standard error of the share, from the shares among the protocols that do without each of the runs."""
    P, p = len(drawn), found.mean()
    protocols = P - np.bincount(drawn.ravel(), minlength=R)  # that do without a run
    without = (found.sum() - np.bincount(drawn[found].ravel(), minlength=R)) / protocols
    by_chance = p * (1 - p) * (1 / protocols - 1 / P).sum()  # of the sum of squares, were all runs alike
    of_runs = (R - 1) / R * max(0.0, np.square(without - without.mean()).sum() - by_chance)
    return float(np.sqrt(of_runs + p * (1 - p) / P))


def describe_rates(rows, profile_hash: str, protocols: int = PROTOCOLS) -> str:
    """How often A/A protocols drawn from the banked runs promote, for a few plans.

    Raises ValueError for a small pool.
    """
    values = pool_values(rows, profile_hash)
    n = len(values["val_bpb"])
    found = [false_promotions(values, looks, protocols) for looks in LOOKS if runs_of(looks) < n]
    def percent(x):
        return f"{100 * x:.2f}"
    lines = [[looks_text(list(rate.looks)), percent(rate.primary), f"[{percent(rate.lo)}, {percent(rate.hi)}]",
              percent(rate.all_gates), percent(rate.all_seeds)] for rate in found]
    header = ["looks at seeds", "val_bpb alone", f"{CONFIDENCE:.0%} interval", "all gates", "better on every seed"]
    return (f"false promotions in percent, {protocols:,} A/A protocols drawn from {n} banked runs, "
            f"{BANK_SEEDS} of them its bank\nasked for: {100 * ALPHA:g} at most; all gates: {', '.join(values)}\n"
            + table(header, lines))
