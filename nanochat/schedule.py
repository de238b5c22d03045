"""
Pure schedules and scaling laws: numbers in, numbers out, no torch. Trainer, calculators and the
lab share these functions, so what is predicted is what is run.

Sources: upstream nanochat (its constants), B_opt ~ D^0.383 and tau from arXiv:2505.13738,
weight decay from the EMA view of AdamW, arXiv:2405.13698.
"""

import math

B_REF = 2 ** 19  # tokens per step at which the learning rates were tuned (d12, upstream)
BATCH_EXPONENT = 0.383  # B_opt ~ D^0.383
TIMED_FROM_STEP = 11  # earlier steps warm up caches and compilers; upstream's leaderboard clock skips them too


def lr_multiplier(step: int, num_iterations: int, warmup_steps: int, warmdown_ratio: float, final_lr_frac: float) -> float:
    """Linear warm-up, constant, linear warmdown to final_lr_frac at step == num_iterations."""
    warmdown_iters = round(warmdown_ratio * num_iterations)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if step <= num_iterations - warmdown_iters:
        return 1.0
    progress = (num_iterations - step) / warmdown_iters
    return progress + (1 - progress) * final_lr_frac


def muon_momentum(step: int, num_iterations: int, warmdown_ratio: float) -> float:
    """0.85 -> 0.97 over 400 steps, then -> 0.90 over the warmdown. The first branch wins, as upstream
    has it: a run of fewer than 400 steps never warms its momentum down."""
    warmdown_iters = round(warmdown_ratio * num_iterations)
    start = num_iterations - warmdown_iters
    if step < 400:
        frac = step / 400
        return (1 - frac) * 0.85 + frac * 0.97
    if step < start or warmdown_iters == 0:
        return 0.97
    progress = (step - start) / warmdown_iters
    return 0.97 * (1 - progress) + 0.90 * progress


def weight_decay_multiplier(step: int, num_iterations: int) -> float:
    """Cosine from 1 to 0 over the run."""
    return 0.5 * (1 + math.cos(math.pi * step / num_iterations))


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
