"""
The entries of a leaderboard: runs with the same options, whatever their arm was called and at whatever commit they ran.

Example: gate015 ran on seeds 1 to 4 at two commits. It is one entry with four runs, because of a seed that ran twice
the later run counts. Code of another tree, or with a patch, makes an entry of its own.
"""

import math
import shlex
from dataclasses import dataclass
from statistics import mean

from nanochat.config import FIELDS, TrainConfig
from nanochat.lab.arms import CONTROL
from nanochat.lab.ledger.banked import SAME_VALUE
from nanochat.lab.ledger.workload import OF_A_CELL, options_of
from nanochat.lab.trees.marks import marks_of_row
from nanochat.options import flag, said_once, tagged

OF_ONE_RUN = ("--seed", *map(flag, tagged(FIELDS, "name")))  # options by which the runs of an entry differ
TIME, BPB, SPEED = "time_to_target_sec_measured", "val_bpb", "tok_per_sec_median"
SAYS_OF_THE_ARM = ("ok", "diverged")  # other endings say something of the machine
MOST_WORDS = 4  # options in the name of an entry


@dataclass
class Entry:
    arm: str
    runs: list[dict]  # the last row of each seed, by seed
    other_names: tuple[str, ...] = ()  # further names under which these options ran
    commits: tuple[str, ...] = ()  # of all its rows, oldest first; a + has uncommitted changes
    moved: tuple[str, ...] = ()  # seeds that ended elsewhere at another commit
    verdict: str = ""
    changes: tuple[str, ...] = ()  # options in which it differs from the control

    @property
    def ok(self):
        return [run for run in self.runs if run["status"] == "ok"]

    @property
    def name(self) -> str:
        """The arm and its options: "warmdown: warmdown-ratio 0.4, warmdown-shape cosine"."""
        more = len(self.changes) - MOST_WORDS
        words = [*self.changes[:MOST_WORDS], *([f"{more} more"] if more > 0 else [])]
        return ": ".join(filter(None, [self.arm, ", ".join(words)]))

    def values(self, key):
        """The numbers of the runs that ended ok and have a value."""
        return [value for value in (as_number(run.get(key)) for run in self.ok) if value is not None]

    def time(self, target) -> float | None:
        """Mean measured seconds, where all runs reached `target`."""
        spoken = [run for run in self.runs if run["status"] in SAYS_OF_THE_ARM]
        times = self.values(TIME)
        reached = spoken and len(times) == len(spoken) and all(target_of(run) == target for run in spoken)
        return mean(times) if reached else None

    @property
    def diverged(self) -> bool:
        return any(run["status"] == "diverged" for run in self.runs)


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


def age(row) -> tuple:
    return text_of(row, "timestamp"), text_of(row, "run_id")


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


def treatment(row) -> dict:
    """The options of a row that an entry's runs share; {} where this version cannot read its command."""
    found = options_of({"command": shared_command(text_of(row, "command"))})
    return {name: value for name, value in said_once(TrainConfig, found).items() if name not in OF_A_CELL}


def _kind(row) -> tuple:
    """Rows of one kind are one entry. Where a command cannot be read, its arm and its words are what is known of it."""
    options = treatment(row)
    what = tuple(options.items()) or (text_of(row, "arm"), shared_command(text_of(row, "command")))
    return what, text_of(row, "patch_hash"), marks_of_row(row)


def make_entries(rows: list[dict], verdicts: dict | None = None) -> list[Entry]:
    """The entries among the rows of a section. verdicts: {(label, arm, config_hash): verdict}."""
    groups: dict[tuple, list] = {}
    for row in sorted(rows, key=age):
        groups.setdefault(_kind(row), []).append(row)
    base = _base([*groups.values()])
    return [_entry(mine, verdicts or {}, base) for mine in groups.values()]


def _base(groups: list[list[dict]]) -> dict:
    """Options that a name need not say: those of the control, or without a control those that all entries share."""
    for mine in groups:
        if CONTROL in {row["arm"] for row in mine}:
            return treatment(mine[-1])
    first, *others = [*filter(None, (treatment(mine[-1]) for mine in groups))] or [{}]
    return {name: value if all(other.get(name) == value for other in others) else None for name, value in first.items()}


def _entry(rows: list[dict], verdicts: dict, base: dict) -> Entry:
    """rows: of one kind, oldest first."""
    runs: dict[str, dict] = {}
    for row in rows:
        seed = text_of(row, "seed")
        if row["status"] in SAYS_OF_THE_ARM or runs.get(seed, row)["status"] not in SAYS_OF_THE_ARM:
            runs[seed] = row
    seeds = sorted(runs, key=lambda seed: (len(seed), seed))
    names = list(dict.fromkeys(text_of(row, "arm") for row in reversed(rows)))
    name = CONTROL if CONTROL in names else names[0]
    judged = [] if name == CONTROL else rows  # an A/A candidate has the control's options, and its verdict is a test's
    found = {verdicts.get((text_of(row, "label"), text_of(row, "arm"), text_of(row, "config_hash"))) for row in judged}
    commits = dict.fromkeys(text_of(row, "git_commit")[:7] + "+" * is_true(row, "dirty") for row in rows)
    moved = [seed for seed in seeds if _moved([row for row in rows if text_of(row, "seed") == seed])]
    options = treatment(rows[-1])
    changes = [option_words(key, value) for key, value in options.items()
               if base.get(key, value) != value and key not in tagged(FIELDS, "machine")]
    return Entry(name, [runs[seed] for seed in seeds], tuple(other for other in names if other != name),
                 tuple(filter(None, commits)), tuple(moved), ", ".join(sorted(found - {None})), tuple(changes))


def is_true(row, key) -> bool:
    return text_of(row, key).lower() in ("true", "1")


def _moved(rows: list[dict]) -> bool:
    """True where one seed ended at two values of val_bpb: the code, or what it runs on, has changed the numbers."""
    values = [value for row in rows if row["status"] == "ok" and (value := as_number(row.get(BPB))) is not None]
    return bool(values) and not math.isclose(min(values), max(values), rel_tol=SAME_VALUE)


def option_words(name: str, value) -> str:
    """
    >>> option_words("warmdown_ratio", 0.4), option_words("symplectic_gate", True), option_words("compile", False)
    ('warmdown-ratio 0.4', 'symplectic-gate', 'no-compile')
    """
    word = flag(name).lstrip("-")
    if isinstance(value, bool):
        return "no-" * (not value) + word
    return f"{word} {value:g}" if isinstance(value, float) else f"{word} {value}"


def verdicts_of(files) -> dict:
    """{(label, arm, config_hash): verdict} of result files, with the hypothesis of a label that counts anew."""
    found = {}
    for results in files:
        why = results.declaration.hypothesis if results.declaration else None
        by_arm = {verdict.candidate: verdict.verdict + (f" (new hypothesis: {why})" if why else "")
                  for verdict in results.verdicts if verdict.verdict}
        found |= {(results.settings.label, run.arm, run.config_hash): by_arm[run.arm]
                  for run in results.runs if run.arm in by_arm}
    return found
