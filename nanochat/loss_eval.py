"""Bits per byte: a loss that does not depend on the vocabulary."""

import math

import torch

from nanochat.ranks import ONE_RANK, Ranks


@torch.no_grad()
def evaluate_bpb(model, batches, token_bytes, ranks: Ranks = ONE_RANK) -> float | None:
    """Sum of nats over sum of bytes of the targets, in bits per byte. None where no byte was seen.

    batches: iterable of (x, y), int64 [B, T]. token_bytes: int32 [V], bytes of each token, 0 for specials;
    targets of 0 bytes, and ignored targets (-1), count in neither sum. Both sums are over the batches of all ranks.
    """
    nats, num_bytes = 0.0, 0
    for x, y in batches:
        loss = model(x, y, loss_reduction="none").view(-1)  # [B*T]; 0 where the target is ignored
        size = torch.where(y.view(-1) >= 0, token_bytes[y.view(-1).clamp_min(0)], 0)
        counted = loss * (size > 0)
        nats += counted.sum(dtype=torch.float32 if counted.device.type == "mps" else torch.float64).item()
        num_bytes += int(size.sum())
    nats, num_bytes = ranks.sum(nats), ranks.sum(num_bytes)
    return nats / (math.log(2) * num_bytes) if num_bytes else None
