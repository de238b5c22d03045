"""Small checkpoints whose every tensor says which step it is of, for the tests of checkpoint_manager."""

import torch

from nanochat import checkpoint_manager as cm


def states(step: int):
    return ({"w": torch.full((50, 40), float(step))}, {"state": {0: {"exp_avg": torch.full((50, 40), float(step))}}},
            {"step": step, "model_config": {}})


def save(folder, step, **kwargs):
    cm.save_checkpoint(folder, step, *states(step), **kwargs)


def assert_usable(folder, step):
    model, optim, meta = cm.load_checkpoint(folder, step, "cpu", load_optimizer=True)
    assert meta["step"] == step and (model["w"] == step).all() and (optim["state"][0]["exp_avg"] == step).all()
