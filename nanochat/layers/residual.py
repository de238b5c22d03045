"""
How a sublayer reads from and writes to the residual stream s.

A block does, once for the mixer and once for the MLP, each with a residual object of its own:

    x, carry = res.read(s, ctx); x = norm(x); y, aux = sublayer(x, ctx); s = res.write(s, x, y, carry, ctx)

So a residual may look at the sublayer's normed input x and its output y, and may keep decode state.

The first residual of the model makes s of the embeddings (`enter`), and the last one makes the hidden state of s
(`leave`). A residual with several streams overrides both, and gpt.py need not know what s is.
"""

import torch

from nanochat.layers.layer import Layer

# These extras act on s in gpt.py, and are defined for a single stream only.
ONE_STREAM_ONLY = ("lambdas", "backout")


class PlainResidual(Layer):
    """s + y. `sublayer_idx`: 2 * layer, plus 0 for the mixer and 1 for the MLP."""

    streams = 1

    def __init__(self, config, sublayer_idx: int):
        super().__init__()

    @property
    def refuses(self) -> tuple[str, ...]:
        return ONE_STREAM_ONLY if self.streams > 1 else ()

    def enter(self, x):
        """Embeddings x [B,T,C] -> s."""
        return x

    def leave(self, s):
        """s -> hidden state [B,T,C]."""
        return s

    def read(self, s, ctx):
        return s, None

    def write(self, s, x, y, carry, ctx):
        return s + y


class Change(torch.autograd.Function):
    """x [B,T,C] -> e [B,T-1] in fp32, e_t = mean over channels of (x_{t+1} - x_t)^2.

    The derivative is written out, because it then takes two passes over memory instead of nine. This pays, as the gate
    looks at its input in every sublayer.
    """

    @staticmethod
    def forward(ctx, x):
        step = x[:, 1:].float() - x[:, :-1].float()
        ctx.save_for_backward(step)
        ctx.dtype = x.dtype
        return step.square().mean(dim=-1)

    @staticmethod
    def backward(ctx, de):
        step, = ctx.saved_tensors
        d = step * (de * (2 / step.size(-1))).unsqueeze(-1)
        dx = d.new_zeros(d.size(0), d.size(1) + 1, d.size(2))
        dx[:, 1:] = d
        dx[:, :-1] -= d
        return dx.to(ctx.dtype)


class SymplecticGate(PlainResidual):
    """s + g y, where g_t in [1 - mix, 1] is small where the input hardly changes from token to token.

    e_t = mean over channels of (x_t - x_{t-1})^2, m_t = mean of e_1..e_t, g_0 = 1,
    g_t = (1 - mix) + mix tanh(e_t / (m_t + eps)). No parameters. Everything is summed in fp32. m_t is the
    RUNNING mean: a mean over the whole sequence would read the future and could not be decoded token by token.
    """

    def __init__(self, config, sublayer_idx: int):
        super().__init__(config, sublayer_idx)
        self.gated = config.symplectic_gate_layers == "all" or sublayer_idx // 2 % 2 == 1  # "odd" counts layers
        self.mix = config.symplectic_gate_mix
        self.eps = config.symplectic_gate_eps
        self.ramp_start = config.symplectic_gate_ramp_start
        self.ramp_steps = config.symplectic_gate_ramp_steps

    def mix_at(self, step):
        """mix, ramped linearly over optimizer steps. `step` is a tensor, so a compiled graph serves every step."""
        if self.ramp_steps == 0:
            return self.mix
        return self.mix * ((step - self.ramp_start) / self.ramp_steps).clamp(0, 1)

    def gate(self, x, ctx):
        """x [B,T,C] -> g [B,T,1] in fp32."""
        state = None if ctx.cache is None else ctx.cache.of(self)
        first = not state  # x[:, 0] starts the sequence: it has no predecessor, and its gate is 1
        e = Change.apply(x if first else torch.cat([state["x"], x], dim=1))
        total = e.cumsum(dim=1) if first else e.cumsum(dim=1) + state["sum"]
        start = 1 if first else ctx.cache.pos
        count = torch.arange(start, start + e.size(1), device=x.device)
        mix = self.mix_at(ctx.step)
        g = (1 - mix) + mix * torch.tanh(e / (total / count + self.eps))
        if first:
            g = torch.cat([g.new_ones(x.size(0), 1), g], dim=1)
        if state is not None:
            state["x"], state["sum"] = x[:, -1:], total[:, -1:] if total.size(1) else e.new_zeros(x.size(0), 1)
        return g.unsqueeze(-1)

    def write(self, s, x, y, carry, ctx):
        return torch.addcmul(s, y, self.gate(x, ctx).to(y.dtype)) if self.gated else s + y
