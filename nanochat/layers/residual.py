"""
How a sublayer reads from and writes to the residual stream s.

A block does, once for the mixer and once for the MLP, each with a residual object of its own:

    x, carry = res.read(s, ctx); x = norm(x); y, aux = sublayer(x, ctx); s = res.write(s, x, y, carry, ctx)

so a residual may look at the sublayer's normed input x and its output y, and may keep decode state.
"""

import torch
import torch.nn as nn


class PlainResidual(nn.Module):
    """s + y."""

    def __init__(self, config, layer_idx: int):
        super().__init__()

    def read(self, s, ctx):
        return s, None

    def write(self, s, x, y, carry, ctx):
        return s + y


class SymplecticGate(PlainResidual):
    """s + g y, where g_t in [1 - mix, 1] is small where the input hardly changes from token to token.

    e_t = mean over channels of (x_t - x_{t-1})^2, m_t = mean of e_1..e_t, g_0 = 1,
    g_t = (1 - mix) + mix tanh(e_t / (m_t + eps)). No parameters. Everything is summed in fp32. m_t is the
    RUNNING mean: a mean over the whole sequence would read the future and could not be decoded token by token.
    """

    def __init__(self, config, layer_idx: int):
        super().__init__(config, layer_idx)
        self.gated = config.symplectic_gate_layers == "all" or layer_idx % 2 == 1
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
        previous = x[:, :1] if first else state["x"]
        shifted = torch.cat([previous, x[:, :-1]], dim=1)
        e = (x.float() - shifted.float()).square().mean(dim=-1)  # [B,T]; 0 at a sequence start
        total = e.cumsum(dim=1) if first else e.cumsum(dim=1) + state["sum"]
        start = 0 if ctx.cache is None else ctx.cache.pos
        count = torch.arange(start, start + x.size(1), device=x.device).clamp_min(1)
        mix = self.mix_at(ctx.step)
        g = (1 - mix) + mix * torch.tanh(e / (total / count + self.eps))
        if first:
            g = torch.cat([torch.ones_like(g[:, :1]), g[:, 1:]], dim=1)
        if state is not None:
            state["x"], state["sum"] = x[:, -1:], total[:, -1:]
        return g.unsqueeze(-1)

    def write(self, s, x, y, carry, ctx):
        return s + y * self.gate(x, ctx).to(y.dtype) if self.gated else s + y
