"""
dev/LEADERBOARD.md from the ledger. Each profile has a table; each arm, with its options, code and patch, has a row in
it. The tables are rewritten between two markers of the page.

Entries are ranked by measured time to target, then by val_bpb. A time counts only if every run of the entry reached the
same target. Example: three of four runs reached it. The mean over these three would flatter the arm, so the entry has
no time. An extrapolated time has a column of its own and never ranks.

The order is an overview, not a test: it compares runs of different days, and noise decides between neighbours. The test
is in the verdict column (verdict/gates.py), which is filled where a result file of the label exists.
"""

import re
import shlex
from dataclasses import dataclass
from statistics import mean, stdev

from nanochat.config import FIELDS
from nanochat.lab.report.result_file import ResultFile
from nanochat.lab.table import number
from nanochat.lab.trees.marks import marks_of_row
from nanochat.options import flag, tagged

BEGIN, END = "<!-- leaderboard: begin -->", "<!-- leaderboard: end -->"
OF_ONE_RUN = ("--seed", *map(flag, tagged(FIELDS, "name")))  # options by which the runs of an entry differ
TIME, EXTRAPOLATED = "time_to_target_sec_measured", "time_to_target_sec_extrapolated"
BPB, SPEED = "val_bpb", "tok_per_sec_median"
SAYS_OF_THE_ARM = ("ok", "diverged")  # other endings say something of the machine
HEADER = ["rank", "arm", "n", "seeds", "time_to_target_sec", "extrapolated_sec", "val_bpb", "sd", "tok_per_sec",
          "failed", "verdict", "commit"]


@dataclass
class Entry:
    arm: str
    runs: list[dict]  # the last row of each seed, by seed
    verdict: str = ""

    @property
    def ok(self):
        return [run for run in self.runs if run["status"] == "ok"]

    def values(self, key):
        """The numbers of the runs that ended ok and have a value."""
        return [value for value in (as_number(run.get(key)) for run in self.ok) if value is not None]

    def time(self, target) -> float | None:
        """Mean measured seconds, where all runs reached `target`."""
        spoken = [run for run in self.runs if run["status"] in SAYS_OF_THE_ARM]
        times = self.values(TIME)
        reached = spoken and len(times) == len(spoken) and all(target_of(run) == target for run in spoken)
        return mean(times) if reached else None


def as_number(value) -> float | None:
    """A cell of the ledger, typed or as text; an empty one was not measured.

    >>> as_number("12.5"), as_number(3), as_number(""), as_number(None)
    (12.5, 3.0, None, None)
    """
    return None if value in ("", None) else float(value)


def text_of(row, key) -> str:
    return str(row.get(key) if row.get(key) is not None else "")


def target_of(row) -> tuple | None:
    """(metric, threshold) that the row's times are about."""
    threshold = as_number(row.get("target_metric_threshold"))
    return None if threshold is None else (text_of(row, "target_metric_name"), threshold)


# -----------------------------------------------------------------------------
# Entries

def shared_command(command: str) -> str:
    """The command without the options by which the runs of an entry differ, such as the seed.

    >>> shared_command("python -m scripts.base_train --depth=4 --seed=7 --model-tag nc_a_s7 --warmdown-ratio=0.4")
    'python -m scripts.base_train --depth=4 --warmdown-ratio=0.4'
    """
    words, kept = iter(shlex.split(command)), []
    for word in words:
        name, equals, _ = word.replace("_", "-").partition("=")
        if name not in OF_ONE_RUN:
            kept.append(word)
        elif not equals:
            next(words, None)
    return shlex.join(kept)


def code_of(row) -> str:
    return text_of(row, "tree_hash") or text_of(row, "git_commit")


def make_entries(rows: list[dict], verdicts: dict | None = None) -> list[Entry]:
    """Rows of one profile, grouped by arm, options, code and patch. verdicts: {(label, arm, config_hash): verdict}.

    If a seed was run twice, the later row counts: the same cell again is not another sample.
    """
    groups: dict[tuple, dict] = {}
    for row in sorted(rows, key=lambda row: (text_of(row, "timestamp"), text_of(row, "run_id"))):
        key = (text_of(row, "arm"), shared_command(text_of(row, "command")), code_of(row), text_of(row, "patch_hash"))
        runs = groups.setdefault(key, {})
        seed = text_of(row, "seed")
        if row["status"] in SAYS_OF_THE_ARM or runs.get(seed, row)["status"] not in SAYS_OF_THE_ARM:
            runs[seed] = row
    entries = []
    for (arm, *_), runs in groups.items():
        runs = [runs[seed] for seed in sorted(runs, key=lambda seed: (len(seed), seed))]
        found = {(verdicts or {}).get((text_of(row, "label"), arm, text_of(row, "config_hash"))) for row in runs}
        entries.append(Entry(arm, runs, ", ".join(sorted(found - {None}))))
    return entries


def ranking_target(rows: list[dict]) -> tuple | None:
    """The target of the profile's newest row that has a target. Times to other targets are not compared."""
    with_target = [row for row in rows if target_of(row)]
    newest = max(with_target, key=lambda row: (text_of(row, "timestamp"), text_of(row, "run_id")), default=None)
    return target_of(newest) if newest else None


def rank(entries: list[Entry], target) -> list[Entry]:
    """Entries in their order, in three groups.

    First the entries whose runs all reached the target, by time. Then the others, by val_bpb. Last the entries in
    which a run diverged or no run ended ok.
    """
    def key(entry):
        time, bpb = entry.time(target), entry.values(BPB)
        broken = not bpb or any(run["status"] == "diverged" for run in entry.runs)
        return broken, time is None, time or 0.0, mean(bpb) if bpb else 0.0, entry.arm, code_of(entry.runs[0])
    return sorted(entries, key=key)


def verdicts_of(files: list[ResultFile]) -> dict:
    """{(label, arm, config_hash): verdict} of result files, with the hypothesis of a label that counts anew."""
    found = {}
    for results in files:
        why = results.declaration.hypothesis if results.declaration else None
        by_arm = {verdict.candidate: verdict.verdict + (f" (new hypothesis: {why})" if why else "")
                  for verdict in results.verdicts if verdict.verdict}
        found |= {(results.settings.label, run.arm, run.config_hash): by_arm[run.arm]
                  for run in results.runs if run.arm in by_arm}
    return found


def profiles(rows: list[dict], verdicts: dict | None = None) -> list[tuple[str, tuple | None, list[Entry]]]:
    """(title, target, ranked entries) of every profile in the ledger, by name.

    Rows without a profile hash are not comparable.
    """
    by_hash: dict[str, list] = {}
    for row in rows:
        if text_of(row, "profile_hash"):
            by_hash.setdefault(text_of(row, "profile_hash"), []).append(row)
    found = []
    for profile_hash, mine in by_hash.items():
        target, name = ranking_target(mine), min(text_of(row, "profile") for row in mine)
        found.append((f"{name or 'profile'} ({profile_hash[:12]})", target, rank(make_entries(mine, verdicts), target)))
    return sorted(found, key=lambda item: item[0])


# -----------------------------------------------------------------------------
# Text

def markdown(rows: list[dict], verdicts: dict | None = None) -> str:
    """The text between the markers. The same rows and verdicts give the same bytes."""
    found = profiles(rows, verdicts)
    parts = [section(*profile) for profile in with_rivals(found)]
    alone = [profile for profile in found if profile not in with_rivals(found)]
    if alone:
        lines = ["## One arm alone", "Profiles in which nothing is ranked.", "", *map(lone_line, alone)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) if parts else "No row in the ledger yet."


def with_rivals(found: list[tuple]) -> list[tuple]:
    """The profiles with two entries or more, which can be ranked; all profiles if there is no such profile."""
    return [profile for profile in found if len(profile[2]) > 1] or found


def lone_line(profile) -> str:
    title, _, (entry,) = profile
    bpb = entry.values(BPB)
    said = f", val_bpb {mean(bpb):.5f}" if bpb else ""
    return f"- {in_line(title)}: {in_line(entry.arm)}, n {len(entry.ok)}{said}"


def section(title: str, target, entries: list[Entry]) -> str:
    goal = f"Target: {target[0]} {target[1]:g}." if target else "No target was declared: ranked by val_bpb."
    table = [HEADER, ["---"] + ["---"] + ["---:"] * 8 + ["---"] * 2]
    table += [cells(i + 1, entry, target) for i, entry in enumerate(entries)]
    lines = ["| " + " | ".join(map(in_cell, row)) + " |" for row in table]
    commands = [f"# {i + 1} {entry.arm}\n{shared_command(text_of(entry.runs[-1], 'command'))}"
                for i, entry in enumerate(entries)]
    code = fenced("\n".join(["# add --seed", *commands]))
    return "\n".join([f"## {in_line(title)}", facts_of(entries), goal, "", *lines, "", code])


def facts_of(entries) -> str:
    """The workload in a line, by the newest row."""
    row = max((run for entry in entries for run in entry.runs), key=lambda run: text_of(run, "timestamp"))
    keys = ("depth", "max_seq_len", "device_batch_size", "total_batch_size", "num_iterations", "device", "dataset_id",
            "tokenizer_id")
    return in_line(", ".join(f"{key} {text_of(row, key)}" for key in keys if text_of(row, key)) + ".")


def cells(place: int, entry: Entry, target) -> list[str]:
    bpb, speed = entry.values(BPB), entry.values(SPEED)
    failed = [run["status"] for run in entry.runs if run["status"] != "ok"]
    row = entry.runs[-1]
    commit = text_of(row, "git_commit")[:7] + ("+" if text_of(row, "dirty").lower() in ("true", "1") else "")
    code = ", ".join(filter(None, (commit, marks_of_row(row))))
    return [str(place), entry.arm, str(len(entry.ok)), " ".join(text_of(run, "seed") for run in entry.ok),
            time_cell(entry, target), extrapolated_cell(entry, target), number(mean(bpb) if bpb else None, ".5f"),
            spread(bpb, ".5f"),
            number(mean(speed) if speed else None, ",.0f"),
            ", ".join(f"{failed.count(how)} {how}" for how in sorted(set(failed))), entry.verdict, code]


def time_cell(entry, target) -> str:
    time, times = entry.time(target), entry.values(TIME)
    loaded = ", loaded" if any(text_of(run, "overloaded").lower() in ("true", "1") for run in entry.ok) else ""
    if time is not None:
        return f"{time:,.1f}" + (f" \u00b1 {spread(times, ',.1f')}" if len(times) > 1 else "") + loaded
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


def spread(values, form) -> str:
    return number(stdev(values) if len(values) > 1 else None, form)


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
