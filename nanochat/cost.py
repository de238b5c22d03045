"""
The cost of a configuration: parameters and FLOPs. resolve() replaces every -1 of a configuration.

Parameters are counted on the real modules, built on the meta device. So a new layer needs no second formula here.
"""

from dataclasses import asdict, dataclass, replace

from nanochat.config import TrainConfig, model_options
from nanochat.config_check import model_shape
from nanochat.gpt import GPT, make_gpt
from nanochat.gpt_config import GPTConfig
from nanochat.layers.layer import roles_of, row_of
from nanochat.optim import KINDS
from nanochat.schedule import Scaled, ema_time_scale, scale_run


def gpt_config(config: TrainConfig, vocab_size: int, depth: int | None = None) -> GPTConfig:
    """Model configuration of a training configuration; `depth` overrides it (the d12 reference of the scaling laws)."""
    n_embd, n_head, n_kv_head = model_shape(config)
    if depth is not None:  # the reference has the shape that depth alone gives, whatever --model-dim says
        n_embd = -(-depth * config.aspect_ratio // config.head_dim) * config.head_dim
        n_head = n_kv_head = n_embd // config.head_dim
    return GPTConfig(sequence_len=config.max_seq_len, vocab_size=vocab_size, n_layer=depth or config.depth,
                     n_head=n_head, n_kv_head=n_kv_head, n_embd=n_embd, **model_options(config))


def meta_model(config: GPTConfig) -> GPT:
    return make_gpt(config)


# Upstream's name of a kind of parameters -> the roles that it has here. Parameters of all other roles are "scalars".
KINDS_OF_PARAMS = dict(wte=("embedding",), value_embeds=("value_embedding",), lm_head=("head",),
                       transformer_matrices=("matrix", "value_gate", "router"))


def params_of_roles(model: GPT, *roles: str) -> int:
    named = dict(model.named_parameters())
    return sum(named[name].numel() for name, role in roles_of(model).items() if role in roles)


def count_params(model: GPT) -> dict[str, int]:
    """Parameters by kind, under upstream's names; they add up to all of them."""
    counts = {kind: params_of_roles(model, *roles) for kind, roles in KINDS_OF_PARAMS.items()}
    total = sum(p.numel() for p in model.parameters())
    return {**counts, "scalars": total - sum(counts.values()), "total": total}


def scaling_params(model: GPT) -> int:
    """N of the scaling laws: the weights of the matrices that a token passes in the blocks, and of lm_head."""
    return sum(block.active_params() for block in model.transformer.h) + model.lm_head.weight.numel()


def flops_per_token(model: GPT) -> int:
    """FLOPs of a forward and a backward pass over one token in a full context.

    Each block counts its own. The matrices around the blocks (lm_head, the smear gate) cost 6 per weight: a multiply
    and an add forwards, and twice that backwards.
    """
    around = model.lm_head.weight.numel() + params_of_roles(model, "smear_gate")
    return 6 * around + sum(block.flops_per_token(model.config.sequence_len) for block in model.transformer.h)


@dataclass(kw_only=True)
class Resolved(Scaled):
    """A configuration in which every -1 is replaced by a number. The run follows it, and run.json records it."""
    vocab_size: int
    n_embd: int
    n_head: int
    n_kv_head: int
    num_params: int
    num_scaling_params: int
    flops_per_token: int
    dtype: str
    compile: bool


def resolve(config: TrainConfig, vocab_size: int, world_size: int = 1, dtype: str = "float32",
            compile: bool = False) -> Resolved:
    """Replace every -1 by upstream's rules. Raises ValueError where the resulting configuration cannot be run."""
    row_of(KINDS, config.matrix_optimizer, "matrix-optimizer")
    model_config = gpt_config(config, vocab_size)
    model = meta_model(model_config)
    n, flops = scaling_params(model), flops_per_token(model)
    n_ref = scaling_params(meta_model(gpt_config(config, vocab_size, depth=12)))
    return Resolved(
        vocab_size=vocab_size, n_embd=model_config.n_embd, n_head=model_config.n_head,
        n_kv_head=model_config.n_kv_head, num_params=count_params(model)["total"], num_scaling_params=n,
        flops_per_token=flops, dtype=dtype, compile=compile,
        **asdict(scale_run(config, n, n_ref, flops, world_size)))


def ended_by_wall_budget(r: Resolved, steps: int) -> Resolved:
    """The configuration of a run that its wall budget ended after `steps` steps.

    `r.num_iterations` was only an upper bound for such a run. So the number of steps, and the numbers that follow
    from it, are set anew.
    """
    tokens = r.total_batch_size * steps
    return replace(r, num_iterations=steps, horizon="wall_budget_sec", total_tokens=tokens,
                   effective_ratio=tokens / r.num_scaling_params,
                   tau=ema_time_scale(r.total_batch_size, r.matrix_lr, r.weight_decay, tokens))


def count_plain(model: GPT) -> dict[str, int]:
    """Parameters as a plain GPT counts them: "plain" = wte + matrices (gates left out) + lm_head.

    The parameters of upstream's extras are counted apart, in value_embeds, gates and scalars. All of them add up to
    "all".

    4 layers, 512 wide, a vocabulary of 24,576: 12,582,912 each, 37,748,736 plain.
    """
    counts = count_params(model)
    gates = params_of_roles(model, "value_gate")
    matrices = counts["transformer_matrices"] - gates
    return dict(wte=counts["wte"], matrices=matrices, lm_head=counts["lm_head"],
                plain=counts["wte"] + matrices + counts["lm_head"], value_embeds=counts["value_embeds"], gates=gates,
                scalars=counts["scalars"], all=counts["total"])
