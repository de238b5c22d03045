"""
Next-token cross-entropy from hidden states. Evaluation always uses this plain loss.

The logits [N, V] are the largest tensor of a small model. Soft cap, log-softmax and their backward passes read or
write it a dozen times, and no cache holds it. So rows are taken a few hundred at a time. The logits of such a chunk
stay in cache, are overwritten in place, and are dropped before the next chunk. Gradients are computed in the forward
pass, because the probabilities are there at that moment. (The idea is that of Liger-Kernel, arXiv:2410.10989, section
3.2, in plain torch.)
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from nanochat.layers.layer import row_of
from nanochat.layers.linear import widened

LARGEST_SAFE_CAP = 60.0  # exp(60) times a million tokens still is a float32
# Logits per chunk: 4 MiB in fp32, about an L2 cache; on CUDA enough to fill the card (not measured yet).
CHUNK_LOGITS, CHUNK_LOGITS_CUDA = 2 ** 20, 2 ** 26


def softcap(logits, cap: float):
    """cap * tanh(logits / cap): logits squashed into (-cap, cap). 0 = off."""
    return cap * torch.tanh(logits / cap) if cap else logits


def plain_cross_entropy(x, weight, targets, cap: float, reduction: str):
    """x [N,C], weight [V,C], targets [N] with -1 ignored -> nats, a scalar for "mean", [N] for "none"."""
    logits = F.linear(x, weight.to(x.dtype)).float()
    return F.cross_entropy(softcap(logits, cap), targets, ignore_index=-1, reduction=reduction)


def _chunk_losses(z, targets, cap: float, spare):
    """Logits z [n,V] in fp32 -> (losses [n], e [n,V], row sums of e [n], tanh(z/cap) [n,V] or None without a cap).

    Losses are 0 where the target is ignored. e divided by its row sums is the softmax. z and `spare` [n,V] are
    overwritten.
    """
    t = z.div_(cap).tanh_() if cap else None
    picked = z.gather(1, targets.clamp_min(0)[:, None])[:, 0] * (cap or 1.0)  # z is t by now where there is a cap
    if cap:  # capped logits cannot overflow exp, so no maximum is subtracted
        e = torch.mul(t, cap, out=spare).exp_()
        total = e.sum(dim=1)
        lse = total.log()
    else:
        top = z.amax(dim=1)
        e = z.sub_(top[:, None]).exp_()
        total = e.sum(dim=1)
        lse = total.log() + top
    return torch.where(targets >= 0, lse - picked, 0), e, total, t


class ChunkedCrossEntropy(torch.autograd.Function):
    """The same as plain_cross_entropy, a chunk of rows at a time. "mean" has gradients, "none" is for evaluation."""

    @staticmethod
    def forward(ctx, x, weight, targets, cap, reduction):
        rows = (CHUNK_LOGITS_CUDA if x.device.type == "cuda" else CHUNK_LOGITS) // weight.size(0)
        rows = max(1, min(rows, x.size(0)))
        dtype = x.dtype
        wide = torch.float32 if widened(x) else dtype  # of the products; their results are rounded to dtype
        x, w = x.to(wide), weight.to(dtype).to(wide)
        losses = torch.empty(x.size(0), device=x.device)
        logits = x.new_empty(rows, w.size(0))  # one for all chunks, as is spare
        spare = torch.empty(rows, w.size(0), device=x.device)
        needs_grad = reduction == "mean" and (ctx.needs_input_grad[0] or ctx.needs_input_grad[1])
        if needs_grad:
            grad_x, grad_w = torch.empty_like(x), torch.zeros_like(weight)
            scale = 1 / (targets >= 0).sum()  # infinite where all are ignored: the loss is nan, as the plain one's
        for start in range(0, x.size(0), rows):
            part = slice(start, start + rows)
            z = torch.mm(x[part], w.T, out=logits[:len(x[part])]).to(dtype).float()
            losses[part], e, total, t = _chunk_losses(z, targets[part], cap, spare[:len(z)])
            if needs_grad:
                share = torch.where(targets[part] >= 0, scale, 0)  # of this row in the mean
                grad_z = e.mul_((share / total)[:, None])
                grad_z[torch.arange(e.size(0), device=e.device), targets[part].clamp_min(0)] -= share
                if t is not None:  # the soft cap's derivative is 1 - t^2
                    grad_z.addcmul_(grad_z, t.square_(), value=-1)
                grad_z = grad_z.to(dtype).to(wide)
                torch.mm(grad_z, w, out=grad_x[part])
                if grad_w.dtype == grad_z.dtype:
                    grad_w.addmm_(grad_z.T, x[part])
                else:
                    grad_w += grad_z.T @ x[part]
        if needs_grad:
            ctx.save_for_backward(grad_x.to(dtype), grad_w)
            return losses.sum() * scale
        return losses.sum() / (targets >= 0).sum() if reduction == "mean" else losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_x, grad_w = ctx.saved_tensors
        return grad_x * grad.to(grad_x.dtype), grad_w * grad, None, None, None


LOSSES = {"chunked": ChunkedCrossEntropy.apply, "plain": plain_cross_entropy}


class CrossEntropy:
    """The loss of one model: its vocabulary size, its soft cap, and the name of a row of LOSSES, which computes it.

    For instance CrossEntropy(50304, 15.0)(x, lm_head.weight, targets, "mean").
    """

    def __init__(self, vocab_size: int, cap: float, kind: str = "chunked"):
        self.vocab_size, self.cap = vocab_size, cap
        self.function = row_of(LOSSES, kind, "loss")

    def leave_graphs(self):
        """Keep the loss out of compiled graphs. Call it before the model is compiled.

        On a CPU the chunked loss is faster than the plain loss compiled. It is not done at import, because this call
        loads the compiler, which takes two seconds.
        """
        self.function = torch.compiler.disable(self.function)

    def __call__(self, x, weight, targets, reduction: str):
        """Cross-entropy in nats of targets [B,T] under lm_head of x [B,T,C]; "mean" is a scalar, "none" is [B*T]."""
        if self.vocab_size < weight.size(0):  # padded; a slice that cuts nothing would still cost a copy backwards
            weight = weight[:self.vocab_size]
        flat = x.reshape(-1, x.size(-1)), weight, targets.reshape(-1)
        whole_graph = torch.compiler.is_compiling() and x.device.type != "cpu"
        if whole_graph or self.cap > LARGEST_SAFE_CAP or (reduction == "none" and torch.is_grad_enabled()):
            return plain_cross_entropy(*flat, self.cap, reduction)
        if not torch.is_grad_enabled():  # parameters ask for gradients even here
            flat = tuple(t.detach() for t in flat)
        return self.function(*flat, self.cap, reduction)
