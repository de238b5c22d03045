"""
The model: Block and GPT, one page.

By default it is upstream's model: the same names and shapes in the state dict, the same function. Each of upstream's
extras is a field of GPTConfig. An extra that is switched off owns no parameter. With all extras off the model is a
plain pre-norm transformer. The mixer, the MLP and the residual of a block are looked up by name in MIXERS, MLPS and
RESIDUALS. layers/layer.py is their common base class.

B batch, T tokens, C channels, V vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn as nn

from nanochat.gpt_config import GPTConfig
from nanochat.layers.attention import CausalSelfAttention, rotary_table
from nanochat.layers.cache import DecodeCache
from nanochat.layers.layer import row_of
from nanochat.layers.linear import Embedding, Linear
from nanochat.layers.mlp import ReluSquaredMLP
from nanochat.layers.norm import Norm
from nanochat.layers.residual import PlainResidual, SymplecticGate
from nanochat.loss import CrossEntropy, softcap

MIXERS = {"attention": CausalSelfAttention}
MLPS = {"relu_squared": ReluSquaredMLP}
RESIDUALS = {"plain": PlainResidual, "symplectic": SymplecticGate}

VOCAB_MULTIPLE = 64  # the embedding and lm_head are padded to this
SMEAR_CHANNELS = 24
ROTARY_REACH = 10  # the rotary table reaches this many times the training context


class Context(NamedTuple):
    """Tensors and state that a sublayer may need beside its input."""
    cos_sin: tuple  # rotary table at these positions
    ve: torch.Tensor | None  # value embedding [B, T, kv_dim]
    cache: DecodeCache | None
    step: torch.Tensor  # optimizer step, 0-dim


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer_idx: int):
        super().__init__()
        residual = row_of(RESIDUALS, config.residual, "residual")
        self.attn = row_of(MIXERS, config.mixer_of(layer_idx), "mixer")(config, layer_idx)
        self.mlp = row_of(MLPS, config.mlp, "mlp")(config, layer_idx)
        self.attn_res, self.mlp_res = (residual(config, 2 * layer_idx + i) for i in range(2))
        self.attn_norm, self.mlp_norm = (Norm(config.n_embd) for _ in range(2))

    @property
    def layers(self):
        """The rows of the dicts that this block is made of."""
        return self.attn, self.mlp, self.attn_res, self.mlp_res

    def init_weights(self):
        for part in (*self.layers, self.attn_norm, self.mlp_norm):
            part.init_weights()

    def active_params(self) -> int:
        return sum(layer.active_params() for layer in self.layers)

    def flops_per_token(self, T: int) -> int:
        return sum(layer.flops_per_token(T) for layer in self.layers)

    def forward(self, s, ctx: Context):
        """Residual stream s -> (new s, {name: loss term, unweighted, a scalar})."""
        terms = {}
        for sublayer, norm, res in ((self.attn, self.attn_norm, self.attn_res),
                                    (self.mlp, self.mlp_norm, self.mlp_res)):
            x, carry = res.read(s, ctx)
            x = norm(x)
            y, aux = sublayer(x, ctx)
            s = res.write(s, x, y, carry, ctx)
            terms = add_terms(terms, aux)
        return s, terms


def add_terms(a: dict, b: dict) -> dict:
    """Both dicts of loss terms as a single dict; terms of the same name are summed."""
    return {**a, **{name: a[name] + term if name in a else term for name, term in b.items()}}


def check_together(config: GPTConfig, layers):
    """Raise ValueError where a layer is asked to work with an extra that it refuses."""
    for layer in layers:
        for name in layer.refuses:
            if getattr(config, name):
                raise ValueError(f"{type(layer).__name__} does not work with {name}={getattr(config, name)}; "
                                 f"add --no-{name.replace('_', '-')}, or choose another mixer, mlp or residual")


class GPT(nn.Module):
    """Built by make_gpt without storage; build_model and restore_model give it storage and weights."""

    roles = dict(resid_lambdas="resid_scalar", x0_lambdas="x0_scalar", smear_lambda="smear_scalar",
                 backout_lambda="smear_scalar")

    def __init__(self, config: GPTConfig, compute_dtype=torch.float32):
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        padded_vocab = -(-config.vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        self.transformer = nn.ModuleDict(dict(
            wte=Embedding(padded_vocab, config.n_embd, role="embedding"),
            h=nn.ModuleList(Block(config, i) for i in range(config.n_layer))))
        self.lm_head = Linear(config.n_embd, padded_vocab, role="head")
        if config.lambdas:
            self.resid_lambdas = nn.Parameter(torch.empty(config.n_layer))
            self.x0_lambdas = nn.Parameter(torch.empty(config.n_layer))
        if config.smear:
            self.smear_gate = Linear(SMEAR_CHANNELS, 1, role="smear_gate")
            self.smear_lambda = nn.Parameter(torch.empty(1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.empty(1))
        kv_dim = config.n_kv_head * config.head_dim
        self.value_embeds = nn.ModuleDict({str(i): Embedding(padded_vocab, kv_dim, role="value_embedding")
                                           for i in range(config.n_layer) if config.has_ve(i)})
        self.embed_norm, self.final_norm = (Norm(config.n_embd) for _ in range(2))
        self.loss = CrossEntropy(config.vocab_size, config.logit_softcap)
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)
        self.register_buffer("step", torch.zeros(()), persistent=False)  # set by the trainer: ramps read it
        layers = [layer for block in self.transformer.h for layer in block.layers]
        check_together(config, layers)
        self.aux_weights = {}
        for layer in layers:
            for name, weight in layer.aux_weights.items():
                assert self.aux_weights.setdefault(name, weight) == weight, f"two weights for the loss term {name}"

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
            for layer in block.layers:
                layer.init_gate()
        self.embed_norm.init_weights()
        self.final_norm.init_weights()
        self.step.zero_()
        self.init_tables()

    @torch.no_grad()
    def init_tables(self):
        """Make the rotary table, which no checkpoint holds, and cast the embeddings to their dtype."""
        config, device = self.config, self.get_device()
        self.cos, self.sin = rotary_table(ROTARY_REACH * config.sequence_len, config.head_dim, config.rope_base,
                                          device, self.compute_dtype)
        for embedding in (self.transformer.wte, *self.value_embeds.values()):
            embedding.to(dtype=self.update_dtype)

    @property
    def update_dtype(self):
        """dtype of the embeddings and of Muon's products.

        In bfloat16 a weight moves in steps of 0.4 to 0.8 %, so a smaller update is lost or made larger. Muon brings
        all singular values of a gradient to 1, and with them the rounding in the smallest. Both are much of the noise
        that a run in bfloat16 has beside its seed (ideas/quiet_start.md).
        """
        return torch.float32 if self.config.fp32_updates else self.compute_dtype

    def get_device(self):
        return self.transformer.wte.weight.device

    def rounding_only(self, step: int) -> list[nn.Parameter]:
        """The scalars whose exact gradient is 0 at this step. Their computed gradient is rounding, about 1e-10.

        At step 0 every sublayer outputs 0, and the final norm takes out the scale that lambdas and backout give. Where
        the middle layer is the last one (depth 1 and 2), backout is such a scale at every step.
        """
        config, found = self.config, []
        if config.lambdas and step == 0:
            found += [self.resid_lambdas, self.x0_lambdas]
        if config.backout and (step == 0 or config.n_layer // 2 == config.n_layer - 1):
            found += [self.backout_lambda]
        return found

    def forward(self, idx, targets=None, cache: DecodeCache | None = None, loss_reduction="mean", with_aux=False):
        """idx [B,T] -> logits [B,T,V] in fp32.

        With targets [B,T] (-1 = ignored) it returns the cross-entropy in nats: a scalar for "mean", [B*T] for "none".
        With a cache, idx continues the tokens that the cache has seen. With with_aux it returns a pair: the logits or
        loss, and {name: loss term of the layers, unweighted, a scalar}; see `objective`.
        """
        x, terms = self.trunk(idx, cache)
        if targets is None:
            out = softcap(self.lm_head(x)[..., :self.config.vocab_size].float(), self.config.logit_softcap)
        else:
            out = self.loss(x, self.lm_head.weight, targets, loss_reduction)
        return (out, terms) if with_aux else out

    def objective(self, loss, terms: dict):
        """Training minimises this sum of cross-entropy and weighted terms, both from forward(..., with_aux=True)."""
        for name, term in terms.items():
            loss = loss + self.aux_weights[name] * term
        return loss

    def trunk(self, idx, cache=None):
        """Everything but lm_head: idx [B,T] -> (final normed hidden state [B,T,C], loss terms).

        Terms of the same name are summed over the layers. So a layer divides its term by the number of layers, if the
        term is meant as a mean over them.
        """
        config, blocks = self.config, self.transformer.h
        start, T = (0 if cache is None else cache.pos), idx.size(1)
        if start + T > self.cos.size(1):
            raise ValueError(f"{start + T} tokens exceed the rotary table of {self.cos.size(1)}")
        cos_sin = self.cos[:, start:start + T], self.sin[:, start:start + T]
        x = self.embed_norm(self.transformer.wte(idx).to(self.compute_dtype))
        if config.smear:
            x = self._smear(x, cache)
        s = s0 = blocks[0].attn_res.enter(x)
        middle, terms = None, {}
        for i, block in enumerate(blocks):
            if config.lambdas:
                s = self.resid_lambdas[i] * s + self.x0_lambdas[i] * s0
            ve = self.value_embeds[str(i)](idx).to(x.dtype) if config.has_ve(i) else None
            s, aux = block(s, Context(cos_sin, ve, cache, self.step))
            terms = add_terms(terms, aux)
            if i == config.n_layer // 2:
                middle = s
        if cache is not None:
            cache.pos += T
        if config.backout:
            s = s - self.backout_lambda.to(s.dtype) * middle
        return self.final_norm(blocks[-1].mlp_res.leave(s)), terms

    def _smear(self, x, cache):
        """x_t += lambda sigmoid(W x_t[:24]) x_{t-1}: a little of the previous embedding, nothing at the start."""
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


def make_gpt(config: GPTConfig, compute_dtype=torch.float32) -> GPT:
    """The model on the meta device: modules and shapes, no storage.

    Every model is made here: for training, for loading, and for counting. So a pass that swaps modules (another kind
    of Linear, say) belongs before `return`, and then all of them have it.
    """
    with torch.device("meta"):
        model = GPT(config, compute_dtype)
    return model


def build_model(config: GPTConfig, device, compute_dtype=torch.float32, seed: int | None = None) -> GPT:
    """A model with initialised weights on `device`. seed None draws from torch's present generator."""
    model = make_gpt(config, compute_dtype).to_empty(device=device)
    if seed is not None:
        torch.manual_seed(seed)
    model.init_weights()
    return model
