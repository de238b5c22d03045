"""
results/<label>_latest.json with a name and a type for each of its parts: a protocol writes it after every cell, and
reports, the cycle and the leaderboard read it.

    results = read_results("results/mix005_latest.json")
    results.verdicts[0].lo  # lower bound of the first candidate's gain, or None
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nanochat.common import read_json
from nanochat.lab.commands import RESULTS_DIR
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict.facts import Declaration, Noise, Stored, Verdict, read_list, read_one


@dataclass(frozen=True)
class Settings(Stored):
    """The settings with which the protocol was called."""
    label: str = ""
    profile: str | None = None  # its name
    profile_flags: list[str] = field(default_factory=list)  # of every arm: the options of the profile
    machine_flags: list[str] = field(default_factory=list)  # of every arm: chosen for the machine
    common_flags: list[str] = field(default_factory=list)  # of every arm: given on the command line
    seeds: list[int] = field(default_factory=list)
    arms: list[dict] = field(default_factory=list)  # {"name", "flags"} of each, as given
    base_dir: str | None = None
    timeout_sec: float | None = None
    jobs: int | None = None
    command: str | None = None  # the public command that means this protocol


@dataclass(frozen=True)
class Delta(Stored):
    """Candidate minus control on one seed; None where either of them has no value."""
    seed: int
    candidate_minus_control_bpb: float | None = None
    candidate_minus_control_duration_sec: float | None = None
    candidate_speed_ratio: float | None = None
    candidate: str | None = None
    note: str | None = None  # why a value is missing


@dataclass(frozen=True)
class Means(Stored):
    """Means of a candidate's deltas, over as many pairs as have a value."""
    mean_candidate_minus_control_bpb: float | None = None
    pairs: int = 0
    mean_candidate_speed_ratio: float | None = None
    timed_pairs: int = 0


@dataclass(frozen=True)
class ResultFile(Stored):
    timestamp: str | None = None  # UTC, when it was written
    settings: Settings = Settings()
    runs: list[RunSummary] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    by_candidate: dict[str, Means] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    noise: Noise = Noise()
    provenance: dict = field(default_factory=dict)  # {fact about code or data: its value}, shown as it is
    declaration: Declaration | None = None  # None in a file that no protocol wrote

    def to_json(self) -> dict:
        """The file as JSON. Two means are also at its top level: those of the only candidate, or null with several."""
        only = next(iter(self.by_candidate.values())) if len(self.by_candidate) == 1 else Means()
        return {
            "timestamp": self.timestamp, "settings": asdict(self.settings),
            "runs": [run.to_json() for run in self.runs], "deltas": [delta.to_json() for delta in self.deltas],
            "mean_candidate_minus_control_bpb": only.mean_candidate_minus_control_bpb,
            "mean_candidate_speed_ratio": only.mean_candidate_speed_ratio,
            "by_candidate": {name: means.to_json() for name, means in self.by_candidate.items()},
            "verdicts": [verdict.to_json() for verdict in self.verdicts], "noise": self.noise.to_json(),
            "provenance": self.provenance, "declaration": self.declaration and self.declaration.to_json()}

    @classmethod
    def _read(cls, entry):
        means = (entry.get("by_candidate") or {}).items()
        return {"settings": Settings.from_json(entry.get("settings") or {}),
                "runs": read_list(RunSummary, entry.get("runs")), "deltas": read_list(Delta, entry.get("deltas")),
                "by_candidate": {name: Means.from_json(mean) for name, mean in means},
                "verdicts": read_list(Verdict, entry.get("verdicts")),
                "noise": Noise.from_json(entry.get("noise") or {}), "provenance": entry.get("provenance") or {},
                "declaration": read_one(Declaration, entry.get("declaration"))}


def path_of(label: str, folder=RESULTS_DIR) -> Path:
    return Path(folder) / f"{label}_latest.json"


def read_results(path: str | os.PathLike) -> ResultFile:
    """The parts of a result file. Raises OSError if it cannot be read; ValueError, which names it, if it is none."""
    facts = read_json(path)
    try:
        return ResultFile.from_json(facts)
    except ValueError as e:  # a value of another type
        raise ValueError(f"{path}: {str(e).removeprefix('runs[]: ')}") from e
    except (AttributeError, TypeError) as e:
        raise ValueError(f"{path} is no result file ({e}); run its protocol again") from e
