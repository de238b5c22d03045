"""
results/<label>/report.html: a protocol on one page, verdict first, for a reader who was not there.

The page is a single file: style and charts are inline, and there is no script and no outside resource. It can be read
on a light screen, a dark screen and paper. It depends only on the facts (results/<label>_latest.json) and the curves.
`el` escapes every text. So the name "a < b" of a user, or a line that a run printed, never becomes markup.
"""

import math
import shlex
from html import escape

from nanochat.common import atomic_write
from nanochat.lab.arms import CONTROL
from nanochat.lab.metrics import METRICS
from nanochat.lab.report import svg
from nanochat.lab.report.advice import page_sentence
from nanochat.lab.report.curves import as_arrays
from nanochat.lab.report.gains import pair_gains, primary_gate, shown
from nanochat.lab.report.html_style import STYLE
from nanochat.lab.report.promise import promise_lines
from nanochat.lab.report.result_file import ResultFile
from nanochat.lab.report.text import (
    bank_lines,
    checks,
    gain_size,
    percent,
    remarks,
    seeds_text,
    sigma_text,
    smallest_gains,
    tested_line,
)
from nanochat.lab.report.verdict_table import (
    DETAIL_HEADER,
    HEADER,
    detail_rows,
    gate_notes,
    limit_text,
    user_rows,
)
from nanochat.lab.runs import RunSummary
from nanochat.lab.table import looks_text, number, plain
from nanochat.lab.verdict.facts import Declaration, GateRow, Verdict


def write_report(path, results: ResultFile, curves: dict):
    """Write the page. curves: {(arm, seed): [(step, training seconds or None, val_bpb), ...]}."""
    atomic_write(path, page(results, curves))


class Markup(str):
    """Text that is HTML already."""


def el(tag: str, *children, **attributes) -> Markup:
    """An element; children that are not Markup are escaped, None is left out. cls= is the class.

    >>> el("td", "a < b", cls="n")
    '<td class="n">a &lt; b</td>'
    """
    attributes = "".join(f' {key.replace("cls", "class")}="{escape(str(value))}"' for key, value in attributes.items())
    shown = [child for child in children if child is not None]
    inner = "".join(child if isinstance(child, Markup) else escape(str(child)) for child in shown)
    return Markup(f"<{tag}{attributes}>{inner}</{tag}>")


def with_code(text: str) -> Markup:
    """A text whose parts in backticks are commands.

    >>> with_code("run `make noise` & wait")
    'run <code>make noise</code> &amp; wait'
    """
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick of somebody's name
        return Markup(escape(text))
    return Markup("".join(el("code", part) if i % 2 else escape(part) for i, part in enumerate(parts)))


def page(results: ResultFile, curves: dict) -> str:
    title = f"protocol {results.settings.label or 'without a label'}"
    sections = [_head(title, results), _verdicts(results), _curves(results, curves), _gains(results), _details(results),
                _runs(results.runs), _noise(results), _declaration(results.declaration), _provenance(results),
                _commands(results)]
    head = Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">')
    head = el("head", head, el("title", title), el("style", Markup(STYLE)))
    body = el("body", el("main", *[section for section in sections if section]))
    return "<!DOCTYPE html>\n" + Markup('<html lang="en">') + head + body + "</html>\n"


def _section(title: str, *parts) -> Markup | None:
    parts = [part for part in parts if part]
    return el("section", el("h2", title), *parts) if parts else None


def _table(header: list[str], rows: list[list], left: int = 1, classes: dict | None = None) -> Markup:
    """A table. left: the columns that hold words; the others hold numbers. classes: {text of a cell: class}."""
    def cell(i, value):
        value = "" if value is None else value
        names = ["t" if i < left else "", (classes or {}).get(str(value), "")]
        return el("td", value, cls=" ".join(filter(None, names)))
    head = el("tr", *[el("th", _breakable(name), cls="t" if i < left else "") for i, name in enumerate(header)])
    body = [el("tr", *[cell(i, value) for i, value in enumerate(row)]) for row in rows]
    return el("div", el("table", el("thead", head), el("tbody", *body)), cls="wide")


def _breakable(name) -> Markup:
    """A column's name may be broken after an underscore."""
    return Markup(escape(str(name)).replace("_", "_<wbr>"))


def _pairs(pairs) -> Markup:
    shown = [(name, value) for name, value in pairs if value not in (None, "", [], {})]
    return el("dl", *[part for name, value in shown for part in (el("dt", name), el("dd", value))])


# -----------------------------------------------------------------------------
# The answer

def _head(title: str, results: ResultFile) -> Markup:
    seeds, n = len({run.seed for run in results.runs}), len(results.declaration.arms) - 1
    who = f"{n} candidate{'s' * (n != 1)} against the control, paired" if n else "The control alone"
    line = f"{who} on {seeds} seed{'s' * (seeds != 1)}, profile {results.settings.profile}"
    return el("header", el("h1", title), el("p", f"{line}. Written {results.timestamp}.", cls="soft"))


def _verdicts(results: ResultFile) -> Markup:
    if len(results.declaration.arms) == 1:
        return el("section", el("p", "No candidate was declared: there is nothing to judge."))
    if not results.verdicts:
        return el("section", el("p", "No run has ended yet: there is no verdict."))
    return el("section", *[_verdict(verdict, results) for verdict in results.verdicts])


def _verdict(verdict: Verdict, results: ResultFile) -> Markup:
    word = verdict.verdict or "no verdict"
    said = page_sentence(verdict, results)
    answer = el("p", el("span", word, cls="badge"), " ", el("b", verdict.candidate), ": ", with_code(said),
                cls="answer")
    rows = user_rows(verdict, results.declaration)
    return el("article", answer, _table(HEADER, rows, 1, RESULTS) if rows else None,
              cls=f"verdict {word.replace(' ', '-')}")


# -----------------------------------------------------------------------------
# Pictures

def _curves(results: ResultFile, curves: dict) -> Markup | None:
    arms, curves = _arms(results), as_arrays(curves)
    ok = {(run.arm, run.seed) for run in results.runs if run.run_status == "ok"}
    # A diverged run may leave the picture at the top.
    good = {key: points for key, points in curves.items() if key in ok}
    late = svg.later_half(curves)
    charts = [svg.curve_chart(arms, curves, 0, "step", good),
              svg.curve_chart(arms, curves, 1, "training time (s)", good),
              svg.curve_chart(arms, late, 0, "step, the later half", {key: late[key] for key in good if key in late})]
    if not any(charts):
        return None
    legend = el("p", *[el("span", Markup(svg.swatch(k)), " ", arm) for k, arm in enumerate(arms)], cls="legend")
    note = ("Validation loss in bits per byte, lower is better. Thin: one seed. Thick: the mean over the seeds. "
            "Training time is without start-up and validation.")
    figures = el("div", *[el("figure", Markup(chart)) for chart in charts if chart], cls="charts")
    return _section("Curves", el("p", note, cls="soft"), legend, figures)


def _arms(results: ResultFile) -> list[str]:
    return [arm.name for arm in results.declaration.arms]


def _gains(results: ResultFile) -> Markup | None:
    """A chart for each metric: the primary metric first, then the floors in the order of the gates."""
    charts = {}
    for verdict in results.verdicts:
        for gate in sorted(verdict.gates or [primary_gate(verdict)], key=lambda gate: gate.role != "primary"):
            if gate.metric in METRICS and gate.mean is not None:
                charts.setdefault((gate.role, gate.metric, gate.threshold), []).append((verdict, gate))
    figures = [_gain_figure(results, key, rows) for key, rows in charts.items()]
    note = ("Change of a candidate against the control of the same seed: right of the line at 0 is better. "
            "Dots: seeds. Diamond: mean. Bar: the interval of the verdict, as in the table. Dashed: the limit that the "
            "bar must not reach below.")
    return _section("Gains", el("p", note, cls="soft") if figures else None,
                    el("div", *figures, cls="charts") if figures else None)


def _gain_figure(results: ResultFile, key: tuple, gates: list[tuple[Verdict, GateRow]]) -> Markup:
    """key: (role, metric, margin) of the gates. gates: (verdict, its gate) of each row."""
    (role, metric, margin), arms, m = key, _arms(results), METRICS[key[1]]
    rows = []
    for verdict, gate in gates:
        found, name = shown(verdict, gate, results.declaration), verdict.candidate
        ends = f" ({found.text(found.lo)} to {found.text(found.hi)})"
        ends = " (noise not known)" if None in (found.lo, found.hi) else ends
        rows.append({"name": name, "color": arms.index(name) if name in arms else 1,
                     "gains": [(seed, m.change(d)) for seed, d in pair_gains(metric, results.runs, name)[:gate.n]],
                     "mean": found.mean, "lo": found.lo, "hi": found.hi,
                     "value": found.text(found.mean, m.unit) + ends})
    limit = f"may lose at most {limit_text(gates[0][1])}" if role == "floor" else "decides"
    limit = limit if role == "floor" or not margin else f"decides, {limit_text(gates[0][1]).split(': ')[1]}"
    caption = el("figcaption", el("b", m.name), f": {limit}")
    edge = margin if margin is None else -m.change(-margin)
    return el("figure", caption, Markup(svg.gain_chart(m.name, rows, edge, "%" if m.log else "bits per byte")))


# -----------------------------------------------------------------------------
# Tables

RESULTS = {"yes": "good", "no": "bad", "cannot tell": "open", "ok": "", "diverged": "bad", "crash": "open",
           "oom": "open", "timeout": "open", "interrupted": "open"}


def _details(results: ResultFile) -> Markup | None:
    """The tests behind the verdicts, for a reader who knows them."""
    parts = []
    for verdict in results.verdicts:
        lines = [*gate_notes(verdict), *filter(None, [tested_line(verdict), *checks(verdict), seeds_text(verdict)])]
        if verdict.gates or lines:
            rows = detail_rows(verdict)
            parts += [el("h3", f"{verdict.candidate}, K = {verdict.K}")]
            parts += [_table(DETAIL_HEADER, rows, 2) if rows else None, *[el("p", line, cls="soft") for line in lines]]
    note = ("sd: standard deviation of one control run of the noise bank. level: p has to be below it. Last column: "
            "the heading of ideas/plan.md that asks for the gate.")
    return _section("Details", *([el("p", note, cls="soft"), *parts] if parts else []))


COLUMNS = {"val_bpb": ".5f", "tree_val_bpb": ".5f", "min_val_bpb": ".5f", "final_train_loss": ".4f",
           "time_to_target_sec": ",.1f", "steps_to_target": ",.1f", "tok_per_sec_median": ",.0f",
           "avg_tok_per_sec": ",.0f", "peak_mem_mib": ",.0f", "steps": "d", "training_sec": ",.1f",
           "duration_sec": ",.1f", "load": ".1f"}


def _runs(runs: list[RunSummary]) -> Markup | None:
    """The table of runs. A column without any value is left out; a value that was not measured is an empty cell."""
    shown = [name for name in COLUMNS if any(getattr(run, name) is not None for run in runs)]
    rows = [[run.arm, run.seed, run.run_status, _remarks(run),
             *[number(getattr(run, name), COLUMNS[name]) for name in shown]] for run in runs]
    return _section("Runs", _table(["arm", "seed", "status", "remarks", *shown], rows, 4, RESULTS)) if runs else None


def _remarks(run: RunSummary) -> str:
    found = [*remarks(run), "overloaded: do not trust its times" if run.overloaded else None,
             None if run.resumed_from_step is None else f"resumed from step {run.resumed_from_step}", run.error,
             run.fault]
    return "; ".join(remark for remark in found if remark)


def _noise(results: ResultFile) -> Markup | None:
    noise, declaration = results.noise, results.declaration
    sigmas = [[metric, sigma_text(metric, values)] for metric, values in noise.metrics.items()]
    gains = [(n, gain) for n, gain in smallest_gains(results) if math.isfinite(gain)]
    parts = [el("p", f"Source: {noise.source}." + ("" if sigmas else " No control run of this profile is banked."))]
    parts += [_table(["metric", "sd of one control run"], sigmas, 2)] if sigmas else []
    if gains:
        parts += [el("p", f"The smallest true gain in {declaration.primary} that n seeds show four times out of five, "
                          f"{declaration.K} candidate{'s' * (declaration.K != 1)} declared:"),
                  _table(["seeds", *[n for n, _ in gains]],
                         [["gain", *[gain_size(declaration.primary, gain) for _, gain in gains]]])]
    return _section("Noise", *parts, *[el("p", line) for line in [*bank_lines(noise), *promise_lines(declaration)]])


def _declaration(declaration: Declaration) -> Markup:
    """Every value of the declaration that is not null, under the name that it has in the file."""
    floors = "; ".join(f"{METRICS[floor.metric].name} at most {gain_size(floor.metric, -floor.margin)} worse"
                       for floor in declaration.floors)
    said = declaration.to_json() | {"looks": looks_text(declaration.looks), "floors": floors,
                                    "alpha": percent(declaration.alpha)}
    if declaration.margin is not None:
        said["margin"] = f"has to gain {gain_size(declaration.primary, declaration.margin)}"
    if declaration.min_gain is not None:
        said["min_gain"] = gain_size(declaration.primary, declaration.min_gain)
    pairs = [(key, plain(value)) for key, value in said.items() if key not in ("arms", "noise") and value is not None]
    arms = [[arm.name, arm.flags or ("the profile as it is" if arm.name == CONTROL else ""),
             "; ".join(arm.profile_changes)] for arm in declaration.arms]
    return _section("Declared before the first run", _pairs(pairs),
                    _table(["arm", "adds to the control", "changes the workload"], arms, 3))


def _provenance(results: ResultFile) -> Markup:
    settings, runs = results.settings, results.runs
    known = {**results.provenance, "device": next((run.device for run in runs if run.device is not None), None),
             "threads": next((run.threads for run in runs if run.threads is not None), None),
             "profile_flags": settings.profile_flags, "machine_flags": settings.machine_flags,
             "base_dir": settings.base_dir}
    return _section("Provenance", _pairs([(key, plain(value)) for key, value in known.items() if value is not None]))


def _commands(results: ResultFile) -> Markup:
    label = results.settings.label
    gates = shlex.join(["python", "-m", "scripts.gates", f"--label={label}"]) if label else None
    again = [results.settings.command, gates]
    runs = [f"# {run.arm} s{run.seed}\n{run.command}" for run in results.runs if run.command]
    note = "The protocol again (complete cells are reused), and its gates from the result file:"
    return _section("Commands", el("p", note), el("pre", "\n".join(filter(None, again))),
                    el("p", "Its runs, one by one:") if runs else None, el("pre", "\n".join(runs)) if runs else None)
