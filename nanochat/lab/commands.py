"""
How a command ends, and how one runs others, as a user would: a miniseries and a cycle are lists of public commands.

A child has a session of its own, so that Ctrl-C reaches it once, from here, and it has all the time it needs
to save: a protocol killed before it has stopped its cells would leave them training.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

RESULTS_DIR = Path("results")  # in the working directory; git ignores it
EXIT_OK, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 2, 130
EXIT_FAILED_CELL = 1  # of scripts.protocol: some run failed or diverged; the others are there


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def exit_code(work, stopped: str = "stopped; the same command goes on") -> int:
    """What work() returns, or the code of how it failed, after a line that says so."""
    try:
        return work()
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED


def require_writable(*paths):
    """Raise ValueError for a file that could not be written, before the work whose result it takes; None is left
    out."""
    for path in filter(None, paths):
        folder = next(p for p in path.absolute().parents if p.exists())
        if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise ValueError(f"{path} cannot be written: expected the name of a file in a folder that may be written "
                             "to")


def module_command(module: str, *words) -> list[str]:
    return [sys.executable, "-m", module, *map(str, words)]


def shown(command: list[str], env: dict | None = None) -> str:
    """The command as one would type it.

    >>> shown([sys.executable, "-m", "scripts.protocol", "--label=a b"], {"LABEL": "x"})
    "LABEL=x python -m scripts.protocol '--label=a b'"
    """
    words = ["python" if word == sys.executable else word for word in command]
    return " ".join([*(f"{name}={shlex.quote(value)}" for name, value in (env or {}).items()), shlex.join(words)])


def call(command: list[str], env: dict | None = None) -> int:
    """Run to the end; returns the exit code. Every Ctrl-C of ours is passed on to the child and what it runs in its
    session (a template is bash with a protocol in it), and the child decides when it has saved."""
    sys.stdout.flush()
    child = subprocess.Popen(command, env={**os.environ, **(env or {})}, start_new_session=os.name != "nt")
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            if os.name != "nt":
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGINT)
