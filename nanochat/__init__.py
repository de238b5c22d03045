"""
A module of ours that is started by `python -m` on a Python without the packages says so in one line. They are in .venv,
and the usual reason is that its Python was not the one that was typed; a traceback does not say that.
"""

import shlex
import sys


def _say_which_python(kind, error, trace):
    from nanochat.common import REPO_ROOT, VENV_PYTHON
    package = (getattr(error, "name", None) or "").partition(".")[0]
    pins = (REPO_ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if not issubclass(kind, ModuleNotFoundError) or f'"{package}==' not in pins:
        return sys.__excepthook__(kind, error, trace)
    venv, words = REPO_ROOT / ".venv", ["-m", sys.modules["__main__"].__spec__.name, *sys.argv[1:]]
    first = "" if venv.exists() and sys.prefix != str(venv) else "`make setup`, then "
    print(f"error: {sys.executable} lacks the package {package}; run {first}{VENV_PYTHON} {shlex.join(words)}", file=sys.stderr)
    sys.exit(2)


if sys.argv[:1] == ["-m"]:  # what `python -m` leaves there while it imports the package of its module
    sys.excepthook = _say_which_python
