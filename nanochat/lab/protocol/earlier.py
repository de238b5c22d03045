"""
What was declared and seen before a protocol declares, and what it may therefore still declare.

Example: label a ran a candidate on seeds 1 and 2. Label b may run it on seeds 3 and 4, as its second label and at the
level of a second one. It may not run seeds 1 to 4: two of its four pairs would have been seen when it was declared.

The ledger of declarations is asked first, and the result file only where that ledger does not know the label. So
deleting or damaging a result file resets nothing. Neither does --fresh, which trains cells again and declares nothing.
"""

import shlex
from dataclasses import replace

from nanochat.config import profile_hash
from nanochat.lab.arms import CONTROL, Arm, Cell, cell_tag
from nanochat.lab.commands import now
from nanochat.lab.ledger import declarations, experiments
from nanochat.lab.ledger.declarations import Declared, Use
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict.declaration import declaration_changes, extends, label_level, loses_its_bank
from nanochat.lab.verdict.facts import Declaration
from nanochat.record import read_record


class DeclaredMeanwhile(ValueError):
    """Another process declared the label, or one of its candidates, between our reading and our writing."""


class Earlier:
    """The declarations and runs before this one. Without a ledger, or without candidates, only the result file's."""

    def __init__(self, protocol, stored: Declaration | None, runs: list[RunSummary]):
        """stored, runs: of the label's result file, None and [] where there is none."""
        self.protocol = protocol
        self.path = declarations.beside(protocol.ledger) if protocol.ledger and protocol.arms[1:] else None
        self.declared = declarations.read(self.path) if self.path else []
        self.mine = [d for d in self.declared if self._is_mine(d)]
        other = stored and self._is_of_another_profile(stored, runs)
        self.in_result_file, self.runs = (None, []) if other else (stored, runs)
        self.candidates = {arm.name: self._hash(arm) for arm in protocol.arms[1:]}

    def _is_mine(self, declared: Declared) -> bool:
        return (declared.label, declared.profile_hash) == (self.protocol.name, self.protocol.profile_hash)

    def _is_of_another_profile(self, stored: Declaration, runs: list[RunSummary]) -> bool:
        """True if a result file may be replaced, because its label is another comparison by now.

        The options behind the name of its profile have changed, or the flags of all arms where it could decide nothing.
        """
        p = self.protocol
        same_words = (stored.profile, stored.common_flags) == (p.profile.name, shlex.join(p.workload.added_flags))
        return (same_words or stored.noise_source == "none") and any(
            run.arm == CONTROL and run.profile_hash not in (None, p.profile_hash) for run in runs)

    def _profile_hash(self, arm: Arm) -> str:
        p = self.protocol
        return profile_hash(arm.config, arm.config.device_type or "cpu", p.inputs.dataset_id, p.inputs.tokenizer_id)

    def _hash(self, arm: Arm) -> str:
        return declarations.option_hash(arm.config, self._profile_hash(arm), arm.tree_id)

    def last(self) -> Declaration | None:
        """The label's declaration on this profile."""
        return self.mine[-1].declaration if self.mine else self.in_result_file

    def is_seen(self) -> bool:
        """True if a run of the label is known, whether or not its result file is still there."""
        p = self.protocol
        rows = experiments.read_all(p.ledger, profile_hash=p.profile_hash) if self.path else []
        return (bool(self.runs) or any(declarations.name_of(row["label"]) == p.name for row in rows)
                or any(self._has_begun(declared) for declared in self.mine))

    def _has_begun(self, declared: Declared) -> bool:
        """True if a run under a declaration has a record. One whose protocol was killed has no row in any file."""
        p = self.protocol
        label, depth, d = p.label, p.arms[0].config.depth, declared.declaration
        tags = [cell_tag(label, depth, arm.name, seed) for arm in d.arms for seed in d.seeds]
        try:
            records = [read_record(p.home, tag) or {} for tag in tags]
        except ValueError:  # it is damaged, so there was a run
            return True
        return any(record.get("profile_hash") == p.profile_hash
                   and (record.get("started_at") or "") >= declared.at for record in records)

    # -------------------------------------------------------------------------
    # Declaring

    def settle(self, new: Declaration) -> tuple[Declaration, list[str]]:
        """(the declaration that stands, its differences from the label's last one).

        new: the declaration as the plan has it, without the numbers and the level that its candidates have. Raises
        ValueError where it would be chosen after runs were seen.
        """
        p, old, seen = self.protocol, self.last(), self.is_seen()
        if old and seen and new.hypothesis is None:  # the reason stands, whether or not it is typed again
            new = replace(new, hypothesis=old.hypothesis)
        changed = declaration_changes(old, new) if old else []
        if old and seen and not changed:
            return old, []
        added = bool(old and seen and extends(old, new))
        lost = bool(old and seen and loses_its_bank(old, new, p.plan.noise))
        if old and seen and old.K and not (added or lost) and (
                old.noise_source != "none" or any(arm in new.arms for arm in old.candidates)):
            way_on = ("use another --label with new seeds, or the declaration it has" if p.label else
                      "give a comparison a --label of its own, because all without one share this name")
            raise ValueError(f"label {p.name} was declared otherwise and has been run ({'; '.join(changed)}): "
                             f"changing it now would be an undeclared look, and --fresh does not change that; {way_on}")
        self._refuse_clock(new)
        kept = (old.numbers or dict.fromkeys((arm.name for arm in old.candidates), 1)) if added else {}
        numbers = {name: self._number(name, new, replaces=name in kept or lost or bool(old and not seen))
                   for name in self.candidates} | kept
        if lost:
            numbers = {name: max(number, (old.numbers or {}).get(name, 1) + 1) for name, number in numbers.items()}
        level = label_level(max(numbers.values(), default=1), extended=added)
        if lost:
            changed.append(f"level: {old.alpha:g} -> {level:g}, because its runs were seen under a bank that is not "
                           "lent any more; `make noise SEEDS=8` banks anew, for a label of its own")
        if added:
            changed.append(f"level: {old.alpha:g} -> {level:g}, because its runs were seen before it could decide")
        new = replace(new, numbers=numbers, alpha=level)
        if old and replace(new, declared_at=old.declared_at) == old:  # its protocol was killed before the first run
            return old, []
        return new, changed

    def uses(self, name: str, replaces: bool) -> list[Use]:
        """The earlier labels of a candidate. replaces: nothing of this label was seen, so this label is left out."""
        p, arm = self.protocol, next(arm for arm in self.protocol.arms if arm.name == name)
        rows = experiments.read_all(p.ledger, profile_hash=self._profile_hash(arm)) if self.path else []
        found = declarations.uses_of(self.candidates[name], self.declared, rows)
        return [use for use in found if not (replaces and use.label == p.name)]

    def elsewhere(self, flags: str) -> list[str]:
        """The labels of arms with these flags under this profile's name, on other data or with other common flags.

        They are not counted with this workload's: another text asks another question, and has a level of its own.
        """
        p = self.protocol
        return list(dict.fromkeys(
            d.label for d in self.declared if d.declaration.profile == p.profile.name
            and d.profile_hash != p.profile_hash and flags in [arm.flags for arm in d.declaration.candidates]))

    def _number(self, name: str, new: Declaration, replaces: bool) -> int:
        """The candidate's number of this label. Raises ValueError for a seed on which the candidate was seen."""
        if self.protocol.plan.aa:
            return 1  # it is the control; a promotion would be a false one whatever its number
        uses = self.uses(name, replaces)
        for use in uses:
            if both := sorted(use.seeds & set(new.seeds)):
                seen = set().union(*(use.seeds for use in uses), new.seeds)
                fresh = " ".join(str(max(seen) + i) for i in range(1, len(new.seeds) + 1))
                where, way_on = f"label {use.label}", f", or go on with label {use.label} as it was declared"
                if self._came_with_the_project(use.label, name):
                    where, way_on = f"{where} (rows that came with the project, {experiments.REFERENCE})", ""
                elif use.label == self.protocol.name and self.last() is None:
                    way_on = f", or restore the row of label {use.label} in {self.path}, which is missing"
                raise ValueError(f"candidate {name} was declared or run on seeds {' '.join(map(str, both))} under "
                                 f"{where}: seeds that were seen cannot be declared again; give new ones "
                                 f"(--seeds {fresh}){way_on}")
        return 1 if new.hypothesis else declarations.number_of(uses)

    def _came_with_the_project(self, label: str, name: str) -> bool:
        """True where a label of a candidate is known from the project's rows and was not declared here."""
        arm = next(arm for arm in self.protocol.arms if arm.name == name)
        rows = experiments.read_all(self.protocol.ledger, profile_hash=self._profile_hash(arm))
        return label not in {d.label for d in self.declared} and any(
            experiments.from_reference(row) and declarations.name_of(row["label"]) == label for row in rows)

    def _refuse_clock(self, new: Declaration):
        """Raise ValueError where a declaration of this label, or of one of its candidates, has a later date."""
        ours = set(self.candidates.values())
        later = [d.at for d in self.declared
                 if (self._is_mine(d) or ours & set(d.candidates.values())) and d.at > new.declared_at]
        if later:
            raise ValueError(f"it is {new.declared_at} by the clock, and {self.path} has a declaration of "
                             f"{later[-1]}: a clock ran backwards; set it right, then start again")

    def write(self, declaration: Declaration):
        """Put the declaration into its ledger, where it is not there. Raises ValueError if another one came first."""
        p, known = self.protocol, [d.declaration for d in self.mine]
        if self.path is None or declaration in known:
            return
        row = Declared(p.name, p.profile_hash, self.candidates, declaration)

        def refuse(rows):
            ours, new = set(self.candidates.values()), rows[len(self.declared):]
            if len(rows) > len(self.declared) and any(
                    self._is_mine(d) or ours & set(d.candidates.values()) for d in rows if d not in self.declared):
                raise DeclaredMeanwhile(
                    f"label {p.name}, or one of its candidates, was declared by another process just now "
                    f"({len(new)} new rows in {self.path}); start again")
        declarations.append(self.path, row, refuse)
        self.declared, self.mine = [*self.declared, row], [*self.mine, row]

    # -------------------------------------------------------------------------
    # Runs

    def declared_at(self, cell: Cell, started_at: str | None) -> str | None:
        """UTC of the declaration under which a run of the cell began; None where it began before any that names it."""
        for run in self.runs:
            if (run.run_tag, run.config_hash) == (cell.tag, cell.config_hash) and run.declared_at:
                return run.declared_at
        before = [d.at for d in self.mine if d.names_cell(cell.arm.name, cell.seed)]
        stored = self.in_result_file
        if stored and cell.seed in stored.seeds and cell.arm.name in [arm.name for arm in stored.arms]:
            before.append(stored.declared_at or "")
        return max((at for at in before if "" < at <= (started_at or "")), default=None)

    def refuse_undeclared(self, cells: list[Cell]):
        """Raise ValueError for a cell that was run, or begun, before the label was declared: its numbers were seen."""
        for cell in cells if self.path else []:
            try:
                record = read_record(self.protocol.home, cell.tag) or {}
            except ValueError:  # it is damaged: the cell is trained anew, under the declaration
                continue
            if record.get("config_hash") != cell.config_hash:
                continue
            started = record.get("started_at")
            if self.declared_at(cell, started) is None or (started or "") > now():
                raise ValueError(f"{cell.title} began at {started}, and label {self.protocol.name} was declared at "
                                 f"{self.mine[-1].at}: a run that was seen cannot be declared afterwards, and --fresh "
                                 "does not change that; use another --label with new seeds")
