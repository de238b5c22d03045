"""
Labels with verdicts set by hand, and a stand-in for the commands of a cycle, for test_cycle.py.
"""

import shlex

from nanochat.common import write_json
from nanochat.config import parse
from nanochat.lab.cycle.walk import Cycle
from nanochat.lab.ledger import experiments
from nanochat.lab.profiles import PROFILES
from nanochat.lab.report.result_file import ResultFile, Settings
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict.facts import Declaration, DeclaredArm, GateRow, Verdict
from nanochat.options import to_argv

CPU = PROFILES["smoke-cpu"]


def gate(metric, role, lo, hi):
    return GateRow(metric, role, metric, lo=lo, hi=hi, mean=0.0, result="pass")


def entry(name, verdict, lo=None, n=5, **more) -> Verdict:
    floors = [gate(metric, "floor", -0.001, 0.001) for metric in ("final_train_loss", "val_bpb")]
    gates = [gate("wall_time", "primary", lo, 0.1), *floors]
    return Verdict(name, verdict, reason=f"because {verdict}", n=n, gates=gates, level=0.05, p=0.01, lo=lo, **more)


def facts(entries, flags="", label="x", primary="wall_time", arms=None) -> ResultFile:
    arms = arms or {e.candidate: f"--lr-multiplier=1.{i + 1}" for i, e in enumerate(entries)}
    declaration = Declaration(
        label=label, primary=primary, margin=0.0, alpha=0.05, looks=[5], seeds=[1, 2, 3, 4, 5],
        arms=[DeclaredArm(name, own) for name, own in ({"control": ""} | arms).items()])
    settings = Settings(profile=CPU.name, profile_flags=list(CPU.flags), common_flags=shlex.split(flags))
    runs = [RunSummary(arm="control", val_bpb=2.0), RunSummary(arm="control"), RunSummary(arm="a", val_bpb=1.0)]
    return ResultFile(settings=settings, declaration=declaration, verdicts=entries, runs=runs)


def noise_row(seed, *flags, **more):
    config = parse([*CPU.flags, f"--seed={seed}", *flags])
    own = {"label": "noise", "arm": "control", "status": "ok", "profile": CPU.name, "seed": seed,
           "command": shlex.join(["python", "-m", "scripts.base_train", *to_argv(config)])}
    return dict.fromkeys(experiments.schema()) | own | more


class Place:
    """Stands in for the commands of a walk: `outcomes` are the entries that a label gets when it is run."""

    def __init__(self, folder):
        self.folder, self.ledger, self.commands, self.codes = folder, folder / "ledger.csv", [], {}
        self.banks = (1, 2)  # seeds that `noise` leaves in the ledger
        self.outcomes = {
            "theory_slice": [entry("lr", "promote", 0.03), entry("wd", "reject")],
            "warmdown": [entry("w", "inconclusive")], "lr_wd": [entry("g", "promote", 0.01)],
            "horizon_r2": [entry("e", "reject")], "horizon_r4": [entry("e", "reject")],
            "shape": [entry("s", "inconclusive")], "batch": [entry("b", "inconclusive")],
            "miniseries_d2": [entry("bundle", "promote", 0.05)], "miniseries_d4": [entry("bundle", "promote", 0.04)]}
        self.arms = {"lr": "--lr-multiplier=1.1", "wd": "--wd-multiplier=0.9", "g": "--wd-multiplier=0.7",
                     "w": "--warmdown-ratio=0.3", "e": "--final-lr-frac=0.1", "s": "--depth=6",
                     "b": "--batch-multiplier=2"}

    def cycle(self, **more):
        return Cycle(**dict(label="c", profile=CPU, flags="", depths=[2, 4], ratios=["2", "4"], results_dir=self.folder,
                            ledger=self.ledger, noise_seeds=2) | more)

    def __call__(self, command, env=None):
        self.commands.append(name := self.name_of(command))
        if name == "noise":
            for seed in self.banks:
                experiments.append(self.ledger, noise_row(seed))
        elif name == "miniseries":
            arms = {"bundle": next(word.partition(": ")[2] for word in command if word.startswith("--candidate="))}
            for depth in (2, 4):
                self.write(f"miniseries_d{depth}", f"--depth={depth}", arms)
        else:
            for key in [key for key in self.outcomes if key == name or key.startswith(f"{name}_r")]:
                self.write(key, env["FLAGS"], {e.candidate: self.arms[e.candidate] for e in self.outcomes[key]})
        return self.codes.get(name, 0)

    def name_of(self, command):
        if command[1] == "-m":
            return command[2].partition(".")[2]
        return command[1].removeprefix("runs/").removesuffix(".sh")

    def write(self, name, flags, arms):
        made = facts(self.outcomes[name], flags, f"c_{name}", arms=arms)
        write_json(self.folder / f"c_{name}_latest.json", made.to_json())
