"""
Figures of a model without a random generator, for tests: weights, tokens and gradients come from an integer hash
of the index, exact on every machine and in every version of torch. make_golden.py takes these figures of upstream,
test_parity.py of our model. Nothing of either is imported here.
"""

import math
import zlib
from functools import cache

import torch

MASK = 2 ** 32 - 1
CASES = {  # grouped queries, S windows, padded vocabulary | an odd depth, full windows
    "d4": dict(sequence_len=256, vocab_size=4001, n_layer=4, n_head=4, n_kv_head=2, n_embd=256, window_pattern="SSSL"),
    "d3": dict(sequence_len=128, vocab_size=512, n_layer=3, n_head=2, n_kv_head=2, n_embd=128, window_pattern="L"),
}
# the tiny model; its S window is 128
TINY = dict(sequence_len=160, vocab_size=70, n_layer=4, n_head=4, n_kv_head=2, n_embd=48, window_pattern="SL")
RATES = dict(unembedding_lr=0.008, embedding_lr=0.3, matrix_lr=0.02, scalar_lr=0.5, weight_decay=0.28)

# (part of a parameter's name, offset, half width); the first match counts. None = sqrt(3 / fan in), which is standard
# deviation 1/sqrt(fan in). Nothing is 0, no gate is saturated, and logits are large enough to feel the soft cap.
WEIGHTS = (("wte", 0.0, 1.4), ("lm_head", 0.0, 0.3), ("value_embeds", 0.0, 0.5), ("ve_gate", 0.0, 0.5),
           ("resid_lambdas", 1.0, 0.1), ("x0_lambdas", 0.2, 0.1), ("smear_gate", 0.0, 0.5), ("smear_lambda", 0.5, 0.1),
           ("backout_lambda", 0.3, 0.1), ("", 0.0, None))


@cache
def uniform(shape, salt: str):
    """float32 in [-1, 1], never 0: the finaliser of MurmurHash3 on index and salt. Cached: not to be written to."""
    h = (torch.arange(math.prod(shape)) * 0x9E3779B1 + zlib.crc32(salt.encode())) & MASK
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = ((h ^ (h >> shift)) * factor) & MASK
    return ((h.double() + 0.5) / 2 ** 31 - 1).float().view(shape)


def tokens(shape, vocab_size: int, salt="tokens"):
    return ((uniform(shape, salt).double() + 1) / 2 * vocab_size).long().clamp(0, vocab_size - 1)


def targets(shape, vocab_size: int, salt="targets"):
    """Like tokens, every seventh ignored (-1)."""
    y = tokens(shape, vocab_size, salt).flatten()
    y[::7] = -1
    return y.view(shape)


@torch.no_grad()
def fill(model):
    """Every parameter of the model, by its name."""
    for name, p in model.named_parameters():
        offset, width = next((offset, width) for part, offset, width in WEIGHTS if part in name)
        p.copy_(offset + uniform(p.shape, name) * ((3 / p.shape[-1]) ** 0.5 if width is None else width))
    return model


@torch.no_grad()
def set_gradients(model, step: int):
    """Gradients that share a part over the steps (momentum) and differ in size over the rows (equilibration)."""
    for name, p in model.named_parameters():
        rows = 1 + torch.arange(p.shape[0]).view(-1, *[1] * (p.ndim - 1)) % 7
        shared = uniform(p.shape, name + " gradient")
        p.grad = (0.01 * rows * (shared + 0.5 * shared.roll(17 * step + 1))).to(p.dtype)


# -----------------------------------------------------------------------------
# The compared quantities. `model` has upstream's forward(idx, targets, loss_reduction=); config is a row of CASES.

def forward(model, config) -> dict:
    shape = 2, config["sequence_len"]
    x, y = tokens(shape, config["vocab_size"]), targets(shape, config["vocab_size"])
    fill(model).zero_grad()
    with torch.no_grad():
        logits, losses = model(x), model(x, y, loss_reduction="none")
    loss = model(x, y)
    loss.backward()
    return dict(logits=logits, losses=losses, loss=loss.item(),
                grads={name: p.grad for name, p in model.named_parameters()})


def updates(model, optimizer, steps=3) -> dict:
    """The moves of each tensor in three optimizer steps with prescribed gradients: name -> (w3 - w0, w3)."""
    fill(model)
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for step in range(steps):
        set_gradients(model, step)
        for group in optimizer.param_groups:  # as the trainer schedules them
            group["lr"] = group["initial_lr"] * (1 - 0.2 * step)
            group.update(dict(momentum=0.85 + 0.05 * step, weight_decay=0.28 - 0.1 * step) if group["kind"] == "muon"
                         else {})
        optimizer.step()
    return {name: (p.detach().double() - before[name], p.detach().double()) for name, p in model.named_parameters()}


def initial_weights(model) -> dict:
    """Two projections of each tensor."""
    return {name: [p.detach().double().sum().item(),
                   (p.detach().double() * uniform(p.shape, "init").double()).sum().item()]
            for name, p in model.named_parameters()}


def norm(x) -> float:
    return x.detach().double().norm().item()


def samples(x, n: int) -> list[float]:
    """n values of a tensor at fixed, scattered places."""
    return x.detach().double().flatten()[tokens((n,), x.numel(), "places")].tolist()


def figures(out: dict, moved: dict) -> dict:
    """The results of forward and updates, small enough for the repository."""
    return dict(logits=samples(out["logits"], 24), mean_abs_logit=out["logits"].abs().mean().item(),
                losses=samples(out["losses"], 24), loss=out["loss"],
                grad_norms={name: norm(g) for name, g in out["grads"].items()},
                updates={name: dict(norm=norm(w), moved=norm(dw), samples=samples(dw, 6))
                         for name, (dw, w) in moved.items()})
