"""
The whole pipeline in minutes, offline: corpus, tokenizer, control against candidate on two seeds, a verdict.

    python -m scripts.smoke          (= make smoke; FRESH=1 or --fresh reuses nothing)

It starts on a Python without packages: it then makes .venv (scripts/setup.py) and goes on there. The profile is
smoke-16gb with a CUDA device, smoke-mps on a Mac's GPU, otherwise smoke-cpu. Writes results/smoke_latest.json,
smoke_history.csv and smoke.png in the working directory. Exit code: 0 all runs ok, whatever the verdict.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV_PYTHON = ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# What pyproject.toml requires, by the names of import: Python 3.10 has nothing yet that reads TOML. A test compares.
PACKAGES = ("torch", "numpy", "pyarrow", "requests", "regex", "tiktoken", "rustbpe", "scipy", "matplotlib", "filelock",
            "tqdm")
IN_VENV = "NANOCHAT_SMOKE_IN_VENV"  # set for the second start, which must not start a third
LABEL, SEEDS, LEDGER_NAME = "smoke", [1337, 2026], "smoke_experiments.csv"
CANDIDATE = "gate: --symplectic-gate --symplectic-gate-mix=0.15"


def missing_packages():
    return [name for name in PACKAGES if importlib.util.find_spec(name) is None]


def continue_in_venv(missing, argv):
    """Make or complete .venv and run this script again with its Python. Returns the exit code."""
    if os.environ.get(IN_VENV) or os.environ.get("SKIP_SETUP"):
        print(f"error: {sys.executable} lacks {', '.join(missing)}; run python -m scripts.setup, or delete .venv and "
              "start again", file=sys.stderr)
        return 2
    try:
        code = subprocess.call([sys.executable, "-m", "scripts.setup"], cwd=ROOT)
    except KeyboardInterrupt:
        return 130
    if code:
        return code
    command, environment = [str(VENV_PYTHON), "-m", "scripts.smoke", *argv], {**os.environ, IN_VENV: "1"}
    sys.stdout.flush()
    if os.name == "nt":  # there exec returns to the shell before the new process has ended
        return subprocess.call(command, env=environment)
    os.execve(command[0], command, environment)


def make_protocol(profile_name, fresh):
    from nanochat.lab.arms import make_arms
    from nanochat.lab.commands import RESULTS_DIR
    from nanochat.lab.ledger.experiments import LEDGER
    from nanochat.lab.protocol.build import build_protocol, choose_workload
    workload = choose_workload(profile_name, "smoke-16gb", worth_compiling=False)  # a run this short never is
    return build_protocol(LABEL, workload, make_arms([CANDIDATE], workload.flags), SEEDS, fresh=fresh,
                          ledger=RESULTS_DIR / LEDGER_NAME, bank=LEDGER,
                          extra=(f"--ledger={RESULTS_DIR / LEDGER_NAME}",))


def smoke(args):
    from nanochat import dataset, tokenizer
    from nanochat.lab.protocol.build import make_data
    from nanochat.lab.protocol.protocol import run
    from nanochat.lab.report.text import Stopwatch
    watch = Stopwatch()
    protocol = make_protocol(args.profile, args.fresh)
    make_data(protocol, dataset, tokenizer)
    code = run(protocol)
    print(watch.line())
    return code


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m scripts.smoke",
                                     description="Run the whole pipeline once: corpus, tokenizer, control against "
                                                 "candidate, a verdict.")
    parser.add_argument("--profile", choices=("smoke-cpu", "smoke-mps", "smoke-16gb"),
                        help="the workload (default: smoke-16gb with a CUDA device, smoke-mps on a Mac's GPU, else "
                             "smoke-cpu)")
    parser.add_argument("--fresh", action="store_true", default=os.environ.get("FRESH", "") not in ("", "0"),
                        help="reuse no run (also FRESH=1)")
    args = parser.parse_args(argv)
    if sys.version_info < (3, 10):
        print(f"error: nanochat needs Python 3.10 or newer, and this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    missing = missing_packages()
    if missing:
        return continue_in_venv(missing, argv)
    from nanochat.lab.commands import exit_code
    from nanochat.lab.protocol.runner import stop_on_signals
    stop_on_signals()
    return exit_code(lambda: smoke(args))


if __name__ == "__main__":
    sys.exit(main())
