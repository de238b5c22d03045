"""
Muon for the matrices inside the blocks, AdamW for everything else, in one optimizer.

Groups, constants and state layout are upstream's, so optimizer files are interchanged with it at world
size 1: Muon's state is stacked over all matrices of one shape and stored under the first of them.

Muon step, in order: Nesterov momentum; row equilibration (arXiv:2603.28254); orthogonalisation by five
Polar Express iterations (arXiv:2505.16932); rescaling to the Frobenius norm of an orthogonal matrix
(arXiv:2602.21545); a factored, norm-preserving second moment (NorMuon, arXiv:2510.05491); cautious decay.
"""

import torch

from nanochat.layers.linear import product

# Polar Express for 5 iterations, safety factor 2e-2, cushion 2 (table of arXiv:2505.16932): x <- a x + b x^3 + c x^5
POLAR_EXPRESS = tuple(zip(
    (8.156554524902461, 4.042929935166739, 3.8916678022926607, 3.285753657755655, 2.3465413258596377),  # a
    (-22.48329292557795, -2.808917465908714, -2.772484153217685, -2.3681294933425376, -1.7097828382687081),  # b
    (15.878769915207462, 0.5000178451051316, 0.5060648178503393, 0.46449024233003106, 0.42323551169305323)))  # c

# (parameter name prefixes, which rate, its factor, betas, weight decay). The first three rates also go with
# 1/sqrt(width/768). The smear group's rate is a constant: no flag reaches it, as upstream has it.
ADAMW_GROUPS = (
    (("lm_head.",), "unembedding_lr", 1.0, (0.8, 0.96), 0.01),
    (("transformer.wte.",), "embedding_lr", 1.0, (0.8, 0.995), 0.001),
    (("value_embeds.",), "embedding_lr", 0.5, (0.8, 0.995), 0.01),
    (("resid_lambdas",), "scalar_lr", 0.01, (0.8, 0.95), 0.05),
    (("x0_lambdas",), "scalar_lr", 1.0, (0.96, 0.95), 0.0),
    (("smear_gate.", "smear_lambda", "backout_lambda"), None, 0.2, (0.8, 0.95), 0.0),
)
MUON_PREFIX = "transformer.h."


def param_groups(model, unembedding_lr, embedding_lr, matrix_lr, scalar_lr, weight_decay) -> list[dict]:
    """Every parameter of the model in exactly one group, in upstream's order; groups without parameters are left out."""
    rates = dict(unembedding_lr=unembedding_lr, embedding_lr=embedding_lr, scalar_lr=scalar_lr)
    by_width = (model.config.n_embd / 768) ** -0.5
    named = dict(model.named_parameters())
    groups = []
    for prefixes, rate, factor, betas, decay in ADAMW_GROUPS:
        params = [named.pop(name) for prefix in prefixes for name in list(named) if name.startswith(prefix)]
        lr = factor if rate is None else rates[rate] * factor * (by_width if rate != "scalar_lr" else 1.0)
        groups.append(dict(kind="adamw", params=params, lr=lr, betas=betas, eps=1e-10, weight_decay=decay))
    matrices = [named.pop(name) for name in list(named) if name.startswith(MUON_PREFIX)]
    for shape in sorted({p.shape for p in matrices}):
        groups.append(dict(kind="muon", params=[p for p in matrices if p.shape == shape], lr=matrix_lr,
                           momentum=0.95, ns_steps=5, beta2=0.9, weight_decay=weight_decay))
    assert not named, f"parameters without an optimizer group: {list(named)}"
    return [group for group in groups if group["params"]]


def setup_optimizer(model, polar_dtype=torch.float32, compile_update=False, **rates) -> "MuonAdamW":
    """rates: unembedding_lr, embedding_lr, matrix_lr, scalar_lr, weight_decay."""
    optimizer = MuonAdamW(param_groups(model, **rates), polar_dtype, compile_update)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


# The order of operations below is upstream's to the last rounding. It has to be: the cautious mask turns a
# difference in the last bit of an update near 0 into a whole weight decay, and so into 1e-4 of a step.

# In place where it can be: on a CPU every new megabyte costs page faults, and this is half of Muon's time.

def equilibrate_rows(x):
    """Rescale, in place, every row of each matrix to the root-mean-square row norm, in fp32 norms."""
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


def muon_step(grad, params, momentum_buffer, second_moment, hyper, steps: int, polar_dtype):
    """New weights [K, M, N] of a stack of matrices. hyper: 0-dim CPU tensors (momentum, beta2, lr, weight decay):
    tensors, so that a compiled step serves every value. All four tensors are overwritten; `params` holds the result."""
    momentum, beta2, lr, weight_decay = hyper
    momentum_buffer.lerp_(grad, 1 - momentum)
    x = grad.lerp_(momentum_buffer, momentum).to(polar_dtype)
    g = orthogonalize(equilibrate_rows(x), steps).to(params.dtype)
    g.mul_((min(g.shape[-2:]) ** 0.5 / g.float().norm(dim=(-2, -1), keepdim=True).clamp_min(1e-6)).to(g.dtype))
    normalize_variance(g, second_moment, beta2)
    shrinks = (g * params) >= 0  # cautious: decay only where the update pulls the weight towards 0 as well
    decay = params.mul(lr * weight_decay).mul_(shrinks)
    return params.sub_(g.mul_(lr).add_(decay))


class MuonAdamW(torch.optim.Optimizer):
    """param_groups: dicts with kind "adamw" (lr, betas, eps, weight_decay) or "muon" (lr, momentum, ns_steps,
    beta2, weight_decay; all matrices of a group of one shape). `polar_dtype`: dtype of the orthogonalisation."""

    def __init__(self, groups: list[dict], polar_dtype=torch.float32, compile_update=False):
        super().__init__(groups, defaults={})
        self.polar_dtype = polar_dtype
        self._muon_step = torch.compile(muon_step, dynamic=False, fullgraph=True) if compile_update else muon_step

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            (self._adamw if group["kind"] == "adamw" else self._muon)(group)

    def _adamw(self, group):
        params = group["params"]
        for p in params:
            state = self.state[p]
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
            state["step"] += 1
        # One fused pass; the maths is in fp32 whatever the parameters are stored in.
        torch._fused_adamw_(
            params, [p.grad for p in params], [self.state[p]["exp_avg"] for p in params],
            [self.state[p]["exp_avg_sq"] for p in params], [],
            [torch.tensor(float(self.state[p]["step"]), device=p.device) for p in params],
            lr=group["lr"], beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
            eps=group["eps"], amsgrad=False, maximize=False)

    def _muon(self, group):
        params = group["params"]
        rows, cols = params[0].shape
        state = self.state[params[0]]
        grad = torch.stack([p.grad for p in params])
        if not state:
            factored = (len(params), rows, 1) if rows >= cols else (len(params), 1, cols)
            state.update(momentum_buffer=torch.zeros_like(grad), second_momentum_buffer=grad.new_zeros(factored))
        lr = group["lr"] * max(1.0, rows / cols) ** 0.5
        hyper = torch.tensor([group["momentum"], group["beta2"], lr, group["weight_decay"]]).unbind()
        new = self._muon_step(grad, torch.stack(params), state["momentum_buffer"], state["second_momentum_buffer"], hyper,
                              group["ns_steps"], self.polar_dtype)
        torch._foreach_copy_(params, list(new.unbind()))
