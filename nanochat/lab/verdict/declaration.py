"""
The declaration of a label: everything that its verdicts depend on, fixed and on disk before its first run.

    plan = Proposal("mix005", "smoke-cpu", arms, seeds=[1337, 2026])
    declaration = declare(plan, changes={}, noise=None, declared_at=now())

Floors and margins are those of ideas/plan.md, section 7.1. After the runs of a label were seen, the declaration stands:
`declaration_changes` lists the differences of another one. A declaration that could decide nothing may be extended
(`extends`), at half of its level.

A gain has to be worth a change of the control. So the lower bound of the primary gate has to clear TRIVIAL_SD standard
deviations of a control run, or the gain that was given with --min-gain. With a bank that margin is a number when the
label is declared. Without one it is a share of the spread of the differences, and a number only after the runs. Either
way p, interval and verdict are one event: the test is of "more than the margin".

A candidate may be tried again, under another label with other seeds. The levels of its labels add up to ALPHA.
"""

import math
from dataclasses import dataclass

from nanochat.lab.arms import Arm, horizons_differ, matched_budget
from nanochat.lab.verdict import looks as looks_module
from nanochat.lab.verdict.facts import Declaration, DeclaredArm, Floor, Noise, Target, bank_of
from nanochat.lab.verdict.lending import SPREAD_TEST
from nanochat.lab.verdict.stats import ALPHA, MIN_PAIRS_WITHOUT_BANK

# A floor passes when the lower bound of the gain lies above -margin; a primary gate when it lies above -margin too, so
# that a margin of -log 1.03 asks for three percent.
TRIVIAL_SD = 0.1
SPENT = 0.8  # share of what is left of ALPHA that a label spends; ideas/label_levels.csv compares it with other rules
PRIMARY = {"time_to_target": 0.0, "wall_time": -math.log(1.03), "val_bpb": 0.0}
FLOORS = {"final_train_loss": math.log(1.01), "val_bpb": 0.005, "tok_per_sec": -math.log(0.90)}


@dataclass(frozen=True)
class Proposal:
    """The request of a protocol, from which its declaration is made. Raises ValueError if it could decide nothing."""
    label: str
    profile: str  # its name
    arms: list[Arm]  # control first
    seeds: list[int]  # all that may be run
    primary: str = "val_bpb"  # one of PRIMARY
    fallback: str | None = None  # or "wall_time": decides where a candidate misses the target
    min_gain: float | None = None  # by hand: it has to be shown, and a candidate shown to have less is rejected
    until_decided: bool = False  # a look after each seed, from the first number of pairs that can decide
    source: str = "bank"  # or "own": the spread of the differences alone
    target: Target | None = None
    common_flags: str = ""  # of every arm, as one would type them
    hypothesis: str | None = None  # why the labels of its candidates are counted from 1 again

    def __post_init__(self):
        if self.primary not in PRIMARY or self.fallback not in (None, "wall_time"):
            raise ValueError(f"--primary={self.primary}: expected one of {', '.join(PRIMARY)}; "
                             "the only fallback is wall_time")
        if self.primary == "time_to_target" and not self.target:
            raise ValueError("--primary=time_to_target: no target; give --target-bpb, or bank control runs with "
                             "`make noise` first")
        if self.until_decided and len(self.seeds) > looks_module.MAX_SEEDS:
            raise ValueError(f"--max-seeds={len(self.seeds)}: expected at most {looks_module.MAX_SEEDS}")
        if self.horizons_differ and self.fallback:
            raise ValueError(f"--fallback={self.fallback}: arms of different lengths have different wall times by "
                             "design; leave it out")

    @property
    def horizons_differ(self) -> bool:
        """The length of a run is a treatment: the time to one target decides, and final losses are not compared."""
        return self.primary == "time_to_target" and horizons_differ(self.arms)

    @property
    def smallest_gain(self) -> float | None:
        return math.log(1.03) if self.min_gain is None and self.primary == "wall_time" else self.min_gain


def declare(plan: Proposal, changes: dict, noise: Noise | None, declared_at: str) -> Declaration:
    """The declaration of a plan. changes: {arm: profile options that it changes}. noise: what is banked, or None.

    Raises ValueError where the seeds do not reach the first look.
    """
    s_b, nu = bank_of(noise, plan.primary)
    banked, n, by_hand = nu > 0 and plan.source == "bank", len(plan.seeds), plan.min_gain is not None
    looks = looks_module.declared_looks(nu if banked else 0, n) if plan.until_decided else [n]
    source = "bank" if banked else "own" if looks[-1] >= MIN_PAIRS_WITHOUT_BANK else "none"
    min_gain = plan.smallest_gain
    shown = plan.min_gain if by_hand else TRIVIAL_SD * s_b if banked else 0.0  # the gain that has to be shown
    return Declaration(
        declared_at, plan.label, plan.profile, plan.primary, min(PRIMARY[plan.primary], 0.0 - shown), plan.fallback,
        _floors(plan), plan.target, alpha=ALPHA, min_gain=s_b if min_gain is None and banked else min_gain,
        seeds=list(plan.seeds), looks=looks, max_seeds=n, matched_budget=matched_budget(plan.arms[0].config),
        horizons_differ=plan.horizons_differ, K=len(plan.arms) - 1, noise=noise if banked else _reasons(noise, source),
        common_flags=plan.common_flags, spread_test=SPREAD_TEST, min_gain_by_hand=by_hand,
        margin_in_own_sd=None if by_hand else TRIVIAL_SD, noise_source=source, hypothesis=plan.hypothesis,
        arms=[DeclaredArm(arm.name, arm.flags, changes.get(arm.name, [])) for arm in plan.arms])


def _reasons(noise: Noise | None, source: str) -> Noise | None:
    """A noise without numbers, that says why no row of the bank is lent."""
    return Noise(source, left_out=noise.left_out) if noise and noise.left_out else None


def _floors(plan: Proposal) -> list[Floor]:
    """The floors of the plan, without those whose metric differs by design.

    A larger model does fewer tokens a second by design; runs of different lengths end at different losses by design.
    """
    by_design = {"tok_per_sec"} if matched_budget(plan.arms[0].config) else set()
    if plan.horizons_differ and not by_design:
        by_design = {"final_train_loss", "val_bpb"}
    return [Floor(metric, margin) for metric, margin in FLOORS.items() if metric not in {plan.primary, *by_design}]


# -----------------------------------------------------------------------------
# A label that was declared before, and a candidate that was

# They follow from the date, from the bank, and from what was declared before.
NOT_COMPARED = ("declared_at", "noise", "alpha", "numbers", "margin", "margin_in_own_sd")
MAY_GROW = ("seeds", "looks", "max_seeds", "noise_source", "K", "arms")


def declaration_changes(old: Declaration, new: Declaration) -> list[str]:
    """The differences from an earlier declaration of the label.

    The bank is not compared, because it may have grown. Neither are a target and a gain that were taken from it.
    What an older version declared by rules of its own is no difference: it is kept.
    """
    before, after = old.to_json(), new.to_json()
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in _changed_keys(old, new)]


def _changed_keys(old: Declaration, new: Declaration) -> list[str]:
    before, after = old.to_json(), new.to_json()
    same = set(NOT_COMPARED)
    if {new.noise_source, old.noise_source} == {"bank"} and not (old.min_gain_by_hand or new.min_gain_by_hand):
        same.add("min_gain")
    if None in (old.min_gain_by_hand, new.min_gain_by_hand):
        same.add("min_gain_by_hand")
    if old.target and new.target and old.target.source == new.target.source == "bank":
        same.add("target")
    if old.spread_test is None:
        same |= {"spread_test", *(["looks"] if old.looks == [2, *new.looks] else [])}
    return [key for key in dict.fromkeys([*after, *before])  # an older version had fewer keys
            if key not in same and (before.get(key) or None) != (after.get(key) or None)]


def extends(old: Declaration, new: Declaration) -> bool:
    """True if `old` could decide nothing, and `new` only adds to it: seeds, candidates, a bank.

    Anything that was left out, or put in another order, could have been chosen by the runs that were seen.
    """
    grow = {*MAY_GROW, *([] if old.min_gain_by_hand or new.min_gain_by_hand else ["min_gain"])}
    return (old.noise_source == "none" and grow.issuperset(_changed_keys(old, new))
            and new.seeds[:len(old.seeds)] == old.seeds and all(arm in new.arms for arm in old.arms))


def loses_its_bank(old: Declaration, new: Declaration, wanted: str) -> bool:
    """True if a label differs from its declaration by no more than a bank that is not lent any more.

    Example: the trainer was edited after the bank was made. wanted: the noise source that was asked for.
    """
    follows = {"noise_source", "min_gain", "looks"}
    return (old.noise_source == wanted == "bank" and new.noise_source in ("own", "none")
            and follows.issuperset(_changed_keys(old, new)))


def label_level(number: int, extended: bool = False) -> float:
    """The level of the number-th label of a candidate: SPENT of what the labels before it left of ALPHA.

    extended: the label was run before it could decide. Its runs were seen when seeds or a bank were added, which is a
    second choice; half of the level pays for both.

    >>> [label_level(number) for number in (1, 2, 3)], label_level(1, extended=True)
    ([0.04, 0.008, 0.0016], 0.02)
    """
    level = ALPHA * SPENT * (1 - SPENT) ** (number - 1) * (0.5 if extended else 1)
    return float(f"{level:.12g}")  # 0.04, and not 0.04000000000000001
