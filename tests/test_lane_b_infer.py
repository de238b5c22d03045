"""
Lane B's inference against exact laws, simulated truth, and the trainer's own resolve().

python -m pytest tests/test_lane_b_infer.py -v
"""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.optimize import curve_fit

from nanochat.config import parse
from nanochat.cost import gpt_config, meta_model, resolve, scaling_params
from nanochat.lab.lane_b.calibration import entropy_floor, in_unit, loss_sd
from nanochat.lab.lane_b.infer import CONFIRMATION, FALLBACK, INFERRED, Exponent, Question, arms, infer, settings
from nanochat.lab.lane_b.loss_law import Losses, Point, draw_tokens, fit, free_alpha, log_sd, pool, quantile
from nanochat.lab.lane_b.source import Refusal

N, RATIO = 1_000_000, 4.0
LADDER = (1e6, 2e6, 4e6)  # 1/4, 1/2 and 1 x the default horizon
FLOOR, DROP = 0.6, 0.33  # bits per byte: L = FLOOR + DROP (D / 4e6)^-alpha


def loss(tokens, alpha=0.17, floor=FLOOR, drop=DROP):
    return floor + drop * (np.asarray(tokens) / LADDER[-1]) ** -alpha


def points(alpha=0.17, ladder=LADDER, **law):
    return [Point(tokens, float(loss(tokens, alpha, **law)), seed=1) for tokens in ladder]


def question(times=1.5, alpha=0.17, **changes) -> Question:
    """Exact losses, and the target that `times` the longest run reaches."""
    asked = Question(points(alpha), float(loss(times * LADDER[-1], alpha)), Exponent(alpha, (0.9 * alpha, 1.1 * alpha)), N, RATIO, 1e9)
    return replace(asked, **changes)


def code_of(answer):
    return answer["error"] and answer["error"]["code"]


# -----------------------------------------------------------------------------
# The law

@pytest.mark.parametrize("alpha", [0.05, 0.14, 0.185, 0.5, 1.3])
@pytest.mark.parametrize("ladder", [LADDER, LADDER[1:], (1e6, 1.5e6, 3e6, 4e6), (3e3, 4e6)])
def test_exact_data_gives_the_tokens(alpha, ladder):
    law = fit(pool(points(alpha, ladder), 1e-6), alpha)
    for times in (0.3, 1.0, 1.5, 3.0, 10.0):
        assert law.tokens_to(float(loss(times * 4e6, alpha))) == pytest.approx(times * 4e6, rel=1e-9)
    assert law.floor == pytest.approx(FLOOR, rel=1e-9) and law.a == pytest.approx(DROP * 4e6 ** alpha, rel=1e-9)


def test_fit_is_weighted_by_the_runs_of_each_horizon():
    """Against scipy's least squares through every single run, and the errors of its covariance."""
    rng = np.random.default_rng(3)
    runs = [Point(tokens, float(loss(tokens)) + 0.002 * rng.standard_normal(), seed) for tokens in LADDER for seed in range(3)]
    runs = [p for p in runs if (p.tokens, p.seed) not in ((1e6, 1), (1e6, 2), (2e6, 2))]
    losses = pool(runs, None)
    law = fit(losses, 0.2)
    x, y = np.array([p.tokens for p in runs]), np.array([p.loss for p in runs])
    (floor, a), cov = curve_fit(lambda d, f, a: f + a * (d / 1e6) ** -0.2, x, y, sigma=np.full(len(x), losses.sd), absolute_sigma=True)
    assert (law.floor, law.a) == pytest.approx((floor, a * 1e6 ** 0.2), rel=1e-6)
    assert (law.floor_se, law.drop_se * law.scale ** 0.2) == pytest.approx((cov[0, 0] ** 0.5, cov[1, 1] ** 0.5 * 1e6 ** 0.2), rel=1e-5)
    by_hand = [np.var([p.loss for p in runs if p.tokens == t], ddof=1) for t in (2e6, 4e6)]
    assert losses.df == 3 and losses.sd == pytest.approx(math.sqrt((by_hand[0] + 2 * by_hand[1]) / 3))


def test_noise_is_assumed_only_where_no_horizon_has_two_seeds():
    assert (pool(points(), 0.002).sd, pool(points(), 0.002).df) == (0.002, math.inf)
    with pytest.raises(ValueError, match="noise of this metric is not known"):
        pool(points(), None)


@pytest.mark.parametrize("extra, message", [
    (Point(1e6, 1.0, 1), "seeds, each its own"), (Point(1e6, 1.0), "seeds, each its own"), (Point(1e6, float(loss(1e6)), 2), "copies"),
    (Point(0, 1.0), "tokens above 0"), (Point(5e6, math.nan), "finite loss"), (Point(math.inf, 1.0), "tokens above 0")])
def test_points_that_are_none_are_refused(extra, message):
    with pytest.raises(ValueError, match=message):
        pool([*points(), extra], 0.002)


# -----------------------------------------------------------------------------
# How much alpha matters, and the noise: the sentence of the specification, three runs, true alpha 0.17

@pytest.mark.parametrize("times, low, high, band", [
    (1.5, 1.465, 1.54, (1.42, 1.59)), (3, 2.78, 3.28, (2.76, 3.30)), (10, 7.9, 13.6, (8.6, 11.95))])
def test_how_much_alpha_and_noise_matter(times, low, high, band):
    losses, target = pool(points(), 0.002), float(loss(times * 4e6))
    off = [fit(losses, factor * 0.17).tokens_to(target) / 4e6 for factor in (0.7, 1.3)]
    assert off == pytest.approx([low, high], rel=0.0025)
    drawn = draw_tokens(losses, 0.17, (0.17, 0.17), target, np.random.default_rng(0), draws=200_000) / 4e6
    assert [quantile(drawn, q) for q in (0.1, 0.9)] == pytest.approx(band, rel=0.008)


def coverage(seeds_each: int, alpha_error: float, times: float, simulations=1000) -> float:
    """How often the 80 % band holds the true D*. Seeds above 1: the spread is measured, with few degrees of freedom."""
    rng, inside = np.random.default_rng(seeds_each), 0
    truth, target = times * 4e6, float(loss(times * 4e6))
    ci = np.array([-1.96, 1.96]) * alpha_error
    for _ in range(simulations):
        alpha = 0.17 * math.exp(alpha_error * rng.standard_normal())
        noise = 0.002 * rng.standard_normal((3, seeds_each))
        runs = [Point(t, float(loss(t) + e), seed) for t, row in zip(LADDER, noise) for seed, e in enumerate(row)]
        drawn = draw_tokens(pool(runs, 0.002), alpha, alpha * np.exp(ci), target, rng)
        inside += quantile(drawn, 0.1) <= truth <= quantile(drawn, 0.9)
    return inside / simulations


@pytest.mark.parametrize("seeds_each, alpha_error, times", [
    (1, 0.15, 3.0), pytest.param(1, 0.0, 3.0, marks=pytest.mark.slow), pytest.param(2, 0.1, 1.5, marks=pytest.mark.slow),
    pytest.param(3, 0.2, 6.0, marks=pytest.mark.slow)])
def test_band_covers_the_truth_in_four_of_five_simulations(seeds_each, alpha_error, times):
    assert 0.75 <= coverage(seeds_each, alpha_error, times) <= 0.85


def test_interval_of_alpha_is_what_is_drawn_and_may_be_lopsided():
    below, above = log_sd(0.2, (0.15, 0.3))
    assert (0.2 * math.exp(-1.959964 * below), 0.2 * math.exp(1.959964 * above)) == pytest.approx((0.15, 0.3), rel=1e-6)
    with pytest.raises(ValueError, match="low <= alpha <= high"):
        log_sd(0.2, (0.21, 0.3))


# -----------------------------------------------------------------------------
# alpha free

def test_free_alpha_is_found_and_its_distance_counted_in_standard_errors():
    """In the linear regime the root of the rise in misfit is the difference over the root of both variances."""
    rng, sd = np.random.default_rng(5), 1e-5
    tokens = np.array([1e6, 2e6, 4e6, 8e6])
    losses = Losses(tokens, loss(tokens) + sd * rng.standard_normal(4), np.ones(4, int), sd, math.inf)
    (_, _, free), cov = curve_fit(lambda d, f, b, a: f + b * (d / 4e6) ** -a, tokens, losses.mean, (0.6, 0.3, 0.2),
                                  sigma=np.full(4, sd), absolute_sigma=True)
    se = math.hypot(cov[2, 2] ** 0.5, 0.001)
    for given in (0.168, 0.17, 0.173):
        found, away = free_alpha(losses, given, (given - 0.00196, given + 0.00196))
        assert found == pytest.approx(free, rel=1e-4) and away == pytest.approx((free - given) / se, abs=0.05)
    exact_alpha = free_alpha(losses, 0.173, (0.173, 0.173))[1]
    assert exact_alpha == pytest.approx((free - 0.173) / cov[2, 2] ** 0.5, rel=0.03)


def test_free_alpha_needs_three_horizons():
    found, away = free_alpha(pool(points(0.3), 0.002), 0.17, (0.17, 0.17))
    left = loss(np.array(LADDER), 0.3) - fit(pool(points(0.3), 0.002), 0.17).loss(LADDER)  # the free fit leaves nothing
    assert found == pytest.approx(0.3, rel=1e-3) and away == pytest.approx(math.sqrt((left ** 2).sum()) / 0.002, rel=1e-3)
    assert free_alpha(Losses(np.array(LADDER[:2]), loss(LADDER[:2]), np.array([2, 2]), 0.002, 2), 0.17, (0.16, 0.18)) is None
    three = Losses(np.array(LADDER), loss(LADDER), np.array([1, 1, 2]), 1e-5, 1)
    assert free_alpha(three, 0.17, (0.16, 0.18))[0] == pytest.approx(0.17, rel=1e-3)
    bent_up = Losses(np.array([1e6, 2e6, 4e6, 8e6]), np.array([1.0, 0.99, 0.95, 0.8]), np.ones(4, int), 0.002, math.inf)
    assert free_alpha(bent_up, 0.17, (0.16, 0.18))[0] is None, "no exponent above 0 bends that way"


# -----------------------------------------------------------------------------
# Decisions

def test_clean_inputs_are_inferred_and_the_neighbour_is_longer():
    answer = infer(question())
    assert (answer["decision"], answer["error"], answer["reasons"], answer["warnings"]) == (INFERRED, None, [], [])
    assert answer["target_tokens"] == pytest.approx(6e6, rel=1e-9) and answer["chosen_ratio"] == pytest.approx(6.0, rel=1e-9)
    assert answer["confirmation_ratio"] == max(1.05 * answer["inferred_target_param_data_ratio"], answer["target_tokens_q75"] / N)
    assert answer["extrapolation_factor"] == pytest.approx(1.5) and infer(question()) == answer, "seeded"
    assert answer["target_tokens_q10"] < answer["target_tokens_q50"] < answer["target_tokens_q75"] < answer["target_tokens_q90"]


def test_confirmation_is_the_quantile_where_the_band_is_wide():
    answer = infer(question(loss_sd=0.004, times=3))
    assert answer["confirmation_ratio"] == answer["target_tokens_q75"] / N > 1.05 * answer["inferred_target_param_data_ratio"]


@pytest.mark.parametrize("changes, reason", [
    (dict(loss_sd=0.006, times=3), "wide band"),
    (dict(times=4.5), "extrapolation: D* is 4.50 x"), (dict(times=0.2), "below the shortest run"),
    (dict(points=points()[1:]), "fewer than three horizons"), (dict(points=points(0.2, drop=9.0), target=9.2), "below 0, where no loss is"),
    (dict(exponent=Exponent(0.17, (0.16, 0.18), ("horizon_exceeds_context: n*",))), "horizon_exceeds_context"),
    (dict(points=[*points(0.6), Point(5e5, float(loss(5e5, 0.6)), 1)], loss_sd=1e-4), "ask for another exponent")])
def test_each_doubt_makes_it_a_confirmation(changes, reason):
    answer = infer(question(**changes))
    assert answer["decision"] == CONFIRMATION and answer["chosen_ratio"] == answer["confirmation_ratio"]
    assert reason in " ".join(answer["reasons"])


@pytest.mark.parametrize("changes, code", [
    (dict(target=FLOOR), "target_below_floor"), (dict(target=FLOOR - 0.1), "target_below_floor"),
    (dict(target=FLOOR + 0.01), "target_below_floor"), (dict(entropy_floor=0.95), "target_below_floor"),
    (dict(times=11), "likely_unreachable"), (dict(times=9.9, exponent=Exponent(0.17, (0.1, 0.2))), "likely_unreachable"),
    (dict(points=points(drop=-0.1)), "non_decreasing"), (dict(points=points(drop=0.002)), "non_decreasing"),
    (dict(points=points(drop=0.0)), "non_decreasing"), (dict(points=points()[2:]), "degenerate"),
    (dict(points=points()[:2]), "no_control"), (dict(points=points(), default_ratio=4.2), "no_control"), (dict(points=[]), "no_control"),
    (dict(distinct_tokens=6.01e6), "repeated_data"), (dict(distinct_tokens=3.9e6, times=0.5), "repeated_data"),
    (dict(exponent=Exponent(0.17, (0.0, 0.3))), "degenerate"),
    (dict(exponent=Exponent(0.17, (-0.1, 0.4)), points=points()[1:]), "degenerate"),
    (dict(exponent=Exponent(None, error=("not_power_law", "no exponent"))), "not_power_law")])
def test_every_error_has_its_name_and_falls_back(changes, code):
    answer = infer(question(**changes))
    assert (code_of(answer), answer["decision"], answer["chosen_ratio"]) == (code, FALLBACK, changes.get("default_ratio", RATIO))
    assert answer["reasons"] == [answer["error"]["message"]] and answer["error"]["message"].startswith(code)


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
    assert answer["warnings"] == ["target_already_met: the longest run is at the target, and D* is interpolated"]
    assert answer["inferred_target_param_data_ratio"] == pytest.approx(3.2, rel=1e-9) and answer["decision"] == INFERRED


def test_higher_may_be_better():
    turned = [replace(point, loss=-point.loss) for point in points()]
    answer, same = infer(question(points=turned, target=-question().target, higher_is_better=True)), infer(question())
    assert answer["l_inf"] == -same["l_inf"] and {k: v for k, v in answer.items() if k not in ("l_inf", "a")} == \
        {k: v for k, v in same.items() if k not in ("l_inf", "a")}


def test_no_question_without_a_control_gets_another_decision_than_the_fallback():
    """Whatever is asked: random ladders, laws, targets, exponents and ratios."""
    rng, decided = np.random.default_rng(11), 0
    for _ in range(150):
        alpha, ratio = rng.uniform(0.05, 1.0), rng.uniform(1, 20)
        ladder = sorted(ratio * N * rng.choice([0.1, 0.25, 0.5, 0.75, 0.9, 0.96, 1.05, 1.5, 4], size=rng.integers(2, 6), replace=False))
        asked = question(points=points(alpha, ladder), exponent=Exponent(alpha, (0.9 * alpha, 1.1 * alpha)), default_ratio=ratio,
                         target=float(loss(rng.uniform(0.5, 3) * ladder[-1], alpha)), distinct_tokens=rng.choice([None, 1e9]))
        answer = infer(asked)
        assert (answer["decision"], code_of(answer), answer["chosen_ratio"]) == (FALLBACK, "no_control", ratio)
        assert list(arms(answer, ratio, config=parse(D12), num_scaling_params=N, ref_scaling_params=N, ratio_ref=ratio)) == ["control"]
        control = Point(ratio * N, float(loss(ratio * N, alpha)), seed=1)
        decided += infer(replace(asked, points=[*asked.points, control]))["decision"] != FALLBACK
    assert decided > 110, "with a control most of them are decided: the refusal was for the control"


# -----------------------------------------------------------------------------
# The trainer's own numbers

D12 = ["--depth=12", "--max-seq-len=512", "--device-batch-size=16"]
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
    assert made[12.0]["pinned"]["tau"] == pytest.approx(made[12.0]["unpinned"]["tau"], rel=0.01), "the two agree at the reference"


# -----------------------------------------------------------------------------
# Units

def test_bits_per_token_are_no_bound_on_bits_per_byte():
    """2 nats a token are 2.9 bits a token, and with 4 bytes a token 0.72 bits a byte: below the target of 0.89."""
    stats = {"h_inf_nats": 2.0, "h_inf_identified": True, "bytes_per_token": 4.0}
    floor = entropy_floor("val_bpb", stats, 4.0)
    assert floor == pytest.approx(2.0 / math.log(2) / 4) and infer(question(entropy_floor=floor))["decision"] == INFERRED
    assert code_of(infer(question(entropy_floor=2.0 / math.log(2)))) == "target_below_floor", "the naive bound refuses it"
    assert {entropy_floor("val_bpb", stats | no, 4.0) for no in ({"h_inf_identified": False}, {"gamma_source": "positional"})} == {None}
    for args, message in (("val_bpb", 2.0, None), "--bytes-per-token=None"), (("accuracy", 1.0, 4.0), "unit is not known"):
        with pytest.raises(ValueError, match=message):
            in_unit(*args)


def test_assumed_noise_is_in_the_unit_of_the_metric():
    assert loss_sd("val_bpb", None) == 0.002 and loss_sd("val_loss", 4.0) == pytest.approx(0.002 * 4 * math.log(2))
    assert loss_sd("val_loss", None) is None and loss_sd("accuracy", 4.0) is None


@pytest.mark.parametrize("alpha", [0.14, 0.185])
def test_no_plausibility_band_refuses_the_papers_own_exponents(alpha):
    assert not 0.2 <= alpha <= 0.8 and infer(question(alpha=alpha))["decision"] == INFERRED


def test_refusals_are_value_errors_with_a_code():
    with pytest.raises(Refusal) as refused:
        fit(pool(points(drop=0.0), 0.002), 0.17)
    assert refused.value.code == "non_decreasing"
