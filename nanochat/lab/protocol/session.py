"""
One invocation of a protocol: its declaration, the cells that were run or reused so far, and the results file.

The results file is replaced after every cell, so a reboot costs at most one cell's work since its last checkpoint.
"""

import shlex

from nanochat.git import git_state
from nanochat.lab.arms import Cell, profile_changes
from nanochat.lab.commands import now
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.bank import banked_target, measure, with_target
from nanochat.lab.ledger.banked import banked_runs, borrower
from nanochat.lab.ledger.workload import why_other_profile
from nanochat.lab.profiles import threads_of_cell
from nanochat.lab.protocol.books import Books
from nanochat.lab.protocol.earlier import Earlier
from nanochat.lab.protocol.results import curve, delta_rows, means, summary_of
from nanochat.lab.protocol.runner import COMPLETE, Outcome, Runner
from nanochat.lab.report.result_file import Delta, Means, ResultFile, Settings
from nanochat.lab.runs import RunSummary
from nanochat.lab.trees.tree_arms import provenance
from nanochat.lab.verdict import gates
from nanochat.lab.verdict.declaration import Proposal, declare
from nanochat.lab.verdict.facts import Noise, Target
from nanochat.lab.verdict.time_to_target import crossing, crossing_step
from nanochat.record import read_metrics, record_dir


class Session:
    def __init__(self, protocol):
        self.protocol = protocol
        self.results = protocol.results
        self.runner = Runner(protocol.home, self.results.logs, protocol.trainer, protocol.timeout_sec, protocol.fresh,
                             threads_of_cell(protocol.jobs))
        self.executor = protocol.executor(self.runner)
        self.books = Books(protocol)
        self.notes: list[str] = []  # sentences that are to be said
        self.was_on = None  # dataset_id of the comparison that had this label
        self.earlier = self._read_earlier()
        self.runs: dict[tuple, RunSummary] = {}
        self.progress = None  # of the cells up to the look before
        inputs = protocol.inputs
        self.provenance = {**git_state(), "tree_hash": inputs.tree_hash, "patch_hash": None, "upstream_commit": None,
                           "dataset_id": inputs.dataset_id, "tokenizer_id": inputs.tokenizer_id,
                           **provenance(protocol.arms)}

    def _read_earlier(self) -> Earlier:
        """What was declared and run before. A damaged result file is set aside and named.

        Raises ValueError where that file may have held the label's only declaration.
        """
        protocol = self.protocol
        try:
            last = self.results.read_latest()
            self.was_on = last.provenance.get("dataset_id") if last else None
            return Earlier(protocol, last and last.declaration, last.runs if last else [])
        except ValueError as e:
            damage = str(e)
        earlier = Earlier(protocol, None, [])
        if protocol.arms[1:] and not earlier.mine:
            raise ValueError(f"{damage}. It may hold the declaration of label {protocol.name}, which is in no other "
                             "file: restore it, or move it away to begin the label anew")
        from_ledger = f"; the declaration is read from {earlier.path}" if earlier.mine else ""
        self.notes.append(f"{damage}. It is kept as {self.results.set_aside()}{from_ledger}, and complete runs are "
                          "taken over from their records")
        return earlier

    # -------------------------------------------------------------------------
    # Declaration

    def declare(self) -> list[str]:
        """Fix the declaration and write it. Returns the differences from the label's last declaration.

        An unchanged label with runs keeps its last declaration. protocol/earlier.py says what is refused otherwise.
        """
        p, plan = self.protocol, self.protocol.plan
        changes = {arm.name: profile_changes(p.arms[0], arm, plan.primary) for arm in p.arms[1:]}
        bank, target = self.read_bank()
        proposal = Proposal(p.label, p.profile.name, p.arms, p.seeds, plan.primary, plan.fallback, plan.min_gain,
                            plan.until_decided, plan.noise, target, shlex.join(p.workload.added_flags), plan.hypothesis)
        self.declaration, changed = self.earlier.settle(declare(proposal, changes, bank, now()))
        self.earlier.write(self.declaration)
        self.earlier.refuse_undeclared(p.cells)
        self.write()
        return changed

    def read_bank(self) -> tuple[Noise | None, Target | None]:
        """(noise that is banked for this profile on this machine, the target); None for either where there is none.

        Where no row lends, the noise has no metrics, and says why. The target is set by hand. Otherwise it is a value
        that every banked control run reached. The bank's times are times to that target.
        """
        p = self.protocol
        by_hand = p.plan.target_bpb is not None
        target = Target("val_bpb", p.plan.target_bpb, "by hand") if by_hand else None
        bank = p.bank or p.ledger
        if bank is None or p.arms[0].tree_id:  # the bank holds the noise of this repository, not of another tree
            return None, target
        rows, like = experiments.read_all(bank, profile_hash=p.profile_hash), self.like()
        runs, _ = banked_runs(rows, p.profile_hash, p.seeds, like)
        if not by_hand and len(runs) > 1 and p.plan.primary == "time_to_target":
            target = Target("val_bpb", banked_target(rows, p.profile_hash, p.seeds, like), "bank")
        if target:
            curves = {row["run_id"]: read_metrics(record_dir(p.home, row["run_id"]) / "metrics.jsonl") for row in runs}
            curves = {tag: lines for tag, lines in curves.items() if lines}
            rows = with_target(rows, curves, "val_bpb", target.threshold)
        return Noise.from_json(measure(rows, p.profile_hash, p.seeds, like)), target

    def bank_of_others(self) -> str | None:
        """Why the runs that are banked under this profile's name lend nothing here: they are of another workload, for
        example of other data. None where there are none, or where this workload has a bank."""
        p = self.protocol
        if p.plan.noise != "bank" or self.declaration.noise_source != "none" or not (p.bank or p.ledger):
            return None
        rows = [row for row in experiments.read(p.bank or p.ledger, label=experiments.NOISE)
                if row["profile"] == p.profile.name]
        others = [row for row in rows if row["profile_hash"] not in (None, p.profile_hash)]
        if not others or len(others) < len(rows):
            return None
        mine = {**self.like(), "profile_hash": p.profile_hash, "dataset_id": p.inputs.dataset_id,
                "tokenizer_id": p.inputs.tokenizer_id}
        return (f"the {len(others)} banked runs of {p.profile.name} do not count: they are of another workload "
                f"({'; '.join(why_other_profile(others[-1], mine))}); `make noise SEEDS=8` banks for this one")

    def like(self) -> dict:
        """The runs of this protocol as borrowers of a bank."""
        p, control = self.protocol, self.protocol.arms[0].config
        device = ": ".join(filter(None, (control.device_type or "cpu", p.machine)))
        return borrower(control, device, self.runner.threads, p.inputs.tree_hash)

    # -------------------------------------------------------------------------
    # Runs

    def reuse(self, cells: list[Cell]) -> list[Cell]:
        """Take over every cell whose run is complete. Returns the cells that are left to run, in order.

        A run that ended while no protocol watched it gets its rows here, also a failed one.
        """
        left = []
        for cell in cells:
            if not self.runner.is_running(cell) and (damage := self.runner.set_damaged_aside(cell)):
                self.notes.append(damage)
            ended = self.runner.ended(cell)
            if ended:
                run = self._run_that_ended(cell, ended)
                self.books.complete(run, ended.record, self._target())
            if self.runner.reusable(cell):
                self.runs[cell.arm.name, cell.seed] = run
            else:
                left.append(cell)
        return left

    def _run_that_ended(self, cell: Cell, ended: Outcome) -> RunSummary:
        known = (run for run in self.earlier.runs if (run.run_tag, run.config_hash) == (cell.tag, cell.config_hash))
        at = next(known, RunSummary()).timestamp if ended.status in COMPLETE else None
        at = at or self.books.timestamp(cell.tag, ended.record) or self.books.ended_at(cell.tag, ended.record)
        return self._run(cell, ended, self.earlier.declared_at(cell, ended.record.get("started_at")), at)

    def finish(self, cell: Cell, outcome: Outcome) -> RunSummary:
        """The run of a cell that has ended, after it was written to the history, the ledger and the results."""
        run = self.runs[cell.arm.name, cell.seed] = self._run(cell, outcome, self.declaration.declared_at, now())
        self.books.write(run, outcome.record, self._target())
        self.write()
        return run

    def _target(self) -> dict | None:
        return self.declaration.target and self.declaration.target.to_json()

    def _run(self, cell, outcome, declared_at, timestamp) -> RunSummary:
        """declared_at: date of the declaration under which it ran. timestamp: when it ended."""
        p, goal = self.protocol, self.declaration.target
        points = curve(p.home, cell.tag) if goal else []
        return summary_of(
            cell, outcome, label=p.label, recipe=p.profile.name, declared_at=declared_at, timestamp=timestamp,
            time_to_target_sec=crossing(points, goal.threshold) if points else None,
            steps_to_target=crossing_step(points, goal.threshold) if points else None)

    def ordered_runs(self) -> list[RunSummary]:
        cells = [(arm.name, seed) for seed in self.protocol.seeds for arm in self.protocol.arms]
        return [self.runs[cell] for cell in cells if cell in self.runs]

    # -------------------------------------------------------------------------
    # Files

    def settings(self) -> Settings:
        p, arms = self.protocol, [{"name": arm.name, "flags": arm.flags} for arm in self.protocol.arms]
        return Settings(p.label, p.profile.name, list(p.profile.flags), p.workload.machine_flags,
                        p.workload.common_flags, p.seeds, arms, str(p.home), p.timeout_sec, p.jobs, p.command())

    def facts(self) -> ResultFile:
        runs, names = self.ordered_runs(), [arm.name for arm in self.protocol.arms]
        seeds = [seed for seed in self.protocol.seeds if any(run.seed == seed for run in runs)]
        deltas = delta_rows(names, seeds, runs)
        return ResultFile(
            now(), self.settings(), runs, [Delta.from_json(row) for row in deltas],
            {name: Means.from_json(mean) for name, mean in means(names, deltas)["by_candidate"].items()},
            gates.judge(self.declaration, runs) if runs else [],
            self.declaration.noise or Noise(self.declaration.noise_source), self.provenance, self.declaration)

    def write(self) -> ResultFile:
        facts = self.facts()
        self.results.write(facts.to_json())
        return facts
