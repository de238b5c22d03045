"""
How often a verdict is wrong, and how often a gain is seen, measured on made-up runs.

For every cell of ideas/simulation_targets.csv, protocols of K candidates are drawn (draws.py) and judged by the
functions that judge real ones: banked.outlier, lending.disagrees, stats.moderated_t, looks.replay. Two chances are
measured. False promotion: any candidate is promoted although none has a gain. Power: candidate 1 is promoted, and it
alone has a gain. Each cell has a random generator of its own, so its numbers do not depend on the cells that are run
beside it. Command line: scripts/simulate_gates.py
"""

import csv
import math
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
from scipy.special import ndtr, stdtr

from nanochat.lab.simulation.draws import EQUAL, draw
from nanochat.lab.simulation.many import p_at_looks, refusals
from nanochat.lab.verdict.looks import replay
from nanochat.lab.verdict.stats import ALPHA, MIN_PAIRS_WITHOUT_BANK, moderated_t

SEED, PROTOCOLS = 20261121, 10_000
TARGET_PROTOCOLS = 40_000  # protocols behind each target
MEASURES = ("false_promotion", "power_0.5", "power_1", "power_2", "power_3",
            "seeds_-1", "seeds_0", "seeds_0.5", "seeds_1", "seeds_2", "seeds_3")

# How far a number may be from its target, in percentage points and in seeds.
# 5 % in 10,000 protocols has a standard error of sqrt(0.05 * 0.95 / 10000) = 0.22 points; 5.65 is three more than 5.
MOST_FALSE = 5.65  # where the noise is as the procedure assumes
SOUND_TABLES = ("8.1", "8.2", "8.5", "9.1")
FALSE_WITHIN, POWER_WITHIN, SEEDS_WITHIN = 0.7, 2.0, 0.2
# A chance far above 5 % has a larger standard error, so luck alone may miss by more than FALSE_WITHIN.
ERRORS_WITHIN = 4  # standard errors that are allowed instead


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

    @property
    def stream(self) -> str:
        """Name of its random numbers; in tables 8 as it was when lending always was the chosen rule."""
        if self.table.startswith("9"):
            return self.name
        return self.name.replace("lent always, futility", "with futility").replace("lent always", "chosen")


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
# Decisions. "chosen" is the rule that judges real protocols; the other rules are there for comparison.

CHOSEN = ("chosen", "with futility")
ALWAYS = ("lent always", "lent always, futility")  # the rule without a test of the bank, and its looks from 2 pairs on


def _paired_t(d, s_b, nu):
    n = d.shape[-1]
    return stdtr(n - 1, -d.mean(axis=-1) / np.sqrt(d.var(axis=-1, ddof=1) / n))


OTHERS = {"all seeds": lambda d, s_b, nu: np.where((d > 0).all(axis=-1), 0.0, 1.0), "paired t": _paired_t,
          "paired t + Holm": _paired_t, "bank t + Holm": lambda d, s_b, nu: moderated_t(d, s_b, nu, censored=True).p,
          "oracle z + Holm": lambda d, s_b, nu: ndtr(-d.mean(axis=-1) * math.sqrt(d.shape[-1] / 2))}
WITHOUT_HOLM = ("all seeds", "paired t")


class Protocols:
    """Drawn protocols whose banks have the same degrees of freedom, with all that does not depend on a gain."""

    def __init__(self, cell: Cell, x, s_b, nu: int):
        self.cell, self.s_b, self.nu = cell, s_b, nu
        # Without a bank, a protocol that goes on until it is decided is first looked at when its own spread can decide.
        self.looks = [n for n in cell.looks if nu or len(cell.looks) == 1 or n >= MIN_PAIRS_WITHOUT_BANK]
        self.d = x[:, :1] - x[:, 1:]
        self.d[np.isnan(self.d).any(axis=-1)] = np.nan  # a candidate that diverged cannot be promoted
        tested = cell.rule in CHOSEN and nu > 0
        self.refused = refusals(x, s_b, nu, self.looks) if tested else None

    def at_looks(self, gain: float = 0.0):
        """(p, p for futility), each [P, looks, K]; the gain is candidate 1's."""
        d = self.d.copy()
        d[:, 0] += gain
        if self.cell.rule in OTHERS:
            p = np.stack([OTHERS[self.cell.rule](d[..., :n], self.s_b, self.nu) for n in self.looks], axis=-2)
            return p, p
        found = p_at_looks(d, self.s_b, self.nu, self.looks, refused=self.refused)
        return found.p, found.for_chance

    def decide(self, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """(promoted, seeds used), each [P, K]."""
        p, for_chance = self.at_looks(gain)
        last = self.cell.looks[-1]
        if self.cell.rule in WITHOUT_HOLM:
            return p[:, 0] <= ALPHA, np.full(p[:, 0].shape, last)
        stops = self.cell.rule.endswith("futility")
        found = replay(p, self.looks, self.nu, ALPHA, for_chance, stop_futile=stops)
        ended = np.where(found.promoted_at > 0, found.promoted_at, found.futile_at if stops else 0)
        return found.promoted_at > 0, np.where(ended > 0, ended, last)


def draw_protocols(cell: Cell, protocols: int, rng) -> list[Protocols]:
    """Drawn protocols, in groups of one number of degrees of freedom: a bank that lost an outlier has one less."""
    drawn = draw(cell, protocols, rng, clean=cell.rule in CHOSEN)
    return [Protocols(cell, drawn.x[some], None if drawn.s_b is None else drawn.s_b[some], int(nu))
            for nu in np.unique(drawn.nu) for some in [drawn.nu == nu]]


# -----------------------------------------------------------------------------
# Measure a cell, and check it against its targets

def measure(cell: Cell, protocols: int = PROTOCOLS, seed: int = SEED) -> dict:
    """{measure: value} for the measures that have a target in this cell: percentages, and mean numbers of seeds."""
    groups = draw_protocols(cell, protocols, np.random.default_rng([seed, crc32(cell.stream.encode())]))

    def decided(gain=0.0):
        return map(np.concatenate, zip(*[group.decide(gain) for group in groups]))
    promoted, seeds = decided()
    found = {"false_promotion": 100 * float(promoted.any(axis=-1).mean()), "seeds_0": float(seeds[:, 0].mean())}
    for gain in sorted({float(name.partition("_")[2]) for name in cell.targets if name[-1].isdigit()} - {0.0}):
        promoted, seeds = decided(gain)
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
