"""
Named workloads: the options that every arm of a protocol shares, and where their data comes from.

A result names its profile; rows of different profiles are never compared. The built-in profiles keep everything under
<base dir>/lab/<name>/, laid out like a base dir of their own, so that a trial never touches the artifacts of real
training. The others use the base dir itself.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from nanochat.common import REPO_ROOT, child_environment, paste_command
from nanochat.machine import cpu_name


@dataclass(frozen=True)
class Profile:
    name: str
    about: str  # hardware and duration, printed with the plan
    flags: tuple[str, ...]  # of scripts.base_train, the same for every arm
    builtin: bool  # True: built-in corpus under lab/<name>/; False: the base dir's own shards
    tokenizer_flags: tuple[str, ...] = ()  # of scripts.tok_train, when there is no tokenizer yet
    fitted: bool = False  # device batch chosen by fit_device_batch

    def home(self, base_dir) -> Path:
        """The base dir of this profile's runs, absolute: cells run in another working directory."""
        base_dir = Path(base_dir).resolve()
        return base_dir / "lab" / self.name if self.builtin else base_dir


COMMON = ("--quiet-start", "--window-pattern=L", "--core-metric-every=-1", "--sample-every=-1")
PROFILES = {p.name: p for p in (
    Profile("smoke-cpu", "any CPU, no network, about a minute a run on 2 cores", (
        "--device-type=cpu", "--no-compile", "--depth=4", "--max-seq-len=256", "--device-batch-size=8",
        "--total-batch-size=2048", "--num-iterations=60", "--warmup-steps=5", "--eval-every=10", "--eval-tokens=16384",
        "--save-every=-1", "--save-minutes=5", "--keep-last=1", *COMMON),
        builtin=True, tokenizer_flags=("--vocab-size=4096", "--max-chars=20000000")),
    # The batch is given: with the law's batch, so small a run would have 16 steps.
    Profile("lane-b-small", "any CPU, no network, 1 M tokens and a minute or two a run on 2 cores", (
        "--device-type=cpu", "--no-compile", "--depth=2", "--max-seq-len=256", "--device-batch-size=16",
        "--total-batch-size=4096", "--target-param-data-ratio=2", "--ratio-ref=2", "--warmup-steps=10",
        "--eval-every=16", "--eval-tokens=32768", "--save-every=-1", "--save-minutes=5", "--keep-last=1", *COMMON),
        builtin=True, tokenizer_flags=("--vocab-size=1024", "--max-chars=20000000")),
    Profile("smoke-16gb", "one CUDA card, no network, 26 M tokens for two seeds: "
                          "about 15 minutes at 30,000 tokens a second", (
        "--device-type=cuda", "--no-compile", "--depth=12", "--max-seq-len=512", "--device-batch-size=1",
        "--total-batch-size=32768", "--num-iterations=200", "--eval-every=100", "--eval-tokens=262144",
        "--save-every=-1", "--save-minutes=5", "--keep-last=1", *COMMON),
        builtin=True, tokenizer_flags=("--vocab-size=4096",), fitted=True),
    Profile("protocol-16gb", "one CUDA card of 16 GB, 2 G tokens a run: a day and more", (
        "--device-type=cuda", "--depth=12", "--max-seq-len=1024", "--device-batch-size=1", "--total-batch-size=65536",
        "--num-iterations=30000", "--eval-every=200", "--eval-tokens=262144", "--save-every=2000", "--keep-last=2",
        *COMMON), builtin=False, tokenizer_flags=("--max-chars=2000000000",)),
)}
SHARDS = 8  # of ClimbMix: the 2e9 characters that a tokenizer is trained on


def side_by_side(arms: list) -> int:
    """Number of cells to run at once: on a CPU all arms of a seed, each on its share of the cores; on a card one.

    Small models leave a second thread waiting much of the time (dev/LOG.md, 2026-11-21).
    """
    return min(len(arms), os.cpu_count() or 1) if arms[0].config.device_type == "cpu" else 1


def get_profile(name: str) -> Profile:
    if name not in PROFILES:
        raise ValueError(f"--profile={name}: expected one of {', '.join(PROFILES)}")
    return PROFILES[name]


def choose(name: str | None, with_card: str) -> tuple[Profile, int | None]:
    """(profile, memory of the card in MiB or None).

    Without a name the machine decides: smoke-cpu without a card, else `with_card`. Raises ValueError for a profile that
    needs a card on a machine without one.
    """
    memory_mib = cuda_memory_mib() if name != "smoke-cpu" else None
    profile = get_profile(name or ("smoke-cpu" if memory_mib is None else with_card))
    if "--device-type=cuda" in profile.flags and memory_mib is None:
        raise ValueError(f"--profile={profile.name} needs a CUDA device, and torch finds none; use --profile=smoke-cpu")
    return profile, memory_mib


# -----------------------------------------------------------------------------
# The hardware of this machine. A process of its own asks torch for it: the lab never imports torch, and a parent that
# holds a CUDA context would take memory from the cells that it measures.

_ASK_TORCH = "import torch\nif torch.cuda.is_available(): print(torch.cuda.get_device_properties(0).total_memory >> 20)"


def cuda_memory_mib() -> int | None:
    """Memory of the first CUDA device that torch can use; None without one."""
    if "CUDA_VISIBLE_DEVICES" in os.environ and not os.environ["CUDA_VISIBLE_DEVICES"].strip():
        return None
    try:  # takes a second; torch needs several to find no device
        subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    answer = subprocess.run([sys.executable, "-c", _ASK_TORCH], capture_output=True, encoding="utf-8",
                            errors="replace", env=child_environment()).stdout.strip()
    return int(answer) if answer.isdigit() else None


def machine_name(device_type: str) -> str:
    """The device as records name it, because a noise bank belongs to one machine. Empty where it cannot be known
    beforehand."""
    if device_type in ("cpu", "mps"):  # the GPU of a Mac is a part of its chip
        return cpu_name()
    try:
        names = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True,
                               encoding="utf-8", errors="replace", check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return names.splitlines()[0].strip() if names.strip() else ""


def fit_device_batch(memory_mib: int) -> int:
    """Rows of 512 tokens per micro-batch of smoke-16gb: the largest power of two that should fit, 1 to 64.

    Not measured. Activations take 34 bytes a token, channel and layer (arXiv:2205.05198, eq. 2, attention scores never
    stored), doubled for the parts that this model adds. Logits take 10 bytes a token and vocabulary entry. 3 GiB go to
    weights, optimizer and the CUDA context, and a fifth of the card to everything else.
    """
    layers, channels, vocab, row_tokens = 12, 768, 4096, 512
    row_mib = row_tokens * (2 * 34 * layers * channels + 10 * vocab) / 2 ** 20
    rows = (0.8 * memory_mib - 3 * 1024) / row_mib
    return max([b for b in (1, 2, 4, 8, 16, 32, 64) if b <= rows], default=1)


def machine_flags(profile: Profile, memory_mib: int | None, has_triton: bool) -> list[str]:
    """Flags that the profile leaves to the machine, for all arms. NANOCHAT_DTYPE becomes a flag: flags are hashed."""
    dtype = os.environ.get("NANOCHAT_DTYPE")
    flags = [f"--dtype={dtype}"] if dtype else []
    if profile.fitted and memory_mib:
        flags.append(f"--device-batch-size={fit_device_batch(memory_mib)}")
    if not has_triton and "--no-compile" not in profile.flags:
        flags.append("--no-compile")
    return flags


# -----------------------------------------------------------------------------
# Data

def prepare(profile: Profile, home: Path, dataset, tokenizer, log_dir, say=print) -> tuple[str, str]:
    """Make the corpus and the tokenizer of `home` where they are missing; returns (dataset_id, tokenizer_id).

    dataset, tokenizer: the modules nanochat.dataset and nanochat.tokenizer, which the lab does not import.
    """
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".prepare.lock"):  # of two protocols on one home, only the first builds
        data_dir = dataset.get_data_dir(home)
        if profile.builtin:
            dataset.build_builtin(data_dir)
        else:
            try:
                dataset.list_parquet_files(data_dir)
            except FileNotFoundError:
                _run_logged("nanochat.dataset", ["-n", str(SHARDS)], home, log_dir, say)
        if not (home / "tokenizer" / "tokenizer.json").exists():
            _refuse_foreign_tokenizer(home)
            _run_logged("scripts.tok_train", list(profile.tokenizer_flags), home, log_dir, say)
    return dataset.get_dataset_id(home), tokenizer.get_tokenizer_id(home)


def _refuse_foreign_tokenizer(home):
    path = home / "tokenizer" / "tokenizer.pkl"
    if path.exists():
        raise ValueError(f"{path.parent} holds a tokenizer.pkl that was not written here; take it over once with "
                         + paste_command(["python", "-m", "scripts.tok_train", "--import-pkl", path],
                                         {"NANOCHAT_BASE_DIR": home})
                         + ", or use another NANOCHAT_BASE_DIR")


def _run_logged(module, argv, home, log_dir, say):
    """python -m module argv, on `home`. Its output goes to a log, and the message of a failure names that log."""
    log = Path(log_dir).resolve() / f"{module.split('.')[-1]}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    say(f"missing in {home}: running {paste_command(['python', '-m', module, *argv])} (log: {log})")
    with open(log, "wb") as f:
        code = subprocess.run([sys.executable, "-m", module, *argv], cwd=REPO_ROOT, stdin=subprocess.DEVNULL, stdout=f,
                              stderr=subprocess.STDOUT, env=child_environment(NANOCHAT_BASE_DIR=home)).returncode
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        raise ValueError("\n".join([f"python -m {module} failed with exit code {code}; {log} ends:", *tail]))
