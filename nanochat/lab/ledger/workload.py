"""
The workload of a row of the ledger, read from its exact command.

Rows of different profiles are never compared. A message that refuses to compare two rows names their differences,
such as "--depth 4 -> 12".
"""

import shlex
from functools import lru_cache

from nanochat.config import FIELDS, TrainConfig
from nanochat.options import flag, hyphenate, known_options, said_once, tagged, with_role
from nanochat.stage import BASE

# Options that are set for each cell, or that do not change the numbers of a run.
OF_A_CELL = (*tagged(FIELDS, "cell"), *with_role(FIELDS, "run"))


def words_of(row: dict) -> list[str]:
    """The options of a row's command; [] where it has none.

    >>> words_of({"command": "python -m scripts.base_train --depth=4 --no_compile"})
    ['--depth=4', '--no-compile']
    """
    words = shlex.split(row["command"] or "")
    return hyphenate(words[words.index(BASE.command) + 1:]) if BASE.command in words else []


def options_of(row: dict) -> dict:
    """Every option of the run that made `row`; {} where its command cannot be read by this version."""
    return dict(_options(tuple(words_of(row))))


@lru_cache(maxsize=1024)  # a bank is read once for each metric
def _options(words: tuple[str, ...]) -> dict:
    try:
        return known_options(TrainConfig, list(words)) if words else {}
    except ValueError:
        return {}


def option_differences(a: dict, b: dict, names=None) -> list[str]:
    """["--depth 4 -> 12", ...] between two rows, over `names` (default: every option that can change the numbers)."""
    old, new = (said_once(TrainConfig, options_of(row)) for row in (a, b))
    if not (old and new):
        old, new = ({name: row[name] for name in tagged(FIELDS, "ledger_row")} for row in (a, b))
    names = [name for name in FIELDS if name not in OF_A_CELL] if names is None else names
    return [f"{flag(name)} {old[name]} -> {new[name]}" for name in names
            if old.get(name) != new.get(name) and name in old and name in new]


def why_other_profile(a: dict, b: dict) -> list[str]:
    """Differences between the profiles of two rows: kind of device, dataset, tokenizer, options of the workload.

    [] where both rows have the same profile.
    """
    if a["profile_hash"] == b["profile_hash"] is not None:
        return []
    kinds = [(row["device"] or "unknown").split(":")[0] for row in (a, b)]
    found = [f"device {kinds[0]} -> {kinds[1]}"] if kinds[0] != kinds[1] else []
    found += [f"{name.removesuffix('_id')} {_short(a[name])} -> {_short(b[name])}"
              for name in ("dataset_id", "tokenizer_id") if a[name] != b[name]]
    found += option_differences(a, b, with_role(FIELDS, "workload"))
    return found or ["the rows do not say: their profile hashes are of other versions of the options"]


def _short(value) -> str:
    return (value or "unknown")[:8]
