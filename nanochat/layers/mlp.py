"""The feed-forward sublayer."""

import torch
import torch.nn.functional as F

from nanochat.layers.layer import Layer
from nanochat.layers.linear import Linear


class ReluSquared(torch.autograd.Function):
    """relu(x)^2 that keeps one tensor for backward, r = relu(x). The derivative is 2r, also where x <= 0.

    torch's own derivatives of relu and square give the same bits, in four passes over memory.
    """

    @staticmethod
    def forward(ctx, x):
        r = F.relu(x)
        ctx.save_for_backward(r)
        return r * r

    @staticmethod
    def backward(ctx, grad):
        r, = ctx.saved_tensors
        return (r * grad).mul_(2)


class ReluSquaredMLP(Layer):
    """y = W_proj relu(W_fc x)^2, four times as wide inside (arXiv:2109.08668)."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)

    @torch.no_grad()
    def init_weights(self):
        bound = 0.4 * (3 / self.c_fc.in_features) ** 0.5
        self.c_fc.weight.uniform_(-bound, bound)
        self.c_proj.weight.zero_()

    def forward(self, x, ctx):
        return self.c_proj(ReluSquared.apply(self.c_fc(x))), {}
