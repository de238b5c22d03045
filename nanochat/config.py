"""
Every training option, declared once: type, default, help, and all that other code asks about it.

nanochat/options.py explains the fields of a declaration. -1 means "choose for me" for those options for which upstream
has that meaning. Only `cost.resolve` replaces it. Torch-free, because an experiment parses every arm before anything is
trained.

>>> config = read_config(["--depth=4", "--no-compile"])
>>> config.depth, config.compile
(4, False)
"""

import argparse
from dataclasses import dataclass

from nanochat.checks import (
    MOST_CHANNELS,
    MOST_FLOPS,
    MOST_LAYERS,
    MOST_LETTERS,
    MOST_RATE,
    MOST_RATIO,
    MOST_SEC,
    MOST_STEPS,
    MOST_TOKENS,
    Check,
    names_per_layer,
    non_negative,
    only,
    plain_name,
    positive,
    positive_or_minus_one,
    positive_rate,
    unit_interval,
)
from nanochat.common import hash_json
from nanochat.config_check import RELATIONS
from nanochat.options import (
    check_options,
    declared,
    hashed,
    option,
    parse_command,
    parse_options,
    said_once,
    settle_spellings,
)
from nanochat.schedule import WARMDOWN_SHAPES

HIDDEN = argparse.SUPPRESS  # the help of an option that --help does not list
# What the numbers of several options count, each with the bound of nanochat/checks.py
layers, channels, tokens = positive.up_to(MOST_LAYERS), positive.up_to(MOST_CHANNELS), positive.up_to(MOST_TOKENS)
channels_or_minus_one = positive_or_minus_one.up_to(MOST_CHANNELS)
tokens_or_minus_one = positive_or_minus_one.up_to(MOST_TOKENS)
context = Check("at least 2", lambda n: n >= 2).up_to(MOST_TOKENS)
steps, every_steps = non_negative.up_to(MOST_STEPS), positive_or_minus_one.up_to(MOST_STEPS)
flops, ratio = (Check("a number", lambda x: True).up_to(most) for most in (MOST_FLOPS, MOST_RATIO))
ratio_or_minus_one = positive_or_minus_one.up_to(MOST_RATIO)
factor, factor_or_zero = positive.up_to(MOST_RATE), non_negative.up_to(MOST_RATE)
time_or_minus_one = positive_or_minus_one.up_to(MOST_SEC)
seed_of_torch = Check("0 or more, and less than 2^63", lambda n: 0 <= n < 2 ** 63)
step_or_minus_one = Check("a step, or -1", lambda n: n >= -1).up_to(MOST_STEPS)
window_letters = Check("letters S and L, like SSSL", lambda text: text and set(text.upper()) <= set("SL"), example="SL")
folder_name = Check(f"a plain folder name of at most {MOST_LETTERS} letters",
                    lambda text: not text.startswith(".") and not set(text) & set("/\\")
                    and text.isprintable() and len(text) <= MOST_LETTERS)


@dataclass
class TrainConfig:
    # Logging
    run: str = option("dummy", "wandb run name ('dummy' = no wandb)", role="run", tags="name")
    tensorboard: bool = option(False, "also write TensorBoard events beside metrics.jsonl (pip install tensorboard)",
                               role="run")
    # Runtime
    device_type: str = option("", "cuda | cpu | mps (empty = autodetect)", choices=("", "cuda", "cpu", "mps"),
                              tags="machine")
    dtype: str = option("auto", "compute dtype; auto = NANOCHAT_DTYPE, else bfloat16 on CUDA SM 8.0 and newer, else "
                        "float32", choices=("auto", "float32", "bfloat16"), role="workload",
                        tags=("machine", "environment"))
    compile: bool = option(True, "torch.compile the model and the optimizer", role="workload",
                           tags=("machine", "environment"))
    deterministic: bool = option(False, "bit-identical repeats on CUDA too, at a cost (CPU runs always are)")
    seed: int = option(42, "drives initialisation and the order of documents", check=seed_of_torch, tags="cell")
    fp8: bool = option(False, "FP8 training: not here yet, refused",
                       check=only(False, "no FP8: it is not here yet; train with --dtype bfloat16"))
    # Size of the model
    depth: int = option(20, "number of layers", role="workload", check=layers, tags=("shape", "ledger_row"))
    aspect_ratio: int = option(64, "model_dim = depth * aspect_ratio, rounded up to a multiple of head_dim",
                               role="workload", check=channels, tags=("shape", "resolved"))
    model_dim: int = option(-1, "width of the model (-1 = from depth and aspect ratio)", role="workload",
                            check=channels_or_minus_one, tags=("shape", "resolved"))
    head_dim: int = option(128, "size of an attention head", role="workload", check=channels,
                           tags=("shape", "resolved"))
    n_kv_head: int = option(-1, "key/value heads, for grouped-query attention (-1 = as many as query heads)",
                            role="workload", check=channels_or_minus_one, tags=("shape", "resolved"))
    max_seq_len: int = option(2048, "context length in tokens", role="workload", check=context, tags="ledger_row")
    window_pattern: str = option("SSSL", "attention windows tiled over layers: L = full, S = quarter context; the last "
                                 "layer is L", role="workload", model=True, check=window_letters)
    # Parts of the model. Names are rows of MIXERS, MLPS and RESIDUALS in nanochat/gpt.py, which refuses any other.
    mixer: str = option("attention", "what mixes tokens: rows of MIXERS, with commas between, tiled over layers",
                        model=True, check=names_per_layer, before="attention")
    mlp: str = option("relu_squared", "the feed-forward sublayer: a row of MLPS", model=True, check=plain_name,
                      before="relu_squared")
    residual: str = option("plain", "how a sublayer reads and writes the residual stream: a row of RESIDUALS",
                           model=True, check=plain_name, before="plain")
    value_embeds: bool = option(True, "value embeddings on every other layer, the last included", model=True,
                                before=True)
    smear: bool = option(True, "add a little of the previous token's embedding", model=True, before=True)
    lambdas: bool = option(True, "scalars per layer, on the residual stream and on the embedding that each layer adds",
                           model=True, before=True)
    backout: bool = option(True, "subtract a share of the middle layer's output at the end", model=True,
                           before=True)
    qk_norm: bool = option(True, "normalise queries and keys", model=True, before=True)
    logit_softcap: float = option(15.0, "logits stay within +- this (0 = off)", model=True, check=non_negative,
                                  before=15.0)
    rope_base: float = option(100000.0, "base of the rotary embedding's wavelengths", model=True, check=positive,
                              before=100000.0)
    fp32_updates: bool = option(False, "in bfloat16, keep embeddings, their moments and Muon's orthogonalisation in "
                                "fp32: more memory, far less noise of rounding", role="workload", model=True,
                                before=False)
    # The gated residual (nanochat/layers/residual.py)
    symplectic_gate: bool = option(False, "gate each sublayer's output by the change of its input between tokens",
                                   aliases=("symplectic_gate_enabled",), means=("residual", "symplectic"))
    symplectic_gate_mix: float = option(0.15, "strength of the gate, 0..1: it multiplies by [1 - mix, 1]", model=True,
                                        check=unit_interval, needs="symplectic_gate")
    symplectic_gate_eps: float = option(1e-6, "added to the running mean in the gate's denominator", model=True,
                                        check=positive, needs="symplectic_gate")
    symplectic_gate_layers: str = option("all", "which layers are gated", choices=("all", "odd"), model=True,
                                         needs="symplectic_gate")
    symplectic_gate_ramp_start: int = option(0, "optimizer step at which mix starts to ramp up from 0", model=True,
                                             check=steps,
                                             needs=("symplectic_gate", "symplectic_gate_ramp_steps"))
    symplectic_gate_ramp_steps: int = option(0, "optimizer steps the ramp takes (0 = no ramp)", model=True,
                                             check=steps, needs="symplectic_gate")
    # Horizon (the first that is given wins)
    num_iterations: int = option(-1, "optimizer steps (-1 = not given)", role="workload", check=every_steps,
                                 tags=("horizon", "resolved", "ledger_row"))
    target_flops: float = option(-1.0, "steps from a FLOP budget (-1 = not given)", role="workload", check=flops,
                                 tags=("horizon", "resolved"))
    target_param_data_ratio: float = option(12.0, "steps from training tokens per scaling parameter", role="workload",
                                            check=ratio, tags=("horizon", "resolved"))
    wall_budget_sec: float = option(-1.0, "end, fully warmed down, after this many seconds of training steps if the "
                                    "steps are not done before (-1 = no such end)", role="workload",
                                    check=time_or_minus_one)
    # Optimization
    device_batch_size: int = option(32, "rows per micro-batch", role="workload", check=tokens,
                                    tags=("machine", "ledger_row"))
    total_batch_size: int = option(-1, "tokens per optimizer step (-1 = from the scaling law)", role="workload",
                                   check=tokens_or_minus_one, tags=("batch_law", "resolved"))
    matrix_optimizer: str = option("muon", "what steps the matrices: a row of KINDS in nanochat/optim.py",
                                   check=plain_name, before="muon")
    embedding_lr: float = option(0.3, "learning rate of the embeddings (AdamW)", check=positive_rate)
    unembedding_lr: float = option(0.008, "learning rate of lm_head (AdamW)", check=positive_rate)
    weight_decay: float = option(0.28, "cautious weight decay of the matrices (Muon)", check=factor_or_zero,
                                 tags="resolved")
    matrix_lr: float = option(0.02, "learning rate of the matrices (Muon)", check=positive_rate)
    scalar_lr: float = option(0.5, "learning rate of the per-layer scalars (AdamW)", check=positive_rate)
    warmup_steps: int = option(40, "steps of linear warm-up", check=steps)
    warmdown_ratio: float = option(0.65, "share of the steps over which the learning rate falls", check=unit_interval)
    final_lr_frac: float = option(0.05, "learning rate at the end, as a share of its peak", check=unit_interval)
    quiet_start: bool = option(False, "no step of a scalar on a gradient that is rounding alone, and a rate of smear "
                               "and backout that follows the batch (ideas/quiet_start.md)", role="workload",
                               before=False)
    perturb: float = option(0.0, HIDDEN, check=non_negative, before=0.0)  # relative noise on the token embedding
    # Experiment options: an arm may change them within one profile
    warmdown_shape: str = option("linear", "how the learning rate falls (Muon's momentum falls linearly always)",
                                 choices=tuple(WARMDOWN_SHAPES))
    batch_multiplier: float = option(1.0, "times the batch, given or automatic, rounded to micro-batches; rates and "
                                     "decay follow it, and --num-iterations counts steps of the batch without it: the "
                                     "tokens stay", check=factor, tags="resolved")
    lr_multiplier: float = option(1.0, "times every learning rate that has a flag", check=factor)
    wd_multiplier: float = option(1.0, "times --weight-decay", check=factor_or_zero, tags="resolved")
    ratio_ref: float = option(-1.0, "data:param ratio of the d12 that batch and decay are scaled from, pinned, so that "
                              "tau does not move with the horizon (-1 = --target-param-data-ratio, as upstream)",
                              check=ratio_or_minus_one, tags="resolved")
    data_order: str = option("seed", "order of documents: by seed, or as the files have them (upstream's stream)",
                             choices=("seed", "file"), role="workload")
    # Evaluation
    eval_every: int = option(250, "validate every N steps and at the end (-1 = never)", role="workload",
                             check=every_steps)
    eval_tokens: int = option(80 * 524288, "tokens per validation", role="workload",
                             check=non_negative.up_to(MOST_TOKENS))
    target_bpb: float = option(-1.0, "bits per byte to be reached, for --eval-near-target (-1 = none)",
                               check=positive_or_minus_one, needs="eval_near_target")
    eval_near_target: int = option(-1, "validate every N steps while near --target-bpb and not yet there (-1 = "
                                   "--eval-every only)", check=every_steps, needs="target_bpb")
    eval_near_bpb: float = option(0.05, "how far above --target-bpb is near", check=positive, needs="eval_near_target")
    core_metric_every: int = option(-1, "CORE every N steps: not here yet, anything but -1 is refused", role="run",
                                    check=only(-1, "-1: CORE is not here yet; compare validation bits per byte"))
    core_metric_max_per_task: int = option(500, "examples per CORE task", role="run")
    sample_every: int = option(2000, "print samples every N steps and at the end (-1 = never)", role="run",
                               check=every_steps)
    # Checkpoints
    model_tag: str = option("", "name of the run and of its checkpoint folder (empty = d<depth>)", role="run",
                            check=folder_name, tags=("name", "cell"))
    resume_from_step: int = option(-1, "resume this tag from this step (-1 = start anew)", role="run",
                                   check=step_or_minus_one, tags="cell")
    resume: bool = option(False, "resume this tag from its newest whole checkpoint, if there is one", role="run",
                          tags="cell")
    save_every: int = option(-1, "checkpoint every N steps (-1 = at the end only)", role="run",
                             check=every_steps, tags="tree_cell")
    save_minutes: float = option(15.0, "also checkpoint when this many minutes have passed since the last one (-1 = "
                                 "off)", role="run", check=time_or_minus_one)
    keep_last: int = option(-1, "keep only the newest N checkpoints (-1 = all; but one that --save-minutes made, only "
                            "until the next)", role="run", check=every_steps)

    def __post_init__(self):
        settle_spellings(self)


FIELDS = declared(TrainConfig)


def validate(config: TrainConfig):
    """Raise ValueError for options that are wrong, alone or together, before any work is done."""
    check_options(config)
    for relation in RELATIONS:
        relation(config)


def read_config(argv) -> TrainConfig:
    """Parse and check. Raises ValueError, in one line, for bad input."""
    return parse_options(TrainConfig, argv, validate)


def parse(argv=None, prog=None) -> TrainConfig:
    """read_config for a script (argv: default sys.argv). Bad input prints one line and exits with status 2."""
    return parse_command(TrainConfig, argv, prog, "Train a base model.", validate)


def model_options(config: TrainConfig) -> dict:
    """The options that are fields of GPTConfig, under the same names."""
    return {name: getattr(config, name) for name, o in declared(type(config)).items() if o.model}


# -----------------------------------------------------------------------------
# Stored configurations, which may be older than some options

def config_of_record(stored: dict) -> TrainConfig:
    """The "config" of a run.json. An option that came after the run has the value that the run had without it."""
    later = {name: o.before for name, o in FIELDS.items() if o.before is not None}
    return TrainConfig(**{name: value for name, value in (later | stored).items() if name in FIELDS})


def changed_options(config: TrainConfig, stored: dict) -> list[str]:
    """Options that decide the numbers of a run and have another value in the "user_config" of a checkpoint.

    An option that the checkpoint lacks passes, because upstream writes fewer options. If it was added here later, the
    checkpoint had the value `before` of its declaration.
    """
    options = declared(type(config))
    ours, theirs = said_once(type(config), vars(config)), said_once(type(config), stored)
    return [name for name, o in options.items()
            if o.role != "run" and theirs.get(name, ours[name] if o.before is None else o.before) != ours[name]]


# -----------------------------------------------------------------------------
# Hashes

def hashed_options(config: TrainConfig) -> dict:
    """The options that decide the numbers of a run."""
    return hashed(config, "workload", "treatment")


def config_hash(config: TrainConfig, dataset_id: str, tokenizer_id: str, tree: str) -> str:
    """Identity of a cell's result: equal hashes mean that the stored run may be reused."""
    return hash_json(dict(options=hashed_options(config), dataset_id=dataset_id, tokenizer_id=tokenizer_id, tree=tree))


def profile_hash(config: TrainConfig, device_kind: str, dataset_id: str, tokenizer_id: str) -> str:
    """Identity of a workload: rows with different profiles are never compared."""
    return hash_json(dict(options=hashed(config, "workload"), device=device_kind, dataset_id=dataset_id,
                          tokenizer_id=tokenizer_id))
