"""
Checks of a training configuration that relate several options. A check of one option alone stands in its declaration
(nanochat/config.py). Torch-free. Every message names the flag, its value, and the values that were expected.
"""

from nanochat.checks import MOST_CHANNELS
from nanochat.options import declared, flag, require
from nanochat.schedule import BOUNDS, divisors, multiplied_batch, nearest


def one_horizon(config):
    require(any(getattr(config, name) > 0 for name in BOUNDS), "num_iterations", config.num_iterations,
            f"one horizon: {', '.join(map(flag, list(BOUNDS)[:-1]))} or {flag(list(BOUNDS)[-1])} above 0")


def a_batch_to_validate_on(config):
    batch = config.device_batch_size * config.max_seq_len
    require(config.eval_every == -1 or config.eval_tokens >= batch, "eval_tokens", config.eval_tokens,
            f"at least one batch: {config.device_batch_size} x {config.max_seq_len} tokens")


def whole_micro_batches(config):
    if config.total_batch_size != -1:
        multiplied_batch(config.total_batch_size, config.batch_multiplier, config.device_batch_size, config.max_seq_len)


# -----------------------------------------------------------------------------
# Options that would change nothing beside the values of others. An arm made of them would be the control under another
# name, and its verdict a verdict on nothing. `needs` in a declaration is the common case.

def _with_effect(config, name: str, ok: bool, expected: str):
    value = getattr(config, name)
    require(ok or value == declared(type(config))[name].default, name, value, expected)


def a_rate_that_falls(config):
    falls = config.warmdown_ratio > 0 and config.final_lr_frac < 1
    _with_effect(config, "warmdown_shape", falls,
                 "a warmdown: with --warmdown-ratio=0 or --final-lr-frac=1 the rate does not fall")


def a_decay_to_multiply(config):
    _with_effect(config, "wd_multiplier", config.weight_decay > 0, "a --weight-decay above 0 to multiply")


def a_law_to_pin(config):
    automatic = config.total_batch_size == -1
    _with_effect(config, "ratio_ref", automatic or config.weight_decay * config.wd_multiplier > 0,
                 "an automatic batch or a weight decay: nothing else depends on it")
    _with_effect(config, "ratio_ref", config.num_iterations == -1 or not automatic,
                 "--total-batch-size beside --num-iterations: the batch law needs the tokens of the run first")


def denser_evaluation(config):
    _with_effect(config, "eval_near_target", config.eval_near_target < config.eval_every,
                 f"less than --eval-every={config.eval_every}: else nothing gets denser")


# -----------------------------------------------------------------------------
# The model

def model_shape(config) -> tuple[int, int, int]:
    """(model_dim, query heads, key/value heads). Raises ValueError naming the nearest sizes that divide.

    Without --model-dim the width is depth * aspect_ratio rounded up to whole heads, as upstream does it.
    """
    head_dim = config.head_dim
    require(head_dim % 2 == 0, "head_dim", head_dim, "an even number (rotary embeddings turn pairs)")
    if config.model_dim == -1:
        dim = -(-config.depth * config.aspect_ratio // head_dim) * head_dim
    else:
        dim = config.model_dim
        even = [d for d in divisors(dim) if d % 2 == 0]
        require(dim % head_dim == 0, "head_dim", head_dim,
                f"a divisor of --model-dim {dim}; the nearest are {nearest(even, head_dim)}" if even else
                f"a divisor of --model-dim {dim}, which is odd: give an even --model-dim")
    require(dim <= MOST_CHANNELS, "aspect_ratio", config.aspect_ratio,
            f"a width of --depth {config.depth} times this of at most {MOST_CHANNELS:,}")
    require(dim >= 24, "model_dim", dim, "at least 24 (the smear gate reads the first 24 channels)")
    n_head = dim // head_dim
    n_kv_head = n_head if config.n_kv_head == -1 else config.n_kv_head
    fitting = sorted(divisors(n_head))
    require(n_kv_head in fitting, "n_kv_head", n_kv_head,
            f"a divisor of the {n_head} query heads: {', '.join(map(str, fitting))}")
    return dim, n_head, n_kv_head


# In this order: the first that is violated is the message.
RELATIONS = (one_horizon, a_batch_to_validate_on, a_rate_that_falls, a_decay_to_multiply, a_law_to_pin,
             denser_evaluation, model_shape, whole_micro_batches)
