"""
Every training option, declared once: type, default, help, and whether it belongs to the profile.

The dataclass field is the flag (`--device-batch-size`, also spelled `--device_batch_size`), the key
in run.json and the column in a ledger. -1 means "choose for me" where upstream means it; only
`cost.resolve` replaces it. Torch-free: an experiment parses every arm before anything is trained.

>>> config = parse(["--depth=4", "--no-compile"])
>>> config.depth, config.compile, to_argv(config)
(4, False, ['--no-compile', '--depth=4'])
"""

import argparse
import dataclasses
import difflib
import math
import sys
from dataclasses import dataclass, field

from nanochat.common import hash_json
from nanochat.schedule import WARMDOWN_SHAPES, multiplied_batch, nearest


def option(default, help, choices=None, profile=False, aliases=()):
    """One field of TrainConfig. `profile`: rows that differ in it are never compared as equals."""
    return field(default=default, metadata=dict(help=help, choices=choices, profile=profile, aliases=aliases))


@dataclass
class TrainConfig:
    # Logging
    run: str = option("dummy", "wandb run name ('dummy' = no wandb)")
    tensorboard: bool = option(False, "also write TensorBoard events beside metrics.jsonl (pip install tensorboard)")
    # Runtime
    device_type: str = option("", "cuda | cpu | mps (empty = autodetect)", ("", "cuda", "cpu", "mps"))
    dtype: str = option("auto", "compute dtype; auto = NANOCHAT_DTYPE, else bfloat16 on CUDA SM 8.0 and newer, else float32",
                        ("auto", "float32", "bfloat16"), profile=True)
    compile: bool = option(True, "torch.compile the model and the optimizer", profile=True)
    deterministic: bool = option(False, "bit-identical repeats on CUDA too, at a cost (CPU runs always are)")
    seed: int = option(42, "drives initialisation and the order of documents")
    fp8: bool = option(False, "FP8 training: not here yet, refused")
    # Model
    depth: int = option(20, "number of layers", profile=True)
    aspect_ratio: int = option(64, "model_dim = depth * aspect_ratio, rounded up to a multiple of head_dim", profile=True)
    model_dim: int = option(-1, "width of the model (-1 = from depth and aspect ratio)", profile=True)
    head_dim: int = option(128, "size of an attention head", profile=True)
    n_kv_head: int = option(-1, "key/value heads, for grouped-query attention (-1 = as many as query heads)", profile=True)
    max_seq_len: int = option(2048, "context length in tokens", profile=True)
    window_pattern: str = option("SSSL", "attention windows tiled over layers: L = full, S = quarter context; the last layer is L",
                                 profile=True)
    # Candidate: the gated residual (layers/residual.py)
    symplectic_gate: bool = option(False, "gate each sublayer's output by the change of its input between tokens",
                                   aliases=("symplectic_gate_enabled",))
    symplectic_gate_mix: float = option(0.15, "strength of the gate, 0..1: it multiplies by [1 - mix, 1]")
    symplectic_gate_eps: float = option(1e-6, "added to the running mean in the gate's denominator")
    symplectic_gate_layers: str = option("all", "which layers are gated", ("all", "odd"))
    symplectic_gate_ramp_start: int = option(0, "optimizer step at which mix starts to ramp up from 0")
    symplectic_gate_ramp_steps: int = option(0, "optimizer steps the ramp takes (0 = no ramp)")
    # Horizon (the first that is given wins)
    num_iterations: int = option(-1, "optimizer steps (-1 = not given)", profile=True)
    target_flops: float = option(-1.0, "steps from a FLOP budget (-1 = not given)", profile=True)
    target_param_data_ratio: float = option(12.0, "steps from training tokens per scaling parameter", profile=True)
    wall_budget_sec: float = option(-1.0, "end, fully warmed down, after this many seconds of training steps if the steps are not done "
                                    "before (-1 = no such end)", profile=True)
    # Optimization
    device_batch_size: int = option(32, "rows per micro-batch", profile=True)
    total_batch_size: int = option(-1, "tokens per optimizer step (-1 = from the scaling law)", profile=True)
    embedding_lr: float = option(0.3, "learning rate of the embeddings (AdamW)")
    unembedding_lr: float = option(0.008, "learning rate of lm_head (AdamW)")
    weight_decay: float = option(0.28, "cautious weight decay of the matrices (Muon)")
    matrix_lr: float = option(0.02, "learning rate of the matrices (Muon)")
    scalar_lr: float = option(0.5, "learning rate of the per-layer scalars (AdamW)")
    warmup_steps: int = option(40, "steps of linear warm-up")
    warmdown_ratio: float = option(0.65, "share of the steps over which the learning rate falls")
    final_lr_frac: float = option(0.05, "learning rate at the end, as a share of its peak")
    # Experiment knobs: what an arm may change within one profile
    warmdown_shape: str = option("linear", "how the learning rate falls (Muon's momentum falls linearly always)", tuple(WARMDOWN_SHAPES))
    batch_multiplier: float = option(1.0, "times the batch, given or automatic, rounded to micro-batches; rates and decay follow it, "
                                     "and --num-iterations counts steps of the batch without it: the tokens stay")
    lr_multiplier: float = option(1.0, "times every learning rate that has a flag")
    wd_multiplier: float = option(1.0, "times --weight-decay")
    ratio_ref: float = option(-1.0, "data:param ratio of the d12 that batch and decay are scaled from, pinned, so that tau does not move "
                              "with the horizon (-1 = --target-param-data-ratio, as upstream)")
    data_order: str = option("seed", "order of documents: by seed, or as the files have them (upstream's stream)", ("seed", "file"),
                             profile=True)
    # Evaluation
    eval_every: int = option(250, "validate every N steps and at the end (-1 = never)", profile=True)
    eval_tokens: int = option(80 * 524288, "tokens per validation", profile=True)
    target_bpb: float = option(-1.0, "bits per byte to be reached, for --eval-near-target (-1 = none)")
    eval_near_target: int = option(-1, "validate every N steps while near --target-bpb and not yet there (-1 = --eval-every only)")
    eval_near_bpb: float = option(0.05, "how far above --target-bpb is near")
    core_metric_every: int = option(-1, "CORE every N steps: not here yet, anything but -1 is refused")
    core_metric_max_per_task: int = option(500, "examples per CORE task")
    sample_every: int = option(2000, "print samples every N steps and at the end (-1 = never)")
    # Checkpoints
    model_tag: str = option("", "name of the run and of its checkpoint folder (empty = d<depth>)")
    resume_from_step: int = option(-1, "resume this tag from this step (-1 = start anew)")
    resume: bool = option(False, "resume this tag from its newest whole checkpoint, if there is one")
    save_every: int = option(-1, "checkpoint every N steps (-1 = at the end only)")
    save_minutes: float = option(-1.0, "also checkpoint when this many minutes have passed since the last one (-1 = off)")
    keep_last: int = option(-1, "keep only the newest N checkpoints (-1 = all)")


FIELDS = {f.name: f for f in dataclasses.fields(TrainConfig)}
# What names a run, continues it or watches it, without changing what is computed.
NOT_HASHED = ("run", "tensorboard", "model_tag", "resume", "resume_from_step", "save_every", "save_minutes", "keep_last",
              "sample_every", "core_metric_every", "core_metric_max_per_task")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message):  # an unknown flag names its nearest neighbour
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split()[0]
            near = difflib.get_close_matches(word.split("=")[0], self._option_string_actions, n=1)
            message = f"unknown flag {word}" + (f"; did you mean {near[0]}?" if near else "; --help lists them all")
        self.exit(2, f"{self.prog}: error: {message}\n")  # one line: the usage of 50 flags hides it


def build_parser(prog=None, description="Train a base model.") -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description=description, allow_abbrev=False,
                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for name, f in FIELDS.items():
        flags = [flag(name), *map(flag, f.metadata["aliases"])]
        if f.type is bool:
            parser.add_argument(*flags, dest=name, default=f.default, help=f.metadata["help"],
                                action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(*flags, dest=name, default=f.default, type=f.type, choices=f.metadata["choices"],
                                help=f.metadata["help"], metavar=None if f.metadata["choices"] else f.type.__name__.upper())
    return parser


def hyphenate(argv) -> list[str]:
    """`--device_batch_size=4` -> `--device-batch-size=4`: both spellings of every flag work.

    >>> hyphenate(["--model_tag", "a_b", "--run=x_y"])
    ['--model-tag', 'a_b', '--run=x_y']
    """
    out = []
    for word in argv:
        name, eq, value = word.partition("=")
        out.append(name.replace("_", "-") + eq + value if word.startswith("--") else word)
    return out


def parse(argv=None, prog=None) -> TrainConfig:
    """Parse and check argv (default: sys.argv). Bad input prints one line and exits with status 2."""
    parser = build_parser(prog)
    config = TrainConfig(**vars(parser.parse_args(hyphenate(sys.argv[1:] if argv is None else argv))))
    try:
        validate(config)
    except ValueError as e:
        parser.error(str(e))
    return config


def to_argv(config: TrainConfig) -> list[str]:
    """The flags that differ from the defaults: the shortest command line that means `config`."""
    argv = []
    for name, f in FIELDS.items():
        value = getattr(config, name)
        if value == f.default:
            continue
        if f.type is bool:
            argv.append(flag(name) if value else flag("no_" + name))
        else:
            argv.append(f"{flag(name)}={value}")
    return argv


# -----------------------------------------------------------------------------
# Checks that need no model

def _require(ok: bool, name: str, value, expected: str):
    if not ok:
        raise ValueError(f"{flag(name)}={value}: expected {expected}")


def validate(config: TrainConfig):
    """Raise ValueError for what a user can get wrong, before any work is done."""
    for name in FIELDS:
        value = getattr(config, name)
        _require(not isinstance(value, float) or math.isfinite(value), name, value, "a finite number")
    for name in ("depth", "aspect_ratio", "head_dim", "device_batch_size"):
        _require(getattr(config, name) > 0, name, getattr(config, name), "a positive number")
    _require(config.max_seq_len >= 2, "max_seq_len", config.max_seq_len, "at least 2")
    for name in ("embedding_lr", "unembedding_lr", "matrix_lr", "scalar_lr"):
        _require(getattr(config, name) > 0, name, getattr(config, name), "a rate above 0")
    for name in ("batch_multiplier", "lr_multiplier", "eval_near_bpb"):
        _require(getattr(config, name) > 0, name, getattr(config, name), "a number above 0")
    for name in ("weight_decay", "wd_multiplier", "warmup_steps", "symplectic_gate_ramp_start", "symplectic_gate_ramp_steps", "seed"):
        _require(getattr(config, name) >= 0, name, getattr(config, name), "0 or more")
    _require(config.seed < 2 ** 63, "seed", config.seed, "less than 2^63")
    for name in ("warmdown_ratio", "final_lr_frac", "symplectic_gate_mix"):
        _require(0 <= getattr(config, name) <= 1, name, getattr(config, name), "a number in [0, 1]")
    _require(config.symplectic_gate_eps > 0, "symplectic_gate_eps", config.symplectic_gate_eps, "a number above 0")
    _require(config.window_pattern and set(config.window_pattern.upper()) <= set("SL"), "window_pattern",
             config.window_pattern, "letters S and L, like SSSL")
    _require(config.num_iterations > 0 or config.target_flops > 0 or config.target_param_data_ratio > 0, "num_iterations",
             config.num_iterations, "one horizon: --num-iterations, --target-flops or --target-param-data-ratio above 0")
    for name in ("eval_every", "sample_every", "save_every", "keep_last", "num_iterations", "total_batch_size", "ratio_ref",
                 "wall_budget_sec", "target_bpb", "eval_near_target"):
        _require(getattr(config, name) > 0 or getattr(config, name) == -1, name, getattr(config, name), "a positive number, or -1")
    _require(config.resume_from_step >= -1, "resume_from_step", config.resume_from_step, "a step, or -1")
    _require(config.eval_every == -1 or config.eval_tokens >= config.device_batch_size * config.max_seq_len, "eval_tokens",
             config.eval_tokens, f"at least one batch: {config.device_batch_size} x {config.max_seq_len} tokens")
    _require(not config.fp8, "fp8", config.fp8, "no FP8: it is not here yet; train with --dtype bfloat16")
    _require(config.core_metric_every == -1, "core_metric_every", config.core_metric_every,
             "-1: CORE is not here yet; compare validation bits per byte")
    _require("/" not in config.model_tag and "\\" not in config.model_tag and not config.model_tag.startswith("."),
             "model_tag", config.model_tag, "a plain folder name")
    _require_effect(config)
    model_shape(config)
    if config.total_batch_size != -1:
        multiplied_batch(config.total_batch_size, config.batch_multiplier, config.device_batch_size, config.max_seq_len)


def _require_effect(config: TrainConfig):
    """Options that would change nothing are refused: an arm made of them would be the control under another name."""
    for name, f in FIELDS.items():
        if name.startswith("symplectic_gate_") and getattr(config, name) != f.default:
            _require(config.symplectic_gate, name, getattr(config, name), "--symplectic-gate beside it: alone it changes nothing")
    c, alone = config, "beside it: alone it changes nothing"
    for name, ok, expected in (
            ("symplectic_gate_ramp_start", c.symplectic_gate_ramp_steps > 0, f"--symplectic-gate-ramp-steps {alone}"),
            ("warmdown_shape", c.warmdown_ratio > 0 and c.final_lr_frac < 1, "a warmdown: with --warmdown-ratio=0 or --final-lr-frac=1 "
             "the rate does not fall"),
            ("wd_multiplier", c.weight_decay > 0, "a --weight-decay above 0 to multiply"),
            ("ratio_ref", c.total_batch_size == -1 or c.weight_decay * c.wd_multiplier > 0, "an automatic batch or a weight decay: "
             "nothing else depends on it"),
            ("ratio_ref", c.num_iterations == -1 or c.total_batch_size != -1, "--total-batch-size beside --num-iterations: the batch "
             "law needs the tokens of the run first"),
            ("target_bpb", c.eval_near_target > 0, f"--eval-near-target {alone}"),
            ("eval_near_target", c.target_bpb > 0, f"--target-bpb {alone}"),
            ("eval_near_target", c.eval_near_target < c.eval_every, f"less than --eval-every={c.eval_every}: else nothing gets denser"),
            ("eval_near_bpb", c.eval_near_target > 0, f"--eval-near-target {alone}")):
        _require(ok or getattr(c, name) == FIELDS[name].default, name, getattr(c, name), expected)


def model_shape(config: TrainConfig) -> tuple[int, int, int]:
    """(model_dim, query heads, key/value heads). Raises ValueError naming the nearest sizes that divide.

    Without --model-dim the width is depth * aspect_ratio rounded up to whole heads, as upstream does it.
    """
    head_dim = config.head_dim
    _require(head_dim % 2 == 0, "head_dim", head_dim, "an even number (rotary embeddings turn pairs)")
    if config.model_dim == -1:
        dim = -(-config.depth * config.aspect_ratio // head_dim) * head_dim
    else:
        dim = config.model_dim
        _require(dim > 0, "model_dim", dim, "a positive number, or -1")
        divisors = [d for d in range(2, dim + 1, 2) if dim % d == 0]
        _require(dim % head_dim == 0, "head_dim", head_dim,
                 f"a divisor of --model-dim {dim}; the nearest are {nearest(divisors, head_dim)}")
    _require(dim >= 24, "model_dim", dim, "at least 24 (the smear gate reads the first 24 channels)")
    n_head = dim // head_dim
    n_kv_head = n_head if config.n_kv_head == -1 else config.n_kv_head
    divisors = [d for d in range(1, n_head + 1) if n_head % d == 0]
    _require(n_kv_head in divisors, "n_kv_head", n_kv_head, f"a divisor of the {n_head} query heads: {', '.join(map(str, divisors))}")
    return dim, n_head, n_kv_head


# -----------------------------------------------------------------------------
# Hashes

def hashed_options(config: TrainConfig) -> dict:
    """The options that decide what a run computes."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_HASHED}


def config_hash(config: TrainConfig, dataset_id: str, tokenizer_id: str, tree: str) -> str:
    """Identity of a cell's result: equal hashes mean that the stored run may be reused."""
    return hash_json(dict(options=hashed_options(config), dataset_id=dataset_id, tokenizer_id=tokenizer_id, tree=tree))


def profile_hash(config: TrainConfig, device_kind: str, dataset_id: str, tokenizer_id: str) -> str:
    """Identity of a workload: rows with different profiles are never compared."""
    options = {name: getattr(config, name) for name, f in FIELDS.items() if f.metadata["profile"]}
    return hash_json(dict(options=options, device=device_kind, dataset_id=dataset_id, tokenizer_id=tokenizer_id))
