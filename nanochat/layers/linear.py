"""Bias-free Linear and Embedding, of which every layer here is made."""

import torch
import torch.nn as nn
import torch.nn.functional as F

CPU_MULTIPLIES_BF16 = any(map(torch.cpu.get_capabilities().get,
                              ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16")))


def widened(x) -> bool:
    """Whether to compute products of x in fp32 and round them: for bf16 on a CPU without bf16 instructions.

    The library of such a CPU converts bf16 and sums in fp32 as well, but at half the speed (dev/LOG.md, 2026-11-21).
    """
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not CPU_MULTIPLIES_BF16


def product(a, b):
    """a @ b, outside autograd."""
    return (a.float() @ b.float()).to(a.dtype) if widened(a) else a @ b


class WidenedLinear(torch.autograd.Function):
    """F.linear of bf16 x [..., K] and weight [N, K], multiplied in fp32, all results rounded to bf16."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        dy = dy.float()
        dw = dy.flatten(0, -2).T @ x.float().flatten(0, -2)
        return (dy @ weight.float()).to(x.dtype), dw.to(x.dtype)


class Linear(nn.Linear):
    """Keeps its weight in fp32 and multiplies in the dtype of its input, as torch.autocast would."""

    def __init__(self, in_features: int, out_features: int, role: str = "matrix"):
        super().__init__(in_features, out_features, bias=False)
        self.roles = {"weight": role}

    def forward(self, x):
        return (WidenedLinear.apply if widened(x) else F.linear)(x, self.weight.to(x.dtype))


class Embedding(nn.Embedding):
    def __init__(self, num_embeddings: int, embedding_dim: int, role: str):
        super().__init__(num_embeddings, embedding_dim)
        self.roles = {"weight": role}
