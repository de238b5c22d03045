"""
The declaration of a label and its verdicts, with a name and a type for each value.

    declaration = Declaration.from_json(entry)  # of results/<label>_latest.json
    declaration.looks  # [5]: numbers of pairs at which the label may be judged

to_json gives the keys of a result file in the order in which files have them. from_json leaves out the keys that it
does not know. A missing key is None, because older versions wrote fewer keys.
"""

from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import get_type_hints

from nanochat.lab.arms import CONTROL
from nanochat.lab.typed import fits, shown


class Stored:
    """A dataclass that is stored as one JSON object of its fields."""

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, entry: dict):
        """Raises ValueError for an entry that is no object, lacks a part, or has a value of another type."""
        if not isinstance(entry, dict):
            raise ValueError(f"{cls.__name__}: {entry!r} is stored, expected an object; run its protocol again")
        hints = get_type_hints(cls)
        for f in fields(cls):
            left_out = f.default if f.default_factory is MISSING else None  # an older file may say null for it
            if f.name in entry and (entry[f.name] is not None or left_out is MISSING) \
                    and not fits(entry[f.name], hints[f.name]):
                raise ValueError(f"{cls.__name__}: {f.name} is {repr(entry[f.name])[:100]}, expected "
                                 f"{shown(hints[f.name])}: no protocol wrote that; run its protocol again")
        try:
            given = {f.name: entry[f.name] for f in fields(cls) if f.name in entry
                     and (entry[f.name] is not None or f.default_factory is MISSING)}
            return cls(**given | cls._read(entry))
        except TypeError as e:  # a field without a default is missing
            raise ValueError(f"{cls.__name__}: {e}; run its protocol again") from e

    @classmethod
    def _read(cls, entry: dict) -> dict:
        """The fields whose values are not the stored ones: where a value is an object of its own, it is made here."""
        return {}


def read_list(kind, entries) -> list:
    """A list of objects. A missing list, or null, gives an empty list."""
    return [kind.from_json(entry) for entry in entries or []]


def read_one(kind, entry):
    """An object. A missing object, or null, gives None."""
    return None if entry is None else kind.from_json(entry)


# -----------------------------------------------------------------------------
# The noise of the bank

@dataclass(frozen=True)
class MetricNoise(Stored):
    """The spread of one metric over the banked control runs; of a ratio it is that of its natural logarithm."""
    s_b: float  # standard deviation of one run
    nu: int  # its degrees of freedom
    lo: float | None = None  # 90 % interval of the standard deviation
    hi: float | None = None
    n: int | None = None  # runs
    median: float | None = None  # in the unit of the metric


@dataclass(frozen=True)
class Correlation(Stored):
    """Of control and candidate on one seed, in earlier protocols. lo: its lower bound."""
    r: float
    n: int
    lo: float


@dataclass(frozen=True)
class Noise(Stored):
    """The noise that is banked for a profile; ledger/bank.py measures it. Without a bank there are no metrics."""
    source: str | None = None  # bank | own | none
    profile_hash: str | None = None  # None without a bank
    metrics: dict[str, MetricNoise] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # reasons, one for each run or metric
    correlation: dict[str, Correlation] = field(default_factory=dict)  # {metric: ...}
    threads: int | None = None  # of each banked run; None where they do not matter, and in files older than the key
    from_reference: int | None = None  # banked runs that came with the project; None where there is none

    def to_json(self) -> dict:
        entry = {key: value for key, value in asdict(self).items()
                 if key not in ("threads", "from_reference") or value is not None}
        return entry if self.profile_hash else {key: entry[key] for key in ("source", "metrics", "left_out")}

    @classmethod
    def _read(cls, entry):
        def by_metric(kind, entries):
            return {metric: kind.from_json(values) for metric, values in (entries or {}).items()}
        return {"metrics": by_metric(MetricNoise, entry.get("metrics")), "left_out": entry.get("left_out") or [],
                "correlation": by_metric(Correlation, entry.get("correlation"))}


def bank_of(noise: Noise | None, metric: str) -> tuple[float | None, int]:
    """(s_B, nu) of a metric; (None, 0) where nothing is banked."""
    entry = noise.metrics.get(metric) if noise else None
    return (entry.s_b, entry.nu) if entry else (None, 0)


# -----------------------------------------------------------------------------
# The declaration

@dataclass(frozen=True)
class Floor(Stored):
    """A limit on the price of a candidate: the lower bound of its gain in `metric` has to lie above -margin."""
    metric: str
    margin: float


@dataclass(frozen=True)
class Target(Stored):
    """The value that a run has to reach, in a label where the time to reach it decides."""
    metric: str
    threshold: float
    source: str | None = None  # by hand, or the bank


@dataclass(frozen=True)
class DeclaredArm(Stored):
    name: str
    flags: str  # options that it adds to the control; a tree or patches where the arm is another checkout
    profile_changes: list[str] = field(default_factory=list)  # options by which its runs are another workload


# Keys that the first files did not have. Without a value they are left out, so that an old file stays as it is.
LATER_KEYS = ("horizons_differ", "spread_test", "margin_in_own_sd", "min_gain_by_hand", "numbers", "hypothesis")


@dataclass(frozen=True)
class Declaration(Stored):
    """The rules of a label's verdicts, fixed before its first run; verdict/declaration.py makes it."""
    declared_at: str | None = None  # UTC
    label: str | None = None
    profile: str | None = None  # its name
    primary: str | None = None  # the metric that decides
    margin: float | None = None  # of the primary gate
    fallback: str | None = None  # the metric that decides where a candidate misses the target
    floors: list[Floor] = field(default_factory=list)
    target: Target | None = None
    alpha: float | None = None  # for the whole label
    min_gain: float | None = None  # the smallest gain worth having, in the unit of the primary metric
    seeds: list[int] = field(default_factory=list)  # all that may be run, in order
    looks: list[int] = field(default_factory=list)  # numbers of pairs at which it may be judged
    max_seeds: int | None = None
    matched_budget: str | None = None  # the option that ends every run, whatever its shape
    horizons_differ: bool | None = None  # the arms are of different lengths; None in files that are older than the key
    K: int | None = None  # candidates
    noise_source: str | None = None  # bank | own | none
    noise: Noise | None = None  # the bank as it was at the declaration
    arms: list[DeclaredArm] = field(default_factory=list)  # control first
    common_flags: str | None = None  # of every arm, as one would type them
    # Quantile of the F test that refuses a bank (lending.py). None in files that are older than this test; they are
    # judged as they were declared: every bank is lent, and futility reads the primary gate alone.
    spread_test: float | None = None
    margin_in_own_sd: float | None = None  # primary margin in sd of a run, where no bank is lent; None: by hand
    min_gain_by_hand: bool | None = None  # True: given with --min-gain; None in files that are older than the key
    numbers: dict[str, int] | None = None  # {candidate: 3 if this is its third label}
    hypothesis: str | None = None  # the reason given for counting the labels from 1 again

    @property
    def candidates(self) -> list[DeclaredArm]:
        return [arm for arm in self.arms if arm.name != CONTROL]

    def to_json(self) -> dict:
        entry = asdict(self) | {"noise": self.noise and self.noise.to_json()}
        return {key: value for key, value in entry.items() if value is not None or key not in LATER_KEYS}

    @classmethod
    def _read(cls, entry):
        return {"primary": entry.get("primary", entry.get("primary_metric")),  # its name in the first files
                "floors": read_list(Floor, entry.get("floors")), "arms": read_list(DeclaredArm, entry.get("arms")),
                "target": read_one(Target, entry.get("target")), "noise": read_one(Noise, entry.get("noise"))}


# -----------------------------------------------------------------------------
# The verdict

# Keys of a gate in the order in which files have them. A gate that was missed has no numbers; the count of diverged
# runs is a gate without a test.
_OF_A_GATE = ("gate", "role", "metric", "unit", "threshold", "threshold_in_sd", "section", "note", "n")
_NUMBERS = ("mean", "mean_in_sd", "lo", "hi", "level", "p")
_TESTED = (*_OF_A_GATE, "noise_source", "result", *_NUMBERS)
_MISSED = (*_OF_A_GATE, "result", *_NUMBERS, "noise_source")
_COUNTED = ("gate", "role", "metric", "unit", "n", "result", "section", "note", *_NUMBERS, "threshold",
            "threshold_in_sd", "noise_source")


@dataclass(frozen=True)
class GateRow(Stored):
    """A gate of a verdict, as a row of its table. _in_sd: in standard deviations of one control run."""
    gate: str  # its name
    role: str  # primary | floor | count
    metric: str
    unit: str | None = None
    threshold: float | None = None  # the margin: lo has to lie above -threshold
    threshold_in_sd: float | None = None
    section: str | None = None  # a heading of ideas/plan.md
    note: str | None = None
    n: int | None = None  # pairs
    noise_source: str | None = None
    result: str | None = None  # pass | fail | cannot tell
    mean: float | None = None  # gain, positive where the candidate is better
    mean_in_sd: float | None = None
    lo: float | None = None  # bounds of the gain at `level` each; None where there is none
    hi: float | None = None
    level: float | None = None
    p: float | None = None

    def to_json(self) -> dict:
        keys = _COUNTED if self.role == "count" else _MISSED if self.mean is None else _TESTED
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True)
class TimeBySteps(Stored):
    """Time to target as steps x step time: logarithms of control / candidate, means over n pairs."""
    mean: float
    lo: float
    hi: float
    level: float
    n: int
    steps: float  # the part of the steps in the mean
    step_time: float


@dataclass(frozen=True)
class Verdict(Stored):
    """The verdict on one candidate. The fields after noise_source are None where no test was made."""
    candidate: str
    verdict: str | None = None  # promote | optional | inconclusive | reject; None: these runs can give none
    text: str | None = None  # the verdict, and whether it has a bank to lean on
    reason: str | None = None
    metric: str | None = None  # the declared primary one
    K: int | None = None  # candidates of the label
    n: int = 0  # pairs it was judged on
    gates: list[GateRow] = field(default_factory=list)  # primary first
    noise_source: str | None = None
    level: float | None = None  # it passed at, or was last judged at
    chance_at_max: float | None = None  # to pass at the last look; None where there is one look
    by_steps: TimeBySteps | None = None
    mean_gain: float | None = None  # from here on of the primary gate
    se: float | None = None  # standard error of the gain
    df: int | None = None
    p: float | None = None
    lo: float | None = None  # bounds of the gain at `level` each
    hi: float | None = None
    hi_at_alpha: float | None = None  # the upper bound at the level of the whole label
    smallest_gain: float | None = None  # that n seeds show with 80 % power
    min_gain: float | None = None  # the declared one
    seeds_needed: int | None = None  # to show it
    sign_flip_p: float | None = None  # beside p; decides nothing

    def to_json(self) -> dict:
        """The entry of a result file. Where no test was made it ends before `by_steps`.

        Where the gates were not reached either, it ends before `level`.
        """
        entry = asdict(self) | {"gates": [gate.to_json() for gate in self.gates]}
        names = list(entry)
        if self.p is None:
            names = names[:names.index("by_steps" if self.level is not None else "level")]
        return {name: entry[name] for name in names}

    @classmethod
    def _read(cls, entry):
        return {"gates": read_list(GateRow, entry.get("gates")),
                "by_steps": read_one(TimeBySteps, entry.get("by_steps"))}
