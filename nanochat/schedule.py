"""
Pure schedules and scaling laws: numbers in, numbers out, no torch. Trainer, calculators and the lab share these
functions, so a prediction and a run use the same numbers; scale_run() applies all the laws at once.

The schedules take the step and, where a wall budget drives the run, its `position`. Example: a run of 100 steps has
spent 30 % of its wall budget at step 20, so its position is 30 (budget_position). Warm-ups always go by steps.

Sources: upstream nanochat (its constants), B_opt ~ D^0.383 and tau from arXiv:2505.13738,
weight decay from the EMA view of AdamW, arXiv:2405.13698. Both papers study AdamW; that the laws hold for Muon too is
upstream's assumption, which was not checked here.
"""

import math
from dataclasses import dataclass

from nanochat.checks import MOST_STEPS

B_REF = 2 ** 19  # tokens per step at which the learning rates were tuned (d12, upstream)
BATCH_EXPONENT = 0.383  # B_opt ~ D^0.383, see optimal_batch_size
TIMED_FROM_STEP = 11  # earlier steps warm up caches and compilers; upstream's leaderboard clock skips them too
WARMDOWN_SHAPES = {"linear": lambda progress: progress,
                   "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * (1 - progress)))}
# option: its name as the bound of a run. The first of them that is given decides the number of steps.
BOUNDS = {"num_iterations": "iterations", "target_flops": "flops", "target_param_data_ratio": "ratio"}


def training_clock(step: int, timed_sec: float, timed_steps: int) -> float:
    """Seconds of the steps from TIMED_FROM_STEP to `step`.

    The first step of a resumed process is not timed. It counts as the mean of the timed steps: otherwise a run that was
    interrupted would get that step for nothing.
    """
    steps = step - TIMED_FROM_STEP
    return timed_sec if timed_steps in (0, steps) else timed_sec * steps / timed_steps


def budget_position(step: int, num_iterations: int, spent_sec: float, wall_budget_sec: float) -> float:
    """The step, or a later position where the run has spent a larger share of its wall budget than of its steps.

    So the warmdown is complete when the steps or the budget end, whichever comes first. wall_budget_sec -1 = no budget.

    >>> budget_position(20, 100, 3.0, -1), budget_position(20, 100, 3.0, 10.0), budget_position(20, 100, 1.0, 10.0)
    (20, 30.0, 20)
    """
    return step if wall_budget_sec <= 0 else max(step, num_iterations * min(1.0, spent_sec / wall_budget_sec))


# Seven parameters: where the run is, and one for each flag of the schedule.
def lr_multiplier(step: int, num_iterations: int, warmup_steps: int, warmdown_ratio: float, final_lr_frac: float,
                  warmdown_shape: str = "linear", position: float | None = None) -> float:
    """Linear warm-up, constant, warmdown to final_lr_frac at position == num_iterations."""
    position = step if position is None else position
    warmdown_iters = round(warmdown_ratio * num_iterations)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if position <= num_iterations - warmdown_iters:
        return 1.0
    m = WARMDOWN_SHAPES[warmdown_shape]((num_iterations - position) / warmdown_iters)
    return m + (1 - m) * final_lr_frac


def muon_momentum(step: int, num_iterations: int, warmdown_ratio: float, position: float | None = None) -> float:
    """0.85 -> 0.97 over 400 steps, then -> 0.90 over the warmdown.

    The warmdown of the momentum is linear for every shape of the rate's warmdown: the option changes one thing. The
    first branch wins, as in upstream: a run of fewer than 400 steps never warms its momentum down.
    """
    position = step if position is None else position
    warmdown_iters = round(warmdown_ratio * num_iterations)
    start = num_iterations - warmdown_iters
    if step < 400:
        frac = step / 400
        return (1 - frac) * 0.85 + frac * 0.97
    if position < start or warmdown_iters == 0:
        return 0.97
    progress = (position - start) / warmdown_iters
    return 0.97 * (1 - progress) + 0.90 * progress


def weight_decay_multiplier(position: float, num_iterations: int) -> float:
    """Cosine from 1 to 0 over the run."""
    return 0.5 * (1 + math.cos(math.pi * position / num_iterations))


# -----------------------------------------------------------------------------
# Scaling laws

def reference_tokens(ref_params: int, target_param_data_ratio: float, ratio_ref: float = -1.0) -> float:
    """D_ref, the tokens of the d12 that batch and decay are scaled from.

    Upstream takes the run's own ratio (ratio_ref -1). Then D / D_ref is N / N_d12 for every ratio. So a run at twice
    the ratio keeps its decay, and its tau is half as large (tau goes as 1 / ratio). With a pinned reference (ratio_ref
    > 0) the decay follows the horizon, and tau is B_REF / (eta_ref lambda_ref D_ref) for every horizon.
    """
    return (ratio_ref if ratio_ref > 0 else target_param_data_ratio) * ref_params


def optimal_batch_size(target_tokens: float, ref_tokens: float) -> int:
    """Tokens per step: the power of two nearest to B_REF (D / D_ref)^0.383.

    Example: 8 times the tokens, D / D_ref = 8, give 2.2 times the batch, rounded to 2. A longer run ends at a lower
    loss. There the noise of a gradient is large against its mean, so averaging over more tokens still helps. The
    exponent is measured (arXiv:2505.13738), not derived.
    """
    return 2 ** round(math.log2(B_REF * (target_tokens / ref_tokens) ** BATCH_EXPONENT))


def batch_lr_scale(total_batch_size: int) -> float:
    """sqrt(B / B_REF): the learning rates go with the square root of the batch.

    Example: 4 times the batch doubles the rates. The mean gradient of B tokens has noise ~ 1 / sqrt(B), and D tokens
    are D / B steps. AdamW divides a gradient by its size, so where noise dominates, each step adds a random move of
    length eta, whatever B is. D / B of them add up to a variance of eta^2 D / B, which stays the same for eta ~
    sqrt(B). Source: arXiv:2205.10287.
    """
    return (total_batch_size / B_REF) ** 0.5


def scaled_weight_decay(weight_decay: float, total_batch_size: int, target_tokens: float, ref_tokens: float) -> float:
    """lambda = lambda_ref sqrt(B / B_ref) D_ref / D, which keeps tau = B / (eta lambda D) constant.

    Put eta = eta_ref sqrt(B / B_ref) into B / (eta lambda D) = B_ref / (eta_ref lambda_ref D_ref) and solve for lambda.
    Example: at one batch, twice the tokens need half the decay, because the weights should average over twice the
    tokens.
    """
    return weight_decay * math.sqrt(total_batch_size / B_REF) * (ref_tokens / target_tokens)


def ema_time_scale(total_batch_size: int, lr: float, weight_decay: float, tokens: float) -> float | None:
    """tau = B / (eta lambda D): the share of the run over which the weights average their updates. None without decay.

    A step with decay is w <- (1 - eta lambda) w + eta u, an exponential moving average of updates u / lambda. It
    forgets in 1 / (eta lambda) steps, which are B / (eta lambda) tokens. Example: tau 0.1 = the weights at the end are
    an average over about the last tenth of the run. The best tau hardly depends on the size of a run
    (arXiv:2405.13698).
    """
    return total_batch_size / (lr * weight_decay * tokens) if lr * weight_decay * tokens else None


# -----------------------------------------------------------------------------
# The batch in micro-batches

def nearest(candidates, value, n=4) -> str:
    return ", ".join(map(str, sorted(sorted(candidates, key=lambda c: (abs(c - value), c))[:n])))


def divisors(n: int) -> list[int]:
    """All divisors of n > 0, in no order. Only numbers up to the square root are tried.

    >>> sorted(divisors(12))
    [1, 2, 3, 4, 6, 12]
    """
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return list({*small, *(n // d for d in small)})


def grad_accum_steps(total_batch_size: int, device_batch_size: int, max_seq_len: int, world_size: int = 1) -> int:
    """Micro-batches per optimizer step. Raises ValueError naming the nearest batches that divide."""
    micro = device_batch_size * max_seq_len * world_size
    if total_batch_size > 0 and total_batch_size % micro == 0:
        return total_batch_size // micro
    rows = total_batch_size // (max_seq_len * world_size)
    if rows and total_batch_size % (max_seq_len * world_size) == 0:
        near = nearest(divisors(rows), device_batch_size)
        hint = f"device batch sizes that divide it: {near}"
    else:
        near = max(1, round(total_batch_size / micro)) * micro
        hint = f"the nearest total batch size for this device batch is {near}"
    raise ValueError(f"--total-batch-size={total_batch_size} is not a multiple of --device-batch-size "
                     f"{device_batch_size} x --max-seq-len {max_seq_len} x {world_size} ranks = {micro} tokens; {hint}")


def multiplied_batch(total_batch_size: int, multiplier: float, device_batch_size: int, max_seq_len: int,
                     world_size: int = 1) -> int:
    """The multiple of the micro-batch that is nearest to multiplier x total_batch_size.

    Raises ValueError where rounding gives the same batch again, or none: such an arm would be the control under another
    name.
    """
    accum = grad_accum_steps(total_batch_size, device_batch_size, max_seq_len, world_size)
    wanted = accum if multiplier == 1 else round(multiplier * accum)
    if wanted < 1 or (wanted == accum and multiplier != 1):
        others = [n for n in ((1, 2) if wanted < 1 else (accum - 1, accum + 1)) if n not in (0, accum)]
        # :g prints six digits, enough for the printed multiplier to round to the same number of micro-batches
        near = " and ".join(f"{n / accum:g}" for n in others)
        raise ValueError(f"--batch-multiplier={multiplier} rounds to {'no batch' if wanted < 1 else 'the same batch'}: "
                         f"{total_batch_size} tokens are {accum} micro-batches of {total_batch_size // accum}; the "
                         f"nearest that do not: {near}; a smaller --device-batch-size gives finer ones")
    return wanted * (total_batch_size // accum)


# -----------------------------------------------------------------------------
# All of them for one run

@dataclass
class Scaled:
    """The settings of one run, as the laws give them for its horizon."""
    num_iterations: int
    horizon: str  # which option decided num_iterations
    total_batch_size: int
    batch_multiplier: float  # --batch-multiplier after rounding to whole micro-batches
    grad_accum_steps: int
    total_tokens: int  # D
    effective_ratio: float  # total_tokens / num_scaling_params
    ref_tokens: float  # D_ref of the laws
    batch_lr_scale: float
    matrix_lr: float  # eta: Muon's rate where the schedule is at 1, before its factor for the shape of a matrix
    weight_decay: float  # lambda: of the matrices, at the start of its cosine
    tau: float | None  # B / (eta lambda D)


def steps_of(config, horizon: str, tokens: float, flops: int | None, base: int, batch: int) -> int:
    """Optimizer steps of `batch` tokens.

    --num-iterations counts steps of `base`, the batch before --batch-multiplier. So an arm with another batch trains on
    the same tokens, as it does with the other horizons.
    """
    if horizon == "num_iterations":
        steps = round(config.num_iterations * base / batch)
    else:
        steps = round(config.target_flops / (flops * batch)) if horizon == "target_flops" else int(tokens // batch)
    if steps < 1:
        raise ValueError(f"--{horizon.replace('_', '-')} gives less than one step of {batch} tokens; raise it, or "
                         "lower --total-batch-size")
    if steps > MOST_STEPS:
        raise ValueError(f"--{horizon.replace('_', '-')} gives {steps:.3g} steps of {batch} tokens, expected at most "
                         f"{MOST_STEPS:,}; lower it, or raise --total-batch-size")
    return steps


def scale_run(config, num_scaling_params: int, ref_scaling_params: int, flops_per_token: int | None = None,
              world_size: int = 1) -> Scaled:
    """Batch, steps, rate, decay and tau of a TrainConfig, by upstream's rules or against a pinned reference.

    num_scaling_params: N of the model; ref_scaling_params: of the d12 with its vocabulary; flops_per_token: only needed
    with --target-flops. Raises ValueError where no run can have the resulting settings.
    """
    horizon = next(name for name in BOUNDS if getattr(config, name) > 0)
    pinned = config.ratio_ref > 0
    # Upstream's laws read only D / D_ref, in which the ratio cancels. So where --num-iterations gives the horizon and
    # there is no ratio, any ratio will do, and the laws still follow N.
    ratio = config.target_param_data_ratio if config.target_param_data_ratio > 0 else 1.0
    ref_tokens = reference_tokens(ref_scaling_params, ratio, config.ratio_ref)
    by_flops = pinned and horizon == "target_flops"
    tokens = config.target_flops / flops_per_token if by_flops else int(ratio * num_scaling_params)
    if tokens < 1:
        raise ValueError(f"--{horizon.replace('_', '-')} gives less than one token for {num_scaling_params:,} scaling "
                         "parameters; raise --target-param-data-ratio")
    base = config.total_batch_size if config.total_batch_size != -1 else optimal_batch_size(tokens, ref_tokens)
    batch = multiplied_batch(base, config.batch_multiplier, config.device_batch_size, config.max_seq_len, world_size)
    num_iterations = steps_of(config, horizon, tokens, flops_per_token, base, batch)
    total_tokens, lr_scale = batch * num_iterations, batch_lr_scale(batch)
    # Against a pinned reference the decay follows the tokens of this very run, and tau is the same for every horizon.
    # Upstream's decay follows `tokens`, the horizon that the ratio asks for, even where --num-iterations gives another.
    decay = scaled_weight_decay(config.weight_decay * config.wd_multiplier, batch, total_tokens if pinned else tokens,
                                ref_tokens)
    matrix_lr = config.matrix_lr * (lr_scale * config.lr_multiplier)
    return Scaled(
        num_iterations=num_iterations, horizon=horizon, total_batch_size=batch, batch_multiplier=batch / base,
        grad_accum_steps=grad_accum_steps(batch, config.device_batch_size, config.max_seq_len, world_size),
        total_tokens=total_tokens, effective_ratio=total_tokens / num_scaling_params, ref_tokens=ref_tokens,
        batch_lr_scale=lr_scale, matrix_lr=matrix_lr, weight_decay=decay,
        tau=ema_time_scale(batch, matrix_lr, decay, total_tokens))
