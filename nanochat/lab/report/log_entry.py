"""
A draft of an entry of dev/LOG.md from a result file, in the format of dev/STYLE.md; one entry a candidate, an idea each.

Every number is read from the facts. What no record knows is why the change was tried: that is left as TODO.
"""

import re
from statistics import mean, stdev

from nanochat.lab.arms import CONTROL
from nanochat.lab.report.gains import headline
from nanochat.lab.report.text import GATE_HEADER, gate_cells, gate_notes, label_lines, seeds_text
from nanochat.lab.table import looks_text, number

REOPEN = {
    "promote": "a miniseries in which another depth disagrees",
    "optional": "the same gain without the price",
    "reject": "a new label with new seeds, and a reason to expect more",
    "inconclusive": "more seeds under the same declaration, if it has looks left, else a new label",
    None: "the runs that are missing or broken",
}
SHOWN = {"val_bpb": ".5f", "final_train_loss": ".4f", "time_to_target_sec": ",.1f", "tok_per_sec_median": ",.0f", "avg_tok_per_sec": ",.0f",
         "peak_mem_mib": ",.0f"}


def log_entry(facts: dict) -> str:
    """Markdown, newest first as in the log: the candidates of one label in the order declared."""
    if not facts["verdicts"]:
        raise ValueError("the result file has no verdict yet: run the protocol to its end, then draft its entry")
    return "\n\n".join(_entry(facts, entry) for entry in facts["verdicts"]) + "\n"


def _entry(facts, entry) -> str:
    title = f"{facts['settings']['label'] or 'protocol'}, {entry['candidate']}"
    return "\n".join([f"## {facts['timestamp'][:10]}: {title} ({entry['verdict'] or 'no verdict'})", f"**Change** {_change(facts, entry)}",
                      "**Why** TODO: why (source).", f"**Setup** {_setup(facts)}", f"**Result** {_result(facts, entry)}",
                      f"**Decision** {_decision(entry)}"])


def _change(facts, entry) -> str:
    flags = next(arm["flags"] for arm in facts["declaration"]["arms"] if arm["name"] == entry["candidate"])
    provenance = facts["provenance"]
    parts = [f"{_code(flags)} on top of the control" if flags else "none: the options of the control"]
    parts += [f"patch {provenance['patch_hash']}"] if provenance.get("patch_hash") else []
    commit = provenance.get("git_commit")
    parts += [f"commit {commit[:12]}" + (" with uncommitted changes" if provenance.get("dirty") else "")] if commit else []
    return ", ".join(parts) + "."


def _setup(facts) -> str:
    settings, declared = facts["settings"], facts["declaration"]
    device = next((run["device"] for run in facts["runs"] if run.get("device")), None)
    seeds = sorted({run["seed"] for run in facts["runs"]})
    parts = [f"experiment_name {settings['label'] or 'none'}, profile {settings['profile']}" + (f" on {device}" if device else ""),
             f"seeds {' '.join(map(str, seeds))}, looks at {looks_text(declared['looks'])}, {declared['K']} candidate"
             + "s" * (declared["K"] != 1) + f", declared {declared['declared_at']}", _code(settings["command"])]
    return "; ".join(parts) + "."


def _result(facts, entry) -> str:
    lines = [f"{headline(entry)}.", "", *_means(facts["runs"], entry["candidate"]), ""]
    if entry.get("gates"):
        rows = [GATE_HEADER, ["---"] * len(GATE_HEADER), *[gate_cells(gate) for gate in entry["gates"]]]
        lines += [*map(_row, rows), "", *[f"{note}." for note in gate_notes(entry)]]
    failed = [f"{run['arm']} s{run['seed']} {run['run_status']}" for run in facts["runs"] if run["run_status"] != "ok"]
    lines += [f"Runs that did not end ok: {', '.join(failed)}."] if failed else []
    lines += [f"{line}." for line in label_lines(facts | {"verdicts": []})]
    return "\n".join(lines)


def _means(runs, candidate) -> list[str]:
    """Control against candidate: mean ± standard deviation (n) of what was measured."""
    rows = [["metric", CONTROL, candidate], ["---", "---:", "---:"]]
    for key, form in SHOWN.items():
        values = [[run[key] for run in runs if run["arm"] == arm and run["run_status"] == "ok" and run.get(key) is not None]
                  for arm in (CONTROL, candidate)]
        if any(values):
            rows.append([key, *(_mean_text(mine, form) for mine in values)])
    return [_row(row) for row in rows] if len(rows) > 2 else []


def _mean_text(values, form) -> str:
    if not values:
        return ""
    spread = f" \u00b1 {number(stdev(values), form)}" if len(values) > 1 else ""
    return f"{number(mean(values), form)}{spread} (n {len(values)})"


def _decision(entry) -> str:
    seeds = seeds_text(entry)
    return f"{entry['verdict'] or 'no verdict'}: {entry['reason']}.{f' {seeds}.' if seeds else ''} Reopen with {REOPEN[entry['verdict']]}."


def _row(cells) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _code(text: str) -> str:
    """Inline code, whatever backticks the text has."""
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"
