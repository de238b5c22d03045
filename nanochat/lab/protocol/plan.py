"""
The choices about a protocol that are made before its first run: the rules of judgement, and the workload.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.lab.profiles import Profile


@dataclass(frozen=True)
class Plan:
    """The rules of judgement, which become the declaration. Raises ValueError for a min_gain that is no gain."""
    primary: str = "val_bpb"  # the metric that decides
    fallback: str | None = None  # judged where a candidate misses the target
    min_gain: float | None = None  # in the unit of the primary metric; the smallest gain worth having, to be shown
    target_bpb: float | None = None  # None: from the bank
    noise: str = "bank"  # or "own": the differences alone
    until_decided: bool = False  # seeds are added at the declared looks
    aa: bool = False  # every candidate is the control on other seeds
    hypothesis: str | None = None  # what is new about candidates that earlier labels tried: their count restarts

    def __post_init__(self):
        if self.min_gain is not None and not (math.isfinite(self.min_gain) and self.min_gain > 0):
            raise ValueError(f"--min-gain={self.min_gain}: expected bits per byte above 0")
        if self.hypothesis is not None and not self.hypothesis.strip():
            raise ValueError("--new-hypothesis is empty: expected what is new about the candidates, in a sentence")

    def words(self, max_seeds: int) -> list[str]:
        """The options of scripts.protocol that mean this plan.

        >>> Plan(min_gain=0.002, until_decided=True).words(max_seeds=12)
        ['--min-gain=0.002', '--until=decided', '--max-seeds=12']
        """
        words = [f"--min-gain={self.min_gain:g}"] if self.min_gain else []
        words += [f"--primary={self.primary}"] if self.primary != "val_bpb" else []
        words += [f"--fallback={self.fallback}"] if self.fallback else []
        words += [f"--target-bpb={self.target_bpb:g}"] if self.target_bpb is not None else []
        words += [f"--noise={self.noise}"] if self.noise != "bank" else []
        words += ["--until=decided", f"--max-seeds={max_seeds}"] if self.until_decided else []
        words += ["--aa"] if self.aa else []
        words += [f"--new-hypothesis={self.hypothesis}"] if self.hypothesis else []
        return words


@dataclass(frozen=True)
class Workload:
    """The workload of all arms: a profile, with the flags that this machine and the user add to it."""
    profile: Profile
    home: Path  # base dir of the cells
    machine_flags: list[str] = field(default_factory=list)  # as profiles.machine_flags chose them
    common_flags: list[str] = field(default_factory=list)  # as the user gave them
    why: str = ""  # this profile, where nobody named it

    @property
    def flags(self) -> list[str]:
        return [*self.profile.flags, *self.added_flags]

    @property
    def added_flags(self) -> list[str]:
        return [*self.machine_flags, *self.common_flags]
