"""
A draft of an entry of dev/LOG.md from a result file, in the format of dev/STYLE.md: an entry for each candidate.

Every number is read from the facts. No record knows why the change was tried, so the reason is left as TODO.
"""

import re
from statistics import mean, stdev

from nanochat.lab.arms import CONTROL
from nanochat.lab.report.advice import page_sentence
from nanochat.lab.report.gains import gain_text, primary_gate, shown_gain
from nanochat.lab.report.result_file import ResultFile
from nanochat.lab.report.text import basis_lines, seeds_text, tested_line
from nanochat.lab.report.verdict_table import DETAIL_HEADER, HEADER, detail_rows, gate_notes, user_rows
from nanochat.lab.runs import RunSummary
from nanochat.lab.table import looks_text, number
from nanochat.lab.verdict.facts import Verdict

REOPEN = {
    "promote": "a miniseries in which another depth disagrees",
    "optional": "the same gain without the price",
    "reject": "a new label with new seeds, and a reason to expect more",
    "inconclusive": "more seeds under the same declaration, if it has planned checks left, else a new label",
    None: "the runs that are missing or broken",
}
SAYS = {"reject": "not taken", "inconclusive": "cannot tell yet", None: "no verdict yet"}  # a gain is said in numbers
SHOWN = {"val_bpb": ".5f", "final_train_loss": ".4f", "time_to_target_sec": ",.1f", "tok_per_sec_median": ",.0f",
         "avg_tok_per_sec": ",.0f", "peak_mem_mib": ",.0f"}


def log_entry(results: ResultFile) -> str:
    """Markdown, newest first as in the log: the candidates of one label in the order declared."""
    if not results.verdicts:
        raise ValueError("the result file has no verdict yet: run the protocol to its end, then draft its entry")
    return "\n\n".join(_entry(results, verdict) for verdict in results.verdicts) + "\n"


def _entry(results: ResultFile, verdict: Verdict) -> str:
    sections = [f"{_change(results, verdict)} TODO: why (source).",
                f"**Did it help?** {_did_it_help(results, verdict)}",
                f"**How sure?**{_how_sure(results, verdict)}", f"**Caveat**{_caveat(results.runs, verdict)}",
                f"**How to repeat** {_how_to_repeat(results)}", *_tables(results, verdict)]
    return f"## {results.timestamp[:10]}: {_title(results.settings.label, verdict)}\n" + "\n\n".join(sections)


def _title(label: str, verdict: Verdict) -> str:
    """The result in plain words. A gain that was shown is quoted at its lower bound: see gains.py."""
    gate, lo = primary_gate(verdict), shown_gain(verdict)
    if lo is not None:
        result = f"at least {gain_text(gate.metric, lo)}"
    else:
        result = SAYS.get(verdict.verdict, "no loss shown")  # promoted without a gain: the reason names its use
        result += f", measured {gain_text(gate.metric, gate.mean)}" if gate.mean is not None else ""
    return f"{verdict.candidate} of {label or 'protocol'}: {result} ({verdict.verdict or 'no verdict'})"


def _change(results: ResultFile, verdict: Verdict) -> str:
    flags = next(arm.flags for arm in results.declaration.arms if arm.name == verdict.candidate)
    known = results.provenance
    parts = [f"Tried: {_code(flags)} on top of the control" if flags else "Tried: nothing, the options of the control"]
    parts += [f"patch {known['patch_hash']}"] if known.get("patch_hash") else []
    commit, dirty = known.get("git_commit"), " with uncommitted changes" if known.get("dirty") else ""
    parts += [f"commit {commit[:12]}{dirty}"] if commit else []
    return ", ".join(parts) + "."


def _did_it_help(results: ResultFile, verdict: Verdict) -> str:
    said = page_sentence(verdict, results)
    return f"{said} (verdict: {verdict.verdict or 'none'})"


def _how_sure(results: ResultFile, verdict: Verdict) -> str:
    """Seeds and planned checks, the source of the noise, and the number of seeds that would settle the question."""
    declared, seeds = results.declaration, sorted({run.seed for run in results.runs})
    lines = [f"Seeds {' '.join(map(str, seeds))}; planned checks at {looks_text(declared.looks)}; "
             f"{declared.K} candidate{'s' * (declared.K != 1)}; declared {declared.declared_at}"]
    return _list([*lines, *filter(None, [tested_line(verdict), seeds_text(verdict)]), *basis_lines(results)])


def _caveat(runs: list[RunSummary], verdict: Verdict) -> str:
    failed = [f"{run.arm} s{run.seed} {run.run_status}" for run in runs if run.run_status != "ok"]
    lines = [f"Runs that did not end ok: {', '.join(failed)}"] if failed else []
    return _list([*lines, *gate_notes(verdict), f"Reopen with {REOPEN[verdict.verdict]}"])


def _how_to_repeat(results: ResultFile) -> str:
    settings = results.settings
    device = next((run.device for run in results.runs if run.device), None)
    fence = _ticks(settings.command, least=3)
    on = f" on {device}" if device else ""
    return (f"experiment_name {settings.label or 'none'}, profile {settings.profile}{on}:"
            f"\n{fence}\n{settings.command}\n{fence}")


def _tables(results: ResultFile, verdict: Verdict) -> list[str]:
    """Every gate in the words of a user, control against candidate, then the test of every gate."""
    tables = [_means(results.runs, verdict.candidate)]
    if verdict.gates:
        tables = [_markdown(HEADER, user_rows(verdict, results.declaration)), *tables,
                  _markdown(DETAIL_HEADER, detail_rows(verdict))]
    return ["\n".join(rows) for rows in tables if rows]


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    return [_row(row) for row in (header, ["---"] * len(header), *rows)]


def _means(runs: list[RunSummary], candidate: str) -> list[str]:
    """Control against candidate: mean ± standard deviation (n) of every metric that was measured."""
    rows = [["metric", CONTROL, candidate], ["---", "---:", "---:"]]
    for name, form in SHOWN.items():
        values = [[getattr(run, name) for run in runs if run.arm == arm and run.run_status == "ok"
                   and getattr(run, name) is not None] for arm in (CONTROL, candidate)]
        if any(values):
            rows.append([name, *(_mean_text(mine, form) for mine in values)])
    return [_row(row) for row in rows] if len(rows) > 2 else []


def _mean_text(values, form) -> str:
    if not values:
        return ""
    spread = f" \u00b1 {number(stdev(values), form)}" if len(values) > 1 else ""
    return f"{number(mean(values), form)}{spread} (n {len(values)})"


def _list(lines) -> str:
    """The text after a section's bold name: a single sentence on its line, or several as a list below it."""
    return f" {lines[0]}." if len(lines) == 1 else "".join(f"\n- {line}." for line in lines)


def _row(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _code(text: str) -> str:
    """Inline code, whatever backticks the text has."""
    fence = _ticks(text)
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def _ticks(text: str, least: int = 1) -> str:
    """Enough backticks to enclose the text."""
    return "`" * max(least, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
