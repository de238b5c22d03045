"""
What several labels cost: how often a candidate that gains nothing is promoted by any of them, and how often one that
gains is seen. Measured on made-up runs, which the functions that decide real ones judge.

Three tables; a run has unit spread, and a bank has ten runs (nu = 9):

    rules    ways to share 0.05 among the labels of a candidate: power of label 1, 2 and 3, and error over ten labels
    routes   ways to a promotion for nothing, as they were before declarations were kept, and as they are now
    margin   the price of asking for more than 0.1 sd

A route is played by a person who wants a promotion and sees every run. `now` plays the best that is still allowed:
what is refused is replaced by what the refusal says is left. A bank has the noise of the runs, so each bank is lent.
Command line: python -m scripts.simulate_gates --labels
"""

from collections.abc import Callable
from dataclasses import dataclass
from zlib import crc32

import numpy as np
from scipy.special import ndtri

from nanochat.lab.simulation.made_up_runs import SEED
from nanochat.lab.verdict.declaration import SPENT, TRIVIAL_SD, label_level
from nanochat.lab.verdict.gates import BANK_SEEDS
from nanochat.lab.verdict.looks import declared_looks, replay
from nanochat.lab.verdict.stats import ALPHA, holm_levels, moderated_t, step_down

NU, LABELS, FAMILIES = 9, 10, 20_000
PAIRS = 5  # of a label in the tables of rules


def _draw(rng, families: int, K: int = 1, n: int = PAIRS, nu: int = NU):
    """(d [families, K, n], s_b [families, 1] or None) without any gain."""
    x = rng.standard_normal((families, K + 1, n))  # the control first
    return x[:, :1] - x[:, 1:], rng.standard_normal((families, nu + 1)).std(axis=1, ddof=1)[:, None] if nu else None


def _promoted(p, level: float) -> np.ndarray:
    """Holm at one look, for p [families, K]."""
    return step_down(p, holm_levels(level, p.shape[-1]))[0] if level else np.zeros(p.shape, dtype=bool)


def _rng(name: str, seed: int):
    return np.random.default_rng([seed, crc32(name.encode())])


# -----------------------------------------------------------------------------
# Rules: the level of the j-th label

RULES: dict[str, Callable[[int], float]] = {
    "0.05 / (j (j + 1))": lambda j: ALPHA / (j * (j + 1)),
    "all to the first": lambda j: ALPHA if j == 1 else 0.0,
    "0.04, then 0.01 / ((j - 1) j)": lambda j: 0.04 if j == 1 else 0.01 / ((j - 1) * j),
    "0.04, then half of the rest": lambda j: 0.04 if j == 1 else 0.01 * 0.5 ** (j - 1),
    "nine tenths of the rest": lambda j: 0.9 * ALPHA * 0.1 ** (j - 1),
    f"{SPENT:g} of the rest (chosen)": label_level,
    "0.7 of the rest": lambda j: 0.7 * ALPHA * 0.3 ** (j - 1),
}
COMBINED = "0.8 of the rest, labels combined"  # by the inverse normal of their p, as one test with several looks


def _combined(p, critical) -> np.ndarray:
    """[families, labels]: promoted by a label at which the sum of all labels so far passes. p [families, labels, K]."""
    z = -ndtri(p[..., 0])
    sums = np.cumsum(z, axis=1) / np.sqrt(np.arange(1, z.shape[1] + 1))
    return sums >= critical


def _critical(K: int, rng, labels: int) -> np.ndarray:
    """Bounds of the sums, so that label j adds label_level(j) / K to the error of the labels before it."""
    z = rng.standard_normal((400_000, labels))
    sums, out, alive = np.cumsum(z, axis=1) / np.sqrt(np.arange(1, labels + 1)), [], np.ones(len(z), dtype=bool)
    for j in range(labels):
        wanted = max(1, round(label_level(j + 1) / K * len(z)))
        values = np.sort(sums[alive, j])
        out.append(values[-wanted])
        alive &= sums[:, j] < out[-1]
    return np.array(out)


def rule_rows(families: int = FAMILIES, seed: int = SEED) -> list[dict]:
    """A row for each rule, K and gain: percent promoted by labels 1, 2, 3 and by any of them; error over ten labels."""
    rows = []
    for K in (1, 4):
        null = _labels(_rng(f"null {K}", seed), families, K, 0.0, LABELS)
        gains = {gain: _labels(_rng(f"gain {K} {gain}", seed), families, K, gain, 3) for gain in (1.0, 2.0)}
        for name in [*RULES, COMBINED]:
            by_rule = _by_rule(name, K, seed)
            error = by_rule(null).any(axis=(1, 2)).mean()
            for gain, p in gains.items():
                seen = by_rule(p)[..., 0]
                rows.append({"rule": name, "K": K, "gain_sd": gain,
                             **{f"label_{j + 1}": 100 * float(seen[:, j].mean()) for j in range(3)},
                             "any_of_3": 100 * float(seen.any(axis=1).mean()), "error_10_labels": 100 * float(error)})
    return rows


def _labels(rng, families, K, gain, labels) -> np.ndarray:
    """p [families, labels, K]: each label has new seeds, all have one bank; candidate 1 alone has the gain."""
    p, s_b = [], _draw(rng, families, K)[1]
    for _ in range(labels):
        d, _ = _draw(rng, families, K)
        d[:, 0] += gain
        p.append(moderated_t(d, s_b, NU).p)
    return np.stack(p, axis=1)


def _by_rule(name: str, K: int, seed: int):
    """A function from p [families, labels, K] to what is promoted, of the same shape. Combined: candidate 1 alone."""
    if name == COMBINED:
        critical = _critical(K, _rng("combined", seed), LABELS)
        return lambda p: _combined(p, critical[:p.shape[1]])[..., None]
    return lambda p: np.stack([_promoted(p[:, j], RULES[name](j + 1)) for j in range(p.shape[1])], axis=1)


# -----------------------------------------------------------------------------
# Routes to a promotion for nothing: functions of (rng, families) -> (before, now), each [families]

@dataclass(frozen=True)
class Route:
    name: str
    now_says: str  # what the product answers
    play: Callable


def _t(d, s_b, nu=NU):
    return moderated_t(d, s_b, nu).p


def _second_label(rng, families, s_b, n: int) -> np.ndarray:
    """Promoted by a second label of one candidate, on new seeds: what a refusal leaves."""
    return _t(_draw(rng, families, n=n)[0], s_b)[:, 0] <= label_level(2)


def best_two_seeds(rng, families):
    d, s_b = _draw(rng, families, n=12)
    best = np.sort(d, axis=-1)[..., -2:]
    now = (_t(d, s_b)[:, 0] <= label_level(1)) | _second_label(rng, families, s_b, 2)
    return _t(best, s_b)[:, 0] <= ALPHA, now


def ten_labels(rng, families):
    p = _labels(rng, families, 1, 0.0, LABELS)[..., 0]
    levels = np.array([label_level(j + 1) for j in range(LABELS)])
    return (p <= ALPHA).any(axis=1), (p <= levels).any(axis=1)


def ten_unbanked_then_the_best(rng, families):
    """Ten candidates on two seeds without a bank, then a bank, and the best of them declared alone."""
    d, s_b = _draw(rng, families, K=10, n=2)
    p = _t(d, s_b)
    best = np.take_along_axis(p, d.mean(axis=-1).argmax(axis=-1)[:, None], axis=1)[:, 0]
    together = _promoted(p, label_level(1, extended=True)).any(axis=-1)
    return best <= ALPHA, together | _second_label(rng, families, s_b, 2)


def declared_at_every_n(rng, families):
    d, s_b = _draw(rng, families, n=12)
    p = np.stack([_t(d[..., :n], s_b) for n in range(2, 13)], axis=1)
    looks = declared_looks(NU, 12)
    now = replay(p[:, looks[0] - 2:], looks, NU, label_level(1)).promoted_at > 0
    return (p <= ALPHA).any(axis=(1, 2)), now[:, 0]


def smallest_of_ten_banks(rng, families):
    d, _ = _draw(rng, families, n=2)
    runs = rng.standard_normal((families, 10, BANK_SEEDS))
    smallest, pooled = runs.std(axis=-1, ddof=1).min(axis=1), runs.reshape(families, -1).std(axis=1, ddof=1)
    now = _t(d, pooled[:, None], 10 * BANK_SEEDS - 1)[:, 0] <= label_level(1)
    return _t(d, smallest[:, None], BANK_SEEDS - 1)[:, 0] <= ALPHA, now


def fewer_candidates(rng, families):
    d, s_b = _draw(rng, families, K=4)
    p = _t(d, s_b)
    return p.min(axis=-1) <= ALPHA, _promoted(p, label_level(1)).any(axis=-1) | _second_label(rng, families, s_b, 5)


def another_primary(rng, families):
    p = np.stack([_t(*_draw(rng, families))[:, 0] for _ in range(3)], axis=1)  # three metrics without any correlation
    return (p <= ALPHA).any(axis=1), p[:, 0] <= label_level(1)


def deleted_result_file(rng, families):
    """Five seeds; where they do not pass, the file is deleted and the label declared on five others, ten times."""
    p = _labels(rng, families, 1, 0.0, LABELS)[..., 0]
    return (p <= ALPHA).any(axis=1), p[:, 0] <= label_level(1)


def bank_after_the_runs(rng, families):
    """Two seeds without a bank; then a bank for them, or three seeds more without it, whichever passes."""
    d, s_b = _draw(rng, families)
    p = np.stack([_t(d[..., :2], s_b)[:, 0], moderated_t(d).p[:, 0]], axis=1)
    return (p <= ALPHA).any(axis=1), (p <= label_level(1, extended=True)).any(axis=1)


ROUTES = (
    Route("best 2 of 12 seeds", "refused: the seeds were seen; two new ones are label 2", best_two_seeds),
    Route("ten labels of one candidate", "label j at the level of a j-th one", ten_labels),
    Route("ten unbanked, then the best", "refused: seeds seen, candidates left out", ten_unbanked_then_the_best),
    Route("declared again at every n", "refused: other looks; --until=decided is left", declared_at_every_n),
    Route("smallest of ten banks", "every banked run counts, and a declared bank stands", smallest_of_ten_banks),
    Route("fewer candidates after seeing 4", "refused, with --fresh too", fewer_candidates),
    Route("another of 3 primaries", "refused, with --fresh too", another_primary),
    Route("result file deleted, other seeds", "the ledger knows the label", deleted_result_file),
    Route("two seeds, then bank or 3 more", "half of the level", bank_after_the_runs),
)


def route_rows(families: int = FAMILIES, seed: int = SEED) -> list[dict]:
    """Percent of families in which a candidate that gains nothing is promoted, before and now."""
    rows = []
    for route in ROUTES:
        before, now = route.play(_rng(route.name, seed), families)
        rows.append({"route": route.name, "before": 100 * float(before.mean()), "now": 100 * float(now.mean()),
                     "now_says": route.now_says})
    return rows


# -----------------------------------------------------------------------------
# The margin of a primary gate

def margin_rows(families: int = FAMILIES, seed: int = SEED) -> list[dict]:
    """Percent promoted, K = 1, with and without the margin of TRIVIAL_SD, at the level of a first label."""
    rows = []
    for nu in (NU, 0):
        for n in (2, 5, 8) if nu else (5, 8):
            for gain in (0.0, 0.05, 0.1, 0.5, 1.0, 2.0):
                d, s_b = _draw(_rng(f"margin {nu} {n} {gain}", seed), families, n=n, nu=nu)
                d += gain
                sd = s_b if nu else d.std(axis=-1, ddof=1) / np.sqrt(2)
                p = [moderated_t(d, s_b, nu, margin).p for margin in (0.0, -TRIVIAL_SD * sd)]
                rows.append({"nu": nu, "n": n, "gain_sd": gain, **{
                    name: 100 * float((x <= level).mean()) for name, x, level in (
                        ("before", p[0], ALPHA), ("any_gain", p[0], label_level(1)),
                        ("above_0.1_sd", p[1], label_level(1)))}})
    return rows
