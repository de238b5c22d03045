"""
The sections of a leaderboard, and how the entries of a section rank.

A section is one workload on one device; runs of two sections are never compared. Entries rank by the measured time to a
target, then by val_bpb. A time counts only if every run of the entry reached the same target: a mean over three of four
runs would flatter the arm. An entry that is not shown to be behind the best one is within noise of it.
"""

import math
import re
from dataclasses import dataclass, field
from statistics import mean

from nanochat.config import FIELDS
from nanochat.lab.ledger.workload import options_of
from nanochat.lab.report.entries import BPB, TIME, Entry, age, as_number, make_entries, option_words, target_of, text_of
from nanochat.lab.verdict.stats import ALPHA, t_above
from nanochat.options import with_role


@dataclass
class Section:
    title: str
    target: tuple | None  # (metric, threshold) that the times are about
    entries: list[Entry]  # in their order
    ids: dict = field(default_factory=dict)  # hashes of profile, dataset and tokenizer


# -----------------------------------------------------------------------------
# Ranks

def ranking_target(rows: list[dict]) -> tuple | None:
    """The target of the section's newest row that has a target. Times to other targets are not compared."""
    newest = max((row for row in rows if target_of(row)), key=age, default=None)
    return target_of(newest) if newest else None


def rank(entries: list[Entry], target) -> list[Entry]:
    """Entries in their order, in three groups.

    First the entries whose runs all reached the target, by time. Then the others, by val_bpb. Last the entries in
    which a run diverged or no run ended ok.
    """
    def key(entry):
        time, bpb = entry.time(target), entry.values(BPB)
        broken = not bpb or entry.diverged
        return broken, time is None, time or 0.0, mean(bpb) if bpb else 0.0, entry.name, entry.commits
    return sorted(entries, key=key)


@dataclass(frozen=True)
class Spread:
    """Pooled over the entries of a section: the sd of one run around the mean of its entry, and its df."""
    metric: str  # BPB in bits per byte, or TIME as natural log of seconds
    sd: float
    df: int


@dataclass(frozen=True)
class Distance:
    """An entry's mean minus that of the best entry, and half of its interval: positive is worse."""
    mean: float
    half: float | None  # None where no entry has two runs

    @property
    def within_noise(self) -> bool:
        return self.half is not None and self.mean <= self.half


def _ranked_values(section: Section) -> tuple[str, dict[int, list[float]]]:
    """(metric that ranks, {place of an entry: values of its runs}) of the entries that can be compared."""
    by_time = bool(section.entries) and section.entries[0].time(section.target) is not None
    found = {}
    for place, entry in enumerate(section.entries):
        if by_time and entry.time(section.target) is not None:
            found[place] = [math.log(value) for value in entry.values(TIME) if value > 0]
        elif not by_time and not entry.diverged:
            found[place] = entry.values(BPB)
    return (TIME if by_time else BPB), {place: values for place, values in found.items() if values}


def distances(section: Section) -> tuple[Spread | None, dict[int, Distance]]:
    """(pooled spread, {place: distance from the best}); the best itself has no distance.

    The intervals hold together: with k entries each has the one-sided level ALPHA / (k - 1), so that the entry that is
    truly best is within noise of the first in 19 of 20 tables (multiple comparisons with the best, Hsu 1984,
    doi 10.1214/aos/1176346732, with Bonferroni's bound for Dunnett's quantile). All entries are taken to spread alike:
    where those with a single run spread three times as much as the others, it is only half to three quarters of tables.
    Pairs on shared seeds are not used, which makes the intervals wide rather than narrow: a test is the verdict's.
    """
    metric, values = _ranked_values(section)
    df = sum(len(mine) - 1 for mine in values.values())
    if len(values) < 2:
        return None, {}
    squares = sum((value - mean(mine)) ** 2 for mine in values.values() for value in mine)
    spread = Spread(metric, math.sqrt(squares / df), df) if df and squares else None
    (best, of_best), *others = values.items()
    found = {}
    for place, mine in others:
        half = spread and t_above(ALPHA / len(others), df) * spread.sd * math.sqrt(1 / len(mine) + 1 / len(of_best))
        found[place] = Distance(mean(mine) - mean(of_best), half)
    return spread, found


# -----------------------------------------------------------------------------
# Sections

def sections(rows: list[dict], verdicts: dict | None = None) -> list[Section]:
    """The sections of a ledger, by title. Rows without a profile hash are not comparable."""
    groups: dict[tuple, list] = {}
    for row in rows:
        if text_of(row, "profile_hash"):
            groups.setdefault((text_of(row, "profile_hash"), text_of(row, "device")), []).append(row)
    newest = {key: max(mine, key=age) for key, mine in groups.items()}
    titles = _told_apart({key: (workload_words(row), row) for key, row in newest.items()})
    found = []
    for key, mine in groups.items():
        target = ranking_target(mine)
        ids = {name: text_of(newest[key], name) for name in ("profile_hash", "dataset_id", "tokenizer_id")}
        found.append(Section(titles[key], target, rank(make_entries(mine, verdicts), target), ids))
    return sorted(found, key=lambda section: (section.title, section.ids["profile_hash"]))


def workload_words(row) -> str:
    """The profile in words: "smoke-cpu: depth 2, context 128, 40 steps of 1,024 tokens, on AMD EPYC"."""
    options = options_of(row)
    words = [f"depth {text_of(row, 'depth')}" if text_of(row, "depth") else "",
             f"context {text_of(row, 'max_seq_len')}" if text_of(row, "max_seq_len") else "", _length(row, options)]
    device = re.sub(r"^\w+: ", "", text_of(row, "device"))
    words = ", ".join(filter(None, [*words, f"on {device}" if device else ""]))
    return ": ".join(filter(None, [text_of(row, "profile") or "profile", words]))


def _length(row, options: dict) -> str:
    batch = as_number(row.get("total_batch_size"))
    steps = f"{text_of(row, 'num_iterations')} steps" if text_of(row, "num_iterations") else ""
    if options.get("wall_budget_sec", -1) > 0:
        return f"{options['wall_budget_sec']:g} s of training"
    if options.get("target_flops", -1) > 0:
        return f"{options['target_flops']:.3g} FLOPs"
    if options and options["num_iterations"] <= 0:
        return f"{options['target_param_data_ratio']:.4g} tokens per parameter"
    return f"{steps} of {batch:,.0f} tokens" if steps and batch else steps


def _told_apart(titled: dict) -> dict:
    """{key: title}: equal titles get the options of the workload in which they differ, else the hash of the profile."""
    found = {}
    for key, (title, row) in titled.items():
        same = [options_of(other) for words, other in titled.values() if words == title]
        mine = options_of(row)
        extra = [option_words(name, mine[name]) for name in with_role(FIELDS, "workload")
                 if name in mine and len({str(other.get(name)) for other in same}) > 1]
        found[key] = ", ".join([title, *extra])
    doubled = [key for key in found if list(found.values()).count(found[key]) > 1]
    return found | {key: f"{found[key]} ({key[0][:8]})" for key in doubled}
