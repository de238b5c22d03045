"""
The exit codes of a command, and running other commands as a user would. Example: a miniseries runs scripts.protocol.

A child process has a session of its own, so Ctrl-C reaches it once, from here, and the child may take all the time
that it needs to save. Otherwise a protocol could be killed before it has stopped its cells, and these would go on
training.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from nanochat.common import child_environment

RESULTS_DIR = Path("results")  # in the working directory; git ignores it
EXIT_OK, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 2, 130
EXIT_FALLBACK = 3  # of Lane B: there is an answer, but it is the default length, because the inputs support no other
EXIT_FAILED_CELL = 1  # of scripts.protocol: a run failed or diverged; the results of the others are written


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def exit_code(work, stopped: str = "stopped; the same command goes on") -> int:
    """The value of work(), or the exit code of its failure, after a line that says why it failed."""
    try:
        return work()
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED


def require_writable(*paths):
    """Raise ValueError for a file that could not be written. Asked before the work, so that no result is lost; None is
    skipped."""
    for path in filter(None, paths):
        folder = next(p for p in path.absolute().parents if p.exists())
        if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise ValueError(f"{path} cannot be written: expected the name of a file in a folder that may be written "
                             "to")


def module_command(module: str, *words) -> list[str]:
    return [sys.executable, "-m", module, *map(str, words)]


def shown(command: list[str], env: dict | None = None) -> str:
    """The command as a person would type it.

    >>> shown([sys.executable, "-m", "scripts.protocol", "--label=a b"], {"LABEL": "x"})
    "LABEL=x python -m scripts.protocol '--label=a b'"
    """
    words = ["python" if word == sys.executable else word for word in command]
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()), shlex.join(words)])


def call(command: list[str], env: dict | None = None) -> int:
    """Run the command to its end; returns its exit code.

    Every Ctrl-C here is passed on to all processes of the child's session (a template is bash with a protocol in it).
    The child decides when it has saved and ends.
    """
    sys.stdout.flush()
    child = subprocess.Popen(command, env=child_environment(**(env or {})), start_new_session=os.name != "nt")
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            if os.name != "nt":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGINT)
