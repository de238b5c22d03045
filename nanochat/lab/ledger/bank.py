"""
The bank: how much the control varies from seed to seed, and how small a gain a protocol can therefore see.

    measure(rows, profile_hash, exclude_seeds=protocol_seeds)["metrics"]["val_bpb"]["s_b"]

The bank of a profile is its control runs on seeds of their own. s_b is the standard deviation (sd) of ONE of these
runs. For times, rates and the train loss it is the sd of the logarithm, so 0.01 reads as 1 %.
"""

import math
from collections import defaultdict

import numpy as np

from nanochat.checks import MOST_SEEDS, cut
from nanochat.lab.arms import CONTROL
from nanochat.lab.ledger.banked import FIRST_SEED, bank, banked_runs
from nanochat.lab.ledger.experiments import NOISE, REFERENCE, from_reference, metric_curve, value_of
from nanochat.lab.ledger.workload import why_other_profile
from nanochat.lab.metrics import METRICS
from nanochat.lab.table import number, table
from nanochat.lab.verdict.declaration import TRIVIAL_SD, label_level
from nanochat.lab.verdict.stats import correlation_bound, planned_source, sigma_interval, smallest_gain
from nanochat.lab.verdict.time_to_target import crossing, refuse_missed, threshold_from_bank

GAINS_AT = (2, 3, 5, 8)  # numbers of pairs in the table of smallest gains
INTERVAL = 0.90  # confidence of the interval of sigma, 5 % outside on each side
LOWER = 0.90  # confidence of the one-sided lower bound of the correlation


def noise_seeds(n: int) -> list[int]:
    """
    >>> noise_seeds(3)
    [900001, 900002, 900003]
    """
    if n < 2:
        raise ValueError(f"--seeds={n}: expected 2 or more; one run shows no spread")
    if n > MOST_SEEDS:
        raise ValueError(f"--seeds={cut(n)}: expected at most {MOST_SEEDS:,} runs")
    return [FIRST_SEED + i for i in range(n)]


# -----------------------------------------------------------------------------
# The noise, from rows of the ledger

def measure(rows, profile_hash: str, exclude_seeds=(), like: dict | None = None) -> dict:
    """{"source", "profile_hash", "metrics": {metric: {"s_b", "lo", "hi", ...}}, "left_out", "correlation"}, for JSON.

    A metric with fewer than two values has no entry; "left_out" says why. like: the runs that ask for it
    (banked.borrower); "threads" then says on how many threads the banked runs were, where that matters.
    "from_reference" says how many of them came with the project.
    """
    metrics, left_out = {}, []
    for metric in METRICS:
        try:
            found = bank(rows, profile_hash, metric, exclude_seeds, like)
        except ValueError as e:
            left_out.append(str(e))
            continue
        left_out += found.left_out
        if found.nu:
            lo, hi = sigma_interval(found.s_b, found.nu, INTERVAL)
            middle = float(np.median(found.values))
            metrics[metric] = {"s_b": found.s_b, "nu": found.nu, "lo": lo, "hi": hi, "n": len(found.values),
                               "median": math.exp(middle) if METRICS[metric].log else middle}
    noise = {"source": "bank", "profile_hash": profile_hash, "metrics": metrics,
             "left_out": list(dict.fromkeys(left_out)), "correlation": correlation(rows, profile_hash)}
    runs, _ = banked_runs(rows, profile_hash, exclude_seeds, like)
    shipped = sum(map(from_reference, runs))
    on_cpu = like and runs and runs[-1]["device"].startswith("cpu")
    return (noise | ({"threads": runs[-1]["threads"]} if on_cpu else {})
            | ({"from_reference": shipped} if shipped else {}))


def correlation(rows, profile_hash: str) -> dict:
    """{metric: {"r", "n", "lo"}}: correlation of control and candidate on one seed, in the profile's earlier protocols.

    r is the correlation of the values after the mean of each label and arm was taken off. n is the number of seeds,
    not of pairs, because the candidates of a seed share its control. lo is the lower 90 % bound by Fisher's z, at
    least 0. A metric has no entry where fewer than 4 seeds are left after the means were taken off.
    """
    mine = [row for row in rows if row["profile_hash"] == profile_hash and row["label"] not in (NOISE, None)
            and row["status"] == "ok"]
    return {metric: found for metric in METRICS if (found := _correlation(mine, metric))}


def _correlation(rows, metric) -> dict | None:
    values = {(row["label"], row["arm"], row["seed"]): value for row in rows
              if (value := value_of(row, metric)) is not None}
    groups, seeds = defaultdict(list), defaultdict(set)
    for (label, arm, seed), value in values.items():
        if arm != CONTROL and (label, CONTROL, seed) in values:
            groups[label, arm].append((values[label, CONTROL, seed], value))
            seeds[label].add(seed)
    pairs = [np.array(pairs) - np.mean(pairs, axis=0) for pairs in groups.values() if len(pairs) > 1]
    n = sum(len(of_label) for of_label in seeds.values())
    # Fisher's z counts on one mean that was estimated. Each further label has a mean of its own, which costs one more.
    effective = n - (len(seeds) - 1)
    if not pairs or effective < 4:
        return None
    x, y = np.concatenate(pairs).T
    if not (x.any() and y.any()):
        return None
    r = float(np.clip((x @ y) / math.sqrt((x @ x) * (y @ y)), -1, 1))
    return {"r": r, "n": n, "lo": correlation_bound(r, effective, LOWER)}


def profiles_present(rows) -> list[dict]:
    """The newest row of every profile, newest last. "banked" is the number of runs in the profile's bank."""
    newest = {row["profile_hash"]: row for row in rows if row["profile_hash"]}
    last = {row["profile_hash"]: at for at, row in enumerate(rows)}
    order = sorted(newest.values(), key=lambda row: last[row["profile_hash"]])
    return [{**row, "banked": len(banked_runs(rows, row["profile_hash"])[0])} for row in order]


def with_target(rows, curves: dict, metric: str, threshold: float) -> list[dict]:
    """The rows, with the time to this target from the curve of each run; curves: {run id: lines of its metrics.jsonl}.

    A row without a curve stays as it is.
    """
    return [row | {"target_metric_name": metric, "target_metric_threshold": threshold,
                   "time_to_target_sec_measured": crossing(metric_curve(curves[row["run_id"]], metric), threshold)}
            if row["run_id"] in curves else row for row in rows]


def banked_target(rows, profile_hash, exclude_seeds=(), like: dict | None = None) -> float:
    """A target of val_bpb that every banked run reached: the worst final value + 1 sigma.

    Raises ValueError for a bank that gives no such target.
    """
    runs, _ = banked_runs(rows, profile_hash, exclude_seeds, like)
    threshold = threshold_from_bank([row["val_bpb"] for row in runs if row["val_bpb"] is not None])
    refuse_missed(threshold, {row["seed"]: row["min_val_bpb"] for row in runs})
    return threshold


# -----------------------------------------------------------------------------
# As text

def describe(noise: dict) -> str:
    """Tables of sigma, of the smallest gains and of the correlation; then the runs that were left out, and why."""
    parts = ([_sigmas(noise["metrics"]), _gains(noise["metrics"])] if noise["metrics"]
             else ["no noise banked: run `make noise SEEDS=8`"])
    parts += ([text for text in (_correlations(noise["correlation"]), _better_source(noise)) if text]
              if noise["correlation"] else [])
    notes = [*reference_lines(noise.get("from_reference")), *noise["left_out"]]
    parts += ["\n".join("  " + line for line in notes)] if notes else []
    return "\n\n".join(parts)


def reference_lines(runs: int | None) -> list[str]:
    """A sentence on the banked runs that came with the project, where there are any."""
    if not runs:
        return []
    these = "a banked run" if runs == 1 else f"{runs} of the banked runs"
    return [f"{these} came with the project (dev/ledger/{REFERENCE.name})"]


def _name(metric) -> str:
    return f"log {METRICS[metric].column}" if METRICS[metric].log else METRICS[metric].column


def _sigmas(metrics) -> str:
    rows = [[_name(m), str(e["n"]), str(e["nu"]), f"{e['s_b']:.3g}", f"[{e['lo']:.3g}, {e['hi']:.3g}]",
             f"{e['median']:.6g}"] for m, e in metrics.items()]
    return ("noise of one control run\n"
            + table(["metric", "n", "df", "sigma", f"{INTERVAL:.0%} interval", "median"], rows))


def _gains(metrics) -> str:
    level = label_level(1)
    rows = [[_name(m), *(number(TRIVIAL_SD * e["s_b"] + smallest_gain(n, e["s_b"], e["nu"], level), ".3g")
                         for n in GAINS_AT)]
            for m, e in metrics.items()]
    return ("smallest gain that shows with 80 % power (one candidate in its first label, no pair correlation)\n"
            + table(["metric", *(f"{n} seeds" for n in GAINS_AT)], rows))


def _correlations(found) -> str:
    rows = [[_name(m), str(e["n"]), f"{e['r']:+.2f}", f"{e['lo']:.2f}"] for m, e in found.items()]
    return ("correlation of control and candidate in earlier protocols\n"
            + table(["metric", "seeds", "r", f"lower {LOWER:.0%} bound"], rows))


def _better_source(noise) -> str:
    """Advice: the noise source, bank or own, that lets a protocol see the smaller gain of val_bpb.

    The advice costs no error rate: it rests on earlier protocols and not on the runs that will be judged.
    """
    bank, earlier = noise["metrics"].get("val_bpb"), noise["correlation"].get("val_bpb")
    if not (bank and earlier):
        return ""
    sources = {n: planned_source(n, bank["nu"], earlier["lo"]) for n in GAINS_AT}
    own = [str(n) for n, source in sources.items() if source == "own"]
    if not own:
        return "the bank is the better noise source for val_bpb at these numbers of seeds (--noise=bank, the default)"
    return (f"pairs this alike are better judged by their own spread: with {', '.join(own)} seeds "
            "--noise=own sees smaller gains of val_bpb; choose it before the first run")


def other_profiles(rows, profile_hash: str) -> str:
    """The other profiles in the ledger, each with its differences from this one; rows of two are never compared."""
    present = profiles_present(rows)
    mine = next((row for row in present if row["profile_hash"] == profile_hash), None)
    lines = [f"  {row['profile_hash'][:8]} {row['profile'] or '-'}, {row['banked']} banked: "
             f"{'; '.join(why_other_profile(mine, row))}" for row in present if mine and row is not mine]
    return "\n".join(["other profiles in the ledger, never compared with this one:", *lines]) if lines else ""
