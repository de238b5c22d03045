"""
results/<label>/report.html: a protocol on one page, verdict first, for a reader who was not there.

One file that needs nothing else: style and charts are inline, there is no script and no outside resource, it reads on a
light and on a dark screen and on paper. A pure function of the facts (results/<label>_latest.json) and the curves;
`el` escapes every text, so nothing that a user named or a run printed becomes markup.
"""

import math
from html import escape

from nanochat.common import atomic_write
from nanochat.lab.arms import CONTROL
from nanochat.lab.metrics import METRICS
from nanochat.lab.report import svg
from nanochat.lab.report.curves import as_arrays
from nanochat.lab.report.gains import gain_text, headline, pair_gains, primary_gate
from nanochat.lab.report.html_style import STYLE
from nanochat.lab.report.text import (
    GATE_HEADER,
    checks,
    gate_cells,
    gate_notes,
    label_lines,
    primary_metric,
    seeds_text,
    sigma_text,
    smallest_gains,
)
from nanochat.lab.table import looks_text, number, plain


def write_report(path, facts: dict, curves: dict):
    """curves: {(arm, seed): [(step, training seconds or None, val_bpb), ...]}."""
    atomic_write(path, page(facts, curves))


class Markup(str):
    """Text that is HTML already."""


def el(tag: str, *children, **attributes) -> Markup:
    """An element; children that are not Markup are escaped, None is left out. cls= is the class.

    >>> el("td", "a < b", cls="n")
    '<td class="n">a &lt; b</td>'
    """
    attributes = "".join(f' {key.replace("cls", "class")}="{escape(str(value))}"' for key, value in attributes.items())
    inner = "".join(child if isinstance(child, Markup) else escape(str(child)) for child in children if child is not None)
    return Markup(f"<{tag}{attributes}>{inner}</{tag}>")


def page(facts: dict, curves: dict) -> str:
    title = f"protocol {facts['settings']['label'] or 'without a label'}"
    sections = [_head(title, facts), _verdicts(facts), _curves(facts, curves), _gains(facts), _gates(facts), _runs(facts), _noise(facts),
                _declaration(facts), _provenance(facts), _commands(facts)]
    head = Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">')
    head = el("head", head, el("title", title), el("style", Markup(STYLE)))
    body = el("body", el("main", *[section for section in sections if section]))
    return "<!DOCTYPE html>\n" + Markup('<html lang="en">') + head + body + "</html>\n"


def _section(title: str, *parts) -> Markup | None:
    parts = [part for part in parts if part]
    return el("section", el("h2", title), *parts) if parts else None


def _table(header: list[str], rows: list[list], left: int = 1, classes: dict | None = None) -> Markup:
    """left: columns of words, the others are numbers. classes: {text of a cell: class}."""
    def cell(i, value):
        value = "" if value is None else value
        return el("td", value, cls=" ".join(filter(None, ["t" if i < left else "", (classes or {}).get(str(value), "")])))
    head = el("tr", *[el("th", _breakable(name), cls="t" if i < left else "") for i, name in enumerate(header)])
    body = [el("tr", *[cell(i, value) for i, value in enumerate(row)]) for row in rows]
    return el("div", el("table", el("thead", head), el("tbody", *body)), cls="wide")


def _breakable(name) -> Markup:
    """A column's name may be broken after an underscore."""
    return Markup(escape(str(name)).replace("_", "_<wbr>"))


def _pairs(pairs) -> Markup:
    return el("dl", *[part for name, value in pairs if value not in (None, "", [], {}) for part in (el("dt", name), el("dd", value))])


# -----------------------------------------------------------------------------
# The answer

def _head(title, facts) -> Markup:
    settings, runs = facts["settings"], facts["runs"]
    seeds = len({run["seed"] for run in runs})
    n = len(facts["declaration"]["arms"]) - 1
    who = f"{n} candidate{'s' * (n != 1)} against the control, paired" if n else "The control alone"
    line = f"{who} on {seeds} seed{'s' * (seeds != 1)}, profile {settings['profile']}"
    return el("header", el("h1", title), el("p", f"{line}. Written {facts['timestamp']}.", cls="soft"))


def _verdicts(facts) -> Markup:
    if len(facts["declaration"]["arms"]) == 1:
        return el("section", el("p", "No candidate was declared: there is nothing to judge."))
    if not facts["verdicts"]:
        return el("section", el("p", "No run has ended yet: there is no verdict."))
    return el("section", *[_verdict(entry) for entry in facts["verdicts"]])


def _verdict(entry) -> Markup:
    word = entry["verdict"] or "no verdict"
    said = headline(entry)
    details = [entry["reason"] if entry["reason"] != said else None, _evidence(entry), *checks(entry), seeds_text(entry)]
    return el("article", el("p", el("span", word, cls="badge"), " ", el("b", entry["candidate"]), ": " + (said or ""), cls="answer"),
              *[el("p", detail, cls="soft") for detail in details if detail], cls=f"verdict {word.replace(' ', '-')}")


def _evidence(entry) -> str | None:
    """n, p against its Holm level, and whose noise; None where no test was made."""
    if entry.get("p") is None or entry.get("se") is None:
        return None
    gate = primary_gate(entry)
    text = f"{gate['metric']}: n {entry['n']}, p {entry['p']:.3g} against level {entry['level']:.3g}"
    if gate["mean"] is not None and None not in (gate["lo"], gate["hi"]):
        text += f", gain between {gain_text(gate['metric'], gate['lo'])} and {gain_text(gate['metric'], gate['hi'])}"
    return f"{text}, noise {entry['noise_source']}"


# -----------------------------------------------------------------------------
# Pictures

def _arms(facts) -> list[str]:
    return [arm["name"] for arm in facts["declaration"]["arms"]]


def _curves(facts, curves) -> Markup | None:
    arms, curves = _arms(facts), as_arrays(curves)
    ok = {(run["arm"], run["seed"]) for run in facts["runs"] if run["run_status"] == "ok"}
    shown = {key: points for key, points in curves.items() if key in ok}  # a diverged run may leave the picture at the top
    late = svg.later_half(curves)
    charts = [svg.curve_chart(arms, curves, 0, "step", shown),
              svg.curve_chart(arms, curves, 1, "training time (s), without start-up and validation", shown),
              svg.curve_chart(arms, late, 0, "step, the later half", {key: late[key] for key in shown if key in late})]
    if not any(charts):
        return None
    legend = el("p", *[el("span", Markup(svg.swatch(k)), " ", arm) for k, arm in enumerate(arms)], cls="legend")
    note = el("p", "Validation loss in bits per byte, lower is better. Thin: one seed. Thick: the mean over the seeds.", cls="soft")
    return _section("Curves", note, legend, el("div", *[el("figure", Markup(chart)) for chart in charts if chart], cls="charts"))


def _gains(facts) -> Markup | None:
    """A chart a metric: the primary first, then the floors in the order of the gates."""
    charts = {}
    for entry in facts["verdicts"]:
        for gate in sorted(entry.get("gates") or [primary_gate(entry) | {"role": "primary"}], key=lambda gate: gate["role"] != "primary"):
            if gate.get("metric") in METRICS and gate.get("mean") is not None:
                charts.setdefault((gate["role"], gate["metric"], gate.get("threshold")), []).append((entry["candidate"], gate))
    figures = [_gain_figure(facts, key, rows) for key, rows in charts.items()]
    note = ("Gain of a candidate over the control of the same seed: control minus candidate, right of the line at 0 is better. "
            "Dots: seeds. Diamond: mean. Bar: interval at the level of the gate. Dashed: the floor that the bar must not reach below.")
    return _section("Paired differences", el("p", note, cls="soft") if figures else None,
                    el("div", *figures, cls="charts") if figures else None)


def _gain_figure(facts, key, entries) -> Markup:
    (role, metric, margin), arms = key, _arms(facts)
    rows = [{"name": name, "color": arms.index(name) if name in arms else 1, "gains": pair_gains(metric, facts["runs"], name)[:gate["n"]],
             "mean": gate["mean"], "lo": gate["lo"], "hi": gate["hi"], "value": _value(metric, gate)} for name, gate in entries]
    unit = "of natural logs, 0.01 is about 1 %" if METRICS[metric].log else "bits per byte"
    at = f" at {0.0 - margin:+.4g}" if margin else ""
    return el("figure", el("figcaption", el("b", metric), f" ({role}{at}; {unit})"), Markup(svg.gain_chart(metric, rows, margin)))


def _value(metric, gate) -> str:
    digits = ".4f" if METRICS[metric].log else ".5f"
    ends = [inf if gate[key] is None else format(gate[key], "+" + digits) for key, inf in (("lo", "-\u221e"), ("hi", "\u221e"))]
    return f"{gate['mean']:+{digits}}  [{', '.join(ends)}]"


# -----------------------------------------------------------------------------
# Tables

RESULTS = {"pass": "good", "fail": "bad", "cannot tell": "open", "ok": "", "diverged": "bad", "crash": "open", "oom": "open",
           "timeout": "open", "interrupted": "open"}


def _gates(facts) -> Markup | None:
    parts = []
    for entry in facts["verdicts"]:
        if entry.get("gates"):
            parts += [el("h3", entry["candidate"]), _table(GATE_HEADER, [gate_cells(gate) for gate in entry["gates"]], 2, RESULTS)]
            parts += [el("p", note, cls="soft") for note in gate_notes(entry)]
    note = ("A gate passes when the lower end of its interval reaches the number under \u201clo must reach\u201d. In parentheses: "
            "in standard deviations of one control run. Section: of the plan that asks for the gate.")
    return _section("Gates", *([el("p", note, cls="soft"), *parts] if parts else []))


COLUMNS = {"val_bpb": ".5f", "min_val_bpb": ".5f", "final_train_loss": ".4f", "time_to_target_sec": ",.1f", "steps_to_target": ",.1f",
           "tok_per_sec_median": ",.0f", "avg_tok_per_sec": ",.0f", "peak_mem_mib": ",.0f", "steps": "d", "training_sec": ",.1f",
           "duration_sec": ",.1f", "load": ".1f"}


def _runs(facts) -> Markup | None:
    """A column that no run has is left out; a cell that was not measured stays empty."""
    runs = facts["runs"]
    keys = [key for key in COLUMNS if any(run.get(key) is not None for run in runs)]
    rows = [[run["arm"], run["seed"], run["run_status"], _remarks(run), *[number(run.get(key), COLUMNS[key]) for key in keys]]
            for run in runs]
    return _section("Runs", _table(["arm", "seed", "status", "remarks", *keys], rows, 4, RESULTS)) if runs else None


def _remarks(run) -> str:
    remarks = ["reused" if run.get("reused") else None, "overloaded: do not trust its times" if run.get("overloaded") else None,
               None if run.get("resumed_from_step") is None else f"resumed from step {run['resumed_from_step']}", run.get("error")]
    return "; ".join(remark for remark in remarks if remark)


def _noise(facts) -> Markup | None:
    noise = facts.get("noise") or {}
    sigmas = [[metric, sigma_text(values)] for metric, values in (noise.get("metrics") or {}).items()]
    gains = [(n, gain) for n, gain in smallest_gains(facts) if math.isfinite(gain)]
    metric = primary_metric(facts["declaration"])
    parts = [el("p", f"Source: {noise.get('source')}." + ("" if sigmas else " No control run of this profile is banked."))]
    parts += [_table(["metric", "sd of one control run"], sigmas, 2)] if sigmas else []
    if gains:
        parts += [el("p", f"The smallest true gain in {metric} that n seeds show four times out of five, {facts['declaration']['K']} "
                          "candidates declared:"),
                  _table(["seeds", *[n for n, _ in gains]], [["gain", *[f"{gain:.4g}" for _, gain in gains]]])]
    parts += [el("p", line) for line in label_lines(facts) if line.startswith(("correlation", "left out"))]
    return _section("Noise", *parts)


def _declaration(facts) -> Markup:
    d = facts["declaration"]
    shown = {"looks": looks_text(d["looks"]), "seeds": plain(d["seeds"]), "target": plain(d["target"]) if d.get("target") else None,
             "floors": "; ".join(map(plain, d["floors"]))}
    pairs = [(key, shown.get(key, plain(value))) for key, value in d.items()
             if key not in ("arms", "noise") and value is not None]
    arms = [[arm["name"], arm["flags"] or ("the profile as it is" if arm["name"] == CONTROL else ""), "; ".join(arm["profile_changes"])]
            for arm in d["arms"]]
    return _section("Declared before the first run", _pairs(pairs), _table(["arm", "adds to the control", "changes the workload"], arms, 3))


def _provenance(facts) -> Markup:
    settings = facts["settings"]
    machine = {key: next((run[key] for run in facts["runs"] if run.get(key) is not None), None) for key in ("device", "threads")}
    more = {key: settings[key] for key in ("profile_flags", "machine_flags", "base_dir")}
    known = {**facts["provenance"], **machine, **more}
    return _section("Provenance", _pairs([(key, plain(value)) for key, value in known.items() if value is not None]))


def _commands(facts) -> Markup:
    label = facts["settings"]["label"]
    again = [facts["settings"]["command"], f"python -m scripts.gates --label={label}" if label else None]
    runs = [f"# {run['arm']} s{run['seed']}\n{run['command']}" for run in facts["runs"] if run.get("command")]
    return _section("Commands", el("p", "The protocol again (complete cells are reused), and its gates from the result file:"),
                    el("pre", "\n".join(filter(None, again))),
                    el("p", "Its runs, one by one:") if runs else None, el("pre", "\n".join(runs)) if runs else None)
