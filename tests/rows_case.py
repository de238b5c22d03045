"""
Models made of every row of MIXERS, MLPS and RESIDUALS, for tests. The rows come from the dicts themselves: whoever
adds one need not touch a test.
"""

from itertools import product

import torch
from closed_form import TINY, fill

from nanochat.gpt import MIXERS, MLPS, RESIDUALS, build_model, make_gpt
from nanochat.gpt_config import GPTConfig

OFF = dict(value_embeds=False, smear=False, lambdas=False, backout=False, qk_norm=False, logit_softcap=0.0)
ROWS = {
    **{"-".join(row): dict(zip(("mixer", "mlp", "residual"), row)) for row in product(MIXERS, MLPS, RESIDUALS)},
    "every_mixer_in_turn": dict(mixer=",".join(MIXERS)),
}


def usable(changes: dict) -> dict:
    """The changes, and off what a layer among them refuses to work with."""
    bare = make_gpt(GPTConfig(**{**TINY, **changes, **OFF}))
    refused = {name for block in bare.transformer.h for layer in block.layers for name in layer.refuses}
    return {**changes, **{name: OFF[name] for name in refused}}


def config_of(changes: dict) -> GPTConfig:
    return GPTConfig(**{**TINY, **usable(changes)})


def make(changes: dict, dtype=torch.float32):
    """A filled tiny model, at optimizer step 4 where it has a ramp."""
    model = fill(build_model(config_of(changes), "cpu", dtype, seed=0))
    model.step.fill_(4)
    return model
