"""
Pure schedules and scaling laws: numbers in, numbers out, no torch. Trainer, calculators and the
lab share these functions, so what is predicted is what is run; scale_run() is all the laws at once.

The schedules take the step and, where a wall budget drives the run, its `position`: the step at which a run
of num_iterations would be as far as this one is in its budget. Warm-ups go by steps always.

Sources: upstream nanochat (its constants), B_opt ~ D^0.383 and tau from arXiv:2505.13738,
weight decay from the EMA view of AdamW, arXiv:2405.13698.
"""

import math
from dataclasses import dataclass

B_REF = 2 ** 19  # tokens per step at which the learning rates were tuned (d12, upstream)
BATCH_EXPONENT = 0.383  # B_opt ~ D^0.383
TIMED_FROM_STEP = 11  # earlier steps warm up caches and compilers; upstream's leaderboard clock skips them too
WARMDOWN_SHAPES = {"linear": lambda progress: progress, "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * (1 - progress)))}
BOUNDS = {"num_iterations": "iterations", "target_flops": "flops", "target_param_data_ratio": "ratio"}  # the first that is given


def training_clock(step: int, timed_sec: float, timed_steps: int) -> float:
    """Seconds of the steps from TIMED_FROM_STEP to `step`. A resumed process's first step is not timed and counts as the
    mean of those that are: a run that was cut gets no step for nothing."""
    steps = step - TIMED_FROM_STEP
    return timed_sec if timed_steps in (0, steps) else timed_sec * steps / timed_steps


def budget_position(step: int, num_iterations: int, spent_sec: float, wall_budget_sec: float) -> float:
    """The step itself, or further on where more of the wall budget is spent than of the steps, so that the warmdown is
    complete when either ends; -1 = no wall budget.

    >>> budget_position(20, 100, 3.0, -1), budget_position(20, 100, 3.0, 10.0), budget_position(20, 100, 1.0, 10.0)
    (20, 30.0, 20)
    """
    return step if wall_budget_sec <= 0 else max(step, num_iterations * min(1.0, spent_sec / wall_budget_sec))


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
    """0.85 -> 0.97 over 400 steps, then -> 0.90 over the warmdown, linearly whatever the shape of the rate's: one knob
    changes one thing. The first branch wins, as upstream has it: a run of fewer than 400 steps never warms its momentum down."""
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
    """D_ref, the tokens of the d12 that batch and decay are scaled from. Upstream takes the run's own ratio (ratio_ref -1):
    D / D_ref is then N / N_d12 whatever the ratio, decay does not follow the horizon and tau goes as 1 / ratio. Pinned, tau
    is B_REF / (eta_ref lambda_ref D_ref) for every horizon."""
    return (ratio_ref if ratio_ref > 0 else target_param_data_ratio) * ref_params


def optimal_batch_size(target_tokens: float, ref_tokens: float) -> int:
    """Tokens per step: the power of two nearest to B_REF (D / D_ref)^0.383."""
    return 2 ** round(math.log2(B_REF * (target_tokens / ref_tokens) ** BATCH_EXPONENT))


def batch_lr_scale(total_batch_size: int) -> float:
    """Learning rates go with the square root of the batch."""
    return (total_batch_size / B_REF) ** 0.5


def scaled_weight_decay(weight_decay: float, total_batch_size: int, target_tokens: float, ref_tokens: float) -> float:
    """lambda = lambda_ref sqrt(B/B_ref) D_ref/D keeps tau constant when the rate goes with sqrt(B)."""
    return weight_decay * math.sqrt(total_batch_size / B_REF) * (ref_tokens / target_tokens)


def ema_time_scale(total_batch_size: int, lr: float, weight_decay: float, tokens: float) -> float | None:
    """tau = B / (eta lambda D): over which share of the run the weights average their updates. None without decay."""
    return total_batch_size / (lr * weight_decay * tokens) if lr * weight_decay * tokens else None


# -----------------------------------------------------------------------------
# The batch in micro-batches

def nearest(candidates, value, n=4) -> str:
    return ", ".join(map(str, sorted(sorted(candidates, key=lambda c: (abs(c - value), c))[:n])))


def grad_accum_steps(total_batch_size: int, device_batch_size: int, max_seq_len: int, world_size: int = 1) -> int:
    """Micro-batches per optimizer step. Raises ValueError naming the nearest batches that divide."""
    micro = device_batch_size * max_seq_len * world_size
    if total_batch_size > 0 and total_batch_size % micro == 0:
        return total_batch_size // micro
    rows = total_batch_size // (max_seq_len * world_size)
    if rows and total_batch_size % (max_seq_len * world_size) == 0:
        near = nearest([d for d in range(1, rows + 1) if rows % d == 0], device_batch_size)
        hint = f"device batch sizes that divide it: {near}"
    else:
        near = max(1, round(total_batch_size / micro)) * micro
        hint = f"the nearest total batch size for this device batch is {near}"
    raise ValueError(f"--total-batch-size={total_batch_size} is not a multiple of --device-batch-size {device_batch_size} x "
                     f"--max-seq-len {max_seq_len} x {world_size} ranks = {micro} tokens; {hint}")


def multiplied_batch(total_batch_size: int, multiplier: float, device_batch_size: int, max_seq_len: int, world_size: int = 1) -> int:
    """The multiple of the micro-batch nearest to multiplier x total_batch_size. Raises ValueError where rounding leaves
    the batch as it was, or none: such an arm would be the control under another name."""
    accum = grad_accum_steps(total_batch_size, device_batch_size, max_seq_len, world_size)
    wanted = accum if multiplier == 1 else round(multiplier * accum)
    if wanted < 1 or (wanted == accum and multiplier != 1):
        others = [n for n in ((1, 2) if wanted < 1 else (accum - 1, accum + 1)) if n not in (0, accum)]
        near = " and ".join(f"{n / accum:g}" for n in others)  # six digits, enough to round to these micro-batches again
        raise ValueError(f"--batch-multiplier={multiplier} rounds to {'no batch' if wanted < 1 else 'the same batch'}: {total_batch_size} "
                         f"tokens are {accum} micro-batches of {total_batch_size // accum}; the nearest that do not: {near}; "
                         "a smaller --device-batch-size gives finer ones")
    return wanted * (total_batch_size // accum)


# -----------------------------------------------------------------------------
# All of them for one run

@dataclass
class Scaled:
    """What the laws make of a horizon."""
    num_iterations: int
    horizon: str  # which option decided num_iterations
    total_batch_size: int
    batch_multiplier: float  # what --batch-multiplier is after rounding
    grad_accum_steps: int
    total_tokens: int  # D
    effective_ratio: float  # total_tokens / num_scaling_params
    ref_tokens: float  # D_ref of the laws
    batch_lr_scale: float
    matrix_lr: float  # eta: Muon's rate where the schedule is at 1, before its factor for the shape of a matrix
    weight_decay: float  # lambda: of the matrices, at the start of its cosine
    tau: float | None  # B / (eta lambda D)


def steps_of(config, horizon: str, tokens: float, flops: int | None, base: int, batch: int) -> int:
    """Optimizer steps of `batch` tokens. --num-iterations counts steps of `base`, the batch before --batch-multiplier: an arm
    with another batch trains on the same tokens, as it does with the other horizons."""
    if horizon == "num_iterations":
        steps = round(config.num_iterations * base / batch)
    else:
        steps = round(config.target_flops / (flops * batch)) if horizon == "target_flops" else int(tokens // batch)
    if steps < 1:
        raise ValueError(f"--{horizon.replace('_', '-')} gives less than one step of {batch} tokens; raise it, or lower --total-batch-size")
    return steps


def scale_run(config, num_scaling_params: int, ref_scaling_params: int, flops_per_token: int | None = None, world_size: int = 1) -> Scaled:
    """Batch, steps, rate, decay and tau of a TrainConfig, by upstream's rules or against a pinned reference.

    num_scaling_params: N of the model; ref_scaling_params: of the d12 with its vocabulary; flops_per_token: only needed with
    --target-flops. Raises ValueError where what results cannot be run.
    """
    horizon = next(name for name in BOUNDS if getattr(config, name) > 0)
    pinned = config.ratio_ref > 0
    # Upstream's laws read only D / D_ref, in which the ratio cancels: with --num-iterations they still follow N.
    ratio = config.target_param_data_ratio if config.target_param_data_ratio > 0 else 1.0
    ref_tokens = reference_tokens(ref_scaling_params, ratio, config.ratio_ref)
    by_flops = pinned and horizon == "target_flops"
    tokens = config.target_flops / flops_per_token if by_flops else int(ratio * num_scaling_params)
    base = config.total_batch_size if config.total_batch_size != -1 else optimal_batch_size(tokens, ref_tokens)
    batch = multiplied_batch(base, config.batch_multiplier, config.device_batch_size, config.max_seq_len, world_size)
    num_iterations = steps_of(config, horizon, tokens, flops_per_token, base, batch)
    total_tokens, lr_scale = batch * num_iterations, batch_lr_scale(batch)
    # Against a pinned reference the decay follows the tokens of this very run, and tau is the same for every horizon.
    decay = scaled_weight_decay(config.weight_decay * config.wd_multiplier, batch, total_tokens if pinned else tokens, ref_tokens)
    matrix_lr = config.matrix_lr * (lr_scale * config.lr_multiplier)
    return Scaled(
        num_iterations=num_iterations, horizon=horizon, total_batch_size=batch, batch_multiplier=batch / base,
        grad_accum_steps=grad_accum_steps(batch, config.device_batch_size, config.max_seq_len, world_size), total_tokens=total_tokens,
        effective_ratio=total_tokens / num_scaling_params, ref_tokens=ref_tokens, batch_lr_scale=lr_scale, matrix_lr=matrix_lr,
        weight_decay=decay, tau=ema_time_scale(batch, matrix_lr, decay, total_tokens))
