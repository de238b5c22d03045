"""
A profile in the flags of another tree's trainer, which may have fewer, more, or other defaults.

What makes the workload (the options marked `profile`) and what was said is passed by name. What the trainer lacks is
dropped where it changes nothing, stands in the environment where it can, and is refused otherwise; whatever nobody said
stays that tree's own default, because it may be what the tree is about.
"""

import difflib
import functools
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.config import FIELDS, TrainConfig, read_config
from nanochat.options import Option, flag, hyphenate, named_in, said_once, spellings, tagged, to_argv
from nanochat.stage import BASE

CELLS_OWN = tagged(FIELDS, "cell", "tree_cell")  # set for each cell, by trees/orders.py
HELP_SEC = 300  # a cold start of torch on a slow disk


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
# What the other trainer knows

def trainer_environment(changes: dict) -> dict:
    """Ours with `changes` (None = unset), and without what would put another `scripts` before the tree's: upstream's has no
    __init__.py, and a folder that has one wins wherever it stands on the path."""
    env = {k: v for k, v in os.environ.items() if k not in changes} | {k: v for k, v in changes.items() if v is not None}
    paths = [p for p in env.pop("PYTHONPATH", "").split(os.pathsep) if p and not (Path(p) / "scripts").is_dir()]
    return env | ({"PYTHONPATH": os.pathsep.join(paths)} if paths else {})


def ask(tree: Path, argv) -> subprocess.CompletedProcess:
    """Its --help, after `argv` has been parsed."""
    env = trainer_environment({"COLUMNS": "200", "PYTHON_COLORS": "0"})
    try:
        return subprocess.run([sys.executable, "-m", BASE.command, *argv, "--help"], cwd=tree, env=env,
                              stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=HELP_SEC)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{BASE.command} --help of {tree} took longer than {HELP_SEC} s; "
                         "run it by hand and see") from None


@functools.cache
def known_flags(tree: Path, content: str) -> frozenset:
    """Every spelling of every flag of the tree's trainer. content: the tree's hash, for the cache."""
    asked = ask(tree, [])
    flags = parse_help(asked.stdout)
    if asked.returncode or "--depth" not in flags:
        said = (asked.stderr or asked.stdout).strip().splitlines()[-5:]
        what = f"{BASE.command} --help of {tree} lists no flags (exit code {asked.returncode}):"
        raise ValueError("\n".join([what, *said]))
    return flags


def parse_help(text: str) -> frozenset:
    """
    >>> sorted(parse_help("  --a-b, --no-a-b, -c N  uses --z\\n                        see --y\\n"))
    ['--a-b', '--no-a-b', '-c']
    """
    lines = re.findall(r"^ {1,8}(-{1,2}[A-Za-z].*)$", text, re.MULTILINE)  # argparse indents help text further
    return frozenset(name for line in lines for name in re.findall(r"(?:^|, )(-{1,2}[A-Za-z][\w-]*)", line.split("  ")[0]))


def check_values(tree: Path, argv):
    """Raise ValueError with what the trainer's own parser says of a value."""
    asked = ask(tree, argv)
    if asked.returncode:
        said = (asked.stderr or asked.stdout).strip().splitlines()[-1:]
        raise ValueError(f"the trainer of {tree} refuses its flags: {' '.join(said)}")


# -----------------------------------------------------------------------------
# Translation

def settle(config: TrainConfig, common: list[str], groups: list[Group], known) -> tuple[TrainConfig, tuple, dict]:
    """(config as it will be run, argv, environment) of an arm; groups: the arm's own flags, passed as they are."""
    if "--data-order" not in known:  # a seeded trainer shuffles by its seed; any other reads the files in order
        if "data_order" in named_in(TrainConfig, common) and config.data_order == "file" and "--seed" in known:
            raise ValueError("--data-order=file: the tree's trainer orders documents by its --seed and has no other way")
        config = replace(config, data_order="seed" if "--seed" in known else "file")
    for group in groups:
        if group.name not in known and not _in_environment(group.name):
            near = difflib.get_close_matches(group.name, known, n=1)
            raise ValueError(f"its trainer has no flag {group.name}" + (f"; did you mean {near[0]}?" if near else "; see its --help"))
    shared = read_config(common)
    said = named_in(TrainConfig, [*common, *to_argv(shared)])  # of two spellings of an option, the one that is passed on
    values = said_once(TrainConfig, vars(shared))
    argv = [word for name, o in FIELDS.items() if name in said or o.role == "workload"
            for word in _translate(o, values[name], known)]
    argv += [word for group in groups if group.name in known for word in group.words]
    return config, tuple(argv), environment(config, known)


def environment(config: TrainConfig, known) -> dict:
    """Variables that do what upstream's trainer has no flag for; None = unset, so that the user's shell decides nothing."""
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
    # A switch of the workload that is off and not there is off. One of the model that is on by default is not.
    if not neutral and not (o.type is bool and not value and not o.default):
        raise ValueError(f"its trainer has no flag {flag(o.name)}, and the arms are to run with {flag(o.name)}={value}")
    return []
