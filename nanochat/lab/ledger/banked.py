"""
The runs of a bank: which rows of the ledger lend their spread, and why the others do not.

Example: eight rows of the control are banked, and then a line of the trainer is edited. The rows are of other code, so
a protocol on the new code gets no bank. It is told so, with the number of rows and the command that banks anew. That
command may be short: `make noise SEEDS=2` trains two of the eight again. If they end as before, the edit changed no
number of the control, and the other six lend too.

A row lends where everything agrees with the runs that borrow: the options of the control, the kind and the name of the
device, on a CPU the number of threads, and the code of the trainer or its numbers. A row that does not say one of these
lends nothing. The reasons are collected, one line for all rows that share a reason.

    bank(rows, profile_hash, "val_bpb", exclude_seeds=[1337, 2026]).s_b
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from scipy.special import stdtrit

from nanochat.lab.arms import CONTROL
from nanochat.lab.ledger.experiments import NOISE, value_of
from nanochat.lab.ledger.workload import option_differences, options_of
from nanochat.lab.verdict.evidence import TIMED
from nanochat.options import to_argv
from nanochat.stage import BASE

FIRST_SEED = 900001  # of the banked runs; protocols are asked to use seeds below it
OUTLIER = 0.01  # level of Grubbs' test: one clean bank in a hundred loses a run
SAME_VALUE = 1e-6  # relative, of a val_bpb: one run of one code twice, on one machine
BANK_ANEW = "bank anew with `make noise SEEDS=8`"


@dataclass(frozen=True)
class Bank:
    """The values of one metric over the banked runs of a profile, a value for each seed.

    Times and rates are natural logs. s_b: sd of the values. nu: degrees of freedom of s_b.
    """
    values: list[float]
    s_b: float | None
    nu: int
    left_out: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


def borrower(config, device: str, threads: int | None, tree_hash: str) -> dict:
    """The runs that ask for a bank, as the columns of a row.

    device: "kind: name". threads: of each run; None where only the runs themselves will tell.
    """
    command = " ".join(["python", "-m", BASE.command, *to_argv(config)])
    return {"command": command, "device": device, "threads": threads, "tree_hash": tree_hash}


# -----------------------------------------------------------------------------
# The rows that lend

def banked_runs(rows, profile_hash: str, exclude_seeds=(), like: dict | None = None) -> tuple[list[dict], list[str]]:
    """(a row for each seed, oldest first; reasons why other rows were left out, a line for each reason).

    like: the borrower; None: the newest run of the bank itself, for a page that shows the bank.
    """
    rows = [row for row in rows if (row["profile_hash"], row["arm"], row["label"]) == (profile_hash, CONTROL, NOISE)]
    kept, left_out = {}, {}
    for row in reversed(rows):
        reference = like or next(iter(kept.values()), row)
        again = any(other["status"] == "ok" and other["seed"] == row["seed"] for other in rows)
        if row["status"] != "ok":
            reason = None if again else f"ended {row['status']}, it has no value"
        elif row["seed"] in exclude_seeds:
            reason = "one of the protocol's own seeds; a bank needs others"
        else:
            reason = why_not_lent(row, reference, codes_alike(rows, reference))
            if not reason and row["seed"] in kept:
                reason = "banked twice, the newer is kept"
            elif not reason:
                kept[row["seed"]] = row
        if reason:
            left_out.setdefault(reason, []).append(row["seed"])
    lines = [f"{seeds_text(seeds)}: {reason}" for reason, seeds in left_out.items()]
    return list(kept.values())[::-1], lines + _gaps(kept)


def codes_alike(rows, like: dict) -> set[str | None]:
    """Hashes of the codes that train the control to the borrower's numbers: the borrower's own, and every code that
    shares a seed with one of these and ended at the same val_bpb on all seeds they share.

    Rows with other options than the borrower's say nothing here: one code ends elsewhere with them.
    """
    ended = defaultdict(dict)
    for row in rows:
        if (row["status"] == "ok" and row["tree_hash"] and row["device"] == like["device"]
                and options_of(row) and not (options_of(like) and option_differences(row, like))):
            ended[row["tree_hash"]][row["seed"]] = row["val_bpb"]
    alike, waiting = {like["tree_hash"]}, [like["tree_hash"]]
    while waiting:
        known = ended[waiting.pop()]
        new = [code for code, values in ended.items() if code not in alike and _same_values(known, values)]
        alike |= {*new}
        waiting += new
    return alike


def _same_values(a: dict, b: dict) -> bool:
    shared = a.keys() & b.keys()
    return bool(shared) and all(None not in (a[seed], b[seed]) and math.isclose(a[seed], b[seed], rel_tol=SAME_VALUE)
                                for seed in shared)


def why_not_lent(row: dict, like: dict, codes=frozenset()) -> str | None:
    """The first thing in which a banked row differs from its borrower, and the way on; None where it lends.

    codes: hashes of other code that trains to the borrower's numbers.
    """
    if row["tree_hash"] not in {like["tree_hash"], *codes}:
        codes = f"{_short(row['tree_hash'])}, now {_short(like['tree_hash'])}"
        return (f"by other code of the trainer ({codes}), which may change the noise; {BANK_ANEW}; with SEEDS=2 two of "
                "them are trained again, and where both end as before, all lend")
    if row["device"] != like["device"]:
        return f"on another device ({row['device'] or 'unknown'}, now {like['device'] or 'unknown'}); {BANK_ANEW}"
    if options_of(like) and not options_of(row):
        return f"its options are unknown, because this version cannot read its command; {BANK_ANEW}"
    if differences := option_differences(row, like):
        return f"with other options ({', '.join(differences)}); {BANK_ANEW} and these options"
    if (row["device"] or "").startswith("cpu") and like["threads"] not in (None, row["threads"]):
        return (f"on {row['threads'] or 'an unknown number of'} threads, now {like['threads']}; "
                "bank with as many jobs side by side as the protocol has (make noise SEEDS=8 JOBS=)")
    return None


def _short(tree_hash: str | None) -> str:
    return (tree_hash or "unknown")[:8]


def seeds_text(seeds) -> str:
    """
    >>> seeds_text([3]), seeds_text([8, 6, 7, 2, 2]), seeds_text([1, 2])
    ('seed 3', 'seeds 2, 6 to 8 (5 rows)', 'seeds 1, 2')
    """
    parts, once = [], sorted(set(seeds))
    for seed in once:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    said = [f"{part[0]} to {part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in parts]
    rows = f" ({len(seeds)} rows)" if len(seeds) > 2 else ""
    return f"seed{'s' * (len(once) > 1)} {', '.join(said)}{rows}"


def _gaps(kept) -> list[str]:
    """The seeds that a bank lacks in its range. A bank with gaps may have been picked over."""
    ours = [seed for seed in kept if seed >= FIRST_SEED]
    missing = sorted(set(range(FIRST_SEED, max(ours, default=0))) - set(ours))
    if not missing:
        return []
    return [f"missing in the bank's range {FIRST_SEED} to {max(ours)}: {seeds_text(missing)}; "
            f"`make noise SEEDS={max(ours) - FIRST_SEED + 1}` runs them"]


# -----------------------------------------------------------------------------
# The spread that they lend

def bank(rows, profile_hash: str, metric: str, exclude_seeds=(), like: dict | None = None) -> Bank:
    """The bank of a metric: the control runs of a profile that lend (banked_runs), without the seeds in exclude_seeds.

    Speeds and times of a run on an overloaded machine are left out. So is one outlier. Raises ValueError for two
    outliers, for a spread of zero, and for a target that a banked run missed.
    """
    runs, left_out = banked_runs(rows, profile_hash, exclude_seeds, like)
    if metric in TIMED and (loaded := [row["seed"] for row in runs if row["overloaded"]]):
        left_out.append(f"{seeds_text(loaded)}: the machine was overloaded; they lend no speed and no time")
        runs = [row for row in runs if not row["overloaded"]]
    if metric == "time_to_target":
        runs = _same_target(runs, left_out)
    found = {row["seed"]: value_of(row, metric) for row in runs}
    unmeasured = [seed for seed, value in found.items() if value is None]
    left_out += [f"{seeds_text(unmeasured)}: {metric} was not measured"] if unmeasured else []
    seeds = sorted(seed for seed, value in found.items() if value is not None)
    values = [found[seed] for seed in seeds]
    if len(values) >= 2 and np.ptp(values) <= 1e-12 * max(map(abs, values)):
        raise ValueError(f"the {len(values)} banked runs of profile {profile_hash[:8]} have one and the same {metric}: "
                         "they are copies; bank runs of different seeds")
    seeds, values = _without_outlier(metric, seeds, values, left_out)
    if len(values) < 2:
        return Bank(values, None, 0, left_out, seeds)
    return Bank(values, float(np.std(values, ddof=1)), len(values) - 1, left_out, seeds)


def _without_outlier(metric, seeds: list[int], values: list[float], left_out: list[str]) -> tuple[list, list]:
    at = int(outlier(np.array(values)))
    if at < 0:
        return seeds, values
    (odd, rest), others = (seeds[at], seeds[:at] + seeds[at + 1:]), values[:at] + values[at + 1:]
    test = f"Grubbs' test at {OUTLIER:.0%}"
    if (second := int(outlier(np.array(others)))) >= 0:
        raise ValueError(f"{metric} has more than one outlier in its bank, {seeds_text([odd, rest[second]])} ({test}): "
                         "such noise is not normal, so it is not lent; look at these runs")
    left_out.append(f"seed {odd}: its {metric} is an outlier ({test})")
    return rest, others


def outlier(x, level: float = OUTLIER) -> np.ndarray:
    """Index of the outlier among x [..., n], by Grubbs' two-sided test (Grubbs 1969, Technometrics 11:1); -1: none.

    >>> int(outlier(np.array([1.0, 1.1, 0.9, 1.05, 9.0, 0.95]))), int(outlier(np.array([1.0, 1.1, 0.9, 1.3])))
    (4, -1)
    """
    n = x.shape[-1]
    if n < 3:
        return np.full(x.shape[:-1], -1)
    away = np.abs(x - x.mean(axis=-1, keepdims=True))
    at = away.argmax(axis=-1)
    furthest, s = away.max(axis=-1), x.std(axis=-1, ddof=1)
    t2 = np.square(stdtrit(n - 2, level / (2 * n)))
    return np.where(furthest > (n - 1) * np.sqrt(t2 / (n * (n - 2 + t2))) * s, at, -1)


def _same_target(runs, left_out) -> list[dict]:
    declared = [row for row in runs if row["target_metric_threshold"] is not None]
    if not declared:
        return []
    target = declared[-1]["target_metric_name"], declared[-1]["target_metric_threshold"]
    same = [row for row in declared if (row["target_metric_name"], row["target_metric_threshold"]) == target]
    others = [row["seed"] for row in runs if row not in same]
    left_out += [f"{seeds_text(others)}: no time to this target"] if others else []
    missed = [row["seed"] for row in same if row["time_to_target_sec_measured"] is None]
    if missed:
        raise ValueError(f"target {target[0]} {target[1]:.6g}: the banked control run on seed {missed[0]} missed it; "
                         "declare one that every banked run reached")
    return same
