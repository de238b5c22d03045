"""
The text of a leaderboard, from the rows of a ledger: a table for each section (report/sections.py).

The tables are rewritten between two markers of a page. The order is an overview, not a test: it compares runs of
different days. The column "against the best" says which entries may be as good as the first. The test is in the verdict
column (verdict/gates.py), which is filled where a result file of the label exists. An extrapolated time has a column of
its own and never ranks.
"""

import math
import re
from statistics import mean, stdev

from nanochat.lab.ledger.banked import seeds_text
from nanochat.lab.ledger.experiments import from_reference
from nanochat.lab.report.entries import (
    BPB,
    SPEED,
    TIME,
    Entry,
    as_number,
    is_true,
    shared_command,
    target_of,
    text_of,
)
from nanochat.lab.report.sections import Distance, Section, Spread, distances, sections
from nanochat.lab.table import number
from nanochat.lab.trees.marks import marks_of_row
from nanochat.lab.verdict.stats import ALPHA

BEGIN, END = "<!-- leaderboard: begin -->", "<!-- leaderboard: end -->"
EXTRAPOLATED = "time_to_target_sec_extrapolated"
WHOSE = "rows of"
HEADER = ["rank", "arm", "n", "against the best", "time_to_target_sec", "extrapolated_sec", "val_bpb", "sd",
          "tok_per_sec", "failed", "verdict", "commits", WHOSE]
WORDS = {"arm", "against the best", "failed", "verdict", "commits", WHOSE}  # columns of words; others are numbers
ALWAYS = {"rank", "arm", "n", "val_bpb", "commits"}  # other columns are left out where they are empty


def markdown(rows: list[dict], verdicts: dict | None = None) -> str:
    """The text between the markers. The same rows and verdicts give the same bytes."""
    found, anchors = sections(rows, verdicts), set()
    shown = with_rivals(found)
    parts = [section_text(section, anchors) for section in shown]
    alone = [section for section in found if section not in shown]
    if alone:
        lines = ["## One arm alone", "Workloads in which nothing is ranked.", "", *map(lone_line, alone)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) if parts else "No row in the ledger yet."


def with_rivals(found: list[Section]) -> list[Section]:
    """The sections with two entries or more, which can be ranked; all sections if there is no such section."""
    return [section for section in found if len(section.entries) > 1] or found


def lone_line(section: Section) -> str:
    entry, = section.entries
    bpb = entry.values(BPB)
    said = f", val_bpb {mean(bpb):.5f}" if bpb else ""
    return f"- {in_line(section.title)}: {in_line(entry.name)}, n {len(entry.ok)}{said}"


def section_text(section: Section, anchors: set) -> str:
    """anchors: of the sections above, which are added to. A link to a profile goes to its first section."""
    spread, apart = distances(section)
    rows = [cells(place, section, apart) for place in range(len(section.entries))]
    two_ledgers = any(from_reference(run) for entry in section.entries for run in entry.runs)
    columns = [i for i, name in enumerate(HEADER) if name in ALWAYS or
               any(row[i] for row in rows) and (name != WHOSE or two_ledgers)]
    table = [HEADER, ["---" if name in WORDS else "---:" for name in HEADER], *rows]
    lines = ["| " + " | ".join(in_cell(row[i]) for i in columns) + " |" for row in table]
    anchor = _anchor(section)
    above = [] if anchor in anchors else [f'<a id="{anchor}"></a>', ""]
    anchors.add(anchor)
    return "\n".join([*above, f"## {in_line(section.title)}", goal(section.target), noise_line(section, spread), "",
                      *lines, "", *fold(section)])


def _anchor(section: Section) -> str:
    name = section.title.partition(":")[0].lower()
    return re.sub(r"[^a-z0-9_-]", "", f"{name}-{section.ids['profile_hash'][:12]}")


def goal(target) -> str:
    return f"Target: {target[0]} {target[1]:g}." if target else "No target was declared: ranked by val_bpb."


def noise_line(section: Section, spread: Spread | None) -> str:
    """How the distances from the best are known."""
    if len(section.entries) < 2:
        return ""
    if spread is None:
        return "Noise: not known, because no arm here has two runs that differ."
    sd = f"{spread.sd:.1%} of the time" if spread.metric == TIME else f"{spread.sd:.4f} bits per byte"
    return (f"Noise: a single run has an sd of {sd}, pooled over the arms of this table (df {spread.df}). "
            "Within noise (1=): not shown to be behind the best, which does not mean equal to it. The arm that is "
            f"truly best is marked so in {100 - 100 * ALPHA:g} % of such tables, if all arms spread alike.")


def fold(section: Section) -> list[str]:
    """Commands, seeds and hashes, which a reader opens."""
    ids = [f"# {name} {value}" for name, value in section.ids.items() if value]
    runs = [f"# {place} {entry.name}\n# {seeds_of(entry)}\n{shared_command(text_of(entry.runs[-1], 'command'))}"
            for place, entry in enumerate(section.entries, start=1)]
    code = fenced("\n".join([*ids, "# add --seed to a command", *runs]))
    return ["<details><summary>Commands, seeds and hashes</summary>", "", code, "", "</details>"]


def seeds_of(entry: Entry) -> str:
    also = f"; also ran as {', '.join(entry.other_names)}" if entry.other_names else ""
    moved = f"; ended elsewhere at another commit: {seeds_text([*map(int, entry.moved)])}" if entry.moved else ""
    seeds = [int(text_of(run, "seed")) for run in entry.ok if text_of(run, "seed")]
    return (seeds_text(seeds) if seeds else "no run ended ok") + also + moved


# -----------------------------------------------------------------------------
# Cells

def cells(place: int, section: Section, apart: dict[int, Distance]) -> list[str]:
    entry, target = section.entries[place], section.target
    bpb, speed = entry.values(BPB), entry.values(SPEED)
    failed = [run["status"] for run in entry.runs if run["status"] != "ok"]
    return [rank_cell(place, apart), entry.name, str(len(entry.ok)), distance_cell(place, section, apart),
            time_cell(entry, target), extrapolated_cell(entry, target), number(mean(bpb) if bpb else None, ".5f"),
            spread_cell(bpb, ".5f"), number(mean(speed) if speed else None, ",.0f"),
            ", ".join(f"{failed.count(how)} {how}" for how in sorted(set(failed))), entry.verdict,
            commits_cell(entry), rows_of(entry)]


def rank_cell(place: int, apart: dict[int, Distance]) -> str:
    """Entries within noise of the best share its rank: "1="."""
    tied = {at for at, distance in apart.items() if distance.within_noise}
    return "1=" if tied and (place == 0 or place in tied) else str(place + 1)


def distance_cell(place: int, section: Section, apart: dict[int, Distance]) -> str:
    """How far an entry is behind the best, in words: "0.0356 \u00b1 0.0062 worse", or "within noise"."""
    if place == 0 and apart:
        return "best"
    if place not in apart:
        return ""
    found, by_time = apart[place], section.entries[0].time(section.target) is not None
    if found.half is None:
        return f"{math.expm1(found.mean):.0%} slower" if by_time else f"{found.mean:.4f} worse"
    if by_time:
        lo, hi = (math.expm1(found.mean + sign * found.half) for sign in (-1, 1))
        said = f"{math.expm1(found.mean):.0%} slower ({lo:.0%} to {hi:.0%})"
    else:
        said = f"{found.mean:.4f} \u00b1 {found.half:.4f} worse"
    return f"within noise: {said}" if found.within_noise else said


def commits_cell(entry: Entry) -> str:
    """The newest two of its commits, how many more there are, and the marks of other code."""
    newest, more = entry.commits[-2:], len(entry.commits) - 2
    n = len(entry.moved)
    moved = f"{n} seed{'s' * (n != 1)} ended elsewhere at another commit" if n else ""
    return ", ".join(filter(None, [*newest, f"{more} more" if more > 0 else "", marks_of_row(entry.runs[-1]), moved]))


def rows_of(entry: Entry) -> str:
    """How many of its runs came with the project, and how many are the user's own."""
    shipped = sum(map(from_reference, entry.runs))
    own = len(entry.runs) - shipped
    return ", ".join([*([f"project {shipped}"] if shipped else []), *([f"you {own}"] if own else [])])


def time_cell(entry, target) -> str:
    time, times = entry.time(target), entry.values(TIME)
    loaded = ", loaded" if any(is_true(run, "overloaded") for run in entry.ok) else ""
    if time is not None:
        return f"{time:,.1f}" + (f" \u00b1 {spread_cell(times, ',.1f')}" if len(times) > 1 else "") + loaded
    mine = {target_of(run) for run in entry.ok}
    if target is None or not mine - {None}:
        return ""
    return f"{len(times)} of {len(entry.ok)} reached it" if mine == {target} else "another target"


def extrapolated_cell(entry, target) -> str:
    """The mean extrapolated time, with its method, over the runs whose time was not measured."""
    runs = [run for run in entry.ok if as_number(run.get(EXTRAPOLATED)) is not None and as_number(run.get(TIME)) is None
            and target_of(run) == target]
    methods = " ".join(sorted({text_of(run, "extrapolation_method") for run in runs}))
    return f"{mean(as_number(run[EXTRAPOLATED]) for run in runs):,.1f} ({methods}, n {len(runs)})" if runs else ""


def spread_cell(values, form) -> str:
    return number(stdev(values) if len(values) > 1 else None, form)


# -----------------------------------------------------------------------------
# Markdown

def in_line(text: str) -> str:
    """The text on a single line. Its "<" is escaped, so that a name never opens a tag or a marker."""
    return re.sub(r"\s+", " ", text).replace("<", "&lt;")


def in_cell(text: str) -> str:
    return in_line(text).replace("|", "\\|")


def fenced(text: str) -> str:
    """A code block whose fence is longer than any in the text. The text may hold no marker, so "<!--" is broken up."""
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{fence}\n{text.replace('<!--', '< !--')}\n{fence}"


def replaced(page: str, table: str, name: str = "the page") -> str:
    """`page` with `table` between the markers, and nothing else changed.

    Raises ValueError where they are missing or doubled.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"{name}: expected one line {BEGIN!r} and after it one line {END!r}, found "
                         f"{page.count(BEGIN)} and {page.count(END)}; add both lines where the table belongs")
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"
