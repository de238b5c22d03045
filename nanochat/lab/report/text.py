"""
Results as text: one table of runs, one of differences, one of gates and one verdict per candidate, and what the label rests on.
"""

import itertools
import math
import os
import time
from pathlib import Path

from nanochat.lab.metrics import METRICS
from nanochat.lab.report.gains import primary_gate
from nanochat.lab.table import format_time, looks_text, number, plain, table
from nanochat.lab.verdict.stats import smallest_gain


def run_line(run: dict, elapsed_sec: float) -> str:
    facts = [f"{run['arm']} s{run['seed']}: {run['run_status']}"]
    facts += [f"val_bpb {run['val_bpb']:.5f}"] if run["val_bpb"] is not None else []
    facts += [f"{run['avg_tok_per_sec']:,.0f} tok/s"] if run["avg_tok_per_sec"] is not None else []
    facts += [f"resumed from step {run['resumed_from_step']}"] if run["resumed_from_step"] is not None else []
    facts += [f"overloaded ({run['load']:.1f} on {os.cpu_count()} cores)"] if run["overloaded"] else []
    return ", ".join([*facts, format_time(elapsed_sec)])


def failure(run: dict, log, lines: int = 5) -> str:
    """Why a cell has no result, and, where that was not the user's wish, what else the end of its log says."""
    why = run["error"] or "no reason recorded"
    if run["run_status"] == "interrupted":
        return f"  {why}; log: {log}"
    said = [line for line in Path(log).read_text(encoding="utf-8", errors="replace").splitlines() if line.strip() and why not in line]
    counted = [(line, len(list(same))) for line, same in itertools.groupby(said)][-lines:]
    return "\n".join([f"  {run['run_status']}: {why}; {log} ends:",
                      *(f"    | {line}" + f" ({n} times)" * (n > 1) for line, n in counted)])


def results_table(facts: dict) -> str:
    runs = [[run["arm"], str(run["seed"]), number(run["val_bpb"], ".5f"), number(run["min_val_bpb"], ".5f"),
             number(run["avg_tok_per_sec"], ",.0f"), run["run_status"] + (" (reused)" if run["reused"] else "")] for run in facts["runs"]]
    parts = ["", table(["arm", "seed", "val_bpb", "min_val_bpb", "tok/s", "status"], runs)]
    deltas = [[row["candidate"], str(row["seed"]), number(row["candidate_minus_control_bpb"], "+.5f"),
               number(row["candidate_minus_control_duration_sec"], "+.1f"), number(row["candidate_speed_ratio"], ".3f")]
              for row in facts["deltas"]]
    for name, mean in facts["by_candidate"].items():
        if mean["pairs"]:
            deltas.append([name, "mean", number(mean["mean_candidate_minus_control_bpb"], "+.5f"), "",
                           number(mean["mean_candidate_speed_ratio"], ".3f")])
    if deltas:
        parts += ["", "candidate minus control (bpb below 0: the candidate is better)",
                  table(["candidate", "seed", "bpb", "duration_sec", "speed_ratio"], deltas)]
    parts += ["", *_notes(facts), verdicts(facts), ""]
    return "\n".join(parts)


def _notes(facts) -> list[str]:
    notes = [f"{row['candidate']} s{row['seed']}: {row['note']}" for row in facts["deltas"] if row["note"]]
    loads = [run["load"] for run in facts["runs"] if run["overloaded"]]
    if loads:
        notes.append(f"load up to {max(loads):.1f} on {os.cpu_count()} cores in {len(loads)} of {len(facts['runs'])} cells: "
                     "their times, and so speed_ratio, are not to be trusted")
    return notes


def verdict(entry: dict) -> str:
    lines = [f"verdict {entry['candidate']}: {entry['text']}", f"  {entry['reason']}"]
    if entry.get("se"):  # a test was made
        metric = primary_gate(entry)["metric"]
        unit = f"of log {METRICS[metric].key}" if METRICS[metric].log else "bpb"
        lines.append(f"  gain {entry['mean_gain']:+.5f} {unit} (positive = better), interval "
                     f"[{_bound(entry['lo'])}, {_bound(entry['hi'])}] at level {entry['level']:.3g}, p {entry['p']:.3g}, n {entry['n']}, "
                     f"noise {entry['noise_source']} (df {entry['df']})")
    return "\n".join([*lines, *(f"  {text}" for text in [*checks(entry), seeds_text(entry)] if text)])


def checks(entry: dict) -> list[str]:
    """What stands beside a verdict and decides nothing: the exact test of the signs, and the time to target in its two parts."""
    lines = []
    if entry.get("sign_flip_p") is not None:
        lines.append(f"check, decides nothing: p {entry['sign_flip_p']:.3g} by sign flips, at least {2.0 ** -entry['n']:.3g}")
    if found := entry.get("by_steps"):
        time, lo, hi, steps, step_time = (f"{100 * math.expm1(-found[key]):+.3g} %" for key in ("mean", "hi", "lo", "steps", "step_time"))
        lines.append(f"time to target as steps x median step time: {time} [{lo}, {hi}] (steps {steps}, step time {step_time}), "
                     f"n {found['n']}")
    return lines


def verdicts(facts: dict) -> str:
    """Every candidate's gates and verdict, then what the label rests on."""
    parts = [part for entry in facts["verdicts"] for part in (gates_table(entry), verdict(entry)) if part]
    return "\n\n".join([*parts, "\n".join(label_lines(facts | {"verdicts": []}))])


def _bound(value, missing: str = "unbounded", form: str = ".5f") -> str:
    return missing if value is None else format(value, form)


# -----------------------------------------------------------------------------
# Gates

GATE_HEADER = ["gate", "role", "n", "mean (sd)", "interval", "level", "p", "lo must reach (sd)", "result", "noise", "section"]


def gate_cells(gate: dict) -> list[str]:
    """One gate as a row under GATE_HEADER. A gate passes when the lower end of its interval reaches -margin."""
    margin, margin_sd = ([None if gate.get(key) is None else 0.0 - gate[key] for key in ("threshold", "threshold_in_sd")])
    interval = f"[{_bound(gate['lo'], '-inf')}, {_bound(gate['hi'], 'inf')}]" if gate.get("mean") is not None else ""
    name = gate["gate"] if gate["gate"] == gate["metric"] else f"{gate['gate']}: {gate['metric']}"
    return [f"{name} ({gate['unit']})" if gate.get("unit") else name, gate["role"], number(gate.get("n"), "d"),
            _with_sd(gate.get("mean"), gate.get("mean_in_sd")), interval, number(gate.get("level"), ".3g"),
            number(gate.get("p"), ".3g"), _with_sd(margin, margin_sd), gate["result"], gate.get("noise_source") or "",
            str(gate.get("section") or "")]


def _with_sd(value, value_in_sd) -> str:
    """
    >>> _with_sd(-0.005, -3.846), _with_sd(0.0, 0.0), _with_sd(0.1, None), _with_sd(None, None)
    ('-0.00500 (-3.8)', '0', '+0.10000', '')
    """
    if not value:
        return "" if value is None else "0"
    return f"{value:+.5f}" + ("" if value_in_sd is None else f" ({value_in_sd:+.1f})")


def gate_notes(entry: dict) -> list[str]:
    return [f"{gate['gate']}: {gate['note']}" for gate in entry.get("gates") or [] if gate.get("note")]


def gates_table(entry: dict) -> str:
    """One row a gate, and the notes below; empty where no gate was reached."""
    gates = entry.get("gates") or []
    if not gates:
        return ""
    lines = [f"gates of {entry['candidate']} (above 0 the candidate is better; sd: in standard deviations of one control run)",
             table(GATE_HEADER, [gate_cells(gate) for gate in gates], left=2)]
    return "\n".join([*lines, *("  " + note for note in gate_notes(entry))])


# -----------------------------------------------------------------------------
# What a label rests on

SEEDS_SHOWN = (2, 3, 5, 8, 12)


def label_lines(facts: dict) -> list[str]:
    """What was declared, the noise, and what these seeds can and cannot show."""
    declaration, noise = facts["declaration"], facts.get("noise") or {}
    lines = [f"{declaration['K']} candidate{'s' * (declaration['K'] != 1)}, looks at {looks_text(declaration['looks'])} seeds, "
             f"alpha {declaration['alpha']:g} for the whole label, noise source {declaration['noise_source']}"]
    lines += [f"sigma of {name}: {sigma_text(values)}" for name, values in (noise.get("metrics") or {}).items()]
    lines += [f"correlation of earlier pairs on {name}: {plain(values)}" for name, values in (noise.get("correlation") or {}).items()]
    lines += [f"left out of the bank: {text}" for text in noise.get("left_out") or []]
    if gains := smallest_gains(facts):
        shown = ", ".join(f"n={n} {gain:.4g}" for n, gain in gains)
        lines.append(f"smallest gain that n seeds show (80 % power), {primary_metric(declaration)}: {shown}")
    return lines + [f"{entry['candidate']}: {text}" for entry in facts["verdicts"] if (text := seeds_text(entry))]


def primary_metric(declaration: dict) -> str:
    return declaration.get("primary") or declaration["primary_metric"]


def sigma_text(values: dict) -> str:
    """sd of one control run of the bank, with its 90 % interval."""
    text = f"{values['s_b']:.4g} [{_bound(values['lo'], '0', '.4g')}, {_bound(values['hi'], 'inf', '.4g')}] at 90 %, df {values['nu']}"
    facts = [f"{values['n']} control runs"] if values.get("n") else []
    facts += [f"median {values['median']:.5g}"] if values.get("median") is not None else []
    return text + (f" ({', '.join(facts)})" if facts else "")


def smallest_gains(facts: dict) -> list[tuple[int, float]]:
    """(n, smallest gain that n pairs show with 80 % power) on the primary metric, at the level that K candidates leave."""
    declaration = facts["declaration"]
    values = ((facts.get("noise") or {}).get("metrics") or {}).get(primary_metric(declaration))
    if not values or not values["nu"]:
        return []
    level = declaration["alpha"] / max(1, declaration["K"])
    return [(n, smallest_gain(n, values["s_b"], values["nu"], level)) for n in SEEDS_SHOWN]


def seeds_text(entry: dict) -> str:
    """What would have been seen, beside every verdict that is not promote; empty where nothing is known of it."""
    if entry["verdict"] in (None, "promote"):
        return ""
    facts = []
    if entry.get("smallest_gain") is not None:
        facts.append(f"the smallest gain that {entry['n']} seeds show (80 % power) is {entry['smallest_gain']:.4g}")
    if entry.get("seeds_needed") is not None:
        facts.append(f"{entry['seeds_needed']} seeds are needed for a gain of {entry['min_gain']:.4g}")
    if entry.get("chance_at_max") is not None:
        facts.append(f"chance to pass at the last look {entry['chance_at_max']:.0%}")
    return ", ".join(facts)


class Stopwatch:
    """Wall time of a whole command, and the load that it met, for its last line."""

    def __init__(self):
        self.start = time.monotonic()

    def line(self) -> str:
        load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
        return f"total {format_time(time.monotonic() - self.start)}{load}"
