"""
Differences in val_bpb that the evaluator made: refused by name, in the verdict.

python -m pytest tests/test_scores.py -q
"""

import pytest

from nanochat.lab.verdict.gates import judge
from nanochat.lab.verdict.scores import score_note
from tests.gates_case import BANK, BETTER, CONTROL, declared, edit, make_runs


def runs_of(control=CONTROL, candidate=BETTER, loss=0.1, **changes):
    """Each run with a train loss of its own; loss: how much lower the candidate's is. changes: of candidate runs."""
    runs = make_runs(control=control, candidate=candidate)
    for i, run in enumerate(runs):
        told = {"final_train_loss": 3.0 + 0.01 * run.seed - loss * (run.arm != "control"), "steps": 60}
        edit(runs, i, **told | (changes if run.arm != "control" else {}))
    return runs


def verdict(runs, **options):
    return judge(declared(5, noise=BANK, **options), runs)[0]


def test_equal_training_and_another_val_bpb_is_refused():
    assert verdict(runs_of()).verdict == "promote"
    found = verdict(runs_of(loss=0.0))
    assert found.verdict is None and "candidate on seed 0 trained exactly as the control (final train loss 3" in \
        found.reason and "the evaluator made the difference" in found.reason
    assert verdict(runs_of(loss=1e-11)).verdict is None
    assert verdict(runs_of(loss=1e-6)).verdict == "promote"


def test_equal_training_of_one_seed_is_enough():
    runs = runs_of()
    i = next(i for i, run in enumerate(runs) if (run.arm, run.seed) == ("candidate", 3))
    edit(runs, i, final_train_loss=3.03)
    assert "candidate on seed 3 trained exactly as the control" in verdict(runs).reason


@pytest.mark.parametrize("changes", [{"steps": 61}, {"final_train_loss": None}])
def test_other_lengths_and_an_unknown_loss_are_no_equal_training(changes):
    assert verdict(runs_of(loss=0.0, **changes)).verdict == "promote"


def test_a_candidate_that_does_nothing_is_identical_and_not_a_cheat():
    same = verdict(runs_of(candidate=CONTROL, loss=0.0))
    assert same.verdict == "reject" and "identical to the control" in same.reason
    rounded = verdict(runs_of(candidate=[x * (1 + 1e-8) for x in CONTROL], loss=0.0))
    assert rounded.verdict is not None and rounded.verdict != "promote"


def test_a_fault_of_a_run_refuses_its_candidate_alone():
    runs = runs_of(fault="the tree reports val_bpb 2.61, ...", evaluator="control")
    found = judge(declared(5, ("candidate", "other"), noise=BANK),
                  [*runs, *(run for run in make_runs(other=BETTER))])
    assert found[0].reason == "candidate on seed 0: the tree reports val_bpb 2.61, ..." and found[0].verdict is None
    assert found[1].verdict and found[1].mean_gain > 0


def test_a_pair_has_one_evaluator():
    assert "val_bpb of its own evaluator" in verdict(runs_of(evaluator="own")).reason
    assert verdict(runs_of(evaluator="control")).verdict == "promote"
    both = [run for run in runs_of(evaluator="own")]
    for i in range(len(both)):
        edit(both, i, evaluator="own")
    found = verdict(both)
    assert found.verdict == "promote" and found.gates[0].note.startswith("own evaluator")


def test_a_note_says_what_only_the_tree_has_measured():
    runs = make_runs(control=[1.0], candidate=[1.1])
    pair = [tuple(runs)]
    assert score_note("val_bpb", pair) is score_note("time_to_target", pair) is None
    edit(runs, 1, evaluator="control")
    assert score_note("val_bpb", [tuple(runs)]) is None
    assert "only the last" in score_note("time_to_target", [tuple(runs)])
