"""
A profile in the flags of another tree's trainer, which may lack some of our flags, have more, or other defaults.

Two kinds of options are passed by name, each with its value: the options of the workload, such as --depth, and the
options given on the command line. Every other option keeps the tree's default, because that default may be the very
change that the tree tries. Some options of ours may have no flag in the tree's trainer:

- An option that changes nothing at its value, such as --no-symplectic-gate, is left out.
- Compile and dtype are set by environment variables.
- Any other is refused, with a message that names the flag.
"""

import contextlib
import difflib
import functools
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.common import child_environment, temporary_folder
from nanochat.config import FIELDS, TrainConfig, read_config
from nanochat.options import Option, flag, hyphenate, named_in, said_once, said_twice, spellings, tagged, to_argv
from nanochat.stage import BASE

CELLS_OWN = tagged(FIELDS, "cell", "tree_cell")  # set for each cell, by trees/orders.py
HELP_SEC = 300  # torch may need minutes to start from a slow disk
MOST_HELP = 1 << 22  # bytes of an answer; ours has 20 kB
POLL_SEC = 0.05


@dataclass(frozen=True)
class Group:
    """A flag and its values, as written."""
    name: str  # hyphenated, without a value
    words: tuple[str, ...]
    ours: bool  # our own trainer has it too


def group_words(words: list[str]) -> list[Group]:
    """
    >>> [(g.name, g.words, g.ours) for g in group_words(["--depth", "4", "--moe_experts=8"])]
    [('--depth', ('--depth', '4'), True), ('--moe-experts', ('--moe-experts=8',), False)]
    """
    ours, groups = {"-h", "--help", *spellings(TrainConfig)}, []
    for word in words:
        if re.match(r"-+[A-Za-z]", word):
            groups.append([word])
        elif not groups:
            raise ValueError(f"{word!r} is not a flag; flags= begins with --")
        else:
            groups[-1].append(word)
    named = [(hyphenate(group[:1])[0].partition("=")[0], (*hyphenate(group[:1]), *group[1:])) for group in groups]
    return [Group(name, words, name in ours) for name, words in named]


# -----------------------------------------------------------------------------
# The flags of the other trainer

def trainer_environment(changes: dict) -> dict:
    """Our environment with `changes` (None = unset), for a process that runs the tree's trainer.

    PYTHONPATH loses every folder with a `scripts` in it. Upstream's `scripts` has no __init__.py, and Python prefers a
    package that has one, wherever it stands on the path: the run would use that other `scripts`.
    """
    env = child_environment(**changes)
    paths = [p for p in env.pop("PYTHONPATH", "").split(os.pathsep) if p and not (Path(p) / "scripts").is_dir()]
    return env | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})


def ask(tree: Path, argv) -> subprocess.CompletedProcess:
    """The --help of the tree's trainer. Its parser reads `argv` first, so a bad value shows as an error instead.

    Its output goes to files and not through pipes: a process that it leaves behind would hold a pipe open, and an
    endless print would fill the memory. Whatever it started ends here too.
    """
    env = trainer_environment({"COLUMNS": "200", "PYTHON_COLORS": "0"})
    with temporary_folder("help_") as folder, open(folder / "out", "w+b") as out, open(folder / "err", "w+b") as err:
        child = subprocess.Popen([sys.executable, "-m", BASE.command, *argv, "--help"], cwd=tree, env=env,
                                 stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=os.name != "nt")
        try:
            if why := _excess(child, out, err):
                raise ValueError(f"{BASE.command} --help of {tree} {why}; run it by hand and see")
        finally:
            _end(child)
        texts = [(folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err")]
    return subprocess.CompletedProcess(child.args, child.returncode, *texts)


def _excess(child, *files) -> str | None:
    """Waits for the child. What it did too much of, or None."""
    started = time.monotonic()
    while True:
        ended = child.poll() is not None
        if any(os.fstat(f.fileno()).st_size > MOST_HELP for f in files):
            return f"prints more than {MOST_HELP >> 20} MiB"
        if ended:
            return None
        if time.monotonic() - started > HELP_SEC:
            return f"took longer than {HELP_SEC} s"
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SEC)


def _end(child):
    if os.name == "nt":
        child.kill()
    else:
        with contextlib.suppress(ProcessLookupError):  # nothing of its session is left
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


@functools.cache
def known_flags(tree: Path, content: str) -> frozenset:
    """Every spelling of every flag of the tree's trainer. content: the tree's hash, for the cache."""
    asked = ask(tree, [])
    flags = parse_help(asked.stdout)
    if asked.returncode or "--depth" not in flags:
        raise ValueError(f"{BASE.command} --help of {tree} lists no flags (exit code {asked.returncode}); its last "
                         f"line: {_last_line(asked)}; run it there by hand, and repair the tree")
    return flags


def _last_line(asked) -> str:
    return next(iter((asked.stderr.strip() or asked.stdout.strip()).splitlines()[-1:]), "none")


def parse_help(text: str) -> frozenset:
    """
    >>> sorted(parse_help("  --a-b, --no-a-b, -c N  uses --z\\n                        see --y\\n"))
    ['--a-b', '--no-a-b', '-c']
    """
    lines = re.findall(r"^ {1,8}(-{1,2}[A-Za-z].*)$", text, re.MULTILINE)  # argparse indents help text further
    return frozenset(name for line in lines
                     for name in re.findall(r"(?:^|, )(-{1,2}[A-Za-z][\w-]*)", line.split("  ")[0]))


def check_values(tree: Path, argv):
    """Raise ValueError where the trainer's own parser refuses a value, with the parser's message."""
    asked = ask(tree, argv)
    if asked.returncode:
        raise ValueError(f"the trainer of {tree} refuses its flags: {_last_line(asked)}")


# -----------------------------------------------------------------------------
# Flags that the tree has under another name

def nearest(name: str, known) -> str | None:
    """The flag that was probably meant: the same words in another order, or a similar spelling.

    >>> nearest("--matrix-lr", {"--lr-matrix", "--depth"}), nearest("--dept", {"--lr-matrix", "--depth"})
    ('--lr-matrix', '--depth')
    """
    words = sorted(name.strip("-").split("-"))
    same = [other for other in sorted(known) if sorted(other.strip("-").split("-")) == words]
    return next(iter(same or difflib.get_close_matches(name, sorted(known), n=1)), None)


def _advice(name: str, known) -> str:
    near = nearest(name, known)
    if near is None:
        return "; see its --help"
    renamed = f" Then add rename={name[2:]}:{near[2:]} to the arm" if name in spellings(TrainConfig) else ""
    return f"; did you mean {near}?{renamed}"


def read_renames(pairs, known) -> dict[str, str]:
    """{our flag: the tree's flag} of "matrix-lr:lr-matrix" texts. A switch takes its --no- form along.

    Raises ValueError for a flag that we do not have, or that the tree does not have under that name.
    """
    found, ours = {}, spellings(TrainConfig)
    for pair in pairs:
        old, new = (hyphenate([f"--{word.lstrip('-')}"])[0] for word in pair.partition(":")[::2])
        if "--" in (old, new):
            raise ValueError(f"rename={pair}: expected OURS:THEIRS, as in rename=matrix-lr:lr-matrix")
        for name, names, whose in ((old, ours, "this project"), (new, known, "the tree")):
            if name not in names:
                near = nearest(name, names)
                raise ValueError(f"rename={pair}: the trainer of {whose} has no {name}"
                                 + (f"; did you mean {near}?" if near else ""))
        if old in known:
            raise ValueError(f"rename={pair}: the tree has {old} itself; leave the rename out")
        found[old] = new
        if f"--no-{new[2:]}" in known and f"--no-{old[2:]}" in ours:
            found[f"--no-{old[2:]}"] = f"--no-{new[2:]}"
    return found


def rename_words(argv, renames: dict[str, str]) -> list[str]:
    """
    >>> rename_words(["--matrix-lr=0.02", "--depth=4"], {"--matrix-lr": "--lr-matrix"})
    ['--lr-matrix=0.02', '--depth=4']
    """
    return [renames.get(name, name) + equals + value for name, equals, value in (word.partition("=") for word in argv)]


# -----------------------------------------------------------------------------
# Translation

def settle(config: TrainConfig, common: list[str], groups: list[Group], known) -> tuple[TrainConfig, tuple, dict]:
    """(config as it will be run, argv, environment) of an arm; groups: the arm's own flags, passed as they are.

    Raises ValueError for a flag that the trainer lacks and that would change the run.
    """
    if "--data-order" not in known:  # a trainer with a --seed shuffles by it; any other reads the files in order
        if "data_order" in named_in(TrainConfig, common) and config.data_order == "file" and "--seed" in known:
            raise ValueError("--data-order=file: the tree's trainer orders documents by its --seed "
                             "and has no other way")
        config = replace(config, data_order="seed" if "--seed" in known else "file")
    if flag("quiet_start") not in known:  # the profiles ask for it; a tree without it starts as upstream does
        config, common = replace(config, quiet_start=False), [*common, flag("no_quiet_start")]
    for group in groups:
        if group.name not in known and not _in_environment(group.name):
            raise ValueError(f"its trainer has no flag {group.name}{_advice(group.name, known)}")
    shared = read_config(common)
    # The options that were given, each by the spelling that is passed on where an option has two.
    said = named_in(TrainConfig, [*common, *to_argv(shared)]) - said_twice(TrainConfig, vars(shared))
    values = said_once(TrainConfig, vars(shared))
    argv = [word for name, o in FIELDS.items() if name in said or o.role == "workload"
            for word in _translate(o, values[name], known)]
    argv += [word for group in groups if group.name in known for word in group.words]
    return config, tuple(argv), environment(config, known)


def environment(config: TrainConfig, known) -> dict:
    """Environment variables that set compile and dtype where the trainer has no flag for them.

    None means that the variable is taken out of the environment, so that a value in the user's shell has no effect.
    """
    found = {}
    if "--no-compile" not in known:
        found["TORCHDYNAMO_DISABLE"] = None if config.compile else "1"
    if "--dtype" not in known:
        found["NANOCHAT_DTYPE"] = None if config.dtype == "auto" else config.dtype
    return found


def _in_environment(name: str) -> bool:
    return spellings(TrainConfig).get(name) in tagged(FIELDS, "environment")


def _translate(o: Option, value, known) -> list[str]:
    if o.name in CELLS_OWN or o.name == "data_order" and flag(o.name) not in known:
        return []
    if o.type is bool:
        word = flag(o.name if value else f"no_{o.name}")
        if word in known:
            return [word]
    elif flag(o.name) in known:
        return [f"{flag(o.name)}={value}"]
    neutral = value == o.default or o.role == "run" or _in_environment(flag(o.name))
    # A trainer without the switch runs as if it were off. So a switch that is off may be left out, but not --no-smear:
    # smear is on by default, also in a trainer that has no switch for it.
    if not neutral and not (o.type is bool and not value and not o.default):
        raise ValueError(f"its trainer has no flag {flag(o.name)}, and the arms are to run with {flag(o.name)}={value}"
                         + _advice(flag(o.name), known))
    return []
