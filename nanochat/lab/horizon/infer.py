"""
From an exponent and a few final losses to a data:param ratio, or to the reason why there is none.

Example: three runs lie on L = 0.7 + 30 D^-0.25. The target is the loss of that law at 250,000 tokens, and the model
has 50,000 parameters, so the ratio is 5. An answer holds one of three decisions, by rules that are fixed here:

- fallback, the default ratio. Either there was an error: no exponent, no control among the points, losses that do not
  fall, a target at or below the floor, tokens that the corpus does not have, less than one optimizer step. Or the
  horizon is above UNREACHABLE times the default, or its neighbour above CONFIRM_FACTOR times that.
- confirmation, the larger of CONFIRM_FACTOR x the inferred ratio and its quantile CONFIRM_QUANTILE. There is an answer,
  but one of these doubts applies:
  - The exponent is only a prior, because the corpus' horizon n* is, or may be, above a quarter of the context.
  - The losses contradict the exponent, or lie on its law only above a floor below 0, which no loss has.
  - There are fewer than three horizons, so no error is known.
  - The BAND is wider than a factor of WIDE_BAND.
  - D* is above FAR x the longest run, or below the shortest run.
- inferred, the inferred ratio: none of these.

>>> points = [Point(t, 0.7 + 30.0 * t ** -0.25, seed=1) for t in (50_000, 100_000, 200_000)]
>>> target, exponent = 0.7 + 30.0 * 250_000 ** -0.25, Exponent(0.25, (0.24, 0.26))
>>> answer = infer(Question(points, target, exponent, 50_000, 4.0, distinct_tokens=1e6))
>>> answer["decision"], round(answer["inferred_target_param_data_ratio"], 6)
('inferred', 5.0)
"""

import math
from dataclasses import asdict, dataclass, replace

import numpy as np

from nanochat.lab.horizon.loss_law import DRAWS, Point, draw_tokens, fit, free_alpha, log_sd, pool, quantile
from nanochat.lab.horizon.source import Refusal
from nanochat.lab.horizon.spread import ASSUMED, FROM_RUNS, Spread
from nanochat.lab.verdict.stats import t_above
from nanochat.schedule import scale_run

INFERRED, CONFIRMATION, FALLBACK = ("inferred", "confirmation", "fallback")
CONTROL_WITHIN = 0.02  # share of the default horizon, or one optimizer step if larger: a point that near is the control
CONFIRM_FACTOR, CONFIRM_QUANTILE = 1.05, 0.75
BAND = (0.1, 0.9)
WIDE_BAND = 1.5
FAR = 4.0  # times the longest run
UNREACHABLE = 10.0  # times the default horizon
ROUNDING = 1e-9  # relative: D* of exact losses is exact to that, and a value on a limit is not above it
DISAGREES = 0.05  # chance of a false alarm: the losses seem to contradict the corpus' exponent where they do not
NO_CONTROL = "no_control"


@dataclass(frozen=True)
class Exponent:
    """alpha_D with its 95 % interval; doubts: why it is only a prior; error: (code, message) where there is none."""
    alpha: float | None
    ci95: tuple[float, float] | None = None
    doubts: tuple[str, ...] = ()
    error: tuple[str, str] | None = None


@dataclass(frozen=True)
class Question:
    """target and the points' losses are in one unit.

    distinct_tokens: of the training split, None where repeats are allowed. spread: of one run's loss, for the case that
    no horizon has two seeds (None: not known). entropy_floor: a loss that no model can go below.
    """
    points: list[Point]
    target: float
    exponent: Exponent
    num_scaling_params: int
    default_ratio: float
    distinct_tokens: float | None
    spread: Spread | None = Spread(0.002)
    entropy_floor: float | None = None
    higher_is_better: bool = False
    seed: int = 0


def infer(q: Question) -> dict:
    """The law through the points, and the decision. A value that could not be computed is None.

    Raises ValueError for points that cannot be the ends of runs.
    """
    answer = dict.fromkeys((
        "loss_sd", "loss_sd_degrees_of_freedom", "loss_sd_source", "l_inf", "l_inf_se", "a", "a_se", "alpha_free",
        "alpha_disagreement_se", "target_tokens", "target_tokens_q10", "target_tokens_q50", "target_tokens_q75",
        "target_tokens_q90", "fraction_unsolvable", "extrapolation_factor",
        "inferred_target_param_data_ratio", "confirmation_ratio", "error"))
    answer |= {"decision": FALLBACK, "chosen_ratio": q.default_ratio, "reasons": [], "warnings": [], "num_draws": DRAWS,
               "seed": q.seed}
    try:
        _refuse(q)
        _measure(q, answer)
        _decide(q, answer)
    except Refusal as e:
        answer |= _fallen_back(e)
    return answer


def _fallen_back(refusal: Refusal) -> dict:
    return {"error": {"code": refusal.code, "message": str(refusal)}, "reasons": [str(refusal)]}


def above(value: float, limit: float) -> bool:
    """
    >>> above(10 * (1 + 1e-12), 10), above(10.001, 10)
    (False, True)
    """
    return value > limit * (1 + ROUNDING)


def is_control(point: Point, default_tokens: float) -> bool:
    return not above(abs(point.tokens - default_tokens), max(CONTROL_WITHIN * default_tokens, point.step_tokens))


def _refuse(q: Question):
    """The refusals that need no fit."""
    default_tokens = q.default_ratio * q.num_scaling_params
    if not any(is_control(point, default_tokens) for point in q.points):
        raise Refusal(NO_CONTROL,
                      f"no point of about {default_tokens:.4g} tokens, the default ratio {q.default_ratio:g} x "
                      f"{q.num_scaling_params} parameters: the control arm is always one of the calibration runs")
    if q.exponent.alpha is None:
        raise Refusal(*q.exponent.error)
    log_sd(q.exponent.alpha, q.exponent.ci95)  # refuses an interval that reaches 0
    longest = max(point.tokens for point in q.points)
    if q.distinct_tokens is not None and above(longest, q.distinct_tokens):
        raise _repeated(f"a calibration run of {longest:.4g} tokens", q.distinct_tokens)
    if q.entropy_floor is not None and (q.target >= q.entropy_floor if q.higher_is_better
                                        else q.target <= q.entropy_floor):
        raise Refusal("target_below_floor",
                      f"the target {q.target:g} is not above the entropy of the text, {q.entropy_floor:.4g} in the "
                      "same unit")


def _repeated(what: str, distinct_tokens: float) -> Refusal:
    return Refusal("repeated_data",
                   f"{what} would read some of the {distinct_tokens:.4g} distinct tokens twice, and the theory counts "
                   "distinct ones; use a larger corpus or a higher target, or force it with --allow-repeated-data")


def _measure(q: Question, answer: dict):
    """Fit, D*, its spread. Losses are turned so that lower is better, and turned back in the answer."""
    sign = -1.0 if q.higher_is_better else 1.0
    alpha, ci95, target = q.exponent.alpha, q.exponent.ci95, sign * q.target
    losses = pool([replace(point, loss=sign * point.loss) for point in q.points], q.spread and q.spread.sd,
                  q.spread and q.spread.df)
    source = FROM_RUNS if max(losses.runs) > 1 else q.spread.source
    answer |= {"loss_sd": losses.sd, "loss_sd_degrees_of_freedom": None if math.isinf(losses.df) else losses.df,
               "loss_sd_source": source}
    if source == ASSUMED:
        answer["warnings"].append(f"assumed_spread: the spread of a loss over seeds, {losses.sd:.2g}, is assumed, and "
                                  "the band of D* is as right as that; make noise for this profile, or give two seeds "
                                  "to each calibration run")
    law = fit(losses, alpha)
    answer |= {"l_inf": sign * law.floor, "a": sign * law.a}
    enough = len(losses.tokens) >= 3
    if enough:
        answer |= {"l_inf_se": law.floor_se, "a_se": law.drop_se * law.scale ** alpha}
    if found := free_alpha(losses, alpha, ci95):
        answer["alpha_free"], answer["alpha_disagreement_se"] = found
    tokens = law.tokens_to(target)
    if not math.isfinite(tokens):
        raise Refusal("target_below_floor",
                      f"the target {q.target:g} is not above the losses' own floor, {sign * law.floor:.5g}: no number "
                      "of tokens reaches it with this model")
    answer |= {"target_tokens": tokens, "inferred_target_param_data_ratio": tokens / q.num_scaling_params,
               "extrapolation_factor": tokens / losses.tokens[-1]}
    if law.loss(losses.tokens[-1]) <= target:
        answer["warnings"].append("target_already_met: the longest run is at the target, and D* is interpolated")
    drawn = draw_tokens(losses, alpha, ci95, target, np.random.default_rng(q.seed)) if enough else None
    if enough:
        answer |= {f"target_tokens_q{round(100 * at)}": _finite(quantile(drawn, at))
                   for at in (BAND[0], 0.5, CONFIRM_QUANTILE, BAND[1])}
        answer["fraction_unsolvable"] = float(np.isinf(drawn).mean())
    answer["confirmation_ratio"] = _confirmation_tokens(answer, enough) / q.num_scaling_params


def _confirmation_tokens(answer: dict, enough: bool) -> float:
    if enough and answer["target_tokens_q75"] is None:
        raise Refusal("target_below_floor",
                      f"in {answer['fraction_unsolvable']:.0%} of the draws the floor is at or above the target, so no "
                      "horizon can be recommended; use a higher target, longer runs or more seeds")
    return max(CONFIRM_FACTOR * answer["target_tokens"], answer["target_tokens_q75"] or 0.0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _decide(q: Question, answer: dict):
    n, doubts = q.num_scaling_params, [*q.exponent.doubts, *_doubts(q, answer)]
    wanted, neighbour = answer["inferred_target_param_data_ratio"], answer["confirmation_ratio"]
    if above(wanted, UNREACHABLE * q.default_ratio):
        answer["warnings"].append("likely_unreachable")
    if q.distinct_tokens is not None and above(neighbour * n, q.distinct_tokens):  # both arms are run
        raise _repeated(f"the confirmation run of {neighbour * n:.4g} tokens", q.distinct_tokens)
    for ratio, limit in ((wanted, UNREACHABLE), (neighbour, CONFIRM_FACTOR * UNREACHABLE)):
        if above(ratio, limit * q.default_ratio):
            raise Refusal("likely_unreachable",
                          f"{'the target' if ratio == wanted else 'its conservative neighbour'} needs a ratio of "
                          f"{ratio:.4g}, more than {limit:g} x the default {q.default_ratio:g}; use a larger model or "
                          "a higher target")
    answer |= {"decision": CONFIRMATION if doubts else INFERRED, "chosen_ratio": neighbour if doubts else wanted,
               "reasons": doubts}


def disagrees(df: float | None) -> float:
    """The number of standard errors from which on two exponents differ.

    df: degrees of freedom of the measured spread of a loss, None where the spread is assumed.
    """
    return t_above(DISAGREES / 2, df or math.inf)


def _doubts(q: Question, answer: dict) -> list[str]:
    """Why the answer needs a margin, in words; [] where there is no doubt."""
    shortest, tokens = min(point.tokens for point in q.points), answer["target_tokens"]
    low, high, away = answer["target_tokens_q10"], answer["target_tokens_q90"], answer["alpha_disagreement_se"]
    doubts = []
    if answer["fraction_unsolvable"] is None:
        doubts.append("fewer than three horizons: no error of D* is known")
    elif high is None or high > WIDE_BAND * low:
        doubts.append(f"wide band: the 80 % interval of D* spans a factor of {high / low:.2f}" if high and low else
                      "wide band: the 80 % interval of D* has no " + ("lower end above 0" if high else "upper end"))
    if away is not None and abs(away) > disagrees(answer["loss_sd_degrees_of_freedom"]):
        doubts.append(f"the losses ask for another exponent than the corpus', {away:+.1f} standard errors from it")
    if answer["l_inf"] < 0 and not q.higher_is_better:
        doubts.append(f"the floor of the fitted law is {answer['l_inf']:.3g}, below 0, where no loss is: the exponent "
                      "is too small for these runs, and only an interpolation can be trusted")
    if above(answer["extrapolation_factor"], FAR):
        doubts.append(f"extrapolation: D* is {answer['extrapolation_factor']:.2f} x the longest run")
    if tokens < shortest:
        doubts.append(f"extrapolation: D* is below the shortest run, {tokens / shortest:.2f} of it")
    return doubts


# -----------------------------------------------------------------------------
# The settings of the trainer at a ratio

def settings(config, ratio: float, num_scaling_params: int, ref_scaling_params: int, ratio_ref: float) -> dict:
    """Batch, steps, rate, decay and tau of a TrainConfig at this ratio, from the function that the trainer itself uses.

    They are given twice: with the laws' reference pinned at ratio_ref, and without. Raises ValueError for a horizon
    that cannot be run.
    """
    if ratio * num_scaling_params < 1:
        raise ValueError(f"a data:param ratio of {ratio:.3g} is less than one token")
    horizon = replace(config, num_iterations=-1, target_flops=-1.0, target_param_data_ratio=ratio)
    pinned, unpinned = (asdict(scale_run(replace(horizon, ratio_ref=ref), num_scaling_params, ref_scaling_params))
                        for ref in (ratio_ref, -1.0))
    names = ("num_iterations", "total_tokens", "total_batch_size", "batch_lr_scale", "matrix_lr", "weight_decay", "tau")
    return {"target_param_data_ratio": ratio, "flags": f"--target-param-data-ratio={ratio!r} --ratio-ref={ratio_ref:g}",
            "pinned": {name: pinned[name] for name in names}, "unpinned": {name: unpinned[name] for name in names}}


def with_arms(answer: dict, default_ratio: float, **setting_of) -> dict:
    """The answer and its "arms", {"control", "inferred", "confirmation": settings}; a fallback has the control only.

    A ratio that is less than one optimizer step becomes a fallback. Raises ValueError where that is the default ratio.
    """
    control = {"control": settings(ratio=default_ratio, **setting_of)}
    if answer["decision"] == FALLBACK:
        return answer | {"arms": control}
    ratios = {INFERRED: answer["inferred_target_param_data_ratio"], CONFIRMATION: answer["confirmation_ratio"]}
    try:
        return answer | {"arms": control
                         | {name: settings(ratio=ratio, **setting_of) for name, ratio in ratios.items()}}
    except ValueError as e:
        refusal = Refusal("no_such_run", f"{answer['target_tokens']:.4g} tokens to the target are no run: {e}")
        return answer | _fallen_back(refusal) | {"decision": FALLBACK, "chosen_ratio": default_ratio, "arms": control}
