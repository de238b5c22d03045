"""
The model: Block and GPT, one page.

By default it is upstream's model: the same names and shapes in the state dict, the same function. Each
of upstream's extras is a field of GPTConfig; switched off, it owns no parameter, and with all of them off
what is left is a plain pre-norm transformer. What may be swapped inside a block is chosen by dict lookup
from MIXERS, MLPS and RESIDUALS.

B batch, T tokens, C channels, V vocabulary.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn as nn

from nanochat.layers.attention import CausalSelfAttention, rotary_table
from nanochat.layers.cache import DecodeCache
from nanochat.layers.linear import Linear, norm
from nanochat.layers.mlp import ReluSquaredMLP
from nanochat.layers.residual import PlainResidual, SymplecticGate
from nanochat.loss import cross_entropy, softcap

MIXERS = {"attention": CausalSelfAttention}
MLPS = {"relu_squared": ReluSquaredMLP}
RESIDUALS = {"plain": PlainResidual, "symplectic": SymplecticGate}

VOCAB_MULTIPLE = 64  # the embedding and lm_head are padded to this
SMEAR_CHANNELS = 24
ROTARY_REACH = 10  # the rotary table reaches this many times the training context


# What a checkpoint's "model_config" holds, exactly.
UPSTREAM_KEYS = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd", "window_pattern")


@dataclass
class GPTConfig:
    # size: UPSTREAM_KEYS
    n_layer: int = 12
    n_embd: int = 768
    n_head: int = 6
    n_kv_head: int = 6
    vocab_size: int = 32768
    sequence_len: int = 2048
    window_pattern: str = "SSSL"
    # ours: what a checkpoint's "variant" holds where it is not the default
    mixer: str = "attention"
    mlp: str = "relu_squared"
    residual: str = "plain"
    symplectic_gate_mix: float = 0.15
    symplectic_gate_eps: float = 1e-6
    symplectic_gate_layers: str = "all"
    symplectic_gate_ramp_start: int = 0
    symplectic_gate_ramp_steps: int = 0
    value_embeds: bool = True
    smear: bool = True
    lambdas: bool = True  # per-layer scalars on the residual stream and on x0
    backout: bool = True
    qk_norm: bool = True
    logit_softcap: float = 15.0  # 0 = off
    rope_base: float = 100000.0

    def has_ve(self, layer_idx: int) -> bool:
        """Value embeddings sit on every other layer, the last included."""
        return self.value_embeds and layer_idx % 2 == (self.n_layer - 1) % 2

    def window(self, layer_idx: int) -> int:
        """How many tokens back a layer sees. S is a quarter of the context, rounded up to whole tiles of 128."""
        letter = self.window_pattern.upper()[layer_idx % len(self.window_pattern)]
        if letter == "L" or layer_idx == self.n_layer - 1:
            return self.sequence_len
        return -(-self.sequence_len // 4 // 128) * 128

    def upstream_dict(self) -> dict:
        return {name: getattr(self, name) for name in UPSTREAM_KEYS}

    def variant_dict(self) -> dict:
        """Our fields that are not at their default: empty where the checkpoint is upstream's model."""
        return {f.name: getattr(self, f.name) for f in fields(self)
                if f.name not in UPSTREAM_KEYS and getattr(self, f.name) != f.default}


def refuse_unknown_rows(config: GPTConfig):
    """Raise ValueError for a name that is no row of MIXERS, MLPS or RESIDUALS, naming the rows there are."""
    for field, rows in dict(mixer=MIXERS, mlp=MLPS, residual=RESIDUALS).items():
        for name in getattr(config, field).split(","):
            if name not in rows:
                raise ValueError(f"--{field}={getattr(config, field)}: {name!r} is no row of {field.upper()}S in "
                                 f"nanochat/gpt.py; the rows are {', '.join(rows)}")


class Context(NamedTuple):
    """What a sublayer may need beside its input."""
    cos_sin: tuple  # rotary table at these positions
    window: int
    ve: torch.Tensor | None  # value embedding [B, T, kv_dim]
    cache: DecodeCache | None
    step: torch.Tensor  # optimizer step, 0-dim


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer_idx: int):
        super().__init__()
        self.attn = MIXERS[config.mixer](config, layer_idx)
        self.mlp = MLPS[config.mlp](config, layer_idx)
        self.attn_res = RESIDUALS[config.residual](config, layer_idx)
        self.mlp_res = RESIDUALS[config.residual](config, layer_idx)

    def init_weights(self):
        self.attn.init_weights()
        self.mlp.init_weights()

    def forward(self, s, ctx: Context):
        for sublayer, res in ((self.attn, self.attn_res), (self.mlp, self.mlp_res)):
            x, carry = res.read(s, ctx)
            x = norm(x)
            y, _ = sublayer(x, ctx)
            s = res.write(s, x, y, carry, ctx)
        return s


class GPT(nn.Module):
    """Build under torch.device("meta"), then to_empty(device), then init_weights(): see build_model."""

    def __init__(self, config: GPTConfig, compute_dtype=torch.float32):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        padded_vocab = -(-config.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(padded_vocab, config.n_embd),
            h=nn.ModuleList(Block(config, i) for i in range(config.n_layer))))
        self.lm_head = Linear(config.n_embd, padded_vocab)
        if config.lambdas:
            self.resid_lambdas = nn.Parameter(torch.empty(config.n_layer))
            self.x0_lambdas = nn.Parameter(torch.empty(config.n_layer))
        if config.smear:
            self.smear_gate = Linear(SMEAR_CHANNELS, 1)
            self.smear_lambda = nn.Parameter(torch.empty(1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.empty(1))
        kv_dim = config.n_kv_head * (config.n_embd // config.n_head)
        self.value_embeds = nn.ModuleDict({
            str(i): nn.Embedding(padded_vocab, kv_dim) for i in range(config.n_layer) if config.has_ve(i)})
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)
        self.register_buffer("step", torch.zeros(()), persistent=False)  # set by the trainer: ramps read it

    @torch.no_grad()
    def init_weights(self):
        """Every parameter and buffer, in upstream's order of draws: the same torch seed gives its weights."""
        config = self.config
        self.transformer.wte.weight.normal_(std=0.8)
        self.lm_head.weight.normal_(std=0.001)
        for block in self.transformer.h:
            block.init_weights()
        if config.lambdas:
            last = max(config.n_layer - 1, 1)
            self.resid_lambdas.copy_(torch.tensor([1.15 - 0.10 * i / last for i in range(config.n_layer)]))
            self.x0_lambdas.copy_(torch.tensor([0.20 - 0.15 * i / last for i in range(config.n_layer)]))
        if config.smear:
            self.smear_lambda.zero_()
            self.smear_gate.weight.uniform_(0.0, 0.02)
        if config.backout:
            self.backout_lambda.fill_(0.2)
        bound = (3 / config.n_embd) ** 0.5
        for ve in self.value_embeds.values():
            ve.weight.uniform_(-bound, bound)
        for block in self.transformer.h:
            block.attn.init_gate()
        self.step.zero_()
        self.init_tables()

    @torch.no_grad()
    def init_tables(self):
        """What is no weight: the rotary table, and embeddings kept in the compute dtype."""
        config, device = self.config, self.get_device()
        self.cos, self.sin = rotary_table(ROTARY_REACH * config.sequence_len, config.n_embd // config.n_head,
                                          config.rope_base, device, self.compute_dtype)
        for embedding in (self.transformer.wte, *self.value_embeds.values()):
            embedding.to(dtype=self.compute_dtype)

    def get_device(self):
        return self.transformer.wte.weight.device

    def forward(self, idx, targets=None, cache: DecodeCache | None = None, loss_reduction="mean"):
        """idx [B,T] -> logits [B,T,V] in fp32; with targets [B,T] (-1 = ignored) the cross-entropy in nats,
        a scalar for "mean", [B*T] for "none". With a cache, idx continues what the cache has seen."""
        x = self.trunk(idx, cache)
        if targets is None:
            logits = self.lm_head(x)[..., :self.config.vocab_size].float()
            return softcap(logits, self.config.logit_softcap)
        return cross_entropy(x, self.lm_head.weight, targets, self.config.vocab_size, self.config.logit_softcap, loss_reduction)

    def trunk(self, idx, cache=None):
        """Final normed hidden state [B,T,C]: everything but lm_head."""
        config = self.config
        start, T = (0 if cache is None else cache.pos), idx.size(1)
        if start + T > self.cos.size(1):
            raise ValueError(f"{start + T} tokens exceed the rotary table of {self.cos.size(1)}")
        cos_sin = self.cos[:, start:start + T], self.sin[:, start:start + T]
        x = norm(self.transformer.wte(idx).to(self.compute_dtype))
        if config.smear:
            x = self._smear(x, cache)
        x0, middle = x, None
        for i, block in enumerate(self.transformer.h):
            if config.lambdas:
                x = self.resid_lambdas[i] * x + self.x0_lambdas[i] * x0
            ve = self.value_embeds[str(i)](idx).to(x.dtype) if config.has_ve(i) else None
            x = block(x, Context(cos_sin, config.window(i), ve, cache, self.step))
            if i == config.n_layer // 2:
                middle = x
        if cache is not None:
            cache.pos += T
        if config.backout:
            x = x - self.backout_lambda.to(x.dtype) * middle
        return norm(x)

    def _smear(self, x, cache):
        """x_t += lambda sigmoid(W x_t[:24]) x_{t-1}: a little of the previous embedding, nothing at a sequence start."""
        state = None if cache is None else cache.of(self)
        if state:
            previous, current = torch.cat([state["x"], x[:, :-1]], dim=1), x
        else:
            previous, current = x[:, :-1], x[:, 1:]
        if state is not None:
            state["x"] = x[:, -1:]
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(current[..., :SMEAR_CHANNELS]))
        smeared = current + gate * previous
        return smeared if current is x else torch.cat([x[:, :1], smeared], dim=1)


def build_model(config: GPTConfig, device, compute_dtype=torch.float32, seed: int | None = None) -> GPT:
    """A model with initialised weights on `device`. seed None draws from torch's present generator."""
    with torch.device("meta"):
        model = GPT(config, compute_dtype)
    model.to_empty(device=device)
    if seed is not None:
        torch.manual_seed(seed)
    model.init_weights()
    return model
