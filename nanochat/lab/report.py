"""
Results as text: one table of runs, one of differences, one verdict per candidate.
"""

import os
import time
from pathlib import Path

from nanochat.lab.progress import format_time


def table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """Columns as wide as their widest cell; the first `left` flush left, the others flush right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    def line(row):
        cells = [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))]
        return "  " + "  ".join(cells).rstrip()
    return "\n".join([line(header), "  " + "  ".join("-" * w for w in widths), *map(line, rows)])


def number(value, form: str) -> str:
    """A value that was not measured is an empty cell, never 0.

    >>> number(1.5, ".2f"), number(None, ".2f")
    ('1.50', '')
    """
    return "" if value is None else format(value, form)


def run_line(run: dict, elapsed_sec: float) -> str:
    facts = [f"{run['arm']} s{run['seed']}: {run['run_status']}"]
    facts += [f"val_bpb {run['val_bpb']:.5f}"] if run["val_bpb"] is not None else []
    facts += [f"{run['avg_tok_per_sec']:,.0f} tok/s"] if run["avg_tok_per_sec"] is not None else []
    facts += [f"resumed from step {run['resumed_from_step']}"] if run["resumed_from_step"] is not None else []
    facts += [f"overloaded ({run['load']:.1f} on {os.cpu_count()} cores)"] if run["overloaded"] else []
    return ", ".join([*facts, format_time(elapsed_sec)])


def failure(run: dict, log, lines: int = 5) -> str:
    """Why a cell has no result, and the end of its log for a human to read."""
    tail = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return "\n".join([f"  {run['run_status']}: {run['error'] or 'no reason recorded'}; {log} ends:", *("    | " + t for t in tail)])


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
    parts += ["", *_notes(facts), *map(verdict, facts["verdicts"]), ""]
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
        lines.append(f"  gain {entry['mean_gain']:+.5f} bpb (positive = better), interval [{_bound(entry['lo'])}, {_bound(entry['hi'])}] "
                     f"at level {entry['level']:.3g}, p {entry['p']:.3g}, n {entry['n']}, noise {entry['noise_source']} (df {entry['df']})")
        if entry["verdict"] != "promote":
            lines.append(f"  smallest gain that {entry['n']} seeds show (80 % power): {_bound(entry['smallest_gain'])} bpb")
    return "\n".join(lines)


def _bound(value) -> str:
    return "unbounded" if value is None else f"{value:.5f}"


class Stopwatch:
    """Wall time of a whole command, and the load that it met, for its last line."""

    def __init__(self):
        self.start = time.monotonic()

    def line(self) -> str:
        load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
        return f"total {format_time(time.monotonic() - self.start)}{load}"
