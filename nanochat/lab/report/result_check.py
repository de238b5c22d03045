"""
Whether a result file can be what a protocol wrote. Every reader that judges a file reads it here:

    results = read_judged("results/mix005_latest.json")

Example: somebody sets run_status of a stopped run to "fine" and adds a val_bpb. The file is refused, and the message
names the run and the word. The verdicts are those of the declaration and the runs in the file, replayed today; stored
verdicts decide nothing, so an edit of them has no effect.

A value that a file lacks because it is older is no edit: null is accepted wherever a version wrote no value. Values
that fit together cannot be told from a true file. So this finds mistakes and clumsy edits; what it cannot find is
found by running a row again (scripts.ledger --rerun).
"""

import math
from collections import Counter
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from nanochat.config import FIELDS
from nanochat.lab.arms import CONTROL, matched_budget, parse_arm
from nanochat.lab.csv_file import read_rows
from nanochat.lab.ledger.workload import OF_A_CELL, options_of
from nanochat.lab.report.result_file import ResultFile, read_results
from nanochat.lab.runs import RunSummary
from nanochat.lab.trees.tree_arms import names_tree
from nanochat.lab.verdict import gates
from nanochat.lab.verdict.declaration import FLOORS, PRIMARY
from nanochat.lab.verdict.facts import Declaration
from nanochat.lab.verdict.stats import ALPHA
from nanochat.options import flag
from nanochat.record import STATUSES

SOURCES = ("bank", "own", "none")
POSITIVE = ("val_bpb", "min_val_bpb", "final_train_loss", "avg_tok_per_sec", "tok_per_sec_median", "dt_median_ms")
NOT_NEGATIVE = ("duration_sec", "training_sec", "time_to_target_sec", "steps_to_target", "trained_tokens", "steps",
                "resumed_from_step", "load", "peak_mem_mib", "seed")
SHOWN = 3  # faults in a message


def read_judged(path) -> ResultFile:
    """The result file with the verdicts that its runs give. Raises OSError, or ValueError naming every fault.

    A file without a declaration was not written by a protocol: it has no verdict.
    """
    try:
        results = read_results(path)
    except ValueError as e:  # torn, or a value of another type
        raise ValueError(f"{path} is not as a protocol writes it: {e}") from e
    if results.declaration is None:
        return replace(results, verdicts=[])
    if found := [*faults(results), *_of_history(results, Path(path))]:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ValueError(f"{path} is not as a protocol writes it: {'; '.join(found[:SHOWN])}{more}. Run the protocol "
                         "again: it reuses the complete runs and writes the file anew")
    return replace(results, verdicts=gates.judge(results.declaration, results.runs))


def changed_verdicts(path, judged: ResultFile) -> list[str]:
    """A line for each stored verdict that is not what the runs give: it was edited, or an older version judged it."""
    stored = {verdict.candidate: verdict.verdict for verdict in read_results(path).verdicts}
    return [f"{path}: the stored verdict on {found.candidate} is {stored[found.candidate]}, its runs give "
            f"{found.verdict or 'no verdict'}" for found in judged.verdicts
            if stored.get(found.candidate, found.verdict) != found.verdict]


def faults(results: ResultFile) -> list[str]:
    """Sentences that name what no protocol writes; [] for a file that may be true."""
    declaration = results.declaration
    found = [*_of_declaration(declaration), *_of_settings(results)]
    for run in results.runs:
        found += [f"{run.arm} on seed {run.seed} {what}" for what in _of_run(declaration, run)]
    return found + _together(declaration, results.runs) + _of_options(results)


# -----------------------------------------------------------------------------
# The declaration

def _of_declaration(d: Declaration) -> list[str]:
    found = [] if is_time(d.declared_at) else [f"its declaration has no time (declared_at {d.declared_at!r})"]
    names = [arm.name for arm in d.arms]
    if not names or names[0] != CONTROL or len(set(names)) < len(names):
        found.append(f"its arms are {names}, expected {CONTROL} first and every name once")
    if d.K != len(d.arms) - 1:
        found.append(f"it declares {d.K} candidates and has {len(d.arms) - 1}")
    if not d.seeds or len(set(d.seeds)) < len(d.seeds):
        found.append(f"its seeds are {d.seeds}, expected every seed once")
    if not d.looks or d.looks != sorted(set(d.looks)) or d.looks[0] < 1 or d.looks[-1] != len(d.seeds):
        found.append(f"its looks are {d.looks}, expected rising numbers up to the {len(d.seeds)} seeds")
    if d.alpha is None or not 0 < d.alpha <= ALPHA:
        found.append(f"its alpha is {d.alpha}, expected at most {ALPHA}")
    if d.noise_source not in SOURCES or (d.noise_source == "bank" and not (d.noise and d.noise.metrics)):
        found.append(f"its noise source is {d.noise_source!r} with {'a' if d.noise else 'no'} bank, expected one of "
                     f"{', '.join(SOURCES)}, and with bank its spreads")
    if d.noise and any(not entry.s_b > 0 or entry.nu < 1 for entry in d.noise.metrics.values()):
        found.append("its bank has a spread that is not above 0, or no degrees of freedom")
    return found + _of_gates(d)


def _of_gates(d: Declaration) -> list[str]:
    """The primary metric, and the floors that belong to it."""
    if d.primary not in PRIMARY:
        return [f"its primary metric is {d.primary!r}, expected one of {', '.join(PRIMARY)}"]
    found = []
    if d.margin is None or d.margin > PRIMARY[d.primary]:
        found.append(f"the margin of its primary gate is {d.margin}, expected at most {PRIMARY[d.primary]:.4g}")
    by_design = {"tok_per_sec"} if d.matched_budget else set()
    if d.primary == "time_to_target" and not by_design and d.horizons_differ is not False:
        by_design = {"final_train_loss", "val_bpb"}
    margins = {floor.metric: floor.margin for floor in d.floors}
    for metric in FLOORS.keys() - {d.primary, *by_design}:
        if metric not in margins:
            found.append(f"its declaration lacks the floor of {metric}")
    return found + [f"the floor of {metric} is {margin:.4g}, expected at most {FLOORS[metric]:.4g}"
                    if metric in FLOORS else f"it has a floor of {metric!r}, expected one of {', '.join(FLOORS)}"
                    for metric, margin in margins.items() if not margin <= FLOORS.get(metric, -math.inf) + 1e-12]


def _of_settings(results: ResultFile) -> list[str]:
    settings, d = results.settings, results.declaration
    pairs = [("label", settings.label, d.label), ("profile", settings.profile, d.profile),
             ("seeds", settings.seeds, d.seeds),
             ("arms", [(arm.get("name"), arm.get("flags")) for arm in settings.arms],
              [(arm.name, arm.flags) for arm in d.arms])]
    return [f"its {what} in the settings and in the declaration differ ({mine} and {declared})"
            for what, mine, declared in pairs if mine and declared and mine != declared]


def is_time(text) -> bool:
    """
    >>> is_time("2026-01-01T00:00:00+00:00"), is_time("soon"), is_time(None)
    (True, False, False)
    """
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except (TypeError, ValueError):
        return False


# -----------------------------------------------------------------------------
# Runs

def _of_history(results: ResultFile, path: Path) -> list[str]:
    """Runs whose row in the label's history, beside the file, has another value. A run without a row is none."""
    rows = {(row.get("run_tag"), row.get("config_hash"), row.get("timestamp")): row
            for row in read_rows(path.with_name(path.name.replace("_latest.json", "_history.csv")))}
    found = []
    for run in results.runs:
        row = rows.get((run.run_tag, run.config_hash, run.timestamp), {})
        for name in ("run_status", "val_bpb", "min_val_bpb", "duration_sec"):
            here = "" if getattr(run, name) is None else str(getattr(run, name))
            if row.get(name, here) != here:
                found.append(f"{run.arm} on seed {run.seed} has {name} {here or 'empty'}, and {row[name] or 'empty'} "
                             "in its history")
    return found


def _of_run(d: Declaration, run: RunSummary) -> list[str]:
    arms = {arm.name: arm.flags for arm in d.arms}
    if run.arm not in arms:
        return [f"is of an arm that was not declared ({', '.join(arms)})"]
    found = [] if run.seed in d.seeds else [f"is on a seed that was not declared ({' '.join(map(str, d.seeds))})"]
    if run.run_status not in STATUSES:
        found.append(f"has the status {run.run_status!r}, which is not how a run ends ({', '.join(STATUSES)})")
    for name, value, declared in (("recipe", run.recipe, d.profile), ("label", run.label, d.label),
                                  ("candidate", run.candidate, arms[run.arm])):
        if value is not None and declared is not None and value != declared:
            found.append(f"has {name} {value!r}, expected {declared!r}, as declared")
    if run.run_tag is not None and not run.run_tag.endswith(f"_{run.arm}_s{run.seed}"):
        found.append(f"is the run of another cell, {run.run_tag}")
    found += [f"has {name} {value}, expected a finite number" for name, value in vars(run).items()
              if isinstance(value, float) and not math.isfinite(value)]
    found += [f"has {name} {value}, expected a number above 0" for name in POSITIVE
              if (value := getattr(run, name)) is not None and value <= 0]
    found += [f"has {name} {value}, expected 0 or more" for name in NOT_NEGATIVE
              if (value := getattr(run, name)) is not None and value < 0]
    return found + _of_its_end(run)


def _of_its_end(run: RunSummary) -> list[str]:
    if run.run_status != "ok":
        return [f"ended as {run.run_status} and has a val_bpb"] if run.val_bpb is not None else []
    found = [f"has {name} {getattr(run, name)!r}, expected a time" for name in ("declared_at", "started_at")
             if getattr(run, name) is not None and not is_time(getattr(run, name))]
    if run.declared_at is None:
        found.append("has no time of its declaration")
    if run.bound == "iterations" and None not in (run.steps, run.num_iterations) and run.steps < run.num_iterations:
        found.append(f"is said to have ended ok at step {run.steps} of {run.num_iterations}")
    return found


def _together(d: Declaration, runs: list[RunSummary]) -> list[str]:
    """What all runs of a label share, and all runs of an arm."""
    twice = [cell for cell, n in Counter((run.arm, run.seed) for run in runs).items() if n > 1]
    found = [f"{arm} on seed {seed} is there twice" for arm, seed in twice]
    for name in ("device", "dataset_id", "tokenizer_id"):
        if len(values := _values(runs, name)) > 1:
            found.append(f"its runs are of several values of {name}: {', '.join(values)}")
    for arm in d.arms:
        mine = [run for run in runs if run.arm == arm.name]
        if len(_values(mine, "profile_hash")) > 1:
            found.append(f"the runs of {arm.name} are of several profiles")
        if any(run.started_at for run in mine) and (odd := [run.seed for run in mine if run.run_status == "ok"
                                                             and not run.started_at]):
            found.append(f"{arm.name} on seed {odd[0]} has no time at which it started")
    banked = d.noise.profile_hash if d.noise else None
    other = _values([run for run in runs if run.arm == CONTROL], "profile_hash")
    if banked and other and other != [banked]:
        found.append("its bank is of another profile than its control")
    return found


def _values(runs: list[RunSummary], name: str) -> list[str]:
    return sorted({value for run in runs if (value := getattr(run, name)) is not None})


def _of_options(results: ResultFile) -> list[str]:
    """Runs whose command has other options than their arm was declared with, as a control with a candidate's flags.

    Arms on other trees, and commands of another program or version, are left out.
    """
    settings, found = results.settings, []
    common = [*settings.profile_flags, *settings.machine_flags, *settings.common_flags]
    for arm in results.declaration.arms:
        if names_tree(arm.flags) or not settings.profile_flags:
            continue
        try:
            config = parse_arm(arm.name, arm.flags, common).config
        except ValueError:  # an option of another version
            continue
        if arm.name == CONTROL and matched_budget(config) != results.declaration.matched_budget:
            found.append(f"its declaration says matched budget {results.declaration.matched_budget}, its options give "
                         f"{matched_budget(config)}")
        for run in results.runs:
            if run.arm == arm.name and (other := _differences(vars(config), run)):
                found.append(f"{run.arm} on seed {run.seed} ran with options that it was not declared with "
                             f"({', '.join(other)})")
    return found


def _differences(wanted: dict, run: RunSummary) -> list[str]:
    said = options_of({"command": run.command})
    return [f"{flag(name)} {wanted[name]} -> {said[name]}" for name in FIELDS
            if name not in OF_A_CELL and name in said and said[name] != wanted[name]]
