"""
Walk the phases of a cycle as far as the gates allow.

Example: the theory slice of cycle1 promotes --symplectic-gate. Every arm of the sweeps that follow has this flag, the
control too. So each step is tested against the best so far. The miniseries then tests all promoted flags together
against the baseline.

Finished steps are known from result files and the ledger, never from log text. The other steps are run by the templates
in runs/. A template itself skips the cells that are complete.
"""

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.common import read_json, to_paste, write_json
from nanochat.config import FIELDS
from nanochat.lab import own_data
from nanochat.lab.arms import CONTROL, parse_arm
from nanochat.lab.commands import EXIT_FAILED_CELL, module_command, now, paste, shown
from nanochat.lab.cycle import miniseries
from nanochat.lab.cycle.rules import (
    PHASES,
    CycleRecord,
    Past,
    Status,
    Step,
    Winner,
    banked_seeds,
    common_winner,
    flags_of,
    label_status,
    reentry,
    relative_gain,
)
from nanochat.lab.ledger import experiments
from nanochat.lab.profiles import Profile
from nanochat.lab.report.index import write_index
from nanochat.lab.report.result_check import read_judged
from nanochat.lab.report.result_file import ResultFile, path_of

FUSION_FLAGS = ("fused_rmsnorm", "chunked_ce")
NEXT = ("make the accepted flags the default (nanochat/config.py), results checked",
        "write the entry: python -m scripts.gates --log-entry --label={label}", "make leaderboard")


class Stop(Exception):
    """The walk ends here. decided: True if finished runs decided it, False if runs are missing."""

    def __init__(self, why: str, decided: bool = False):
        super().__init__(why)
        self.decided = decided


@dataclass
class Cycle:
    label: str
    profile: Profile
    flags: str  # of every arm, from the start
    depths: list[int]
    ratios: list[str]
    results_dir: Path
    ledger: Path
    noise_seeds: int
    dry_run: bool = False
    home: Path | None = None  # base dir of the cells: results on other data than these count for nothing
    accepted: list[str] = field(default_factory=list)  # flags that the labels so far have promoted
    phases: list[Step] = field(default_factory=list)
    improvement: float = 0.0
    promoted: bool = False

    def base(self) -> str:
        return " ".join([self.flags, *self.accepted]).strip()

    @property
    def workload(self) -> str:
        return self.profile.name + (f" on data {self.profile.data}" if self.profile.data else "")

    def where(self) -> list[str]:
        """The options that name the workload, for every command of the walk."""
        return [f"--profile={self.profile.name}", *([f"--data={self.profile.data}"] if self.profile.data else [])]

    @property
    def dataset_id(self) -> str | None:
        return own_data.dataset_id(self.home) if self.home else None

    def results(self, label: str) -> ResultFile | None:
        """The results of a label. None if no file can be read, or an edited one, or one on other data: the label then
        has to be run."""
        try:
            found = read_judged(path_of(label, self.results_dir))
        except (OSError, ValueError):
            return None
        other = {self.dataset_id, found.provenance.get("dataset_id")} - {None}
        return found if len(other) < 2 else None

    def note(self, phase: int, what: str, state: str, why: str, say):
        self.phases.append(Step(phase, what, state, why))
        say(to_paste(f"phase {phase}, {what}: {state}{': ' + why if why else ''}"))


def walk(cycle: Cycle, call, say=print) -> CycleRecord:
    """Run the open steps, phase by phase; writes and returns results/<label>_cycle.json.

    call(command, env) -> exit code.
    """
    stopped, decided = None, True
    phases = dict(enumerate((_noise, _slice, _sweeps, _shape_and_fusion, _miniseries, _promotion)))
    try:
        for now_in in phases:
            phases[now_in](cycle, call, say)
    except Stop as e:
        stopped, decided = f"phase {now_in}, {PHASES[now_in]}: {e}", e.decided
        say(to_paste(f"stopped in {stopped}"))
    record = CycleRecord(cycle.label, now(), cycle.profile.name, cycle.flags, cycle.accepted, cycle.phases, stopped,
                         decided and not cycle.dry_run, cycle.improvement, cycle.promoted)
    if not cycle.dry_run:
        write_json(cycle.results_dir / f"{cycle.label}_cycle.json", record.to_json())
        write_index(cycle.results_dir)
    return record


def read_cycles(folder) -> list[CycleRecord]:
    """Every cycle that has been walked here, oldest first."""
    return sorted(map(_read_cycle, Path(folder).glob("*_cycle.json")), key=lambda cycle: cycle.timestamp or "")


def _read_cycle(path: Path) -> CycleRecord:
    facts = read_json(path)
    try:
        return CycleRecord.from_json(facts)
    except (ValueError, TypeError, AttributeError) as e:
        raise ValueError(f"{path} is no record of a cycle ({e}); move it away") from e


# -----------------------------------------------------------------------------
# Steps

def _run(cycle, call, say, command, env=None):
    """Run a public command. A failed cell does not end the walk, because the gates judge it; any other failure does."""
    say(f"  $ {paste(command, env)}")
    if cycle.dry_run:
        return
    code = call(command, env)
    if code not in (0, EXIT_FAILED_CELL):
        raise Stop(f"{shown(command, env)} ended with exit code {code}")


def _template(cycle, call, say, phase: int, name: str, labels: list[str], **env) -> list[Status]:
    """The statuses of a template's labels. The template is run first if any of the labels is not finished."""
    flags = cycle.base()
    statuses = [label_status(cycle.results(label), flags) for label in labels]
    if not all(status.finished for status in statuses):
        command = ["bash", f"runs/{name}.sh"]
        env = {"LABEL": f"{cycle.label}_{name}", "PROFILE": cycle.profile.name, "FLAGS": flags, **env}
        env |= {"DATA": cycle.profile.data} if cycle.profile.data else {}
        _run(cycle, call, say, command, env)
        statuses = [label_status(cycle.results(label), flags) for label in labels]
    for label, status in zip(labels, statuses):
        cycle.note(phase, label, "done" if status.finished else "open", status.why, say)
        if not status.finished and not cycle.dry_run:
            raise Stop(f"{label} has no verdict yet ({status.why})")
    return statuses


def _accept(cycle: Cycle, label: str, winner: Winner, say):
    """Add a winner's flags to the accepted ones, unless the same flags were rejected before on the same seeds."""
    results = cycle.results(label)
    refusals = reentry(_earlier(cycle, label), label, winner.flags, results.declaration.seeds)
    if refusals:
        say(f"  not carried on: {'; '.join(refusals)}")
        return
    cycle.accepted.append(winner.flags)
    cycle.improvement = max(cycle.improvement, relative_gain(results, winner.found))


def _earlier(cycle: Cycle, label: str) -> list[Past]:
    """The verdicts of the other labels in the results folder, each with its flags and seeds."""
    files = [read_judged(path) for path in sorted(cycle.results_dir.glob("*_latest.json"))]
    others = [results for results in files if results.declaration and results.declaration.label != label]
    return [Past(results.declaration.label, flags_of(results, found.candidate), results.declaration.seeds,
                 found.verdict) for results in others for found in results.verdicts]


# -----------------------------------------------------------------------------
# Phases

def _noise(cycle, call, say):
    def banked():
        rows = experiments.read(cycle.ledger, label=experiments.NOISE)
        return len(banked_seeds(rows, cycle.profile, cycle.flags, cycle.dataset_id))
    if banked() < cycle.noise_seeds:
        words = ["--run", f"--seeds={cycle.noise_seeds}", *cycle.where(), f"--ledger={cycle.ledger}"]
        words += [f"--flags={cycle.flags}"] if cycle.flags else []
        _run(cycle, call, say, module_command("scripts.noise", *words))
    done = banked() >= cycle.noise_seeds
    why = f"{banked()} of {cycle.noise_seeds} control runs in {cycle.ledger}"
    cycle.note(0, PHASES[0], "done" if done else "open", why, say)
    if not done and not cycle.dry_run:
        raise Stop(f"{banked()} control runs are banked, expected {cycle.noise_seeds}: see `make noise`")


def _slice(cycle, call, say):
    label = f"{cycle.label}_theory_slice"
    status, = _template(cycle, call, say, 1, "theory_slice", [label])
    if status.winner:
        _accept(cycle, label, status.winner, say)
    if not cycle.accepted and not cycle.dry_run:
        raise Stop("no arm of the theory slice may be carried on, so there is no winner to sweep around", decided=True)


def _sweeps(cycle, call, say):
    for name in ("warmdown", "batch", "lr_wd", "horizon"):
        config = parse_arm(CONTROL, "", [*cycle.profile.flags, *shlex.split(cycle.base())]).config
        if name == "batch" and (refusal := _batch_refusal(cycle, config.batch_multiplier)):
            cycle.note(2, f"{cycle.label}_batch", "skipped", refusal, say)
            continue
        lengths = [f"_r{ratio}" for ratio in cycle.ratios] if name == "horizon" else [""]
        labels = [f"{cycle.label}_{name}{length}" for length in lengths]
        statuses = _template(cycle, call, say, 2, name, labels, BATCH=f"{config.batch_multiplier:g}",
                             LR=f"{config.lr_multiplier:g}", WD=f"{config.wd_multiplier:g}",
                             RATIOS=" ".join(cycle.ratios))
        best = None if cycle.dry_run else common_winner(statuses, [cycle.results(label) for label in labels])
        if best:
            _accept(cycle, labels[0], best, say)


def _batch_refusal(cycle, centre: float) -> str | None:
    """Why the batch sweep is left out; None where it can be run.

    On a small profile 0.7 x the batch may round to the batch itself, and such an arm is refused.
    """
    common = [*cycle.profile.flags, *shlex.split(cycle.base())]
    try:
        for factor in (1.0, 0.7, 1.4):
            parse_arm("batch", f"--batch-multiplier={factor * centre:g}", common)
    except ValueError as e:
        return str(e)
    return None


def _shape_and_fusion(cycle, call, say):
    label = f"{cycle.label}_shape"
    status, = _template(cycle, call, say, 3, "shape", [label])
    if status.winner:
        say("  a shape is not carried on: it is a profile of its own, so begin a cycle on it")
    missing = [name for name in FUSION_FLAGS if name not in FIELDS]
    if missing:
        cycle.note(3, f"{cycle.label}_fusion", "skipped", f"the trainer has no {', '.join(missing)} yet", say)
        return
    label = f"{cycle.label}_fusion"
    status, = _template(cycle, call, say, 3, "fusion", [label])
    if status.winner:
        _accept(cycle, label, status.winner, say)


def _miniseries(cycle, call, say):
    label, depths = f"{cycle.label}_miniseries", cycle.depths
    words = [f"--label={label}", "--depths", *depths, *cycle.where(), f"--noise-seeds={cycle.noise_seeds}"]
    words += [f"--flags={cycle.flags}"] if cycle.flags else []
    if not all(_is_finished(cycle, miniseries.label_of(label, depth)) for depth in depths):
        candidate = " ".join(cycle.accepted) or "(what is accepted)"
        _run(cycle, call, say, module_command("scripts.miniseries", *words, f"--candidate=bundle: {candidate}"))
    if cycle.dry_run:
        return cycle.note(4, PHASES[4], "open", "", say)
    try:
        results = miniseries.read_depths(cycle.results_dir, label, depths)
        verdict, = miniseries.judge(results)
    except ValueError as e:
        raise Stop(str(e)) from e
    cycle.note(4, PHASES[4], "done", f"{verdict.verdict}: {verdict.reason}", say)
    cycle.improvement = min(relative_gain(results[d.depth], d.found) for d in verdict.depths)
    cycle.promoted = verdict.verdict == "promote"
    if not cycle.promoted:
        raise Stop(f"the miniseries says {verdict.verdict}: {verdict.reason}", decided=True)


def _is_finished(cycle, label) -> bool:
    """True if the label has a verdict on exactly the flags that are accepted now."""
    results = cycle.results(label)
    return label_status(results).finished and results.declaration.arms[1].flags == " ".join(cycle.accepted)


def _promotion(cycle, call, say):
    todo = "; ".join(NEXT).format(label=miniseries.label_of(f"{cycle.label}_miniseries", cycle.depths[-1]))
    passed = f"{' '.join(cycle.accepted)} passed" if cycle.accepted else "once a bundle has passed"
    cycle.note(5, PHASES[5], "open", f"{passed}: {todo}", say)
