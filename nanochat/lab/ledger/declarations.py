"""
The ledger of declarations: a row for each declaration, on disk before the first run of its label. Rows are appended
and never changed.

    path = beside(LEDGER)  # dev/ledger/declarations.csv, in the folder of experiments.csv
    append(path, Declared("mix005", profile_hash, {"gate": option_hash(...)}, declaration))
    earlier = uses_of(option_hash(...), read(path), rows_of_experiments)

A result file may be deleted, and its label declared anew after its runs were seen. This ledger remembers the first
declaration. A row is a whole declaration and not a candidate, so that a torn line never leaves half of one behind. The
candidates of a row, their hashes and their numbers are lists in the same order.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.common import hash_json
from nanochat.config import FIELDS, TrainConfig
from nanochat.lab.arms import CONTROL
from nanochat.lab.csv_file import append_rows, check_header, read_rows, read_schema
from nanochat.lab.ledger.experiments import NOISE
from nanochat.lab.ledger.workload import options_of
from nanochat.lab.verdict.facts import Declaration
from nanochat.options import hashed, tagged

UNLABELLED = "protocol"  # the name of a protocol without a label


@dataclass(frozen=True)
class Declared:
    """A row: a declaration, and what its candidates are."""
    label: str
    profile_hash: str  # of the control
    candidates: dict[str, str]  # {name: option_hash}
    declaration: Declaration

    @property
    def at(self) -> str:
        """UTC."""
        return self.declaration.declared_at

    def names_cell(self, arm: str, seed: int) -> bool:
        return (arm == CONTROL or arm in self.candidates) and seed in self.declaration.seeds


@dataclass(frozen=True)
class Use:
    """A label under which a candidate was declared, or run, before."""
    label: str
    at: str  # UTC, of its first declaration or run
    seeds: frozenset[int] = field(default_factory=frozenset)
    new_hypothesis: bool = False  # the count of its labels begins here
    number: int = 1  # of this label, by its last declaration


def beside(ledger) -> Path:
    """The ledger of declarations that belongs to a ledger of experiments: in the same folder."""
    return Path(ledger).with_name("declarations.csv")


def schema() -> list[str]:
    return read_schema("declaration")


# -----------------------------------------------------------------------------
# Rows

def append(path, declared: Declared, refuse=None):
    """Append a row; when this returns, it is on disk. refuse: called with all rows, under the lock; it may raise."""
    d = declared.declaration
    text = json.dumps(d.to_json(), sort_keys=True, allow_nan=False)
    numbers = d.numbers or {}
    row = {"declared_at": d.declared_at, "label": declared.label, "profile": d.profile,
           "profile_hash": declared.profile_hash, "candidates": " ".join(declared.candidates),
           "option_hashes": " ".join(declared.candidates.values()),
           "label_numbers": " ".join(str(numbers.get(name, "")) for name in declared.candidates),
           "seeds": " ".join(map(str, d.seeds)), "level": d.alpha,
           "hypothesis": " ".join((d.hypothesis or "").split()) or None,
           "declaration_hash": hash_json(json.loads(text)), "declaration": text}
    append_rows(path, schema(), [row], refuse and (lambda rows: refuse(_typed(path, rows))))


def read(path) -> list[Declared]:
    """All rows, by their dates. Raises ValueError for another header, and for a row that was changed or damaged."""
    check_header(path, schema())
    return _typed(path, read_rows(path))


def _typed(path, rows: list[dict]) -> list[Declared]:
    return sorted((_declared(path, i, row) for i, row in enumerate(rows, start=1)), key=lambda declared: declared.at)


def _declared(path, number: int, row: dict) -> Declared:
    try:
        stored = json.loads(row["declaration"])
        if hash_json(stored) != row["declaration_hash"]:
            raise ValueError("it is not the declaration of its hash")
        declaration = Declaration.from_json(stored)
        names, hashes = row["candidates"].split(), row["option_hashes"].split()
        if len(names) != len(hashes) or not declaration.declared_at:
            raise ValueError(f"{len(names)} candidates with {len(hashes)} hashes, at {declaration.declared_at}")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as e:
        raise ValueError(f"{path}, row {number} (label {row.get('label')}) was damaged or edited ({e}): rows are never "
                         "changed; restore the file from a copy") from e
    return Declared(row["label"], row["profile_hash"], dict(zip(names, hashes)), declaration)


# -----------------------------------------------------------------------------
# Candidates

def option_hash(config: TrainConfig, profile_hash: str, tree: str | None = None) -> str:
    """What a candidate is, whatever its name, its label and its seed: its options, its workload, and its code.

    tree: identity of the other code that it runs; None for this repository, whose changes make no other candidate.
    Numbers count to three digits: a rate of 0.03000001 is no other candidate than 0.03.
    """
    of_a_cell = tagged(FIELDS, "cell")
    options = {name: float(f"{value:.3g}") if isinstance(value, float) else value
               for name, value in hashed(config, "treatment").items() if name not in of_a_cell}
    return hash_json({"options": options, "profile": profile_hash, "tree": tree})


def hash_of_row(row: dict) -> str | None:
    """option_hash of the run that made a row of the ledger of experiments; None where it ran a patch, or its command
    cannot be read."""
    options = options_of(row)
    if row["patch_hash"] or not options:
        return None
    try:
        return option_hash(TrainConfig(**options), row["profile_hash"])
    except (ValueError, TypeError):
        return None


def name_of(label: str | None) -> str:
    return label or UNLABELLED


def uses_of(candidate: str, declared: list[Declared], experiments: list[dict]) -> list[Use]:
    """The labels of a candidate, oldest first. candidate: its option_hash. experiments: rows of that ledger.

    A declared seed counts as seen, whether or not it was run: its run may be under way.
    """
    found = [Use(d.label, d.at, frozenset(d.declaration.seeds), bool(d.declaration.hypothesis),
                 (d.declaration.numbers or {}).get(name, 1))
             for d in declared for name, its_hash in d.candidates.items() if its_hash == candidate]
    found += [Use(name_of(row["label"]), row["timestamp"] or "", frozenset([row["seed"]])) for row in experiments
              if row["label"] != NOISE and row["arm"] != CONTROL and hash_of_row(row) == candidate]
    by_label: dict[str, Use] = {}
    for use in sorted(found, key=lambda use: use.at):
        first = by_label.get(use.label, use)
        by_label[use.label] = Use(use.label, first.at, first.seeds | use.seeds,
                                  first.new_hypothesis or use.new_hypothesis, max(first.number, use.number))
    return list(by_label.values())


def number_of(uses: list[Use]) -> int:
    """The number of a candidate's next label, counted from its last new hypothesis.

    A label that was declared twice over the same runs has used two numbers.

    >>> number_of([Use("a", "1"), Use("b", "2", new_hypothesis=True), Use("c", "3")])
    3
    """
    begins = max((i for i, use in enumerate(uses) if use.new_hypothesis), default=0)
    counted = uses[begins:]
    return max([len(counted), *(use.number for use in counted)]) + 1
