"""Validation and samples during a run, and the steps at which they are due."""

import itertools
import math
import time

from nanochat.common import print0
from nanochat.dataloader import DataLoader
from nanochat.loss_eval import evaluate_bpb
from nanochat.run_guard import Diverged, stop_asked
from nanochat.run_setup import Run

CACHED_EVAL_TOKENS = 2 ** 22  # validation batches up to this size are packed once and kept
SAMPLE_PROMPTS = ("The capital of France is", "The chemical symbol of gold is",
                  "If yesterday was Friday, then tomorrow will be", "The opposite of hot is",
                  "The planets of the solar system are:", "My favorite color is", "If 5*x + 3 = 13, then x is")


def due(every: int, step: int, last: bool) -> bool:
    return every > 0 and (last or step % every == 0)


def eval_due(run: Run, last: bool) -> bool:
    """Whether this step is validated: on the regular grid, and near a declared target on a denser grid.

    The denser grid ends when the target is reached. A checkpoint is saved after the validation of its step, so a run
    that resumes from it takes that validation again.
    """
    config, state = run.config, run.state
    if due(config.eval_every, run.step, last) or state.last_eval_step == run.step:
        return True
    near = state.val_bpb is not None and state.val_bpb <= config.target_bpb + config.eval_near_bpb
    return near and state.min_val_bpb > config.target_bpb and due(config.eval_near_target, run.step, False)


def validate(run: Run, last: bool) -> bool:
    """Measure val_bpb at this step, and write it to the state and the record. False where a signal cut it short.

    Such a validation is left out, and the resumed run takes it again. That holds for the last one too: its step is
    saved before it begins. Each rank validates its own part of the split and stops at its own batch, but all take the
    same val_bpb and the same decision from it.
    """
    t0 = time.perf_counter()
    state, batches = run.state, itertools.takewhile(lambda _: run.stop_signal is None, val_batches(run))
    run.compiled.eval()
    val_bpb = evaluate_bpb(run.compiled, batches, run.token_bytes, run.ranks)
    run.compiled.train()
    if stop_asked(run):
        return False
    if not math.isfinite(val_bpb):
        raise Diverged(f"step {run.step}: validation bpb {val_bpb}")
    state.val_bpb = val_bpb
    print0(f"Step {run.step:05d} | Validation bpb: {state.val_bpb:.6f}")
    state.last_eval_step = run.step
    state.min_val_bpb = min(state.val_bpb, state.min_val_bpb if state.min_val_bpb is not None else state.val_bpb)
    run.record.log({"step": run.step, "val/bpb": state.val_bpb, "total_training_time": state.total_training_time,
                    "total_training_flops": run.resolved.flops_per_token * run.resolved.total_batch_size * run.step})
    state.clocks["eval_sec"] += time.perf_counter() - t0
    return True


def val_batches(run: Run):
    """This rank's share of --eval-tokens as batches of (x, y), the same at every validation. Few batches are kept."""
    config = run.config
    steps = config.eval_tokens // (config.device_batch_size * config.max_seq_len * run.ranks.world_size)
    if run.device.type == "cpu" and config.eval_tokens > CACHED_EVAL_TOKENS:
        print0(f"Validating on {config.eval_tokens:,} tokens, long on a CPU; --eval-tokens makes it shorter")
    if run.val_batches is not None:
        return run.val_batches
    loader = DataLoader(run.tokenizer, config.device_batch_size, config.max_seq_len, "val", run.device, ranks=run.ranks)
    batches = (batch for _, batch in zip(range(steps), loader))
    if config.eval_tokens <= CACHED_EVAL_TOKENS:
        batches = list(itertools.takewhile(lambda _: run.stop_signal is None, batches))
        run.val_batches = batches if run.stop_signal is None else None
    return batches


def sample(run: Run):
    """Print a greedy completion of every prompt, until a signal asks to stop. A failure is told; the run goes on."""
    from nanochat.engine import Engine
    t0 = time.perf_counter()
    run.model.eval()
    try:
        engine = Engine(run.model, run.tokenizer)
        for prompt in SAMPLE_PROMPTS:
            tokens = run.tokenizer(prompt, prepend="<|bos|>")
            for (token,), _ in engine.generate(tokens[:], max_tokens=16, temperature=0):
                if token in engine.end_ids or run.stop_signal is not None:
                    break
                tokens.append(token)
            if run.stop_signal is not None:
                break
            print0(run.tokenizer.decode(tokens))
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # a tokenizer written in Rust panics with a BaseException
        print0(f"Warning: no samples at step {run.step}: {type(e).__name__}: {e}")
    run.model.train()
    run.state.clocks["eval_sec"] += time.perf_counter() - t0
