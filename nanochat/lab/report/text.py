"""
Results as text: tables of runs, of differences and of gates, a verdict per candidate, and the basis of the label: its
declaration and its noise.
"""

import itertools
import math
import os
import time
from pathlib import Path

from nanochat.common import usable_cores
from nanochat.lab.metrics import METRICS
from nanochat.lab.report.gains import primary_gate
from nanochat.lab.report.promise import promise_lines
from nanochat.lab.report.result_file import ResultFile
from nanochat.lab.runs import RunSummary
from nanochat.lab.table import format_time, looks_text, number, plain, table
from nanochat.lab.trees.tree_arms import names_tree
from nanochat.lab.verdict.facts import Declaration, GateRow, MetricNoise, Noise, Verdict, bank_of
from nanochat.lab.verdict.stats import ALPHA, smallest_gain


def run_line(run: RunSummary, elapsed_sec: float) -> str:
    facts = [f"{run.arm} s{run.seed}: {run.run_status}"]
    facts += [f"val_bpb {run.val_bpb:.5f}"] if run.val_bpb is not None else []
    facts += [f"{run.avg_tok_per_sec:,.0f} tok/s"] if run.avg_tok_per_sec is not None else []
    facts += [f"resumed from step {run.resumed_from_step}"] if run.resumed_from_step is not None else []
    facts += [f"overloaded ({run.load:.1f} on {usable_cores()} cores)"] if run.overloaded else []
    return ", ".join([*facts, format_time(elapsed_sec)])


def failure(run: RunSummary, log, lines: int = 5) -> str:
    """The reason why a cell has no result. If the user did not stop it, the end of its log is added."""
    why = run.error or "no reason recorded"
    if run.run_status == "interrupted":
        return f"  {why}; log: {log}"
    text = Path(log).read_text(encoding="utf-8", errors="replace")
    said = [line for line in text.splitlines() if line.strip() and why not in line]
    counted = [(line, len(list(same))) for line, same in itertools.groupby(said)][-lines:]
    return "\n".join([f"  {run.run_status}: {why}; {log} ends:",
                      *(f"    | {line}" + f" ({n} times)" * (n > 1) for line, n in counted)])


def results_table(results: ResultFile) -> str:
    runs = [[run.arm, str(run.seed), number(run.val_bpb, ".5f"), number(run.min_val_bpb, ".5f"),
             number(run.avg_tok_per_sec, ",.0f"), _status(run)]
            for run in results.runs]
    parts = ["", table(["arm", "seed", "val_bpb", "min_val_bpb", "tok/s", "status"], runs)]
    deltas = [[delta.candidate, str(delta.seed), number(delta.candidate_minus_control_bpb, "+.5f"),
               number(delta.candidate_minus_control_duration_sec, "+.1f"), number(delta.candidate_speed_ratio, ".3f")]
              for delta in results.deltas]
    deltas += [[name, "mean", number(mean.mean_candidate_minus_control_bpb, "+.5f"), "",
                number(mean.mean_candidate_speed_ratio, ".3f")]
               for name, mean in results.by_candidate.items() if mean.pairs]
    if deltas:
        parts += ["", "candidate minus control (bpb below 0: the candidate is better)",
                  table(["candidate", "seed", "bpb", "duration_sec", "speed_ratio"], deltas)]
    parts += ["", *_notes(results), verdicts(results), ""]
    return "\n".join(parts)


def _status(run: RunSummary) -> str:
    return run.run_status + (f" ({', '.join(remarks(run))})" if remarks(run) else "")


def remarks(run: RunSummary) -> list[str]:
    """Beside the status of a run: whether it ran before, and who measured its val_bpb."""
    older = run.evaluator is None and run.val_bpb is not None and names_tree(run.candidate or "")
    return (["reused"] * bool(run.reused) + ["own evaluator"] * (run.evaluator == "own" or older)
            + ["refused"] * bool(run.fault))


def _notes(results: ResultFile) -> list[str]:
    notes = [f"{run.arm} s{run.seed}: {run.fault}" for run in results.runs if run.fault]
    notes += [f"{delta.candidate} s{delta.seed}: {delta.note}" for delta in results.deltas if delta.note]
    loads = [run.load for run in results.runs if run.overloaded]
    if loads:
        cells = f"{len(loads)} of {len(results.runs)} cells"
        notes.append(f"load up to {max(loads):.1f} on {usable_cores()} cores in {cells}: "
                     "their times, and so speed_ratio, are not to be trusted")
    return notes


def verdict_text(verdict: Verdict) -> str:
    lines = [f"verdict {verdict.candidate}: {verdict.text}", f"  {verdict.reason}"]
    if verdict.se:  # a test was made
        metric = primary_gate(verdict).metric
        unit = f"of log {METRICS[metric].key}" if METRICS[metric].log else "bpb"
        lines.append(f"  gain {verdict.mean_gain:+.5f} {unit} (positive = better), interval "
                     f"[{_bound(verdict.lo)}, {_bound(verdict.hi)}] at level {verdict.level:.3g}, p {verdict.p:.3g}, "
                     f"n {verdict.n}, noise {verdict.noise_source} (df {verdict.df})")
    return "\n".join([*lines, *(f"  {text}" for text in [*checks(verdict), seeds_text(verdict)] if text)])


def checks(verdict: Verdict) -> list[str]:
    """Beside a verdict, and deciding nothing: the exact test of the signs, and the two parts of the time to target."""
    lines = []
    if verdict.sign_flip_p is not None:
        least = 2.0 ** -verdict.n
        lines.append(f"check, decides nothing: p {verdict.sign_flip_p:.3g} by sign flips, at least {least:.3g}")
    if found := verdict.by_steps:
        time, lo, hi, steps, step_time = (f"{100 * math.expm1(-x):+.3g} %"
                                          for x in (found.mean, found.hi, found.lo, found.steps, found.step_time))
        lines.append(f"time to target as steps x median step time: {time} [{lo}, {hi}] "
                     f"(steps {steps}, step time {step_time}), n {found.n}")
    return lines


def verdicts(results: ResultFile) -> str:
    """Every candidate's gates and verdict, then the declaration and the noise of the label."""
    parts = [part for verdict in results.verdicts for part in (gates_table(verdict), verdict_text(verdict)) if part]
    return "\n\n".join([*parts, "\n".join(basis_lines(results))])


def _bound(value, missing: str = "unbounded", form: str = ".5f") -> str:
    return missing if value is None else format(value, form)


# -----------------------------------------------------------------------------
# Gates

GATE_HEADER = ["gate", "role", "n", "mean (sd)", "interval", "level", "p", "lo must reach (sd)", "result", "noise",
               "section"]


def gate_cells(gate: GateRow) -> list[str]:
    """A gate as a row under GATE_HEADER. A gate passes when the lower end of its interval reaches -margin."""
    margin, margin_sd = (None if value is None else 0.0 - value for value in (gate.threshold, gate.threshold_in_sd))
    interval = f"[{_bound(gate.lo, '-inf')}, {_bound(gate.hi, 'inf')}]" if gate.mean is not None else ""
    name = gate.gate if gate.gate == gate.metric else f"{gate.gate}: {gate.metric}"
    return [f"{name} ({gate.unit})" if gate.unit else name, gate.role, number(gate.n, "d"),
            _with_sd(gate.mean, gate.mean_in_sd), interval, number(gate.level, ".3g"),
            number(gate.p, ".3g"), _with_sd(margin, margin_sd), gate.result, gate.noise_source or "",
            str(gate.section or "")]


def _with_sd(value, value_in_sd) -> str:
    """
    >>> _with_sd(-0.005, -3.846), _with_sd(0.0, 0.0), _with_sd(0.1, None), _with_sd(None, None)
    ('-0.00500 (-3.8)', '0', '+0.10000', '')
    """
    if not value:
        return "" if value is None else "0"
    return f"{value:+.5f}" + ("" if value_in_sd is None else f" ({value_in_sd:+.1f})")


def gate_notes(verdict: Verdict) -> list[str]:
    return [f"{gate.gate}: {gate.note}" for gate in verdict.gates if gate.note]


def gates_table(verdict: Verdict) -> str:
    """A row for each gate, and the notes below; empty where no gate was reached."""
    if not verdict.gates:
        return ""
    lines = [f"gates of {verdict.candidate} (above 0 the candidate is better; "
             "sd: in standard deviations of one control run)",
             table(GATE_HEADER, [gate_cells(gate) for gate in verdict.gates], left=2)]
    return "\n".join([*lines, *("  " + note for note in gate_notes(verdict))])


# -----------------------------------------------------------------------------
# The declaration and the noise of a label

SEEDS_SHOWN = (2, 3, 5, 8, 12)

NOISE_FROM = {"bank": "the noise bank", "own": "the differences themselves", "none": "nowhere, so nothing is decided"}


def basis_lines(results: ResultFile) -> list[str]:
    """The declaration of a label, its noise, and the gains that its seeds can and cannot show."""
    declaration = results.declaration
    lines = [f"{declaration.K} candidate{'s' * (declaration.K != 1)}; a verdict may be given at "
             f"{looks_text(declaration.looks)} seeds (looks); at most {declaration.alpha:.3g} of such comparisons "
             f"promote a useless change; noise from {NOISE_FROM[declaration.noise_source]}",
             *label_lines(declaration),
             *(f"sigma of {name}: {sigma_text(values)}" for name, values in results.noise.metrics.items()),
             *bank_lines(results.noise)]
    if gains := smallest_gains(results):
        shown = ", ".join(f"n={n} {gain:.4g}" for n, gain in gains)
        lines.append(f"smallest gain that n seeds show (80 % power), {declaration.primary}: {shown}")
    return lines + promise_lines(declaration)


def label_lines(declaration: Declaration) -> list[str]:
    """The numbers of the candidates' labels, where one was tried before; and the reason to count from 1 again."""
    lines = [f"label {number} of candidate {name}: the levels of all its labels add up to {ALPHA:g}, and "
             f"{declaration.alpha:.3g} is left for this one"
             for name, number in (declaration.numbers or {}).items() if number > 1]
    return lines + ([f"new hypothesis: {declaration.hypothesis}"] if declaration.hypothesis else [])


def bank_lines(noise: Noise) -> list[str]:
    """Further facts about the bank."""
    lines = [f"correlation of earlier pairs on {name}: {plain(found.to_json())}"
             for name, found in noise.correlation.items()]
    return lines + [f"left out of the bank: {text}" for text in noise.left_out]


def sigma_text(values: MetricNoise) -> str:
    """sd of one control run of the bank, with its 90 % interval."""
    interval = f"[{_bound(values.lo, '0', '.4g')}, {_bound(values.hi, 'inf', '.4g')}]"
    facts = [f"{values.n} control runs"] if values.n else []
    facts += [f"median {values.median:.5g}"] if values.median is not None else []
    return f"{values.s_b:.4g} {interval} at 90 %, df {values.nu}" + (f" ({', '.join(facts)})" if facts else "")


def smallest_gains(results: ResultFile) -> list[tuple[int, float]]:
    """(n, smallest gain that n pairs show with 80 % power) on the primary metric, at alpha / K."""
    declaration = results.declaration
    s_b, nu = bank_of(results.noise, declaration.primary)
    level = declaration.alpha / max(1, declaration.K)
    asked = max(0.0, -(declaration.margin or 0.0))  # the gain that the lower bound has to clear
    return [(n, asked + smallest_gain(n, s_b, nu, level)) for n in SEEDS_SHOWN] if nu else []


def seeds_text(verdict: Verdict) -> str:
    """The gain that these seeds could show, and the seeds still needed; empty for promote and without a verdict."""
    if verdict.verdict in (None, "promote"):
        return ""
    facts = []
    if verdict.smallest_gain is not None:
        facts.append(f"the smallest gain that {verdict.n} seeds show (80 % power) is {verdict.smallest_gain:.4g}")
    if verdict.seeds_needed is not None:
        facts.append(f"{verdict.seeds_needed} seeds are needed for a gain of {verdict.min_gain:.4g}")
    if verdict.chance_at_max is not None:
        chance = "more than 99%" if verdict.chance_at_max > 0.99 else f"{verdict.chance_at_max:.0%}"
        facts.append(f"chance to pass every gate at the last look {chance}")
    return ", ".join(facts)


class Stopwatch:
    """Wall time of a whole command, and the load that it met, for its last line."""

    def __init__(self):
        self.start = time.monotonic()

    def line(self) -> str:
        load = f", load {os.getloadavg()[0]:.1f} on {usable_cores()} cores" if hasattr(os, "getloadavg") else ""
        return f"total {format_time(time.monotonic() - self.start)}{load}"
