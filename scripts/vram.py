"""
Memory that a training run needs, and the largest batch for common cards. It takes the flags of base_train:

    python -m scripts.vram --depth=12 --max-seq-len=1024 --device-batch-size=16 --vocab-size=32768

The memory is counted on the model itself, without a card (nanochat/vram.py). --dtype=auto counts as bfloat16, as it
does on cards of SM 8.0 and newer.
"""

import sys
from dataclasses import dataclass, replace

from nanochat.checks import MOST_CHANNELS, positive
from nanochat.command_line import say_error
from nanochat.config import TrainConfig, validate
from nanochat.options import option, parse_command

CARDS_GIB = (8, 12, 16, 24, 40, 80)
RESERVE_MIB = 1024  # of every card, for what is not counted
NOT_COUNTED = ("the CUDA context (300 to 600 MiB), fragmentation and rounding by the allocator, "
               "workspaces inside kernels, the desktop on that card, the evaluation's batches")


def parse_args(argv):
    """The training configuration, with a vocab_size."""
    from nanochat.gpt import GPTConfig

    @dataclass
    class VramOptions(TrainConfig):
        vocab_size: int = option(GPTConfig.vocab_size, "number of tokens in the vocabulary",
                                 check=positive.up_to(MOST_CHANNELS))
    return parse_command(VramOptions, argv, "vram", "Memory that a training run needs.", validate)


def mib(num_bytes: int) -> str:
    return f"{num_bytes / 2 ** 20:>12,.1f} MiB"


def batch_that_divides(largest: int, total_tokens: int, max_seq_len: int) -> int:
    """The largest device batch up to `largest` with which the total batch is whole micro-batches; 0 where none is."""
    return next((b for b in range(largest, 0, -1) if total_tokens % (b * max_seq_len) == 0), 0)


def print_memory(found, batch_size: int, params: int):
    memory, logits = found.at(batch_size), found.logits(batch_size)
    rows = [("weights", memory.weights, f"{params:,} parameters and the rotary table"),
            ("gradients", memory.gradients, ""),
            ("optimizer state", memory.optimizer, "Muon: one moment and a factored one; AdamW: two moments"),
            ("activations", memory.activations, "what autograd keeps for the backward pass"),
            ("logits", logits, "compiled code keeps them and makes their gradient; --no-compile takes them in chunks"),
            ("temporaries", memory.temporaries - logits, "at the peak"),
            ("peak", memory.peak, "")]
    for name, size, remark in rows:
        print(f"{name:<16}{mib(size)}  {remark}".rstrip())


def print_cards(found, total_tokens: int):
    print(f"\nLargest --device-batch-size, {RESERVE_MIB:,} MiB of the card left free:")
    print(f"{'card':>7}{'fits':>8}{'divides a total batch of ' + format(total_tokens, ',') + ' tokens':>52}")
    for gib in CARDS_GIB:
        largest = found.largest_batch(gib * 2 ** 30 - RESERVE_MIB * 2 ** 20)
        divides = batch_that_divides(largest, total_tokens, found.config.sequence_len)
        print(f"{gib:>4} GB{largest or 'none':>8}{divides or 'none':>52}")


def main(argv=None):
    config = parse_args(argv)
    vocab_size = config.vocab_size
    import torch

    from nanochat.cost import gpt_config, resolve
    from nanochat.vram import estimate
    dtype = torch.float32 if config.dtype == "float32" else torch.bfloat16
    try:  # with one row a micro-batch every total batch divides: here it is only to be known
        resolved = resolve(replace(config, device_batch_size=1), vocab_size)
    except ValueError as e:
        say_error(e, "vram")
        sys.exit(2)
    found = estimate(gpt_config(config, vocab_size), dtype, config.compile, config.matrix_optimizer)
    print(f"Training depth {config.depth}, {resolved.n_embd} wide, {resolved.n_head} heads, "
          f"{config.max_seq_len} tokens of context, vocabulary {vocab_size:,}, {str(dtype).removeprefix('torch.')}, "
          f"{'compiled' if config.compile else 'eager'}; "
          f"device batch {config.device_batch_size}:\n")
    print_memory(found, config.device_batch_size, resolved.num_params)
    print(f"\nNot included: {NOT_COUNTED}.")
    print_cards(found, resolved.total_batch_size)


if __name__ == "__main__":
    main()
