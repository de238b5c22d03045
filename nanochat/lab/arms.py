"""
Arms and cells: the runs of a comparison, fixed and checked before anything is trained.

An arm is a name and its options. The control is the profile itself; a candidate adds flags to it. A cell is one arm at
one seed, which is one run of the trainer. It has its own tag, and a hash of everything that it is computed from.
"""

import re
import shlex
from dataclasses import asdict, dataclass, replace

from nanochat.checks import MOST_LAYERS, MOST_LETTERS, cut
from nanochat.common import WINDOWS
from nanochat.config import FIELDS, TrainConfig, config_hash, hashed_options, read_config
from nanochat.options import flag, hyphenate, tagged, to_argv, with_role

CONTROL = "control"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
WINDOWS_PATH = re.compile(r"(?:^|[\s='\"])[A-Za-z]:\\")
MOST_SEED = 10 ** 18  # torch takes seeds below 2^63, and --aa adds a million
LENGTH = tagged(FIELDS, "horizon", "batch_law")
HOW_RESOLVED = ("horizon", "batch_multiplier", "ref_tokens")  # the way to a value, not the value that is run


@dataclass(frozen=True)
class Arm:
    name: str
    flags: str  # options that it adds to the control; empty for the control
    config: TrainConfig
    tree_id = None  # identity of the code it runs; None = this repository as it is (others: lab/trees/tree_arms.py)

    @property
    def argument(self) -> str | None:
        """The word that names the arm on the command line of scripts.protocol; None for the control."""
        return None if self.name == CONTROL else f"--candidate={self.name}: {self.flags}"

    def is_complete(self, record: dict, cell: "Cell") -> bool:
        """Whether a record that ended under the cell's hash has all that a run of this arm leaves."""
        return True

    def command(self, cell: "Cell", runner, resume: bool) -> list[str]:
        return [*runner.trainer, *to_argv(replace(cell.config, resume=resume))]


@dataclass(frozen=True)
class Inputs:
    """The inputs of a cell besides its options."""
    dataset_id: str
    tokenizer_id: str
    tree_hash: str  # of this repository's code; an arm on another tree has its own


@dataclass(frozen=True)
class Cell:
    arm: Arm
    seed: int
    config: TrainConfig
    tag: str  # run id and model tag
    config_hash: str
    dataset_id: str
    tokenizer_id: str

    @property
    def title(self) -> str:
        return f"{self.arm.name} s{self.seed}"


def split_candidate(text: str, default_name: str) -> tuple[str, str]:
    """
    >>> split_candidate("mix005: --symplectic-gate", "candidate")
    ('mix005', '--symplectic-gate')
    >>> split_candidate("--symplectic-gate", "candidate")
    ('candidate', '--symplectic-gate')
    """
    name, colon, flags = text.partition(":")
    if colon and not name.strip().startswith("-"):
        return name.strip(), flags.strip()
    return default_name, text.strip()


def split_flags(what: str, text: str) -> list[str]:
    r"""The words of `text`, with quotes as in a shell. The backslashes of a Windows path are no escapes.

    >>> split_flags("arm", r"tree=C:\Users\me\nanochat --run='a b'")
    ['tree=C:\\Users\\me\\nanochat', '--run=a b']
    """
    words = shlex.shlex(text, posix=True, punctuation_chars=False)
    words.whitespace_split, words.commenters = True, ""
    if WINDOWS or WINDOWS_PATH.search(text):
        words.escape = ""
    try:
        return list(words)
    except ValueError as e:
        raise ValueError(f"{what}: cannot read {text!r}: {e}") from e


def parse_arm(name: str, flags: str, common: list[str]) -> Arm:
    """The trainer's own parser; its ValueError names the arm."""
    if not NAME.fullmatch(name):
        raise ValueError(f"arm {name!r}: expected a name of letters, digits, '.', '_' and '-', as in "
                         "--candidate='mix005: --flags'")
    words = split_flags(f"arm {name}", flags)
    reserved = set(map(flag, tagged(FIELDS, "cell")))
    for word in hyphenate([*common, *words]):
        if word.partition("=")[0] in reserved:
            raise ValueError(f"arm {name}: {word} is set by the protocol for each cell; seeds go into --seeds")
        if word in ("-h", "--help"):
            raise ValueError(f"arm {name}: not a training option among {flags}")
    try:
        return Arm(name, shlex.join(words), read_config([*common, *words]))
    except ValueError as e:
        raise ValueError(f"arm {name}: {e}") from e


def make_arms(candidates: list[str], common: list[str]) -> list[Arm]:
    """Control first. candidates: "[NAME:] FLAGS" each; unnamed ones are candidate, candidate2, ..."""
    arms, unnamed = [parse_arm(CONTROL, "", common)], 0
    for text in candidates:
        default_name = "candidate" if unnamed == 0 else f"candidate{unnamed + 1}"
        name, flags = split_candidate(text, default_name)
        unnamed += name == default_name
        if name in [arm.name for arm in arms]:
            raise ValueError(f"arm {name}: the name is taken; every candidate needs its own, as in "
                             "--candidate='NAME: FLAGS'")
        arms.append(parse_arm(name, flags, common))
    return arms


def require_label(label: str):
    """Raise ValueError for a label that cannot begin the names of files: each step adds a suffix to it."""
    if not NAME.fullmatch(label) or len(label) > MOST_LETTERS // 2:
        raise ValueError(f"--label={cut(label)}: expected at most {MOST_LETTERS // 2} letters, digits, '.', '_' and "
                         "'-'; it names files")


def parse_seeds(words) -> list[int]:
    """
    >>> parse_seeds(["1337 2026", "3,4"])
    [1337, 2026, 3, 4]
    """
    words = " ".join(words or []).replace(",", " ").split()
    if not words:
        raise ValueError("no seeds: expected at least one whole number, as in --seeds 1337 2026")
    bad = [word for word in words if not re.fullmatch(r"\d+", word)]
    if bad:
        raise ValueError(f"--seeds: {cut(bad[0])!r} is not a whole number, 0 or more")
    if too_large := [word for word in words if len(word) > len(str(MOST_SEED)) or int(word) > MOST_SEED]:
        raise ValueError(f"--seeds: {cut(too_large[0])} is too large, expected at most {MOST_SEED:,}")
    seeds = [int(word) for word in words]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds {' '.join(words)}: a repeated seed is the same run again, not another sample")
    return seeds


def parse_depths(words) -> list[int]:
    """
    >>> parse_depths(["2 4", "8"])
    [2, 4, 8]
    """
    given = cut(" ".join(words))
    try:
        depths = parse_seeds(words)  # whole numbers, no repeats
    except ValueError as e:
        raise ValueError(f"--depths {given}: expected different whole numbers, as in --depths 2 4 ({e})") from e
    if not 1 <= min(depths) <= max(depths) <= MOST_LAYERS:
        raise ValueError(f"--depths {given}: a model has at least one layer, and at most {MOST_LAYERS:,}")
    return depths


def matched_budget(config: TrainConfig) -> str | None:
    """The budget that ends a run whatever its shape: seconds of training, or FLOPs.

    None for a run that ends after a number of steps, or of tokens per parameter. A run ends by its steps if they are
    done before the budget is spent. Each record says which of the two ended it, in `results.bound`.
    """
    if config.wall_budget_sec > 0:
        return f"--wall-budget-sec={config.wall_budget_sec:g}"
    if config.num_iterations == -1 and config.target_flops > 0:
        return f"--target-flops={config.target_flops:g}"
    return None


def profile_changes(control: Arm, arm: Arm, primary: str = "val_bpb") -> list[str]:
    """Profile options in which `arm` differs from the control: its runs are another workload.

    Some options may differ without making another workload. Under one matched budget the shape of the model may,
    because the budget contains its cost. Where the time to one declared target decides, the length of the run may,
    because the time contains its cost.
    """
    budgets = {matched_budget(control.config), matched_budget(arm.config)}
    matched = len(budgets) == 1 and None not in budgets
    free = tagged(FIELDS, "shape") if matched else LENGTH if primary == "time_to_target" else ()
    old, new = vars(control.config), vars(arm.config)
    return [f"{flag(name)} {old[name]} -> {new[name]}" for name in with_role(FIELDS, "workload")
            if name not in free and old[name] != new[name]]


def horizons_differ(arms: list[Arm]) -> bool:
    return len({tuple(getattr(arm.config, name) for name in LENGTH) for arm in arms}) > 1


def same_options(arms: list[Arm]) -> list[tuple[str, str]]:
    """Pairs of arm names whose options are equal (A/A): legitimate, but worth saying."""
    return [(a.name, b.name) for i, a in enumerate(arms) for b in arms[i + 1:]
            if (asdict(a.config), a.tree_id) == (asdict(b.config), b.tree_id)]


def refuse_equal(arms: list[Arm]):
    """Raise ValueError for an arm that would be the same run as an earlier one: its options say what the other has by
    default, or change no number of a run. It would burn hours, and its verdict would be one on nothing."""
    for i, arm in enumerate(arms):
        for other in arms[:i]:
            if same_run(arm, other):
                same = f"{arm.flags} changes nothing" if arm.flags else "it has no flags"
                raise ValueError(f"arm {arm.name}: {same}, so it is the same run as {other.name}; give it another "
                                 "value, or leave it out. AA=1 compares the control with itself")


def without_the_control(arms: list[Arm], say=print) -> list[Arm]:
    """The arms of a grid, without candidates that are the control itself: around a winner, one point of a grid is."""
    control, *candidates = arms
    for arm in (arm for arm in candidates if same_run(arm, control)):
        say(f"left out: {arm.name} ({arm.flags or 'no flags'}) is the control itself")
    left = [arm for arm in candidates if not same_run(arm, control)]
    if not left:
        raise ValueError("no candidate differs from the control, so nothing was run")
    return [control, *left]


def same_run(a: Arm, b: Arm) -> bool:
    """Whether two arms train to the same numbers, because all options that can change a number are equal."""
    return (hashed_options(a.config), a.tree_id) == (hashed_options(b.config), b.tree_id)


def refuse_rounded(arms: list[Arm], resolved: list[dict]):
    """Raise ValueError for an arm whose options differ from an earlier arm's and resolve to the same run.

    Example: a batch of 0.99 x the default may round to the default. The arm would be the control under another name,
    and its verdict would mean nothing. resolved: asdict(cost.resolve(...)) of each arm. Arms with equal options (A/A)
    are allowed.
    """
    seen, told = [], tagged(FIELDS, "resolved")
    for arm, facts in zip(arms, resolved):
        options = {name: value for name, value in hashed_options(arm.config).items() if name not in told}
        run = options, {name: value for name, value in facts.items() if name not in HOW_RESOLVED}
        for other, its_run in seen:
            if its_run == run and hashed_options(other.config) != hashed_options(arm.config):
                raise ValueError(f"arm {arm.name}: {arm.flags or 'no flags'} resolves to the run of {other.name}; "
                                 "expected another batch, rate, decay or length: choose values that survive the "
                                 "rounding, or leave the arm out")
        seen.append((arm, run))


def cell_tag(label: str, depth: int, arm: str, seed: int) -> str:
    """
    >>> cell_tag("mix005", 4, "gate", 1337), cell_tag("", 4, "control", 1)
    ('nc_mix005_d4_gate_s1337', 'nc_d4_control_s1')
    """
    return "_".join(["nc", *([label] if label else []), f"d{depth}", arm, f"s{seed}"])


def make_cells(arms: list[Arm], seeds: list[int], label: str, inputs: Inputs, aa_offset: int = 0) -> list[Cell]:
    """The cells, seed by seed. Arms take turns to go first, so that a drift of the machine hits all of them.

    Two arms, three seeds: control a | a control | control a. aa_offset: added to the seeds that candidates train with,
    so that candidates with the control's options are other draws of the same noise.
    """
    cells, ids = [], (inputs.dataset_id, inputs.tokenizer_id)
    for i, seed in enumerate(seeds):
        for arm in arms[i % len(arms):] + arms[:i % len(arms)]:
            tag = cell_tag(label, arm.config.depth, arm.name, seed)
            config = replace(arm.config, seed=seed + (aa_offset if arm is not arms[0] else 0), model_tag=tag)
            hashed = config_hash(config, *ids, arm.tree_id or inputs.tree_hash)
            cells.append(Cell(arm, seed, config, tag, hashed, *ids))
    return cells
