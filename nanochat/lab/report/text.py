"""
Results as text: tables of runs and of pairs, for each candidate the sentence and the table of its verdict, then the
details: the tests, the declaration of the label and its noise.
"""

import itertools
import math
import os
import textwrap
import time

from nanochat.lab.ledger.bank import reference_lines
from nanochat.lab.metrics import METRICS
from nanochat.lab.report.gains import decimal, pair_gains, primary_gate
from nanochat.lab.report.promise import promise_lines
from nanochat.lab.report.result_file import ResultFile
from nanochat.lab.report.sentence import sentence
from nanochat.lab.report.verdict_table import detail_table, gate_notes, user_table
from nanochat.lab.runs import RunSummary
from nanochat.lab.table import format_time, looks_text, number, plain, table
from nanochat.lab.trees.tree_arms import names_tree
from nanochat.lab.verdict.facts import Declaration, MetricNoise, Noise, Verdict, bank_of
from nanochat.lab.verdict.stats import ALPHA, smallest_gain
from nanochat.machine import usable_cores

WIDTH = 100  # of a printed paragraph
END_OF_LOG = 2 ** 20  # bytes that are read of a failed cell's log: a tree may print without end


def run_line(run: RunSummary, elapsed_sec: float) -> str:
    facts = [f"{run.arm} s{run.seed}: {run.run_status}"]
    facts += [f"val_bpb {run.val_bpb:.5f}"] if run.val_bpb is not None else []
    facts += [f"{speed(run):,.0f} tok/s"] if speed(run) is not None else []
    facts += [f"resumed from step {run.resumed_from_step}"] if run.resumed_from_step is not None else []
    facts += [f"overloaded ({run.load:.1f} on {usable_cores()} cores)"] if run.overloaded else []
    return ", ".join([*facts, format_time(elapsed_sec)])


def speed(run: RunSummary) -> float | None:
    """Tokens a second: the median over steps, which gates compare. Older files have the average alone."""
    return run.avg_tok_per_sec if run.tok_per_sec_median is None else run.tok_per_sec_median


def failure(run: RunSummary, log, lines: int = 5) -> str:
    """The reason why a cell has no result. If the user did not stop it, the end of its log is added."""
    why = run.error or "no reason recorded"
    if run.run_status == "interrupted":
        return f"  {why}; log: {log}"
    with open(log, "rb") as f:
        f.seek(max(0, f.seek(0, os.SEEK_END) - END_OF_LOG))
        text = f.read().decode("utf-8", "replace")
    said = [line for line in text.splitlines() if line.strip() and why not in line]
    counted = [(line, len(list(same))) for line, same in itertools.groupby(said)][-lines:]
    return "\n".join([f"  {run.run_status}: {why}; {log} ends:",
                      *(f"    | {line}" + f" ({n} times)" * (n > 1) for line, n in counted)])


def results_table(results: ResultFile) -> str:
    runs = [[run.arm, str(run.seed), number(run.val_bpb, ".5f"), number(run.min_val_bpb, ".5f"),
             number(speed(run), ",.0f"), _status(run)]
            for run in results.runs]
    parts = ["", table(["arm", "seed", "val_bpb", "min_val_bpb", "tok/s", "status"], runs)]
    if pairs := _pairs_table(results):
        parts += ["", "candidate against control on the same seed (+ is better)", pairs]
    if notes := _notes(results):
        parts += ["", *notes]
    parts += ["", verdicts(results), ""]
    return "\n".join(parts)


def _pairs_table(results: ResultFile) -> str:
    """Each pair in the sign and the unit of the gates. A speed that a result file holds no ratio of is not compared."""
    names = list(results.by_candidate)
    faster = {name: dict(pair_gains("tok_per_sec", results.runs, name)) for name in names}
    rows, of_mean = [], {name: ([], []) for name in names}
    for delta in results.deltas:
        bpb, ratio = delta.candidate_minus_control_bpb, delta.candidate_speed_ratio
        gains = (None if bpb is None else 0.0 - bpb,
                 None if ratio is None else faster[delta.candidate].get(delta.seed, math.log(ratio)))
        for found, gain in zip(of_mean[delta.candidate], gains):
            found += [] if gain is None else [gain]
        rows.append([delta.candidate, str(delta.seed), *_changes(*gains)])
    rows += [[name, "mean", *_changes(*(sum(found) / len(found) if found else None for found in of_mean[name]))]
             for name in names if any(of_mean[name])]
    return table(["candidate", "seed", "val_bpb", "speed"], rows) if rows else ""


def _changes(bpb: float | None, log_speed: float | None) -> list[str]:
    faster = None if log_speed is None else METRICS["tok_per_sec"].change(log_speed)
    return [number(bpb, "+.5f"), number(faster, "+.1f") + (" %" if faster is not None else "")]


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
                     "their times, and so their speed, are not to be trusted")
    return notes


# -----------------------------------------------------------------------------
# Verdicts

def verdicts(results: ResultFile) -> str:
    """The verdict on every candidate, then the details: their tests, and the declaration and the noise of the label."""
    parts = [verdict_text(verdict, results) for verdict in results.verdicts]
    parts += ["Details"] if parts else []
    parts += [found for verdict in results.verdicts if (found := details_text(verdict))]
    return "\n\n".join([*parts, "\n".join(map(_wrapped, basis_lines(results)))])


def verdict_text(verdict: Verdict, results: ResultFile) -> str:
    """The word of the verdict and its sentence, then the gates in the words of a user."""
    said = sentence(verdict, results.declaration, results.noise)
    table_of = user_table(verdict, results.declaration)
    first = _wrapped(f"verdict {verdict.candidate}: {verdict.text}. {said}")
    return first + (f"\n\n{table_of}" if table_of else "")


def _wrapped(line: str) -> str:
    """A paragraph of WIDTH columns; a number keeps its percent sign."""
    whole = textwrap.fill(line.replace(" %", "\u00a0%"), WIDTH, subsequent_indent="  ", break_long_words=False,
                          break_on_hyphens=False)
    return whole.replace("\u00a0%", " %")


def details_text(verdict: Verdict) -> str:
    """The tests behind a verdict; empty where there was none."""
    lines = [*gate_notes(verdict), *filter(None, [tested_line(verdict), *checks(verdict), seeds_text(verdict)])]
    found = detail_table(verdict)
    if not lines and not found:
        return ""
    return "\n".join([f"{verdict.candidate}, K = {verdict.K}", *filter(None, [found]),
                      *(_wrapped(f"  {line}") for line in lines)])


def tested_line(verdict: Verdict) -> str:
    """n, p against its level, the source of the noise, and what the bounds mean; empty where no test was made."""
    if verdict.p is None or verdict.se is None:
        return ""
    return (f"{primary_gate(verdict).metric}: n {verdict.n}, p {verdict.p:.3g} against level {verdict.level:.3g}, "
            f"noise {verdict.noise_source} (df {verdict.df}); each bound of an interval is one-sided and misses the "
            f"truth with a chance of {verdict.level:.3g}, the upper bound of a reject with that of the whole label")


def checks(verdict: Verdict) -> list[str]:
    """Beside a verdict, and deciding nothing: the exact test of the signs, and the two parts of the time to target."""
    lines = []
    if verdict.sign_flip_p is not None:
        least = 2.0 ** -verdict.n
        lines.append(f"check, decides nothing: p {verdict.sign_flip_p:.3g} by sign flips, at least {least:.3g}")
    if found := verdict.by_steps:
        change = METRICS["time_to_target"].change
        time, lo, hi = (f"{change(x):+.3g} %" for x in (found.mean, found.lo, found.hi))
        steps = f"{abs(change(found.steps)):.3g} % {'fewer' if found.steps > 0 else 'more'} steps"
        each = f"each {abs(change(found.step_time)):.3g} % {'shorter' if found.step_time > 0 else 'longer'}"
        lines.append(f"time to target as steps x median step time (+ is better): {time} [{lo}, {hi}] "
                     f"({steps}, {each}), n {found.n}")
    return lines


def _bound(value, missing: str, form: str, unit: str = "") -> str:
    return missing if value is None else format(value, form) + unit


# -----------------------------------------------------------------------------
# The declaration and the noise of a label

SEEDS_SHOWN = (2, 3, 5, 8, 12)

NOISE_FROM = {"bank": "the noise bank", "own": "the differences themselves",
              "none": "no source, because none is banked yet: nothing is decided"}


def basis_lines(results: ResultFile) -> list[str]:
    """The declaration of a label, its noise, and the gains that its seeds can and cannot show."""
    declaration = results.declaration
    lines = [f"{declaration.K} candidate{'s' * (declaration.K != 1)}; a verdict may be given at "
             f"{looks_text(declaration.looks)} seeds (looks); at most {percent(declaration.alpha)} of such "
             f"comparisons promote a useless change; noise from {NOISE_FROM[declaration.noise_source]}"
             if declaration.K else "the control alone: there is nothing to judge",
             *label_lines(declaration),
             *(f"sigma of {name}: {sigma_text(name, values)}" for name, values in results.noise.metrics.items()),
             *bank_lines(results.noise)]
    if gains := smallest_gains(results):
        shown = ", ".join(f"n={n} {gain_size(declaration.primary, gain)}" for n, gain in gains)
        lines.append(f"smallest gain that n seeds show (80 % power), {declaration.primary}: {shown}")
    return lines + promise_lines(declaration)


def percent(share: float) -> str:
    """
    >>> percent(0.04), percent(0.0016)
    ('4 %', '0.16 %')
    """
    return f"{100 * share:.3g} %"


def gain_size(metric: str, d: float) -> str:
    """
    >>> gain_size("val_bpb", 0.00351), gain_size("time_to_target", 0.0305)
    ('0.00351', '3.004 %')
    """
    return decimal(METRICS[metric].change(d)) + METRICS[metric].unit


def label_lines(declaration: Declaration) -> list[str]:
    """The numbers of the candidates' labels, where one was tried before; and the reason to count from 1 again."""
    lines = [f"label {number} of candidate {name}: the levels of all its labels add up to {percent(ALPHA)}, "
             f"and {percent(declaration.alpha)} is left for this one"
             for name, number in (declaration.numbers or {}).items() if number > 1]
    return lines + ([f"new hypothesis: {declaration.hypothesis}"] if declaration.hypothesis else [])


def bank_lines(noise: Noise) -> list[str]:
    """Further facts about the bank."""
    lines = [f"correlation of earlier pairs on {name}: {plain(found.to_json())}"
             for name, found in noise.correlation.items()]
    lines += reference_lines(noise.from_reference)
    return lines + [f"left out of the bank: {text}" for text in noise.left_out]


def sigma_text(metric: str, values: MetricNoise) -> str:
    """sd of one control run of the bank, with its 90 % interval; in percent for a ratio."""
    m = METRICS[metric]
    sd, lo, hi = (None if s is None else m.spread(s) for s in (values.s_b, values.lo, values.hi))
    interval = f"[{_bound(lo, '0', '.4g', m.unit)}, {_bound(hi, 'inf', '.4g', m.unit)}]"
    facts = [f"{values.n} control runs"] if values.n else []
    facts += [f"median {values.median:.5g}"] if values.median is not None else []
    return f"{sd:.4g}{m.unit} {interval} at 90 %, df {values.nu}" + (f" ({', '.join(facts)})" if facts else "")


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
        least = gain_size(primary_gate(verdict).metric, verdict.smallest_gain)
        facts.append(f"the smallest gain that {verdict.n} seeds show (80 % power) is {least}")
    if verdict.seeds_needed is not None:
        wanted = gain_size(primary_gate(verdict).metric, verdict.min_gain)
        facts.append(f"{verdict.seeds_needed} seeds are needed for a gain of {wanted}")
    if verdict.chance_at_max is not None:
        chance = "more than 99 %" if verdict.chance_at_max > 0.99 else f"{100 * verdict.chance_at_max:.0f} %"
        facts.append(f"chance to pass every gate at the last look {chance}")
    return ", ".join(facts)


class Stopwatch:
    """Wall time of a whole command, and the load that it met, for its last line."""

    def __init__(self):
        self.start = time.monotonic()

    def line(self) -> str:
        load = f", load {os.getloadavg()[0]:.1f} on {usable_cores()} cores" if hasattr(os, "getloadavg") else ""
        return f"total {format_time(time.monotonic() - self.start)}{load}"
