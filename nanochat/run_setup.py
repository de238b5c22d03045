"""
Everything before the first step: choose the device, check the options, build or load the model. The result is a Run.

A start that fails changes nothing that was there. So the earlier run of the tag is moved aside, and its record makes
place, only when everything else has been done: `begin` is called between the first gradient and the first update.
"""

import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nanochat import device as dev
from nanochat.checkpoint_manager import find_last_step, load_checkpoint, sweep_remains
from nanochat.common import print0
from nanochat.config import TrainConfig, changed_options
from nanochat.cost import Resolved, count_params, gpt_config, meta_model, resolve
from nanochat.dataloader import DataLoader
from nanochat.gpt import GPT, build_model
from nanochat.optim import SMEAR_LR, MuonAdamW, setup_optimizer
from nanochat.ranks import Ranks
from nanochat.record import RunRecord
from nanochat.run_facts import make_record
from nanochat.schedule import B_REF, BOUNDS, training_clock
from nanochat.stage import Stage
from nanochat.tokenizer import get_token_bytes, get_tokenizer, get_tokenizer_id


@dataclass
class LoopState:
    """State that a resumed run needs beside weights, optimizer and data position.

    The first three keys are upstream's.
    """
    min_val_bpb: float | None = None
    smooth_train_loss: float = 0.0
    total_training_time: float = 0.0  # seconds of the steps that the clock counts
    timed_steps: int = 0
    val_bpb: float | None = None
    last_eval_step: int | None = None
    grad_norms: list = field(default_factory=list)  # of the last steps, for the running median
    grad_spikes: int = 0  # steps whose gradient norm was far above that median
    clocks: dict = field(default_factory=lambda: dict(setup_sec=0.0, compile_sec=None, eval_sec=0.0, save_sec=0.0,
                                                      wall_time_sec=0.0))


@dataclass
class Run:
    """The parts and the state of a run, which the loop reads and changes."""
    config: TrainConfig
    resolved: Resolved
    stage: Stage
    tag: str
    ranks: Ranks
    device: torch.device
    base_dir: Path
    tokenizer: object
    token_bytes: torch.Tensor
    model: GPT
    compiled: object  # the same model behind torch.compile, or the model itself
    optimizer: MuonAdamW
    loader: DataLoader
    state: LoopState
    step: int
    started: float
    record: RunRecord | None = None  # None only while set_up makes it
    val_batches: list | None = None
    last_save: float = field(default_factory=time.monotonic)
    saved_step: int | None = None  # the newest step that this run has on disk, the step that it resumed from included
    gives_way: bool = False  # the next save takes the place of that step
    before_step: tuple | None = None  # where the loader stood before the step that is being taken
    lines: list[str] = field(default_factory=list)  # that wait to be printed until a step is whole
    stop_signal: int | None = None  # the first signal that asked the run to stop
    signals: int = 0  # how many did
    uncut: bool = False  # while a step is applied or saved. Left True by an error: then the state is of no whole step
    ending: bool = False  # the loop is left, and the end is being recorded
    bound: str | None = None  # the bound that ended the run: iterations, flops, ratio or wall

    @property
    def spent_sec(self) -> float:
        """Seconds of the wall budget that the run has spent."""
        return training_clock(self.step, self.state.total_training_time, self.state.timed_steps)

    def reached(self) -> str | None:
        """The bound that the run has come to; None while it goes on."""
        if self.step >= self.resolved.num_iterations:
            return BOUNDS[self.resolved.horizon]
        return "wall" if 0 < self.config.wall_budget_sec <= self.spent_sec else None

    @property
    def checkpoint_dir(self) -> Path:
        return self.stage.folder(self.base_dir, self.tag)

    def cut_again(self):
        """The end of what a second signal may not cut short. One that came meanwhile counts now."""
        self.uncut = False
        if self.signals > 1 and not self.ending:
            raise KeyboardInterrupt


def set_up(config: TrainConfig, argv: list[str], stage: Stage, base_dir: Path, tag: str, started: float) -> Run:
    """started: time.monotonic() at the start of the process's work. Raises ValueError or OSError for bad input."""
    device = dev.select_device(config.device_type)
    dtype, why = dev.select_dtype(config.dtype, device)
    print0(f"COMPUTE_DTYPE: {dtype} ({why})")
    compiling = config.compile
    if compiling and not (able := dev.can_compile(device))[0]:
        print0(f"Not compiling: {able[1]}. The run goes on as with --no-compile, slower")
        compiling = False
    dev.set_determinism(device, compiling, config.deterministic)

    tokenizer, tokenizer_id = get_tokenizer(base_dir), get_tokenizer_id(base_dir)
    resolved = resolve(config, tokenizer.get_vocab_size(), dtype=str(dtype).removeprefix("torch."), compile=compiling)
    _announce(config, resolved)
    ranks = Ranks.from_environment()
    folder = stage.folder(base_dir, tag)
    sweep_remains(folder)  # of saves that were killed: the lock of the tag is held
    _check_space(folder, resolved.num_params)
    step, checkpoint = _find_start(config, folder, device, tokenizer_id, ranks)
    loader = DataLoader(tokenizer, config.device_batch_size, config.max_seq_len, "train", device, config.data_order,
                        config.seed, state=checkpoint[2]["dataloader_state_dict"] if checkpoint else None,
                        ranks=ranks)
    loader.fill()  # data that cannot be read are found here, before anything is moved

    model = build_model(gpt_config(config, resolved.vocab_size), device, dtype, config.seed)
    perturb_embedding(model, config.perturb, config.seed)
    scale = resolved.batch_lr_scale * config.lr_multiplier
    optimizer = setup_optimizer(model, unembedding_lr=config.unembedding_lr * scale,
                                embedding_lr=config.embedding_lr * scale,
                                matrix_lr=config.matrix_lr * scale, scalar_lr=config.scalar_lr * scale,
                                weight_decay=resolved.weight_decay, matrix_optimizer=config.matrix_optimizer,
                                smear_lr=SMEAR_LR * (scale if config.quiet_start else 1.0),
                                polar_dtype=model.update_dtype, compile_update=compiling)
    state = LoopState()
    if checkpoint:
        model.load_state_dict(checkpoint[0], strict=True)
        optimizer.load_state_dict(checkpoint[1])
        state = LoopState(**{k: v for k, v in checkpoint[2]["loop_state"].items()
                             if k in LoopState.__dataclass_fields__})
        print0(f"Resuming optimization from step {step}")
    if compiling:
        model.loss.leave_graphs()
    compiled = torch.compile(model, dynamic=False) if compiling else model
    run = Run(config, resolved, stage, tag, ranks, device, base_dir, tokenizer, get_token_bytes(device, base_dir),
              model, compiled, optimizer, loader, state, step, started, saved_step=step if checkpoint else None)
    run.record = make_record(run, argv, tokenizer_id, resumed_from=run.saved_step)
    if checkpoint or not _earlier(run):
        begin(run)
    return run


def begin(run: Run):
    """Move the earlier run of the tag aside, so that nothing of it is lost, and begin to write the record.

    A resumed run continues the earlier one. A second call does nothing.
    """
    if not run.record.held:
        return
    earlier = [] if run.saved_step is not None else _earlier(run)
    if earlier:
        names = (f"{run.tag}.{i}" for i in range(1, 10 ** 6))
        aside = next(name for name in names if not any(path.with_name(name).exists() for path in _folders(run)))
        for path in earlier:
            path.rename(path.with_name(aside))
            print0(f"Moved the earlier {path} to {aside} (delete it to free the disk)")
    run.record.release(run.saved_step or 0)


def _folders(run: Run) -> tuple[Path, Path]:
    return run.checkpoint_dir, run.record.dir


def _earlier(run: Run) -> list[Path]:
    return [path for path in _folders(run) if path.is_dir() and any(path.iterdir())]


@torch.no_grad()
def perturb_embedding(model: GPT, amount: float, seed: int):
    """Multiply each element of the token embedding by 1 + amount * noise, noise ~ N(0, 1) of its own generator.

    A run and its twin, which has an amount of 1e-7, differ by nothing but rounding. The difference of their results is
    the part of a run's noise that no seed controls.
    """
    if amount:
        weight = model.transformer.wte.weight
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + 1))
        weight.copy_(weight.float() * (1 + amount * noise.to(weight.device)))


def _announce(config: TrainConfig, r: Resolved):
    print0(f"Vocab size: {r.vocab_size:,}")
    print0("Parameter counts:")
    for kind, n in count_params(meta_model(gpt_config(config, r.vocab_size))).items():
        print0(f"{kind:24s}: {n:,}")
    print0(f"Estimated FLOPs per token: {r.flops_per_token:e}")
    if config.total_batch_size == -1:
        print0(f"Auto-computed optimal batch size: {r.total_batch_size:,} tokens")
    if config.batch_multiplier != 1:
        print0(f"Batch multiplier {config.batch_multiplier} is {r.batch_multiplier:.6g} in whole micro-batches")
    print0(f"Scaling LRs by {r.batch_lr_scale:.4f} for batch size {r.total_batch_size:,} (reference: {B_REF:,})")
    print0(f"Scaling weight decay from {config.weight_decay:.6f} to {r.weight_decay:.6f} for depth {config.depth}")
    tau = "no decay" if r.tau is None else f"tau {r.tau:.6g}"
    print0(f"Matrices: learning rate {r.matrix_lr:.6g}, weight decay {r.weight_decay:.6g}, {tau}")
    how = {"num_iterations": "Using user-provided number of iterations",
           "target_flops": "Calculated number of iterations from target FLOPs",
           "target_param_data_ratio": "Calculated number of iterations from target data:param ratio"}
    print0(f"{how[r.horizon]}: {r.num_iterations:,}")
    if config.wall_budget_sec > 0:
        print0(f"Wall budget: {config.wall_budget_sec:g} seconds of training steps, if those steps are not done before")
    print0(f"Total number of training tokens: {r.total_tokens:,}")
    print0(f"Tokens : Scaling params ratio: {r.effective_ratio:.2f}")
    print0(f"Total training FLOPs estimate: {r.flops_per_token * r.total_tokens:e}")
    B, T = config.device_batch_size, config.max_seq_len
    print0(f"Tokens / micro-batch / rank: {B} x {T} = {B * T:,}")
    print0(f"Total batch size {r.total_batch_size:,} => gradient accumulation steps: {r.grad_accum_steps}")


def _check_space(folder: Path, num_params: int):
    """Raise OSError before training where the checkpoint at its end could not be written."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".probe.{os.getpid()}"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as e:
        raise OSError(f"checkpoints cannot be written to {folder}: {e.strerror}; "
                      "set NANOCHAT_BASE_DIR to a folder that you may write to") from e
    need, free = 12 * num_params, shutil.disk_usage(folder).free  # weights and two moments, fp32
    if free < need:
        raise OSError(f"a checkpoint needs {need / 2**20:.0f} MiB, {folder} has {free / 2**20:.0f} MiB free; "
                      "free some, or set NANOCHAT_BASE_DIR")


def _find_start(config, folder, device, tokenizer_id, ranks):
    """(step to start from, checkpoint or None)."""
    step = config.resume_from_step
    if config.resume and step == -1:
        step = find_last_step(folder) or -1
    if step != -1:
        checkpoint = load_checkpoint(folder, step, device, load_optimizer=True, rank=ranks.rank)
        for key in ("user_config", "loop_state", "dataloader_state_dict"):
            if not isinstance(checkpoint[2].get(key), dict):
                raise ValueError(f"the meta file of step {step} of {folder} has no {key}, so a run cannot be resumed "
                                 "from it; load its weights under a new --model-tag instead")
        if checkpoint[2].get("tokenizer_id", tokenizer_id) != tokenizer_id:
            raise ValueError(f"step {step} of {folder} was trained with another tokenizer; "
                             "put it back, or choose another --model-tag")
        if changed := changed_options(config, checkpoint[2]["user_config"]):
            raise ValueError(f"step {step} of {folder} was trained with other values of {', '.join(sorted(changed))}; "
                             "a run cannot change them half-way: resume with the same command, "
                             "or choose another --model-tag")
        return step, checkpoint
    return 0, None
