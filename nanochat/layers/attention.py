"""
Causal attention with grouped queries, sliding windows, rotary embeddings, QK norm and value embeddings.

B batch, T tokens, C channels, H heads, G key/value heads, D head size.
"""

import torch
import torch.nn.functional as F

from nanochat.layers.layer import Layer
from nanochat.layers.linear import Linear
from nanochat.layers.norm import Norm

QK_SCALE = 1.2  # on q and on k after their norm: sharper attention, as upstream has it
VE_GATE_CHANNELS = 12


def rotary_table(seq_len: int, head_dim: int, base: float, device, dtype):
    """cos and sin [1, T, 1, D/2] of the angles t * base^(-2i/D)."""
    inv_freq = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.outer(torch.arange(seq_len, dtype=torch.float32, device=device), inv_freq)
    return angles.cos().to(dtype)[None, :, None, :], angles.sin().to(dtype)[None, :, None, :]


def rotate(x, cos, sin):
    """Turn the pairs (x_i, x_{i+D/2}) by MINUS their angle: upstream's convention, kept because checkpoints hold it."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1)


def by_hand(x) -> bool:
    """Whether to use the derivative written out in RotateAndNorm. It pays in eager code on a CPU.

    There torch makes a pass over memory for each term of the formula. Elsewhere kernels and compilers fuse the terms,
    and keep no more tensors than RotateAndNorm keeps. So meta tensors, which count memory, are treated as a CPU's.
    """
    return x.device.type in ("cpu", "meta") and not torch.compiler.is_compiling()


def inverse_rms(x):
    """1 / sqrt(mean(x^2) + eps) over the last dimension, which stays with size 1, in fp32 at least.

    eps is torch's default for rms_norm, which is fp32's for every dtype.
    """
    square = (x.float() if x.element_size() < 4 else x).pow(2)
    return square.mean(dim=-1, keepdim=True).add_(torch.finfo(torch.float32).eps).rsqrt_()


class RotateAndNorm(torch.autograd.Function):
    """o = scale norm(rotate(x)), with the roundings of rotate and norm in turn, in a third of the passes over memory.

    With r the inverse RMS and do the gradient of o: d rotate(x) = r scale (do - o mean(do o) / scale^2). dx is
    d rotate(x) turned back.

    The norms of the residual stream are not written out in this way. At the first step some gradients (of the lambdas,
    of backout) are nothing but rounding errors, and AdamW makes whole steps of them. So other rounding errors would
    give another run (dev/LOG.md, 2026-11-21).
    """

    @staticmethod
    def forward(ctx, x, cos, sin, scale):
        half = x.size(-1) // 2
        o = torch.empty_like(x)
        torch.mul(x[..., :half], cos, out=o[..., :half]).add_(x[..., half:] * sin)
        torch.mul(x[..., half:], cos, out=o[..., half:]).sub_(x[..., :half] * sin)
        r = inverse_rms(o)
        o.mul_(r).mul_(scale)
        ctx.scale = scale
        ctx.save_for_backward(o, r, cos, sin)
        return o

    @staticmethod
    def backward(ctx, do):
        o, r, cos, sin = ctx.saved_tensors
        d = torch.addcmul(do, o, (do * o).mean(dim=-1, keepdim=True), value=-1 / ctx.scale ** 2).mul_(r * ctx.scale)
        half = d.size(-1) // 2
        dx = torch.empty_like(d)
        torch.mul(d[..., :half], cos, out=dx[..., :half]).sub_(d[..., half:] * sin)
        torch.mul(d[..., half:], cos, out=dx[..., half:]).add_(d[..., :half] * sin)
        return dx, None, None, None


def attend(q, k, v, window: int):
    """Softmax attention of the last q.size(1) positions over all of k. q [B,T,H,D], k and v [B,S,G,D] -> [B,T,H,D].

    Position t sees s with 0 <= t - s <= window, positions counted from the end of k; scale 1/sqrt(D).
    """
    T, S = q.size(1), k.size(1)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    gqa = q.size(1) != k.size(1)
    if T == 1:  # decode: everything cached is in the past, so cut instead of masking
        k, v = k[:, :, -(window + 1):], v[:, :, -(window + 1):]
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=gqa)
    elif T == S and window >= S - 1:
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
    else:
        distance = torch.arange(S - T, S, device=q.device)[:, None] - torch.arange(S, device=q.device)[None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance <= window), enable_gqa=gqa)
    return y.transpose(1, 2)


class CausalSelfAttention(Layer):
    """y = W_o attend(q, k, v + gated value embedding). `has_ve` layers own the gate of their value embedding."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_dim = config.n_head, config.n_kv_head, config.head_dim
        self.window = config.window(layer_idx)
        self.qk_norm = Norm(self.head_dim) if config.qk_norm else None
        self.c_q = Linear(config.n_embd, self.n_head * self.head_dim)
        self.c_k = Linear(config.n_embd, self.n_kv_head * self.head_dim)
        self.c_v = Linear(config.n_embd, self.n_kv_head * self.head_dim)
        self.c_proj = Linear(self.n_head * self.head_dim, config.n_embd)
        self.ve_gate = Linear(VE_GATE_CHANNELS, self.n_kv_head, role="value_gate") if config.has_ve(layer_idx) else None

    @torch.no_grad()
    def init_weights(self):
        bound = (3 / self.c_q.in_features) ** 0.5  # uniform with standard deviation 1/sqrt(C)
        for linear in (self.c_q, self.c_k, self.c_v):
            linear.weight.uniform_(-bound, bound)
        self.c_proj.weight.zero_()
        if self.qk_norm is not None:
            self.qk_norm.init_weights()

    @torch.no_grad()
    def init_gate(self):
        if self.ve_gate is not None:
            self.ve_gate.weight.uniform_(0.0, 0.02)

    def flops_per_token(self, T: int) -> int:
        """On top of the matrices, the products q k and p v with min(window, T) tokens (arXiv:2204.02311, appendix B).

        Each product costs 2 per channel and token forwards, and 4 backwards, so both cost 12.
        Causality does not halve the count.
        """
        return super().flops_per_token(T) + 12 * self.n_head * self.head_dim * min(self.window, T)

    def forward(self, x, ctx):
        """x [B,T,C], already normed. ctx: see gpt.Context. Returns (y [B,T,C], no loss terms)."""
        B, T, _ = x.shape
        q = self.c_q(x).view(B, T, self.n_head, self.head_dim)
        k = self.c_k(x).view(B, T, self.n_kv_head, self.head_dim)
        v = self.c_v(x).view(B, T, self.n_kv_head, self.head_dim)
        if ctx.ve is not None:
            gate = 3 * torch.sigmoid(self.ve_gate(x[..., :VE_GATE_CHANNELS]))  # [B,T,G] in (0, 3)
            v = v + gate.unsqueeze(-1) * ctx.ve.view(B, T, self.n_kv_head, self.head_dim)
        q, k = self._turn(q, ctx.cos_sin), self._turn(k, ctx.cos_sin)
        if ctx.cache is not None:
            k, v = self._remember(k, v, ctx.cache)
        y = attend(q, k, v, self.window)
        return self.c_proj(y.reshape(B, T, -1)), {}

    def _turn(self, x, cos_sin):
        """Rotary embedding, and the norm of queries and keys."""
        norm = self.qk_norm
        if norm is not None and norm.is_default and by_hand(x):
            return RotateAndNorm.apply(x, *cos_sin, QK_SCALE)
        x = rotate(x, *cos_sin)
        return x if norm is None else norm(x) * QK_SCALE

    def _remember(self, k, v, cache):
        """Append k and v to the cache; return all keys and values so far."""
        state = cache.of(self)
        if not state:
            shape = (k.size(0), cache.max_seq_len, *k.shape[2:])
            state["k"], state["v"] = k.new_empty(shape), v.new_empty(shape)
        end = cache.pos + k.size(1)
        if end > cache.max_seq_len:
            raise ValueError(f"the decode cache holds {cache.max_seq_len} tokens, {end} were asked for")
        state["k"][:, cache.pos:end], state["v"][:, cache.pos:end] = k, v
        return state["k"][:, :end], state["v"][:, :end]
