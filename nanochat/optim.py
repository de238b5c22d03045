"""
Muon for the matrices inside the blocks, AdamW for everything else, in one optimizer.

A group is made from the roles of parameters (layers/layer.py) and has a kind, a row of KINDS, that steps it. Groups,
constants and state layout of the default model are upstream's, so optimizer files are interchanged with it at world
size 1.
"""

import torch

from nanochat.layers.layer import roles_of, row_of
from nanochat.muon import Muon

# (roles, which rate, its factor, betas, weight decay) of the AdamW groups, in upstream's order. Rates of embeddings
# also go with 1/sqrt(width/768). Upstream's rate of the smear group is a constant that no flag and no batch reaches.
# The last two rows are of roles that the default model does not have; their constants are not tuned.
ADAMW_GROUPS = (
    (("head",), "unembedding_lr", 1.0, (0.8, 0.96), 0.01),
    (("embedding",), "embedding_lr", 1.0, (0.8, 0.995), 0.001),
    (("value_embedding",), "embedding_lr", 0.5, (0.8, 0.995), 0.01),
    (("resid_scalar",), "scalar_lr", 0.01, (0.8, 0.95), 0.05),
    (("x0_scalar",), "scalar_lr", 1.0, (0.96, 0.95), 0.0),
    (("smear_gate", "smear_scalar"), "smear_lr", 1.0, (0.8, 0.95), 0.0),
    (("gain", "scalar", "stream"), "scalar_lr", 0.01, (0.8, 0.95), 0.0),
    (("router",), "unembedding_lr", 1.0, (0.8, 0.96), 0.0),
)
SMEAR_LR = 0.2  # of the smear group
MUON_ROLES = ("matrix", "value_gate")  # one group for each shape


class AdamW:
    defaults = dict(betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)
    scheduled = ()

    def __init__(self, polar_dtype, compile_update: bool):
        pass

    def step(self, group: dict, state: dict):
        params = group["params"]
        for p in params:
            if not state[p]:
                state[p].update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            state[p]["step"] += 1
        # One fused pass; the maths is in fp32 whatever the parameters are stored in.
        torch._fused_adamw_(
            params, [p.grad for p in params], [state[p]["exp_avg"] for p in params],
            [state[p]["exp_avg_sq"] for p in params], [],
            [torch.tensor(float(state[p]["step"]), device=p.device) for p in params],
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
            eps=group["eps"], amsgrad=False, maximize=False)


# A kind has: `defaults`, the hyperparameters of its groups beside lr; `scheduled`, those that move during training;
# and step(group, state), which writes new weights. `state` gives each parameter a dict that is saved with it. A kind is
# constructed with the dtype of Muon's products and whether to compile; a kind that needs neither ignores them.
KINDS = {"adamw": AdamW, "muon": Muon}


def make_group(kind: str, params: list, lr: float, **hyper) -> dict:
    return dict(kind=kind, params=params, lr=lr, **{**row_of(KINDS, kind, "kind").defaults, **hyper})


# Eight parameters: the model, and a parameter for each rate, decay or kind that the trainer sets.
def param_groups(model, unembedding_lr, embedding_lr, matrix_lr, scalar_lr, weight_decay,
                 matrix_optimizer="muon", smear_lr=SMEAR_LR) -> list[dict]:
    """Every parameter of the model in exactly one group, in upstream's order. Groups without parameters are left out.

    matrix_optimizer: the kind that steps the matrices, a row of KINDS.
    """
    rates = dict(unembedding_lr=unembedding_lr, embedding_lr=embedding_lr, scalar_lr=scalar_lr, smear_lr=smear_lr)
    by_width = (model.config.n_embd / 768) ** -0.5
    roles, named, groups = roles_of(model), dict(model.named_parameters()), []

    def take(*wanted):
        names = [name for role in wanted for name in named if roles[name] == role]
        return [named.pop(name) for name in names]
    for wanted, rate, factor, betas, decay in ADAMW_GROUPS:
        lr = rates[rate] * factor * (by_width if "embedding" in rate else 1.0)
        groups.append(make_group("adamw", take(*wanted), lr, betas=betas, weight_decay=decay))
    vectors = [name for name, p in named.items() if roles[name] in MUON_ROLES and p.ndim < 2]
    assert not vectors, f"Muon needs matrices; give these parameters another role: {vectors}"
    matrices = [named.pop(name) for name in list(named) if roles[name] in MUON_ROLES]
    for shape in sorted({p.shape for p in matrices}):
        groups.append(make_group(matrix_optimizer, [p for p in matrices if p.shape == shape], matrix_lr,
                                 weight_decay=weight_decay))
    assert not named, f"parameters whose role has no optimizer group: { {name: roles[name] for name in named} }"
    return [group for group in groups if group["params"]]


def setup_optimizer(model, polar_dtype=torch.float32, compile_update=False, **rates) -> "MuonAdamW":
    """rates: unembedding_lr, embedding_lr, matrix_lr, scalar_lr, weight_decay; matrix_optimizer, smear_lr."""
    optimizer = MuonAdamW(param_groups(model, **rates), polar_dtype, compile_update)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def apply_schedule(group: dict, lrm: float, **values: float):
    """Set a group's rate to lrm times its initial one and, of `values`, the hyperparameters that its kind schedules.

    For example apply_schedule(group, lrm=0.5, momentum=0.9, weight_decay=0.1); AdamW's groups keep their decay.
    """
    group["lr"] = group["initial_lr"] * lrm
    group.update({name: values[name] for name in KINDS[group["kind"]].scheduled})


class MuonAdamW(torch.optim.Optimizer):
    """param_groups: dicts as make_group makes them. `polar_dtype`: dtype of Muon's orthogonalisation."""

    def __init__(self, groups: list[dict], polar_dtype=torch.float32, compile_update=False):
        super().__init__(groups, defaults={})
        self.kinds = {group["kind"]: row_of(KINDS, group["kind"], "kind")(polar_dtype, compile_update)
                      for group in groups}

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            self.kinds[group["kind"]].step(group, self.state)
