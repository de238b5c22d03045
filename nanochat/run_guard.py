"""
How a run ends: signals that ask it to stop, errors that stop it, and the record of both.

SIGINT or SIGTERM once: the step, or the validation batch, that is under way is finished, and a checkpoint is saved.
The same signal twice: the run stops at once and saves nothing.
"""

import gc
import signal
import time
import traceback

import torch

from nanochat import device as dev
from nanochat.common import print0
from nanochat.run_facts import summarize
from nanochat.run_setup import Run


class Diverged(Exception):
    """A loss or gradient that is not finite. The step was not applied."""


class Interrupted(Exception):
    """SIGINT or SIGTERM; a checkpoint was saved."""


def guarded(run: Run, loop) -> dict:
    """Call loop(run) and return the run's record (run.json as a dict), which says how the loop ended."""
    handlers = {signum: signal.signal(signum, lambda signum, frame: _on_signal(run, signum))
                for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        loop(run)
        status, error = "ok", None
    except (Exception, KeyboardInterrupt) as e:
        status, error = _how_it_ended(e)
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        gc.unfreeze()
        gc.enable()
    run.state.clocks["wall_time_sec"] += time.monotonic() - run.started
    if error:
        print0(f"Run ended {status}: {error}")
    try:
        run.record.finish(status, error=error, load_end=dev.load_average(), **summarize(run))
    except OSError as e:
        print0(f"The record could not be written: {e}")
    return {**run.record.facts, "status": status, "error": error}


def _how_it_ended(e: BaseException) -> tuple[str, str]:
    """(status, error) as run.json has them."""
    if isinstance(e, Diverged):
        return "diverged", str(e)
    if isinstance(e, (Interrupted, KeyboardInterrupt)):
        return "interrupted", str(e) or "stopped without saving"
    oom = isinstance(e, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(e)
    if not isinstance(e, (ValueError, OSError)):  # those say it all: a corrupt shard, a full disk
        traceback.print_exception(e)
    return "oom" if oom else "crash", f"{type(e).__name__}: {e}"


def stop_asked(run: Run) -> bool:
    """Whether a signal asked this rank, or any other, to stop."""
    return run.ranks.any(run.stop_signal is not None)


def signal_name(run: Run) -> str:
    return "a signal to another rank" if run.stop_signal is None else signal.Signals(run.stop_signal).name


def _on_signal(run: Run, signum):
    if run.stop_signal is not None:  # asked twice: do not wait for the step to end
        raise KeyboardInterrupt
    run.stop_signal = signum
    print0(f"Received {signal.Signals(signum).name}: saving after this step or validation batch (again = stop at once)")
