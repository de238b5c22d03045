"""
The base class of every row of MIXERS, MLPS and RESIDUALS. A new layer overrides only the members that differ in it.

For example, a mixer that has a loss term of its own and takes no value embeddings:

    class Mixer(Layer):
        aux_weights = {"balance": 0.01}
        refuses = ("value_embeds",)

        def forward(self, x, ctx):
            return y, {"balance": term}

Roles. The optimizer groups parameters by their role, never by their name. So a module that owns parameters states
their roles: `roles = {"weight": "head"}`. optim.ADAMW_GROUPS and optim.MUON_ROLES list all roles.
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
        """Initialise the gates, after init_weights of all layers.

        Upstream draws its gates last, and the same seed must give upstream's weights.
        """

    def active_params(self) -> int:
        """Number of weights that a token is multiplied with: those of all matrices.

        A layer whose tokens use only some of its matrices overrides this. Vectors are left out, because multiplying by
        them costs next to nothing.
        """
        return sum(p.numel() for p in self.parameters() if p.ndim >= 2)

    def flops_per_token(self, T: int) -> int:
        """FLOPs of a forward and a backward pass over one token in a context of T tokens.

        A weight costs 2 forwards (multiply, add) and 4 backwards (2 for the gradient of the input, 2 for its own). A
        layer whose tokens look at each other adds that cost.
        """
        return 6 * self.active_params()


def row_of(rows: dict, name: str, option: str):
    """rows[name]. Raises ValueError, which lists the rows, where no row has that name."""
    if name not in rows:
        raise ValueError(f"--{option}={name}: there is no such row; the rows are {', '.join(rows)}")
    return rows[name]


def roles_of(model: nn.Module) -> dict[str, str | None]:
    """Role of every parameter, by its name in the model; None where the module that owns it gives none."""
    return {name: getattr(model.get_submodule(name.rpartition(".")[0]), "roles", {}).get(name.rpartition(".")[2])
            for name, _ in model.named_parameters()}
