"""
Muon, for weight matrices: steps of the size and the shape of an orthogonal matrix.

In order: Nesterov momentum; row equilibration (arXiv:2603.28254); orthogonalisation by five Polar Express iterations
(arXiv:2505.16932); rescaling to the Frobenius norm of an orthogonal matrix (arXiv:2602.21545); a factored,
norm-preserving second moment (NorMuon, arXiv:2510.05491); cautious decay.
"""

import torch

from nanochat.layers.linear import product

# Polar Express for 5 iterations, safety factor 2e-2, cushion 2 (table of arXiv:2505.16932): x <- a x + b x^3 + c x^5
POLAR_EXPRESS = tuple(zip(
    (8.156554524902461, 4.042929935166739, 3.8916678022926607, 3.285753657755655, 2.3465413258596377),  # a
    (-22.48329292557795, -2.808917465908714, -2.772484153217685, -2.3681294933425376, -1.7097828382687081),  # b
    (15.878769915207462, 0.5000178451051316, 0.5060648178503393, 0.46449024233003106, 0.42323551169305323)))  # c


# The order of operations below is upstream's to the last rounding. This is needed, because an update near 0 may change
# its sign in the last bit. The cautious mask then turns a whole weight decay on or off, which is 1e-4 of a step.

# Operations are in place where possible. On a CPU every new megabyte costs page faults, which are half of Muon's time.

def equilibrate_rows(x):
    """Rescale, in place, every row of each matrix to the root-mean-square row norm. Norms are taken in fp32."""
    target = x.float().norm(dim=(-2, -1), keepdim=True) / x.size(-2) ** 0.5
    row_norm = x.float().norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return x.mul_((target / row_norm).to(x.dtype))


def orthogonalize(x, steps: int):
    """Stack [K, M, N], overwritten -> nearest (semi-)orthogonal matrices, in the dtype of x, by Polar Express
    iterations on the smaller side."""
    x.div_(x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-6)
    tall = x.size(-2) > x.size(-1)
    for a, b, c in POLAR_EXPRESS[:steps]:
        gram = product(x.mT, x) if tall else product(x, x.mT)
        poly = product(gram, gram).mul_(c).add_(gram.mul_(b))
        x = (product(x, poly) if tall else product(poly, x)).add_(x.mul_(a))
    return x


def normalize_variance(g, second_moment, beta2: float):
    """NorMuon: divide, in place, rows (columns of wide matrices) by their running RMS, keeping the Frobenius norm."""
    dim = -1 if g.size(-2) >= g.size(-1) else -2
    mean_square = g.float().square().mean(dim=dim, keepdim=True)
    old_norm = (mean_square.sum(dim=(-2, -1), keepdim=True) * g.size(dim)).sqrt()
    second_moment.lerp_(mean_square.to(second_moment.dtype), 1 - beta2)
    scale = second_moment.clamp_min(1e-10).rsqrt()
    new_norm = ((mean_square * g.size(dim)) * scale.float().square()).sum(dim=(-2, -1), keepdim=True).sqrt()
    return g.mul_((scale * (old_norm / new_norm.clamp_min(1e-10))).to(g.dtype))


# Seven parameters: four tensors that a compiled step may overwrite, its scalars, and its two constants.
def muon_step(grad, params, momentum_buffer, second_moment, hyper, steps: int, polar_dtype):
    """New weights [K, M, N] of a stack of matrices.

    hyper: 0-dim CPU tensors (momentum, beta2, lr, weight decay). They are tensors, so that the same compiled step
    serves every value. The four tensors before it are overwritten, and `params` holds the result.
    """
    momentum, beta2, lr, weight_decay = hyper
    momentum_buffer.lerp_(grad, 1 - momentum)
    x = grad.lerp_(momentum_buffer, momentum).to(polar_dtype)
    g = orthogonalize(equilibrate_rows(x), steps).to(params.dtype)
    g.mul_((min(g.shape[-2:]) ** 0.5 / g.float().norm(dim=(-2, -1), keepdim=True).clamp_min(1e-6)).to(g.dtype))
    normalize_variance(g, second_moment, beta2)
    shrinks = (g * params) >= 0  # cautious: decay only where the update pulls the weight towards 0 as well
    decay = params.mul(lr * weight_decay).mul_(shrinks)
    return params.sub_(g.mul_(lr).add_(decay))


class Muon:
    """Steps a group of parameters that all have the same shape [..., M, N].

    Example: [8, 4F, C] are eight experts, and each expert is stepped on its own. The last two dimensions are a matrix,
    and the dimensions before them count matrices. State is stacked over all matrices of the group and kept under the
    first parameter, as upstream has it.
    """
    defaults = dict(momentum=0.95, ns_steps=5, beta2=0.9, weight_decay=0.0)
    scheduled = ("momentum", "weight_decay")

    def __init__(self, polar_dtype, compile_update: bool):
        self.polar_dtype = polar_dtype
        self.update = torch.compile(muon_step, dynamic=False, fullgraph=True) if compile_update else muon_step

    def step(self, group: dict, state: dict):
        params = group["params"]
        rows, cols = params[0].shape[-2:]
        own = state[params[0]]
        grad = torch.stack([p.grad for p in params]).flatten(0, -3)
        if not own:
            factored = (len(grad), rows, 1) if rows >= cols else (len(grad), 1, cols)
            own.update(momentum_buffer=torch.zeros_like(grad), second_momentum_buffer=grad.new_zeros(factored))
        lr = group["lr"] * max(1.0, rows / cols) ** 0.5
        hyper = torch.tensor([group["momentum"], group["beta2"], lr, group["weight_decay"]]).unbind()
        new = self.update(grad, torch.stack(params).flatten(0, -3), own["momentum_buffer"],
                          own["second_momentum_buffer"], hyper, group["ns_steps"], self.polar_dtype)
        torch._foreach_copy_(params, list(new.view(len(params), *params[0].shape).unbind()))
