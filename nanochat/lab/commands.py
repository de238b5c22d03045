"""
The exit codes of a command, and running other commands as a user would. Example: a miniseries runs scripts.protocol.

A child process has a session of its own, so Ctrl-C reaches it once, from here, and the child may take all the time
that it needs to save. Otherwise a protocol could be killed before it has stopped its cells, and these would go on
training.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from nanochat.command_line import say_error
from nanochat.common import REPO_ROOT, VENV_PYTHON, child_environment, paste_command

RESULTS_DIR = Path("results")  # in the working directory; git ignores it
ADVICE = r"make noise(?: SEEDS=(\d+))?(?: JOBS=(?=\)))?(?! \w+=)"
CARRIED = ("NANOCHAT_BASE_DIR", "NANOCHAT_LEDGER", "NANOCHAT_DTYPE")  # environment that a next command needs too
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
        say_error(e)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return EXIT_INTERRUPTED


def require_writable(*paths):
    """Raise ValueError for a file that could not be written. Asked before the work, so that no result is lost; None is
    skipped."""
    for path in filter(None, paths):
        folder = next(p for p in path.absolute().parents if p.exists())
        if (path.exists() and not path.is_file()) or not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise ValueError(f"{path} cannot be written: expected the name of a file in a folder that may be written "
                             "to")


def module_command(module: str, *words) -> list[str]:
    return [sys.executable, "-m", module, *map(str, words)]


def paste(command: list[str], env: dict | None = None) -> str:
    """The command as it can be pasted here: quoted, with the Python that runs now (where it says "python", or bash
    that calls it) and with the base dir and the ledger of now.

    For printed text only. Records keep `python -m`, which is the same on every machine.
    """
    carried = {name: os.environ[name] for name in CARRIED if os.environ.get(name)}
    text = paste_command(command, carried | (env or {}), python=_python())
    if command[0] == "bash" and not _is_of_venv():
        text = f'SKIP_SETUP=1 PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH" {text}'
    return text


def _is_of_venv() -> bool:
    return Path(sys.prefix).resolve() == (REPO_ROOT / ".venv").resolve()


def _python() -> str:
    if _is_of_venv() and Path.cwd() == REPO_ROOT:
        return VENV_PYTHON
    found = shutil.which("python")
    return "python" if found and Path(found).parent == Path(sys.executable).parent else sys.executable


def extra_words(args, ledger) -> tuple[str, ...]:
    """The options of a command that its protocol's declaration does not have, as they were given. ledger: the default.
    """
    told = {"--jobs": args.jobs, "--timeout-minutes": getattr(args, "timeout_minutes", None)}
    words = [f"{name}={value:g}" for name, value in told.items() if value is not None]
    return (*words, *([f"--ledger={args.ledger}"] if args.ledger != ledger else []))


def noise_line(seeds, options: list[str], env: dict | None = None) -> str:
    """The command that banks noise for a comparison, to paste; options: "--profile=...", and so on, of scripts.noise.

    It is `make noise` where make and the Makefile are at hand. env: further variables that it needs.
    """
    variables = dict(word.removeprefix("--").split("=", 1) for word in options)
    carried = {name: os.environ[name] for name in CARRIED if os.environ.get(name)} | (env or {})
    carried |= {} if _is_of_venv() else {"SKIP_SETUP": "1", "PYTHON": sys.executable}
    values = {"SEEDS": str(seeds)} | {name.upper(): value for name, value in variables.items()} | carried
    in_make = Path.cwd() == REPO_ROOT and shutil.which("make") and "LEDGER" not in values
    if not in_make or any("$" in value for value in values.values()):
        return paste(["python", "-m", "scripts.noise", "--run", f"--seeds={seeds}", *options], env)
    return " ".join(["make noise", *(f"{name}={shlex.quote(value)}" for name, value in values.items())])


def complete(text: str, options: list[str], env: dict | None = None) -> str:
    """`text` with the options of this comparison in each `make noise` that it advises. A command that has options
    already stays as it is."""
    return re.sub(ADVICE, lambda found: noise_line(found[1] or "8", options, env),
                  text)


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
