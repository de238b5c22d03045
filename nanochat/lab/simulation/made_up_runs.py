"""
How often a verdict is wrong, and how often a gain is seen, measured on made-up runs.

A made-up run is one number, x = sqrt(rho) seed + sqrt(1 - rho) noise. Both terms have unit spread, so 1 is the sd of
ONE control run, and two arms on one seed are correlated by rho. For every cell of ideas/simulation_targets.csv,
protocols of K candidates are drawn and judged by the functions that judge real ones (stats.moderated_t, looks.replay).
Two chances are measured. False promotion: any candidate is promoted although none has a gain. Power: candidate 1 is
promoted, and it alone has a gain. Each cell has a random generator of its own, so its numbers do not depend on the
cells that are run beside it. Command line: scripts/simulate_gates.py
"""

import csv
import math
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
from scipy.special import chdtri, ndtr, stdtr

from nanochat.lab.verdict.looks import replay
from nanochat.lab.verdict.stats import ALPHA, moderated_t

SEED, PROTOCOLS = 20261121, 10_000
TARGET_PROTOCOLS = 40_000  # protocols behind each target
MEASURES = ("false_promotion", "power_0.5", "power_1", "power_2", "power_3",
            "seeds_-1", "seeds_0", "seeds_0.5", "seeds_1", "seeds_2", "seeds_3")

# How far a number may be from its target, in percentage points and in seeds.
# 5 % in 10,000 protocols has a standard error of sqrt(0.05 * 0.95 / 10000) = 0.22 points; 5.65 is three more than 5.
MOST_FALSE = 5.65  # where the noise is as the procedure assumes
SOUND_TABLES = ("8.1", "8.2", "8.5")
FALSE_WITHIN, POWER_WITHIN, SEEDS_WITHIN = 0.7, 2.0, 0.2
# A chance far above 5 % has a larger standard error, so luck alone may miss by more than FALSE_WITHIN.
ERRORS_WITHIN = 4  # standard errors that are allowed instead

# The noise of a cell: as the procedure assumes (EQUAL), or against an assumption.
EQUAL, OUTLIERS, UNLUCKY = "equal", "5% outliers", "unlucky bank"
VARIANCE = {"candidate variance x2": 2.0, "candidate variance x4": 4.0}
OUTLIER_SHARE, OUTLIER_NOISE = 0.05, 5.0
UNLUCKY_SHARE = 0.10  # the bank is the 10th percentile of all banks


@dataclass(frozen=True)
class Cell:
    """A row of the targets: the rules for making up runs and for judging them, and the numbers to find again."""
    table: str
    data: str
    rho: float
    nu: int
    K: int
    looks: tuple[int, ...]
    rule: str
    targets: dict = field(compare=False)

    @property
    def name(self) -> str:
        return (f"{self.table} {self.data} rho={self.rho:g} nu={self.nu} K={self.K} "
                f"n={looks_text(self.looks)} {self.rule}")


def looks_text(looks) -> str:
    return str(looks[0]) if len(looks) == 1 else f"{looks[0]}-{looks[-1]}"


def read_targets(path) -> list[Cell]:
    with open(path, newline="", encoding="utf-8") as f:
        return [_cell(row) for row in csv.DictReader(f)]


def _cell(row) -> Cell:
    first, _, last = row["looks"].partition("-")
    looks = tuple(range(int(first), int(last or first) + 1))
    return Cell(row["table"], row["data"], float(row["rho"]), int(row["nu"]), int(row["K"]), looks, row["rule"],
                {name: float(row[name]) for name in MEASURES if row[name]})


# -----------------------------------------------------------------------------
# Records

def draw(cell: Cell, protocols: int, rng) -> tuple[np.ndarray, np.ndarray | None]:
    """(d [P, K, N], s_b [P, 1]) of P = `protocols` without any gain.

    d: control - candidate, of K candidates on N seeds. s_b: sd of each protocol's bank; None in a cell without banks.
    """
    N = cell.looks[-1]
    seed, noise = rng.standard_normal((N, 1, protocols)), _noise(rng, (N, cell.K + 1, protocols), cell.data)
    noise[:, 1:] *= math.sqrt(VARIANCE.get(cell.data, 1.0))
    x = math.sqrt(cell.rho) * seed + math.sqrt(1 - cell.rho) * noise  # arm 0 is the control
    d = (x[:, :1] - x[:, 1:]).T  # seeds first in memory: sums over seeds are then several times faster
    if cell.nu == 0:
        return d, None
    if cell.data == UNLUCKY:
        # nu s_b^2 is chi-square with nu degrees of freedom (the true sd is 1), so its 10th percentile gives this s_b.
        return d, np.full((protocols, 1), math.sqrt(chdtri(cell.nu, 1 - UNLUCKY_SHARE) / cell.nu))
    return d, _noise(rng, (cell.nu + 1, protocols, 1), cell.data).std(axis=0, ddof=1)


def _noise(rng, shape, data):
    noise = rng.standard_normal(shape)
    if data == OUTLIERS:
        noise[rng.random(shape) < OUTLIER_SHARE] *= OUTLIER_NOISE
    return noise


# -----------------------------------------------------------------------------
# Decisions. "chosen" is the rule that judges real protocols; the other rules are there for comparison.

def _chosen(d, s_b, nu):
    return moderated_t(d, s_b, nu).p


def _bank_alone(d, s_b, nu):
    return moderated_t(d, s_b, nu, censored=True).p


def _paired_t(d, s_b, nu):
    n = d.shape[-1]
    return stdtr(n - 1, -d.mean(axis=-1) / np.sqrt(d.var(axis=-1, ddof=1) / n))


def _oracle_z(d, s_b, nu):
    return ndtr(-d.mean(axis=-1) * math.sqrt(d.shape[-1] / 2))


def _all_seeds(d, s_b, nu):
    return np.where((d > 0).all(axis=-1), 0.0, 1.0)


RULES = {"chosen": _chosen, "with futility": _chosen, "all seeds": _all_seeds, "paired t": _paired_t,
         "paired t + Holm": _paired_t, "bank t + Holm": _bank_alone, "oracle z + Holm": _oracle_z}
WITHOUT_HOLM = ("all seeds", "paired t")


def _p_values(cell, d, s_b):
    """[P, looks, candidates in d]"""
    return np.stack([RULES[cell.rule](d[..., :n], s_b, cell.nu) for n in cell.looks], axis=-2)


def decide(cell: Cell, p) -> tuple[np.ndarray, np.ndarray]:
    """(promoted, seeds used), each [P, K], from p [P, looks, K]."""
    if cell.rule in WITHOUT_HOLM:
        return p[:, 0] <= ALPHA, np.full(p[:, 0].shape, cell.looks[-1])
    found = replay(p, cell.looks, cell.nu, ALPHA, stop_futile=cell.rule == "with futility")
    ended = np.where(found.promoted_at > 0, found.promoted_at, found.futile_at if cell.rule == "with futility" else 0)
    return found.promoted_at > 0, np.where(ended > 0, ended, cell.looks[-1])


# -----------------------------------------------------------------------------
# Measure a cell, and check it against its targets

def measure(cell: Cell, protocols: int = PROTOCOLS, seed: int = SEED) -> dict:
    """{measure: value} for the measures that have a target in this cell: percentages, and mean numbers of seeds."""
    d, s_b = draw(cell, protocols, np.random.default_rng([seed, crc32(cell.name.encode())]))
    p = _p_values(cell, d, s_b)
    promoted, seeds = decide(cell, p)
    found = {"false_promotion": 100 * float(promoted.any(axis=-1).mean()), "seeds_0": float(seeds[:, 0].mean())}
    for gain in sorted({float(name.partition("_")[2]) for name in cell.targets if name[-1].isdigit()} - {0.0}):
        p[..., 0] = _p_values(cell, d[:, :1] + gain, s_b)[..., 0]
        promoted, seeds = decide(cell, p)
        found[f"power_{gain:g}"] = 100 * float(promoted[:, 0].mean())
        found[f"seeds_{gain:g}"] = float(seeds[:, 0].mean())
    return {name: found[name] for name in MEASURES if name in cell.targets}


def check(cell: Cell, found: dict, protocols: int) -> list[dict]:
    """A row for each measure: the found value, its target, their difference, the tolerance, whether it is inside."""
    rows = []
    for name, value in found.items():
        within = tolerance(cell, name, protocols)
        inside = (abs(value - cell.targets[name]) <= within
                  and not (name == "false_promotion" and is_sound(cell) and value > MOST_FALSE))
        rows.append({"table": cell.table, "data": cell.data, "rho": cell.rho, "nu": cell.nu, "K": cell.K,
                     "n": looks_text(cell.looks), "rule": cell.rule, "measure": name, "found": value,
                     "target": cell.targets[name],
                     "difference": value - cell.targets[name], "within": within, "inside": inside})
    return rows


def is_sound(cell) -> bool:
    """True if 5 % is promised in this cell: its noise is as assumed, and its table tests our rule."""
    return cell.table in SOUND_TABLES and cell.data == EQUAL


def tolerance(cell: Cell, name: str, protocols: int) -> float:
    if name.startswith("power"):
        return POWER_WITHIN
    if name.startswith("seeds"):
        return SEEDS_WITHIN
    share = cell.targets[name] / 100
    # Standard error of found - target: both are shares of random protocols.
    luck = 100 * math.sqrt(share * (1 - share) * (1 / protocols + 1 / TARGET_PROTOCOLS))
    return FALSE_WITHIN if is_sound(cell) else max(FALSE_WITHIN, ERRORS_WITHIN * luck)
