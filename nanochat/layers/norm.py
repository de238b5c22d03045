"""RMSNorm, with its size, gain and eps fixed at construction."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the last dimension, times a learned gain if `gain` is true.

    eps None is torch's default, which is fp32's for every dtype. Without a gain the module owns no parameter.
    """

    roles = {"weight": "gain"}

    def __init__(self, size: int, gain: bool = False, eps: float | None = None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size)) if gain else None

    @property
    def is_default(self) -> bool:
        """Whether it has no gain and torch's eps. attention.RotateAndNorm computes exactly this norm."""
        return self.weight is None and self.eps is None

    @torch.no_grad()
    def init_weights(self):
        if self.weight is not None:
            self.weight.fill_(1.0)

    def forward(self, x):
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, (x.size(-1),), weight, self.eps)
