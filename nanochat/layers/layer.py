"""
What every row of MIXERS, MLPS and RESIDUALS has in common. A new layer overrides only what is different in it.

For example, a mixer that has a loss term of its own and takes no value embeddings:

    class Mixer(Layer):
        aux_weights = {"balance": 0.01}
        refuses = ("value_embeds",)

        def forward(self, x, ctx):
            return y, {"balance": term}

Roles. The optimizer makes its groups from what a parameter is, never from its name. So a module that owns
parameters says their roles: `roles = {"weight": "head"}`. optim.ADAMW_GROUPS and optim.MUON_ROLES list all roles.
"""

import torch.nn as nn


class Layer(nn.Module):
    # name -> weight in the training loss, of each term that forward returns. 0 = recorded, not trained on.
    aux_weights: dict[str, float] = {}
    # switches of GPTConfig that this layer cannot work with; a model that has both is refused
    refuses: tuple[str, ...] = ()
    # name of a parameter that this very module owns -> its role
    roles: dict[str, str] = {}

    def init_weights(self):
        """Write every parameter: storage comes unwritten."""

    def init_gate(self):
        """Draws that come after those of all other layers: upstream draws its gates last, and one seed must give
        its weights."""

    def active_params(self) -> int:
        """Weights that one token is multiplied with: all matrices. A layer that uses a part of them a token says so
        here. Vectors are left out, as multiplying by them costs next to nothing."""
        return sum(p.numel() for p in self.parameters() if p.ndim >= 2)

    def flops_per_token(self, T: int) -> int:
        """Of a forward and a backward pass over one token in a context of T: 2 per weight forwards, 4 backwards. A
        layer whose tokens look at each other adds what that costs."""
        return 6 * self.active_params()


def row_of(rows: dict, name: str, option: str):
    """rows[name]. Raises ValueError with the rows there are where there is none of that name."""
    if name not in rows:
        raise ValueError(f"--{option}={name}: there is no such row; the rows are {', '.join(rows)}")
    return rows[name]


def roles_of(model: nn.Module) -> dict[str, str | None]:
    """Role of every parameter, by its name in the model; None where the module that owns it gives none."""
    return {name: getattr(model.get_submodule(name.rpartition(".")[0]), "roles", {}).get(name.rpartition(".")[2])
            for name, _ in model.named_parameters()}
