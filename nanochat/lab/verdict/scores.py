"""
Refusals of val_bpb that the evaluator made, and not the model.

Example: a patch changes only the evaluation of its tree. Its training is the control's to the last bit, and its
val_bpb is lower. Nothing was learned better, so the pair shows nothing.
"""

import math

from nanochat.lab.runs import ROUNDING, RunSummary

OWN = "own"  # RunSummary.evaluator of a run that only its own tree has validated
SAME_TRAINING = 1e-9  # relative; a change of the model or of a rate moves the loss of the first steps by more


def refuse_scores(pairs: list[tuple[RunSummary, RunSummary]]):
    """Raise ValueError for a pair whose val_bpb does not compare. pairs: (control, candidate) of each seed."""
    for control, candidate in pairs:
        for run in (control, candidate):
            if run.fault:
                raise ValueError(f"{run.arm} on seed {run.seed}: {run.fault}")
        if (control.evaluator == OWN) != (candidate.evaluator == OWN):
            own = control if control.evaluator == OWN else candidate
            raise ValueError(f"{own.arm} on seed {own.seed} has the val_bpb of its own evaluator, and its pair that of "
                             "the control's: they do not compare; give the tree a model that loads and gives logits "
                             "(its log says what was missing)")
        if _trained_alike(control, candidate) and _differ(control.val_bpb, candidate.val_bpb, ROUNDING):
            raise ValueError(f"{candidate.arm} on seed {candidate.seed} trained exactly as the control (final train "
                             f"loss {candidate.final_train_loss:.9g} in both) and has another val_bpb "
                             f"({candidate.val_bpb:.6g}, control {control.val_bpb:.6g}): the evaluator made the "
                             "difference, not the training; compare a change that trains otherwise")


def _trained_alike(control: RunSummary, candidate: RunSummary) -> bool:
    a, b = control.final_train_loss, candidate.final_train_loss
    return a is not None and b is not None and control.steps == candidate.steps and not _differ(a, b, SAME_TRAINING)


def _differ(a: float | None, b: float | None, relative: float) -> bool:
    return None not in (a, b) and not math.isclose(a, b, rel_tol=relative)


def score_note(metric: str, pairs: list[tuple[RunSummary, RunSummary]]) -> str | None:
    """A note for the row of a gate: which of its numbers only the tree itself has measured."""
    runs = [run for pair in pairs for run in pair]
    if metric in ("val_bpb", "time_to_target") and any(run.evaluator == OWN for run in runs):
        return "own evaluator: only the trees themselves measured val_bpb"
    if metric == "time_to_target" and any(run.evaluator for run in runs):
        return "times are read off the tree's own validations; the control's evaluator scored only the last of them"
    return None
