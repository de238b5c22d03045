"""
Named workloads: the options that every arm of a protocol shares, and where their data comes from.

A result names its profile; rows of different profiles are never compared. The built-in profiles keep everything under
<base dir>/lab/<name>/, laid out like a base dir of their own, so that a trial never touches the artifacts of real
training. The others use the base dir itself. Any of them can run on a corpus of the user's own (DATA=name) instead: the
home is then that corpus's folder.
"""

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from nanochat.common import REPO_ROOT, child_environment, paste_command
from nanochat.lab import own_data
from nanochat.lab.hardware import cuda_memory_mib, has_mps
from nanochat.machine import cgroup_cores, usable_cores
from nanochat.options import flag


@dataclass(frozen=True)
class Profile:
    name: str
    about: str  # hardware and duration, printed with the plan
    flags: tuple[str, ...]  # of scripts.base_train, the same for every arm
    builtin: bool  # True: built-in corpus under lab/<name>/; False: the base dir's own shards
    tokenizer_flags: tuple[str, ...] = ()  # of scripts.tok_train, when there is no tokenizer yet
    fitted: bool = False  # device batch chosen by fit_device_batch
    card_mib: int = 0  # memory of the card that it was made for
    data: str | None = None  # name of a corpus of the user's own, in place of the profile's (lab/own_data.py)

    def home(self, base_dir) -> Path:
        """The base dir of this profile's runs, absolute: cells run in another working directory."""
        base_dir = Path(base_dir).resolve()
        if self.data:
            return own_data.home_of(self.data, base_dir)
        return base_dir / "lab" / self.name if self.builtin else base_dir

    @property
    def device_type(self) -> str:
        return ROWS[self.name].device_type


class Row(NamedTuple):
    """A row of the table of profiles. The fields down to keep_last are options of scripts.base_train by their names;
    None leaves the trainer's default."""
    device_type: str
    depth: int
    max_seq_len: int
    device_batch_size: int
    total_batch_size: int
    num_iterations: int | None
    warmup_steps: int | None
    eval_every: int
    eval_tokens: int
    save_every: int
    save_minutes: int | None
    keep_last: int
    compiled: bool
    builtin: bool
    vocab_size: int | None  # None: the default of scripts.tok_train
    max_chars: int | None  # that the tokenizer is trained on
    about: str
    fitted: bool = False
    card_mib: int = 0
    more: tuple[str, ...] = ()


COMMON = ("--quiet-start", "--window-pattern=L", "--core-metric-every=-1", "--sample-every=-1")
AS_LONG_AS_THE_RATIO_SAYS = ("--target-param-data-ratio=2", "--ratio-ref=2")
# lane-b-small: the batch is given, because with the law's batch so small a run would have 16 steps.
ROWS = {  # the first lines are columns; the second: compiled, built-in corpus, vocabulary, characters for it, about
    #             device, depth, context, rows, batch, steps, warm-up, eval every, tokens, save every, minutes, keep
    "smoke-cpu": Row(
                  "cpu",      4,     256,    8,  2048,    60,       5,         10,  16384,         -1,       5,    1,
        False, True, 4096, 20_000_000, "any CPU, no network, about a minute a run on 2 cores"),
    "smoke-mps": Row(
                  "mps",      4,     512,   16,  8192,   120,      10,         20,  65536,         -1,       5,    1,
        False, True, 4096, 20_000_000, "a Mac's GPU, no network, 1 M tokens a run: a minute or two (not measured)"),
    "lane-b-small": Row(
                  "cpu",      2,     256,   16,  4096,  None,      10,         16,  32768,         -1,       5,    1,
        False, True, 1024, 20_000_000, "any CPU, no network, 1 M tokens and a minute or two a run on 2 cores",
        more=AS_LONG_AS_THE_RATIO_SAYS),
    "smoke-16gb": Row(
                  "cuda",    12,     512,    1, 32768,   200,    None,        100, 262144,         -1,       5,    1,
        False, True, 4096, None, "one CUDA card, no network, 26 M tokens for two seeds: about 15 minutes at 30,000 "
                                 "tokens a second", fitted=True),
    "protocol-16gb": Row(
                  "cuda",    12,    1024,    1, 65536, 30000,    None,        200, 262144,       2000,    None,    2,
        True, False, None, 2_000_000_000, "one CUDA card of 16 GB, 2 G tokens a run: a day and more",
        card_mib=14 * 1024),  # a card of 16 GB has 14.7 GiB or more
}


def _profile(name: str, row: Row) -> Profile:
    options = row._asdict()
    trainers = list(options)[:list(options).index("keep_last") + 1]
    flags = [f"{flag(option)}={options[option]}" for option in trainers if options[option] is not None]
    flags += [] if row.compiled else ["--no-compile"]
    for_tokenizer = [f"{flag(option)}={options[option]}" for option in ("vocab_size", "max_chars") if options[option]]
    return Profile(name, row.about, (*flags, *row.more, *COMMON), row.builtin, tuple(for_tokenizer), row.fitted,
                   row.card_mib)


PROFILES = {name: _profile(name, row) for name, row in ROWS.items()}
SHARDS = 8  # of ClimbMix: the 2e9 characters that a tokenizer is trained on


NOISE_SIDE_BY_SIDE = 2  # cells of a bank on a CPU, as a control and its candidate run: speeds are then alike


def side_by_side(arms: list) -> int:
    """Number of cells to run at once: on a CPU all arms of a seed, each on its share of the cores; on a card one.

    Small models leave a second thread waiting much of the time (dev/LOG.md, 2026-11-21).
    """
    return min(len(arms), usable_cores()) if arms[0].config.device_type == "cpu" else 1


def noise_options(name: str, data: str | None, common_flags: list[str], jobs: int | None) -> list[str]:
    """The options of scripts.noise that bank for a comparison on this profile, with `jobs` cells side by side.

    >>> noise_options("smoke-16gb", "mine", ["--num-iterations=64"], 1)
    ['--profile=smoke-16gb', '--data=mine', '--flags=--num-iterations=64']
    """
    on_cpu = name in ROWS and ROWS[name].device_type == "cpu"
    usual = min(NOISE_SIDE_BY_SIDE, usable_cores()) if on_cpu else 1
    words = [f"--profile={name}", *([f"--data={data}"] if data else [])]
    words += [f"--flags={shlex.join(common_flags)}"] if common_flags else []
    return words + ([f"--jobs={jobs}"] if jobs not in (None, usual) else [])


def threads_of_cell(jobs: int) -> int | None:
    """Threads of each of `jobs` cells that run side by side: its share of the cores that may be used, and never more
    than OMP_NUM_THREADS.

    None: as torch chooses. That is right for one cell, unless a quota leaves it fewer cores than torch sees.
    """
    asked, quota = os.environ.get("OMP_NUM_THREADS", ""), cgroup_cores()
    if jobs == 1 and (asked or quota is None or quota >= (os.cpu_count() or 1)):
        return None
    share = max(1, usable_cores() // jobs)
    return min(share, int(asked)) if asked.isdigit() and int(asked) else share


def on_data(profile: Profile, name: str | None, base_dir) -> Profile:
    """The profile on the corpus `name`, with a vocabulary that its text is enough for; name None: as it is.

    Raises ValueError for a name that no corpus here has.
    """
    if not name:
        return profile
    own_data.find(name, base_dir)
    chars = own_data.train_chars(own_data.home_of(name, base_dir))
    row, words = ROWS[profile.name], profile.tokenizer_flags
    vocab_size = own_data.vocab_size(chars, row.vocab_size or own_data.LARGEST_VOCAB)
    if vocab_size != row.vocab_size:
        words = (f"--vocab-size={vocab_size}", *(word for word in words if not word.startswith("--vocab-size=")))
    return replace(profile, data=name, tokenizer_flags=words)


def get_profile(name: str) -> Profile:
    if name not in PROFILES:
        raise ValueError(f"--profile={name}: expected one of {', '.join(PROFILES)}")
    return PROFILES[name]


class Choice(NamedTuple):
    profile: Profile
    memory_mib: int | None  # of the card
    why: str  # for the user: why this profile, or what does not fit; empty where there is nothing to say


def choose(name: str | None, with_card: str) -> Choice:
    """The profile of this name. Without a name the machine decides, and `why` says so.

    with_card: the default on a card that has the memory for it. Raises ValueError for a profile whose device this
    machine lacks.
    """
    asked = get_profile(name) if name else None
    memory_mib = cuda_memory_mib() if asked is None or asked.device_type == "cuda" else None
    if asked is None:
        return _by_machine(memory_mib, get_profile(with_card))
    if (asked.device_type == "cuda" and memory_mib is None) or (asked.device_type == "mps" and not has_mps()):
        device = {"cuda": "a CUDA device", "mps": "an Apple GPU (MPS)"}[asked.device_type]
        raise ValueError(f"--profile={name} needs {device}, and torch finds none; use --profile=smoke-cpu")
    small = asked.card_mib > (memory_mib or asked.card_mib)
    return Choice(asked, memory_mib, f"it was made for a larger card, and this one has {_gib(memory_mib)}: if a run "
                                     "ends out of memory, use PROFILE=smoke-16gb" if small else "")


def _by_machine(memory_mib: int | None, with_card: Profile) -> Choice:
    others = "PROFILE= names another: " + ", ".join(PROFILES)
    if memory_mib is None:
        mps = has_mps()
        found = "an Apple GPU (MPS)" if mps else "no CUDA device and no Apple GPU"
        return Choice(PROFILES["smoke-mps" if mps else "smoke-cpu"], None, f"chosen because torch finds {found} "
                                                                            f"({others})")
    profile = with_card if with_card.card_mib <= memory_mib else PROFILES["smoke-16gb"]
    return Choice(profile, memory_mib, f"chosen for a card of {_gib(memory_mib)} ({others})")


def _gib(mib: int) -> str:
    return f"{mib / 1024:.0f} GiB"


# -----------------------------------------------------------------------------
# What the machine decides

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
        if profile.builtin and not profile.data:
            dataset.build_builtin(data_dir)
        else:
            try:
                dataset.list_parquet_files(data_dir)
            except FileNotFoundError:
                if profile.data:
                    raise
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
        by_hand = "by hand: " + paste_command(["python", "-m", module, *argv], {"NANOCHAT_BASE_DIR": home})
        raise ValueError("\n".join([f"python -m {module} failed with exit code {code}; {log} ends:", *tail, by_hand]))
