"""
results/index.html: every report of a results folder on one page, newest first, for a browser or a phone.

Each JSON file in the folder is an entry. Its name says its kind: <label>_latest.json is a protocol, <label>_stats.json
a statistic of Lane B. Kinds without a page of their own get one beside the JSON file (report/fact_page.py). A file that
cannot be read is named on the page, with the reason. The page is made anew from the files each time, so that a file
that was deleted leaves no entry behind.

    write_index("results")
"""

import os
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import quote

from nanochat.common import atomic_write, read_json
from nanochat.lab.commands import RESULTS_DIR
from nanochat.lab.ledger.experiments import NOISE
from nanochat.lab.report.advice import page_sentence
from nanochat.lab.report.fact_page import document, write_fact_page
from nanochat.lab.report.html import Markup, el, with_code
from nanochat.lab.report.result_file import read_results

NAME = "index.html"
SUFFIXES = {"_latest": "protocol", "_miniseries": "miniseries", "_cycle": "cycle", "_stats": "Lane B, statistics",
            "_infer": "Lane B, inference", "_bank": "noise bank"}
BADGES = {"promote", "optional", "reject", "inconclusive"}  # words that the style has a colour for
LETTERS = 400  # of a sentence: more is on the page that the entry links to


@dataclass(frozen=True)
class Line:
    """An entry of the index."""
    label: str
    kind: str
    date: str  # UTC, as in the file; of the file itself where it does not say
    link: str  # relative to the folder
    verdicts: list[tuple[str, str]] = field(default_factory=list)  # (word, candidate)
    sentence: str = ""


def index_for(path) -> Path | None:
    """write_index, where a command has written `path` into the results folder; a file elsewhere is in no index."""
    return write_index() if path and Path(path).resolve().parent == RESULTS_DIR.resolve() else None


def write_index(folder=RESULTS_DIR) -> Path | None:
    """Write the page, and the pages of kinds that have none. Returns its path, or None where it cannot be written:

    a full disk must not end a command whose results are safe.
    """
    folder = Path(folder)
    try:
        lines, unread = read_folder(folder)
        atomic_write(folder / NAME, page(lines, unread))
    except OSError as e:
        print(f"{folder / NAME} was not written: {e.strerror or e}")
        return None
    return folder / NAME


# -----------------------------------------------------------------------------
# Reading

def read_folder(folder: Path) -> tuple[list[Line], list[tuple[str, str]]]:
    """(entries, newest first; name and reason of each JSON file that gives none)."""
    lines, unread = [], []
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith("."):
            continue
        try:
            lines.append(line_of(path))
        except KeyError as e:
            unread.append((path.name, f"it has no {e}"))
        except (ValueError, TypeError, AttributeError, OSError, RecursionError) as e:
            unread.append((path.name, str(e).replace(str(folder), folder.name) or type(e).__name__))
    return sorted(lines, key=lambda line: (line.date, line.label), reverse=True), unread


def line_of(path: Path) -> Line:
    """Raises ValueError, TypeError, AttributeError or KeyError for a file that is not what its name says."""
    label, kind = kind_of(path)
    if kind == "protocol":
        return _protocol(path, label)
    facts = read_json(path)
    verdicts, sentence = SAYS[kind](facts)
    date = date_of(facts.get("timestamp"), path)
    write_fact_page(path.with_suffix(".html"), f"{kind} {label}", sentence, facts)
    return Line(label, kind, date, path.with_suffix(".html").name, verdicts, sentence)


def kind_of(path: Path) -> tuple[str, str]:
    """
    >>> kind_of(Path("results/mix005_latest.json")), kind_of(Path("infer.json"))
    (('mix005', 'protocol'), ('infer', 'Lane B, inference'))
    """
    for suffix, kind in SUFFIXES.items():
        if path.stem.endswith(suffix) or path.stem == suffix[1:]:
            return path.stem.removesuffix(suffix), kind
    raise ValueError(f"no file of a report: expected a name that ends in {', '.join(SUFFIXES)}")


def date_of(stored, path: Path) -> str:
    """UTC, to the second: the date in the file, or that of the file itself where it says none that can be read."""
    try:
        date = datetime.fromisoformat(stored)
    except (TypeError, ValueError):
        date = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
    date = date if date.tzinfo else date.replace(tzinfo=timezone.utc)
    return date.astimezone(timezone.utc).isoformat(timespec="seconds")


def _protocol(path: Path, label: str) -> Line:
    results = read_results(path)
    report = path.parent / label / "report.html"
    link = f"{label}/{report.name}" if report.exists() else path.name
    verdicts = [(str(verdict.verdict or "no verdict"), str(verdict.candidate)) for verdict in results.verdicts]
    seeds, ok = len({run.seed for run in results.runs}), sum(run.run_status == "ok" for run in results.runs)
    runs = f"{len(results.runs)} runs on {seeds} seeds, {ok} ok"
    said = [page_sentence(verdict, results) for verdict in results.verdicts if verdict.verdict]
    kind = "noise" if label == NOISE else "protocol"
    return Line(label, kind, date_of(results.timestamp, path), link, verdicts,
                said[0] if len(said) == 1 else runs)


def _miniseries(facts) -> tuple[list, str]:
    found = facts["verdicts"]
    depths = ", ".join(map(str, facts["depths"]))
    return ([(str(one["verdict"]), str(one["candidate"])) for one in found],
            f"depths {depths}: " + "; ".join(str(one["reason"]) for one in found))


def _cycle(facts) -> tuple[list, str]:
    state = "walked to its end" if facts["complete"] else f"stopped: {facts.get('stopped') or 'not at its end'}"
    return [], f"profile {facts['profile']}: {state}; accepted: {' '.join(facts['accepted']) or 'nothing'}"


def _stats(facts) -> tuple[list, str]:
    error = facts.get("error") or {}
    said = f"alpha_D {facts['alpha_d']:.4g}" if facts["alpha_d"] is not None else "no exponent"
    return [], said + (f": {error.get('message') or error.get('code')}" if error else "")


def _inference(facts) -> tuple[list, str]:
    reasons = "; ".join(map(str, facts["reasons"]))
    return [], f"{facts['decision']}: ratio {facts['chosen_ratio']}" + (f" ({reasons})" if reasons else "")


def _bank(facts) -> tuple[list, str]:
    bank = facts["noise"]["metrics"].get("val_bpb")
    return [], (f"val_bpb varies by {bank['s_b']:.4f} from run to run ({bank['n']} control runs); "
                f"{facts['workload']}" if bank else f"no spread of val_bpb is banked; {facts['workload']}")


SAYS = {"miniseries": _miniseries, "cycle": _cycle, "Lane B, statistics": _stats, "Lane B, inference": _inference,
        "noise bank": _bank}


# -----------------------------------------------------------------------------
# The page

STYLE = """ol{list-style:none;padding:0;margin:16px 0}li{padding:10px 0;border-bottom:1px solid var(--rule)}\
li a{color:var(--c2);font-size:17px;font-weight:600;overflow-wrap:anywhere}li .soft{display:inline}\
.candidate+.candidate{margin-left:10px}"""


def page(lines: list[Line], unread: list[tuple[str, str]]) -> str:
    found = f"{len(lines)} report{'s' * (len(lines) != 1)}, newest first. Times are UTC."
    parts = [el("header", el("h1", "Results"), el("p", found if lines else "No report yet.", cls="soft"))]
    parts += [el("ol", *map(_item, lines))] if lines else []
    if unread:
        note = "These files gave no entry:"
        items = [el("li", el("b", name), f": {_short(why)}") for name, why in unread]
        parts.append(el("section", el("h2", "Not read"), el("p", note, cls="soft"), el("ul", *items)))
    return document("Results", *parts, style=STYLE)


def _item(line: Line) -> Markup:
    colon = ":" if len(line.verdicts) == 1 and line.sentence else ""
    badges = [el("span", el("span", el("span", word, cls="badge"), cls=word if word in BADGES else "no-verdict"),
                 " ", el("b", candidate), colon, cls="candidate") for word, candidate in line.verdicts]
    head = el("div", el("a", line.label, href=f"./{quote(os.fsencode(line.link))}"), " ",
              el("span", f"{line.kind}, {line.date[:16].replace('T', ' ')}", cls="soft"))
    return el("li", head, el("p", *badges, " " if badges else None, with_code(_short(line.sentence))))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LETTERS else text[:LETTERS - 3] + "..."
