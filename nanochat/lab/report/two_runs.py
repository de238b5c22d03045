"""
Two runs that exist, side by side: what they are, what differs, their curves, and what follows from that.

    print(page(a, b, bank_rows, repo=REPO_ROOT))  # a, b: lab.ledger.any_run.find(...)

Nothing here is a verdict. Two runs are one seed each, chosen after they were seen. So the page ends with the command of
the comparison that would answer.
"""

import bisect
import textwrap

from nanochat.git import run_git
from nanochat.lab.ledger.any_run import AnyRun, differences
from nanochat.lab.report.conclusions import conclusions, next_lines
from nanochat.lab.table import format_time, number, table
from nanochat.lab.trees.marks import marks_of_row
from nanochat.options import flag

WIDTH = 110  # of sentences; a command stays on one line
POINTS = 6  # rows of the table of curves
HASH_LETTERS = 8
STAT_LINES = 12  # of git diff --stat
NAMES = 8  # of options that one run does not say
CODE = ("nanochat", "scripts", "patches")
AXES = {"step": 0, "tokens": 1, "seconds of training": 2}


def page(a: AnyRun, b: AnyRun, bank_rows: list[dict], repo) -> str:
    parts = [facts_table(a, b), options_text(a, b), code_text(a, b, repo), curves_text(a, b),
             "what follows\n" + "\n".join(map(_item, conclusions(a, b, bank_rows))),
             "the comparison that would answer\n" + "\n".join(f"  {line}" for line in next_lines(a, b, bank_rows))]
    return "\n\n".join(filter(None, parts))


def _item(sentence: str) -> str:
    return textwrap.fill(sentence, WIDTH, initial_indent="  - ", subsequent_indent="    ", break_long_words=False,
                         break_on_hyphens=False)


# -----------------------------------------------------------------------------
# What they are

def facts_table(a: AnyRun, b: AnyRun) -> str:
    rows = [[name, *(text(run) or "not known" for run in (a, b))] for name, text in FACTS.items()]
    return table(["", "A", "B"], rows, left=3)


def _device(run):
    threads = run.row["threads"]
    return (run.row["device"] or "") + (f", {threads} thread{'s' * (threads != 1)}" if threads else "")


def _code(run):
    commit = (run.row["git_commit"] or "")[:HASH_LETTERS] + " and edits" * bool(run.row["dirty"])
    return ", ".join(filter(None, [commit, marks_of_row(run.row)]))


def _whole(name):
    return lambda run: number(run.row[name], ",d")


def _short(name):
    return lambda run: (run.row[name] or "")[:HASH_LETTERS]


FACTS = {
    "run": lambda run: run.name, "known from": lambda run: {"row": "a row of the ledger"}.get(run.source, run.source),
    "started": lambda run: run.row["timestamp"], "status": lambda run: run.row["status"],
    "label, arm": lambda run: " ".join(filter(None, (run.row["label"], run.row["arm"]))),
    "profile": lambda run: run.row["profile"], "commit": _code, "device": _device,
    "steps": lambda run: number(run.steps or run.row["num_iterations"], ",d"), "tokens": _whole("trained_tokens"),
    "dataset": _short("dataset_id"), "tokenizer": _short("tokenizer_id"),
    "training time": lambda run: format_time(run.row["training_sec"]) if run.row["training_sec"] is not None else "",
    "tokens a second": lambda run: number(run.row["tok_per_sec_median"], ",.0f"),
    "val_bpb": lambda run: number(run.row["val_bpb"], ".5f"),
}


# -----------------------------------------------------------------------------
# What differs

def options_text(a: AnyRun, b: AnyRun) -> str:
    found, alone = differences(a, b)
    lines = ["options that differ, as they were run"]
    rows = [[flag(name), _value(x), _value(y)] for name, x, y in found]
    lines += [table(["option", "A", "B"], rows, left=3)] if rows else ["  none that both say"]
    for run, other, letter in ((a, b, "A"), (b, a, "B")):
        missing = [flag(name) for name in alone if name not in run.options]
        if missing and other.options:
            more = " ..." * (len(missing) > NAMES)
            lines.append(f"  {letter} does not say {len(missing)}: {', '.join(missing[:NAMES])}{more}")
    return "\n".join(lines)


def _value(value) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def code_text(a: AnyRun, b: AnyRun, repo) -> str:
    """The difference of their code: by hash, and by git where both commits are in this repository."""
    old, new = a.row["git_commit"], b.row["git_commit"]
    if a.version and a.version == b.version and a.row["patch_hash"] == b.row["patch_hash"]:
        return f"code: the same ({a.version[:HASH_LETTERS]})"
    lines = ["code: " + ", ".join(f"{letter} {(run.version or '')[:HASH_LETTERS] or 'not known'}"
                                  for letter, run in (("A", a), ("B", b)))]
    for letter, run in (("A", a), ("B", b)):
        if run.row["patch_hash"]:
            lines.append(f"  {letter} ran with the patch {run.row['patch_hash'][:HASH_LETTERS]}")
        if run.row["dirty"]:
            lines.append(f"  {letter} ran with changes that were not committed: git cannot show them")
    if old and new and old != new:
        lines += [f"  {line}" for line in _stat(repo, old, new)]
    return "\n".join(lines)


def _stat(repo, old: str, new: str) -> list[str]:
    for commit in (old, new):
        if run_git(repo, "cat-file", "-e", f"{commit}^{{commit}}")[0]:
            return [f"commit {commit[:HASH_LETTERS]} is not in this repository, so git cannot compare them"]
    shown = run_git(repo, "diff", "--stat", old, new, "--", *CODE)[1].decode("utf-8", "replace").splitlines()
    cut = [f" ... {len(shown) - STAT_LINES} more files"] if len(shown) > STAT_LINES else []
    command = f"git diff {old[:HASH_LETTERS]} {new[:HASH_LETTERS]} -- {' '.join(CODE)}"
    return [f"$ {command}", *shown[:STAT_LINES - 1], *cut, *shown[-1:]] if shown else \
        [f"the commits do not differ in {', '.join(CODE)}"]


# -----------------------------------------------------------------------------
# Curves

def at(curve: list[tuple], axis: int, x: float) -> float | None:
    """val_bpb at x, on the straight line between the two validations around it; None outside the curve.

    >>> at([(0, 0, 0.0, 3.0), (10, 100, 5.0, 2.0)], 0, 5), at([(0, 0, 0.0, 3.0)], 0, 1)
    (2.5, None)
    """
    points = sorted((point[axis], point[3]) for point in curve if point[axis] is not None)
    places = [place for place, _ in points]
    right = bisect.bisect_left(places, x)
    if right < len(points) and places[right] == x:
        return points[bisect.bisect_right(places, x) - 1][1]
    if right in (0, len(points)):
        return None
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def common_points(a: list[tuple], b: list[tuple], axis: int, most: int = POINTS) -> list[float]:
    """Places on an axis at which both curves have a value: those of the validations of both, else of either."""
    xs, ys = ({point[axis] for point in curve if point[axis] is not None} for curve in (a, b))
    if len(xs & ys) < 2:
        places = sorted(x for x in xs | ys if None not in (at(a, axis, x), at(b, axis, x)))
    else:
        places = sorted(xs & ys)
    if len(places) <= most:
        return places
    return [places[round(i * (len(places) - 1) / (most - 1))] for i in range(most)]


def curves_text(a: AnyRun, b: AnyRun) -> str:
    if not (a.curve and b.curve):
        who = " and ".join(run.name for run in (a, b) if not run.curve)
        return f"curves: no validation of {who} is known, so there is nothing to lay side by side"
    batches = {run.row["effective_total_batch_size"] for run in (a, b)}
    parts = []
    for name, axis in AXES.items():
        if name == "tokens" and len(batches) == 1:  # then the table of steps says it
            continue
        places = [x for x in common_points(a.curve, b.curve, axis) if axis < 2 or x > 0]  # the clock skips the start
        rows = [[f"{x:,.4g}" if axis == 2 else f"{x:,.0f}", f"{ya:.5f}", f"{yb:.5f}", f"{ya - yb:+.5f}"]
                for x in places for ya, yb in [(at(a.curve, axis, x), at(b.curve, axis, x))]]
        parts.append(table([name, "A", "B", "B better by"], rows, left=0) if rows else
                     f"  no {name} that both have")
    return "val_bpb at common points (+: B is better)\n" + "\n\n".join(parts)
