"""
Make the virtual environment .venv with the pinned packages of pyproject.toml, or bring it up to date.

    python -m scripts.setup            the packages that training needs
    python -m scripts.setup --dev      the same, and the packages that the tests need

This runs on a Python without any packages, on Windows too, so it uses only the standard library. Torch has several
builds under one name, and pip cannot choose between them: Linux without an NVIDIA card would get gigabytes of CUDA, and
Windows with such a card would get no CUDA. So torch is taken from PyTorch's own index if the default build is the wrong
one, and from the default index if PyTorch's cannot be reached. A stamp in .venv makes the second call quick. Nothing of
this repository is installed: its commands are run from the root of the repository.
"""

import argparse
import ast
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

if sys.version_info < (3, 10):  # before any newer syntax: what an old Python prints must be readable
    sys.exit("nanochat needs Python 3.10 or newer, and this is %s. Run `make setup PYTHON=python3.12`, "
             "or `python3.12 -m scripts.setup`." % sys.version.split()[0])

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / "nanochat_setup.json"
TORCH_INDEX = "https://download.pytorch.org/whl/"  # + cpu, cu130, ...: one folder a build
PROBE_TIMEOUT_SEC = 5
STILL_SEC = 30  # pip unpacks gigabytes without a word
# Free gigabytes that a first installation needs. Measured: 1.5 without CUDA. Not measured: several times that with it.
NEEDS_GB, NEEDS_GB_CUDA = 2, 8


def read_pins(key, text=None):
    """The list `key = [...]` of pyproject.toml. Python 3.10 has no tomllib, but a TOML list of strings is a Python
    literal.

    >>> read_pins("dev", 'dev = [\\n    "pytest==9.2.0",  # why\\n]')
    ['pytest==9.2.0']
    """
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8") if text is None else text
    found = re.search(rf"^{re.escape(key)} = (\[.*?^\])", text, re.MULTILINE | re.DOTALL)
    assert found, f"pyproject.toml has no list {key!r}"
    return ast.literal_eval(found.group(1))


# -----------------------------------------------------------------------------
# Which build of torch

def has_nvidia_card():
    if not shutil.which("nvidia-smi"):
        return False
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and b"GPU" in listing.stdout


def choose_build(platform=sys.platform, card=None):
    """Folder of PyTorch's index to take torch from; "" where the default build is right.

    >>> [choose_build(p, card) for p in ("linux", "win32", "darwin") for card in (False, True)]
    ['cpu', '', '', 'cu130', '', '']
    """
    card = has_nvidia_card() if card is None else card
    if platform == "linux":
        return "" if card else "cpu"
    return "cu130" if platform == "win32" and card else ""


def index_url(build, torch_pin):
    """URL of the index that has this build of the pinned torch; None if it cannot be reached or lacks it."""
    url = TORCH_INDEX + build
    try:
        with urllib.request.urlopen(url + "/torch/", timeout=PROBE_TIMEOUT_SEC) as page:
            listing = page.read().decode("utf-8", "replace")
    except (OSError, ValueError) as e:  # no network, no name, a proxy that says no
        print(f"torch: {url} cannot be reached ({getattr(e, 'reason', e)}), so pip takes the build it finds")
        return None
    if torch_pin.replace("==", "-") not in listing:
        print(f"torch: {url} has no {torch_pin}, so pip takes the build it finds")
        return None
    return url


# -----------------------------------------------------------------------------
# The environment

def run(args, failed):
    """Run a command, saying now and then that it still runs; on failure stop with what to do next."""
    sys.stdout.flush()  # what was said before comes before what the command says, in a log too
    start = time.monotonic()
    try:
        with subprocess.Popen(list(map(str, args)), cwd=ROOT) as child:
            while child.returncode is None:
                try:
                    child.wait(STILL_SEC)
                except subprocess.TimeoutExpired:
                    print(f"  ... {time.monotonic() - start:.0f} s so far", flush=True)
    except OSError as e:
        sys.exit(f"{args[0]}: {e}\n{failed}")
    if child.returncode:
        sys.exit(failed)


def ensure_venv():
    """Make .venv, or reuse the one there. Returns its Python version, like "3.11.7"."""
    if not VENV_PYTHON.exists():
        if importlib.util.find_spec("ensurepip") is None:
            sys.exit(f"{sys.executable} cannot make virtual environments: it lacks the module ensurepip. On Debian and "
                     "Ubuntu: sudo apt install python3-venv; elsewhere take another Python, as in "
                     "`make setup PYTHON=python3.12`. Then run this again.")
        print(f"making {VENV} with Python {sys.version.split()[0]}")
        run([sys.executable, "-m", "venv", *(["--clear"] if VENV.exists() else []), VENV],
            "The virtual environment could not be made; the message is above. If it lacks a module, on Debian and "
            f"Ubuntu: sudo apt install python3-venv. If it lacks space, free some. Delete {VENV} and run this again.")
    try:
        text = (VENV / "pyvenv.cfg").read_text(encoding="utf-8")
    except FileNotFoundError:
        sys.exit(f"{VENV} is no virtual environment: it has no pyvenv.cfg. Delete that folder and run this again.")
    found = re.search(r"^version(?:_info)? = (\d+)\.(\d+)\S*", text, re.MULTILINE)
    if not found or (int(found.group(1)), int(found.group(2))) < (3, 10):
        sys.exit(f"{VENV} has a Python older than 3.10. Delete that folder and run this again with a newer one.")
    return found.group(0).split(" = ")[1]


def pip(*args):
    """Run pip. It works for minutes, and its own lines show the progress: each package by name and size. Progress bars
    are shown on a terminal only."""
    bars = [] if sys.stdout.isatty() or args[0] != "install" else ["--progress-bar=off"]
    run([VENV_PYTHON, "-m", "pip", "--disable-pip-version-check", *args, *bars],
        "pip failed; its message is above. No network: point pip at a folder of wheels (PIP_FIND_LINKS) or a mirror "
        "(PIP_INDEX_URL). No space: free some, or set TMPDIR to a folder of another disk. No matching torch: take "
        "another Python, as in PYTHON=python3.12. Then run this again: what is installed stays.")


def require_space(build, free=None):
    """Stop where the disk cannot hold a first installation, before pip fills it up for minutes.

    >>> require_space("cpu", free=3e9)
    """
    needs = NEEDS_GB_CUDA if build.startswith(("cu", "rocm")) or build == "" and has_nvidia_card() else NEEDS_GB
    free = shutil.disk_usage(VENV).free if free is None else free
    if free < needs * 1e9:
        sys.exit(f"{VENV} has {free / 1e9:.1f} GB of disk left, and the packages need about {needs} GB: free some, or "
                 "move the repository to another disk. Then run this again.")


def install(pins, build, installed_build):
    """Install the pins, torch from the index of `build` where that can be reached."""
    torch_pin = next(pin for pin in pins if pin.startswith("torch=="))
    index = index_url(build, torch_pin) if build else None
    has_pip = subprocess.run([str(VENV_PYTHON), "-c", "import pip"], capture_output=True).returncode == 0
    if not has_pip:  # .venv was made by uv, or making it was cut short
        run([VENV_PYTHON, "-m", "ensurepip"], f"{VENV} has no pip. Delete that folder and run this again.")
    if installed_build not in (None, build):  # every build satisfies the pin: pip would keep the old one
        pip("uninstall", "--yes", "torch")
    names = {re.match(r"[\w.-]+", pin).group() for pin in pins}
    print(f"installing {len(names)} pinned packages (torch: {build if index else 'default'} build); "
          "minutes on the first time")
    start = time.monotonic()
    pip("install", *(["--extra-index-url", index] if index else []), *pins)
    print(f"installed in {time.monotonic() - start:.0f} s; starting torch once")
    ready = "import sys, torch; print(f'ready: Python {sys.version.split()[0]}, torch {torch.__version__}')"
    run([VENV_PYTHON, "-c", ready],
        f"torch was installed and does not import; its message is above. Delete {VENV} and run this again.")


def read_stamp():
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def fingerprint(*parts):
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m scripts.setup", description=__doc__.strip().splitlines()[0])
    parser.add_argument("--dev", action="store_true", help="also install the packages that the tests need")
    parser.add_argument("--torch-build", metavar="NAME", default=None,
                        help=f"take torch from this folder of {TORCH_INDEX}, like cpu, cu126 or rocm6.4; remembered in "
                             ".venv (default: chosen by the hardware)")
    args = parser.parse_args(argv)
    if args.torch_build and not re.fullmatch(r"[a-z]{2,8}[0-9.]{0,8}", args.torch_build):
        parser.error(f"--torch-build={args.torch_build[:40]!r}: expected a name like cpu, cu126 or rocm6.4")

    version = ensure_venv()
    done = read_stamp()
    asked = done.get("asked") if args.torch_build is None else args.torch_build
    build = choose_build() if asked is None else asked
    lists = {"base": read_pins("dependencies"), **({"dev": read_pins("dev")} if args.dev else {})}
    wanted = {name: fingerprint(pins, version, build) for name, pins in lists.items()}
    if all(done.get(name) == value for name, value in wanted.items()):
        print(f"{VENV.name} is up to date")
        return
    if not done:
        require_space(build)
    stamp = {"asked": asked, "build": build}
    STAMP.write_text(json.dumps({**stamp, "build": done.get("build")}), encoding="utf-8")  # nothing is done until it is
    install(sum(lists.values(), []), build, done.get("build"))
    STAMP.write_text(json.dumps({**stamp, **wanted}), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; run it again to go on")
    except OSError as e:  # a full disk, a folder that may not be written to, a Python of another machine in .venv
        sys.exit(f"error: {e}; free space, or make {ROOT} writable, or delete {VENV}. Then run this again.")
