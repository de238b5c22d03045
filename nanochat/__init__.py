"""
Three things that every command does before it imports anything: --version, a message where packages are missing, and
streams that survive a full disk, a closed pipe and a character that they cannot encode (nanochat/streams.py).

`python -m scripts.arch --version` prints the version and ends. It is answered here, so that it is written once for all
commands and needs no package.

`python -m scripts.arch` on a Python without the packages says so in one line. The packages are in .venv, and the usual
reason is that another Python than that of .venv was typed. A traceback does not say that.
"""

import re
import sys


def _explain(kind, error, trace):
    if issubclass(kind, KeyboardInterrupt):  # Ctrl-C, or nobody reads on: both are wanted, and need no traceback
        sys.exit(130)
    if issubclass(kind, OSError) and error.filename == "<stdout>":  # the disk of the log file is full
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    from nanochat.common import REPO_ROOT, VENV_PYTHON, quote_word
    package = (getattr(error, "name", None) or "").partition(".")[0]
    pins = (REPO_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if not issubclass(kind, ModuleNotFoundError) or f'"{package}==' not in pins:
        return sys.__excepthook__(kind, error, trace)
    venv, words = REPO_ROOT / ".venv", ["-m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]]
    first = "" if venv.exists() and sys.prefix != str(venv) else "`make setup`, then "
    print(f"error: {sys.executable} lacks the package {package}; run {first}{VENV_PYTHON} "
          + " ".join(map(quote_word, words)),
          file=sys.stderr)
    sys.exit(2)


def _print_version():
    """From pyproject.toml and no constant here: this file is part of a run's identity, a new version is not."""
    from nanochat.common import REPO_ROOT
    project = (REPO_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    print("nanochat-lab", re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1])


if sys.argv[:1] == ["-m"]:  # as `python -m` sets it while it imports the package of its module
    from nanochat.streams import take_over
    take_over()
    if sys.argv[1:] == ["--version"]:
        _print_version()
        sys.exit()
    sys.excepthook = _explain
