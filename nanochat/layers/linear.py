"""Bias-free Linear and RMSNorm without gain: what every layer here is made of."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def by_hand(x) -> bool:
    """Whether the derivatives written out here pay: on a CPU, eager, torch makes a pass over memory of each term.
    Elsewhere kernels and compilers fuse them."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def inverse_rms(x):
    """1 / sqrt(mean(x^2) + eps) over the last dimension, kept, in fp32 at least. eps: torch's default for rms_norm, which is
    fp32's for every dtype."""
    square = (x.float() if x.element_size() < 4 else x).pow(2)
    return square.mean(dim=-1, keepdim=True).add_(torch.finfo(torch.float32).eps).rsqrt_()


class RMSNorm(torch.autograd.Function):
    """y = r x with r = inverse_rms(x); dx = r (dy - y mean(dy y))."""

    @staticmethod
    def forward(ctx, x):
        r = inverse_rms(x)
        y = (x * r).to(x.dtype)
        ctx.save_for_backward(y, r)
        return y

    @staticmethod
    def backward(ctx, dy):
        y, r = ctx.saved_tensors
        return torch.addcmul(dy, y, (dy * y).mean(dim=-1, keepdim=True), value=-1).mul_(r)


def norm(x):
    """RMSNorm over the last dimension, no gain, torch's default eps."""
    return RMSNorm.apply(x) if by_hand(x) else F.rms_norm(x, (x.size(-1),))


class Linear(nn.Linear):
    """Keeps its weight in fp32 and multiplies in the dtype of its input: autocast without autocast."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype))
