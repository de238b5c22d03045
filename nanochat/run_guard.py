"""
How a run ends: signals that ask it to stop, errors that stop it, the save of its last whole step, and its record.

A signal is SIGINT (Ctrl-C), SIGTERM (a job scheduler) or SIGHUP (a closed terminal).
Once: the step, or the batch of a validation or sample, that is under way is finished, and the step is saved.
Twice: the step under way is given up, and the step before it is saved. Three times: the run stops and saves nothing.
"""

import gc
import signal
import time
import traceback

import torch

from nanochat import device as dev
from nanochat.common import print0, to_paste
from nanochat.run_facts import summarize
from nanochat.run_save import Diverged, rescue
from nanochat.run_setup import Run

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")  # CPU, Windows, MPS, cuBLAS


class Interrupted(Exception):
    """The run was asked to stop; a checkpoint was saved, unless nothing had been trained."""


def guarded(run: Run, loop) -> dict:
    """Call loop(run) and return the run's record (run.json as a dict), which says how the loop ended."""
    handlers, step_at_start = _handle_signals(run), run.step
    try:
        status, error = _call(run, loop)
        gc.unfreeze()
        gc.enable()
        gc.collect()  # what the step under way held
        if status != "ok":
            error = _rescued(run, step_at_start, status, error)
        run.uncut = True  # a third signal ends what may hang, as the upload of a sink
        return _finish(run, status, error)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


def _call(run: Run, loop) -> tuple[str, str | None]:
    try:
        loop(run)
        run.ending = True
        return "ok", None
    except BaseException as e:  # a tokenizer written in Rust panics with a BaseException
        run.ending = True
        return _how_it_ended(run, e)


def _rescued(run: Run, step_at_start: int, status: str, error: str) -> str:
    """Save what can be saved; returns the error, with how to go on."""
    whole, run.uncut = not run.uncut, False
    try:
        if whole and run.step > step_at_start:
            rescue(run, status)
    except (Exception, KeyboardInterrupt) as e:  # a full disk, mostly, or a third signal
        print0(f"Step {run.step} could not be saved: {str(e) or 'stopped'}")
    if status == "diverged" or run.saved_step is None or "--resume" in error:
        return error
    return f"{error}; step {run.saved_step} is saved: go on with --resume"


def _finish(run: Run, status: str, error: str | None) -> dict:
    run.state.clocks["wall_time_sec"] += time.monotonic() - run.started
    if error:
        print0(f"Run ended {status}: {error}")
    try:
        run.record.finish(status, error=error, load_end=dev.load_average(), **summarize(run))
    except (OSError, KeyboardInterrupt) as e:
        print0(f"The record could not be written: {e}")
        if status == "ok":
            status, error = "crash", f"the record could not be written: {e}; the weights are saved"
    return {**run.record.facts, "status": status, "error": error}


def _how_it_ended(run: Run, e: BaseException) -> tuple[str, str]:
    """(status, error) as run.json has them."""
    if isinstance(e, Diverged):
        return "diverged", str(e)
    if isinstance(e, (Interrupted, KeyboardInterrupt)):
        return "interrupted", str(e) or f"stopped at once at step {run.step}"
    said = f"{type(e).__name__}: {e}"
    if is_out_of_memory(e):
        return "oom", f"{said.splitlines()[0]}; {lower_memory(run.config.device_batch_size)}"
    if type(e).__module__.startswith(("torch._inductor", "torch._dynamo")):
        if run.stop_signal is not None:  # a terminal sends it to the compiler too
            return "interrupted", f"{signal_name(run)} while step {run.step} was compiled"
        return "crash", f"torch.compile failed ({type(e).__name__}: {dev.reason_of(e)}); train with --no-compile"
    if not isinstance(e, (ValueError, OSError)):  # those say it all: a corrupt shard, a full disk
        traceback.print_exception(e)
    return "crash", said


def is_out_of_memory(e: BaseException) -> bool:
    return isinstance(e, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(e, RuntimeError) and any(words in str(e).lower() for words in NO_MEMORY))


def lower_memory(batch: int) -> str:
    """The next step of someone whose memory is too small."""
    smaller = f"--device-batch-size={batch // 2}" if batch > 1 else "a smaller --max-seq-len or --depth"
    return to_paste(f"try {smaller}, and see python -m scripts.vram")


# -----------------------------------------------------------------------------
# Signals

def stop_asked(run: Run) -> bool:
    """Whether a signal asked this rank, or any other, to stop."""
    return run.ranks.any(run.stop_signal is not None)


def signal_name(run: Run) -> str:
    return "a signal to another rank" if run.stop_signal is None else signal.Signals(run.stop_signal).name


def _handle_signals(run: Run) -> dict:
    """Install the handler; returns the handlers of before. nohup has SIGHUP ignored, and it stays so."""
    signums = [s for s in SIGNALS if s != getattr(signal, "SIGHUP", None) or signal.getsignal(s) != signal.SIG_IGN]
    return {s: signal.signal(s, lambda signum, frame: _on_signal(run, signum)) for s in signums}


def _on_signal(run: Run, signum):
    run.signals += 1
    if run.signals == 1:
        run.stop_signal = signum
        print0(f"Received {signal.Signals(signum).name}: saving after this step or batch (again = without waiting for "
               "it, a third time = without saving)")
    elif run.uncut and run.signals > 2 or not run.uncut and not run.ending:
        raise KeyboardInterrupt
