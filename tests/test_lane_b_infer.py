"""
Lane B's inference: decisions on exact laws, and the trainer's own resolve().

python -m pytest tests/test_lane_b_infer.py -v
"""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from nanochat.config import parse
from nanochat.cost import gpt_config, meta_model, resolve, scaling_params
from nanochat.lab.horizon.calibration import assumed_spread, entropy_floor, in_unit
from nanochat.lab.horizon.infer import (
    CONFIRMATION,
    FALLBACK,
    INFERRED,
    Exponent,
    Question,
    disagrees,
    infer,
    settings,
    with_arms,
)
from nanochat.lab.horizon.loss_law import Point
from nanochat.lab.horizon.spread import Spread
from tests.loss_law_case import FLOOR, LADDER, RATIO, N, loss, points


def question(times=1.5, alpha=0.17, **changes) -> Question:
    """Exact losses, and the target that `times` the longest run reaches."""
    asked = Question(points(alpha), float(loss(times * LADDER[-1], alpha)), Exponent(alpha, (0.9 * alpha, 1.1 * alpha)),
                     N, RATIO, 1e9)
    return replace(asked, **changes)


D12 = ["--depth=12", "--max-seq-len=512", "--device-batch-size=16"]
LAWS = dict(config=parse(D12), num_scaling_params=N, ref_scaling_params=N, ratio_ref=RATIO)


def code_of(answer):
    return answer["error"] and answer["error"]["code"]


# -----------------------------------------------------------------------------
# Decisions

def test_clean_inputs_are_inferred_and_the_neighbour_is_longer():
    answer = infer(question(spread=Spread(0.002, 7)))
    assert (answer["decision"], answer["error"], answer["reasons"], answer["warnings"]) == (INFERRED, None, [], [])
    assert (answer["target_tokens"] == pytest.approx(6e6, rel=1e-9)
            and answer["chosen_ratio"] == pytest.approx(6.0, rel=1e-9))
    assert answer["confirmation_ratio"] == max(1.05 * answer["inferred_target_param_data_ratio"],
                                               answer["target_tokens_q75"] / N)
    assert answer["extrapolation_factor"] == pytest.approx(1.5)
    assert infer(question(spread=Spread(0.002, 7))) == answer, "seeded"
    assert (answer["target_tokens_q10"] < answer["target_tokens_q50"] < answer["target_tokens_q75"]
            < answer["target_tokens_q90"])


def test_confirmation_is_the_quantile_where_the_band_is_wide():
    answer = infer(question(spread=Spread(0.004), times=3))
    assert (answer["confirmation_ratio"] == answer["target_tokens_q75"] / N
            > 1.05 * answer["inferred_target_param_data_ratio"])


@pytest.mark.parametrize("changes, reason", [
    (dict(spread=Spread(0.006), times=3), "wide band"),
    (dict(times=4.5), "extrapolation: D* is 4.50 x"), (dict(times=0.2), "below the shortest run"),
    (dict(points=points()[1:]), "fewer than three horizons"),
    (dict(points=points(0.2, drop=9.0), target=9.2), "below 0, where no loss is"),
    (dict(exponent=Exponent(0.17, (0.16, 0.18), ("horizon_exceeds_context: n*",))), "horizon_exceeds_context"),
    (dict(points=[*points(0.6), Point(5e5, float(loss(5e5, 0.6)), 1)], spread=Spread(1e-4)),
     "ask for another exponent")])
def test_each_doubt_makes_it_a_confirmation(changes, reason):
    answer = infer(question(**changes))
    assert answer["decision"] == CONFIRMATION and answer["chosen_ratio"] == answer["confirmation_ratio"]
    assert reason in " ".join(answer["reasons"])


@pytest.mark.parametrize("changes, code", [
    (dict(target=FLOOR), "target_below_floor"), (dict(target=FLOOR - 0.1), "target_below_floor"),
    (dict(target=FLOOR + 0.01), "target_below_floor"), (dict(entropy_floor=0.95), "target_below_floor"),
    (dict(times=11), "likely_unreachable"),
    (dict(times=9.9, exponent=Exponent(0.17, (0.1, 0.2))), "likely_unreachable"),
    (dict(points=points(drop=-0.1)), "non_decreasing"), (dict(points=points(drop=0.002)), "non_decreasing"),
    (dict(points=points(drop=0.0)), "non_decreasing"), (dict(points=points()[2:]), "degenerate"),
    (dict(points=points()[:2]), "no_control"), (dict(points=points(), default_ratio=4.2), "no_control"),
    (dict(points=[]), "no_control"), (dict(distinct_tokens=6.01e6), "repeated_data"),
    (dict(distinct_tokens=3.9e6, times=0.5), "repeated_data"),
    (dict(exponent=Exponent(0.17, (0.0, 0.3))), "degenerate"),
    (dict(exponent=Exponent(0.17, (-0.1, 0.4)), points=points()[1:]), "degenerate"),
    (dict(exponent=Exponent(100.0, (99.0, 101.0))), "degenerate"),
    (dict(exponent=Exponent(1e-3, (5e-4, 2e-3))), "degenerate"),
    (dict(exponent=Exponent(None, error=("not_power_law", "no exponent"))), "not_power_law")])
def test_every_error_has_its_name_and_falls_back(changes, code):
    answer = infer(question(**changes))
    assert ((code_of(answer), answer["decision"], answer["chosen_ratio"])
            == (code, FALLBACK, changes.get("default_ratio", RATIO)))
    assert answer["reasons"] == [answer["error"]["message"]] and answer["error"]["message"].startswith(code)


def test_a_length_of_exactly_ten_times_the_default_is_reached_and_its_neighbour_too():
    """10 x the default is not above it, and the neighbour may be 5 % longer; 10.01 x and a neighbour of 10.6 x are."""
    sure = dict(spread=Spread(1e-6, 7), exponent=Exponent(0.17, (0.1699, 0.1701)))
    for times in (9.5, 9.99, 10, 10 * (1 + 1e-12)):
        answer = infer(question(times=times, **sure))
        assert (answer["decision"], answer["warnings"]) == (CONFIRMATION, []), times
        assert answer["chosen_ratio"] == pytest.approx(1.05 * times * RATIO, rel=1e-6)
    assert "the target needs" in infer(question(times=10.01, **sure))["reasons"][0]
    unsure = infer(question(times=9.9, **sure | dict(spread=Spread(1e-4, 7))))
    assert unsure["decision"] == CONFIRMATION or "neighbour" in unsure["reasons"][0]
    assert infer(question(times=4, **sure))["decision"] == INFERRED, "exactly FAR is not above it"
    assert infer(question(times=5, distinct_tokens=1.05 * 5 * LADDER[-1], **sure))["error"] is None


def test_a_message_names_its_reason_once():
    told = ("not_power_law", "not_power_law: an exponential describes it better")  # as a JSON of statistics has it
    message = infer(question(exponent=Exponent(None, error=told)))["error"]["message"]
    assert message == "not_power_law: an exponential describes it better"


def test_floor_that_many_draws_put_above_the_target_allows_no_recommendation():
    answer = infer(question(target=FLOOR + 0.01))
    assert "% of the draws" in answer["error"]["message"] and 0.25 < answer["fraction_unsolvable"] < 1
    assert answer["target_tokens_q75"] is None and answer["confirmation_ratio"] is None


def test_corpus_may_be_repeated_where_that_is_said():
    assert infer(question(distinct_tokens=None))["decision"] == INFERRED
    enough = infer(question())["confirmation_ratio"] * N
    assert code_of(infer(question(distinct_tokens=enough - 1))) == "repeated_data", "the confirmation run counts too"
    assert infer(question(distinct_tokens=enough + 1))["decision"] == INFERRED


def test_target_already_met_is_interpolated_and_said():
    answer = infer(question(times=0.8))
    assert answer["warnings"][1:] == ["target_already_met: the longest run is at the target, and D* is interpolated"]
    assert answer["inferred_target_param_data_ratio"] == pytest.approx(3.2, rel=1e-9) and answer["decision"] == INFERRED


def test_horizon_of_less_than_a_step_is_a_fallback_and_says_so():
    asked = question(times=1e-3)
    answer = infer(asked)
    assert answer["decision"] == CONFIRMATION and "below the shortest run" in " ".join(answer["reasons"])
    fallen = with_arms(answer, RATIO, **LAWS)
    assert (fallen["decision"], code_of(fallen), fallen["chosen_ratio"]) == (FALLBACK, "no_such_run", RATIO)
    assert list(fallen["arms"]) == ["control"]
    assert "less than one step" in fallen["reasons"][0] and fallen["target_tokens"] == answer["target_tokens"]
    assert list(with_arms(infer(question()), RATIO, **LAWS)["arms"]) == ["control", "inferred", "confirmation"]


def test_two_exponents_differ_by_students_t_where_the_spread_was_measured():
    """With two degrees of freedom 4.3 standard errors are one in twenty, and not 2."""
    assert (disagrees(None), disagrees(2)) == pytest.approx((1.959964, 4.302653), abs=1e-5)
    pairs = [Point(t, float(loss(t, 0.4)) + e, seed) for t in LADDER for seed, e in enumerate((-3e-3, 3e-3))]
    exponent = Exponent(0.17, (0.16, 0.18))
    measured = infer(question(points=pairs, exponent=exponent))
    assumed = infer(question(points=points(0.4), exponent=exponent, spread=Spread(3e-3)))
    assert measured["loss_sd_degrees_of_freedom"] == 3 and 2 < measured["alpha_disagreement_se"] < disagrees(3) < 3.2
    assert "another exponent" not in " ".join(measured["reasons"]) and 1.96 < assumed["alpha_disagreement_se"]
    assert "another exponent" in " ".join(assumed["reasons"])


@pytest.mark.filterwarnings("error")
def test_hardly_known_exponents_and_absurd_targets_are_answered_by_name():
    """Ends of intervals, targets and laws at which powers leave the range of floating point."""
    for ci in ((0.17 * 1e-3, 170.0), (0.16, 170.0), (1e-300, 0.18), (1e-300, 1e300), (0.17, 0.17)):
        for target in (1e-300, FLOOR * (1 + 1e-15), 1.0, 5.0, 1e6, 1e300):
            answer = with_arms(infer(question(exponent=Exponent(0.17, ci), target=target)), RATIO, **LAWS)
            assert ((answer["decision"] == FALLBACK) == (code_of(answer) is not None)
                    and json.dumps(answer, allow_nan=False))
            assert ("inferred" in answer["arms"]) == (answer["decision"] != FALLBACK)


def test_higher_may_be_better():
    turned = [replace(point, loss=-point.loss) for point in points()]
    answer, same = infer(question(points=turned, target=-question().target, higher_is_better=True)), infer(question())
    assert answer["l_inf"] == -same["l_inf"] and {k: v for k, v in answer.items() if k not in ("l_inf", "a")} == \
        {k: v for k, v in same.items() if k not in ("l_inf", "a")}


def test_no_question_without_a_control_gets_another_decision_than_the_fallback():
    """Random ladders, laws, targets, exponents and ratios."""
    rng, decided = np.random.default_rng(11), 0
    for _ in range(150):
        alpha, ratio = rng.uniform(0.05, 1.0), rng.uniform(1, 20)
        ladder = sorted(ratio * N * rng.choice([0.1, 0.25, 0.5, 0.75, 0.9, 0.96, 1.05, 1.5, 4], size=rng.integers(2, 6),
                                               replace=False))
        asked = question(points=points(alpha, ladder), exponent=Exponent(alpha, (0.9 * alpha, 1.1 * alpha)),
                         default_ratio=ratio, target=float(loss(rng.uniform(0.5, 3) * ladder[-1], alpha)),
                         distinct_tokens=rng.choice([None, 1e9]))
        answer = infer(asked)
        assert (answer["decision"], code_of(answer), answer["chosen_ratio"]) == (FALLBACK, "no_control", ratio)
        assert list(with_arms(answer, ratio, **LAWS)["arms"]) == ["control"]
        control = Point(ratio * N, float(loss(ratio * N, alpha)), seed=1)
        decided += infer(replace(asked, points=[*asked.points, control]))["decision"] != FALLBACK
    assert decided > 110, "with a control most of them are decided: the refusal was for the control"


# -----------------------------------------------------------------------------
# The trainer's own numbers

VOCAB = 32768


@pytest.mark.parametrize("ratio", [3.0, 5.25, 12.0, 17.3, 40.0])
def test_d12_gets_what_the_trainer_would_run(ratio):
    n = scaling_params(meta_model(gpt_config(parse(D12), VOCAB)))
    made = settings(parse(D12), ratio, n, n, 12.0)
    for how, flags in (("pinned", made["flags"].split()), ("unpinned", [f"--target-param-data-ratio={ratio!r}"])):
        trained = asdict(resolve(parse([*D12, *flags]), VOCAB))
        assert trained["num_scaling_params"] == n and {name: trained[name] for name in made[how]} == made[how]
        assert made[how]["num_iterations"] == math.floor(ratio * n / made[how]["total_batch_size"])


def test_tau_stays_under_the_pinned_rule_and_goes_as_one_over_the_ratio_without():
    """Changing only the ratio moves neither batch nor decay: the trap that the pinned reference is for."""
    n = 110_000_000
    made = {ratio: settings(parse(D12), ratio, n, n, 12.0) for ratio in (3.0, 6.0, 12.0, 24.0, 48.0)}
    pinned, unpinned = ([made[ratio][how]["tau"] for ratio in made] for how in ("pinned", "unpinned"))
    assert pinned == pytest.approx([pinned[0]] * 5, rel=1e-9)
    assert unpinned == pytest.approx([unpinned[2] * 12 / ratio for ratio in made], rel=0.01)
    assert all(len({s["unpinned"][name] for s in made.values()}) == 1 for name in ("total_batch_size", "weight_decay"))
    assert [s["pinned"]["total_batch_size"] for s in made.values()] == [2 ** 18, 2 ** 19, 2 ** 19, 2 ** 19, 2 ** 20]
    assert made[12.0]["pinned"]["tau"] == pytest.approx(made[12.0]["unpinned"]["tau"],
                                                        rel=0.01), "the two agree at the reference"


# -----------------------------------------------------------------------------
# Units

def test_bits_per_token_are_no_bound_on_bits_per_byte():
    """2 nats a token are 2.9 bits a token, and with 4 bytes a token 0.72 bits a byte: below the target of 0.89."""
    stats = {"h_inf_nats": 2.0, "h_inf_identified": True, "bytes_per_token": 4.0}
    floor = entropy_floor("val_bpb", stats, 4.0)
    assert (floor == pytest.approx(2.0 / math.log(2) / 4)
            and infer(question(entropy_floor=floor))["decision"] == INFERRED)
    assert code_of(infer(question(entropy_floor=2.0
                                  / math.log(2)))) == "target_below_floor", "the naive bound refuses it"
    interval = stats | {"h_inf_ci95_nats": [1.5, 2.2]}  # a target between 1.5 and 2 nats is not refused for certain
    assert entropy_floor("val_loss", interval, None) == 1.5
    assert {entropy_floor("val_bpb", stats | no, 4.0)
            for no in ({"h_inf_identified": False}, {"gamma_source": "positional"})} == {None}
    for args, message in ((("val_bpb", 2.0, None), "--bytes-per-token=None"),
                          (("accuracy", 1.0, 4.0), "unit is not known")):
        with pytest.raises(ValueError, match=message):
            in_unit(*args)


def test_assumed_noise_is_in_the_unit_of_the_metric():
    assert assumed_spread("val_bpb", None) == Spread(0.002)
    assert assumed_spread("val_loss", 4.0).sd == pytest.approx(0.002 * 4 * math.log(2))
    assert assumed_spread("val_loss", None) is None and assumed_spread("accuracy", 4.0) is None


@pytest.mark.parametrize("alpha", [0.14, 0.185])
def test_no_plausibility_band_refuses_the_papers_own_exponents(alpha):
    assert not 0.2 <= alpha <= 0.8 and infer(question(alpha=alpha))["decision"] == INFERRED
