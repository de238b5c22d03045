"""
One record of an option: the mechanism between a dataclass and a command line.

    @dataclass
    class ServeOptions:
        port: int = option(8000, "port to listen on", check=positive)
        host: str = option("", "address to listen on (empty = this machine only)", role="run")

    parse_options(ServeOptions, ["--port=80"])  # ServeOptions(port=80, host="")

The field is the flag (`device_batch_size` is `--device-batch-size`, also spelled `--device_batch_size`), the key in
a record and the column in a ledger. Facts that other code has to know about an option stand in its declaration, never
in a second list: a list of options is a query, as in tagged(FIELDS, "shape"). Torch-free.
"""

import argparse
import dataclasses
import difflib
import functools
import math
import sys
from dataclasses import dataclass
from typing import Any

from nanochat.checks import Check, cut
from nanochat.command_line import Defaults, Parser, say_error

ROLES = {
    "workload": "belongs to the profile and to its hash: rows that differ in it are never compared as equals",
    "treatment": "an arm may change it within one profile",
    "run": "names, continues or watches a run; it changes no number, and no hash holds it",
}
# Further facts, each asked for by code that would otherwise keep a list of names.
TAGS = {
    "shape": "size of the model: a treatment like any other where one budget of FLOPs or seconds ends all runs",
    "horizon": "decides the number of optimizer steps; the first that is given wins",
    "batch_law": "follows from the horizon by a scaling law where it is not given",
    "resolved": "a run sees it only through what cost.resolve makes of it",
    "cell": "the lab sets it for each cell (one arm at one seed), so that no arm may",
    "tree_cell": "the lab sets it for each cell of an arm that is another checkout",
    "machine": "a profile leaves it to the machine that it runs on",
    "environment": "a variable of the environment says it to a trainer that lacks the flag",
    "name": "only a name",
    "ledger_row": "a row of the ledger has what the run was given, also where it has no command to read",
}


# -----------------------------------------------------------------------------
# Declaration

@dataclass(frozen=True)
class Option:
    """All that is known about one option; `option` explains the fields."""
    default: Any
    help: str
    role: str
    model: bool
    check: Check | None
    needs: tuple[str, ...]
    choices: tuple | None
    aliases: tuple[str, ...]
    tags: frozenset
    before: Any
    means: tuple[str, str] | None
    name: str = ""
    type: type = str


# Many parameters, all by name: each is one fact about the option.
def option(default, help: str, *, role="treatment", model=False, check=None, needs=(), choices=None, aliases=(),
           tags=(), before=None, means=None):
    """One field of a dataclass of options.

    role: one of ROLES. tags: of TAGS. check: a Check of the value. choices: all values there are.
    model: GPTConfig has a field of this name, which takes the value.
    needs: options that have to be given as well, because this one changes nothing without them.
    aliases: further spellings of the flag.
    before: for an option that is newer than stored runs, the value that those runs had without it. The option is
        hashed only where it has another value. So older profiles and cells keep their hash, and with it their banked
        noise and their finished runs. `before` stays when the default is changed.
    means: (other option, value), for a switch that is a second spelling of that option with that value.
    """
    needs, tags = ((words,) if isinstance(words, str) else tuple(words) for words in (needs, tags))
    assert role in ROLES and set(tags) <= set(TAGS), (role, tags)
    record = Option(default, help, role, model, check, needs, choices, tuple(aliases), frozenset(tags), before, means)
    return dataclasses.field(default=default, metadata={"option": record})


@functools.cache
def declared(cls) -> dict[str, Option]:
    """The options of a dataclass by name, in the order of its fields."""
    fields = dataclasses.fields(cls)
    options = {f.name: dataclasses.replace(f.metadata["option"], name=f.name, type=f.type) for f in fields}
    for o in options.values():  # else one of the two spellings could not be switched off
        assert not o.means or (not o.default and options[o.means[0]].default != o.means[1]), f"drop --{o.name}"
    return options


def tagged(options: dict[str, Option], *tags: str) -> tuple[str, ...]:
    """Names of the options with any of the tags."""
    assert set(tags) <= set(TAGS), tags
    return tuple(name for name, o in options.items() if o.tags & set(tags))


def hashed(config, *roles: str) -> dict:
    """{name: value} of the options of these roles, for the hash of a configuration.

    An option with `before` is left out at that value, and where a switch sets its value: then the switch is hashed."""
    twice, values = said_twice(type(config), vars(config)), said_once(type(config), vars(config))
    return {name: values[name] for name, o in declared(type(config)).items()
            if o.role in roles and (o.before is None or (values[name] != o.before and name not in twice))}


def with_role(options: dict[str, Option], role: str) -> tuple[str, ...]:
    return tuple(name for name, o in options.items() if o.role == role)


# -----------------------------------------------------------------------------
# Two spellings of one option

def settle_spellings(config):
    """Set both spellings if either is set: `__post_init__` of a dataclass with an option that has `means`."""
    for switch in declared(type(config)).values():
        if switch.means:
            name, value = switch.means
            if getattr(config, switch.name) and getattr(config, name) == declared(type(config))[name].default:
                setattr(config, name, value)
            elif getattr(config, name) == value:
                setattr(config, switch.name, True)


def said_once(cls, values: dict) -> dict:
    """`values` with an option at its default where a switch sets its value, so that a difference is told once."""
    twice = said_twice(cls, values)
    return {name: declared(cls)[name].default if name in twice else value for name, value in values.items()}


def said_twice(cls, values: dict) -> set[str]:
    """Names of the options whose value a switch sets too."""
    return {o.means[0] for o in declared(cls).values() if o.means and values.get(o.name)}


def _refuse_both_spellings(cls, argv):
    named = named_in(cls, argv)
    for switch in declared(cls).values():
        if switch.means and {switch.name, switch.means[0]} <= named:
            raise ValueError(f"{flag(switch.name)} and {flag(switch.means[0])} are two spellings of one option: "
                             "give one of them")


# -----------------------------------------------------------------------------
# Command lines

def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def spellings(cls) -> dict[str, str]:
    """Every flag with the name of its option; --no-x too where x is a switch."""
    found = {}
    for name, o in declared(cls).items():
        for word in (name, *o.aliases):
            found |= {flag(word): name} | ({flag(f"no_{word}"): name} if o.type is bool else {})
    return found


def hyphenate(argv) -> list[str]:
    """`--device_batch_size=4` -> `--device-batch-size=4`: both spellings of every flag work.

    >>> hyphenate(["--model_tag", "a_b", "--run=x_y"])
    ['--model-tag', 'a_b', '--run=x_y']
    """
    out = []
    for word in argv:
        name, eq, value = word.partition("=")
        out.append(name.replace("_", "-") + eq + value if word.startswith("--") else word)
    return out


def named_in(cls, argv) -> set[str]:
    """Options that a command line names, whatever it sets them to."""
    names = spellings(cls)
    words = {word.partition("=")[0] for word in hyphenate(argv)}
    return {names[word] for word in words if word in names}


def to_argv(config) -> list[str]:
    """The flags that differ from the defaults: the shortest command line that means `config`."""
    argv, values = [], said_once(type(config), vars(config))
    for name, o in declared(type(config)).items():
        value = values[name]
        if value != o.default:
            argv.append(flag(name if value else f"no_{name}") if o.type is bool else f"{flag(name)}={value}")
    return argv


class _Parser(Parser):
    """Raises ValueError where argparse would print and exit; an unknown flag names its nearest neighbour."""

    def error(self, message):
        if message.startswith("unrecognized arguments: "):
            word = message.split(": ", 1)[1].split()[0]
            near = difflib.get_close_matches(word.split("=")[0], self._option_string_actions, n=1)
            hint = f"did you mean {near[0]}?" if near else "--help lists them all"
            message = f"unknown flag {cut(word)}; {hint}"
        raise ValueError(cut(message, 400))


def build_parser(cls, prog=None, description=None, add_help=True) -> argparse.ArgumentParser:
    """A parser with a flag for each option of `cls`; it raises ValueError for bad input."""
    parser = _Parser(prog=prog, description=description, allow_abbrev=False, add_help=add_help,
                     formatter_class=Defaults)
    for name, o in declared(cls).items():
        kind = dict(action=argparse.BooleanOptionalAction) if o.type is bool else dict(
            type=o.type, choices=o.choices, metavar=None if o.choices else o.type.__name__.upper())
        parser.add_argument(*map(flag, (name, *o.aliases)), dest=name, default=o.default, help=o.help, **kind)
    return parser


def parse_options(cls, argv, validate=None):
    """The options that `argv` means: an instance of `cls`, checked by `validate` (default: check_options).

    Raises ValueError, in one line, for an unknown flag and for a value that cannot be. Never prints, never exits:
    --help is of parse_command, and an unknown flag here.
    """
    argv = hyphenate(argv)
    config = cls(**vars(build_parser(cls, add_help=False).parse_args(argv)))
    _refuse_both_spellings(cls, argv)
    (validate or check_options)(config)
    return config


def known_options(cls, argv) -> dict:
    """Every option, as a command line of another version of the code sets it. Flags that `cls` does not know are left
    out, and nothing is checked. Raises ValueError where a value cannot be read."""
    return vars(cls(**vars(build_parser(cls, add_help=False).parse_known_args(hyphenate(argv))[0])))


def parse_command(cls, argv=None, prog=None, description=None, validate=None):
    """parse_options for a script (argv: default sys.argv). --help prints and exits with 0. Bad input prints one line,
    which the usage of 60 flags would hide, and exits with 2."""
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser(cls, prog, description)
    try:
        if {"-h", "--help"} & set(argv):  # flags before it are read first: so the lab asks whether a value is valid
            parser.parse_args(hyphenate(argv))
        return parse_options(cls, argv, validate)
    except ValueError as e:
        say_error(e, parser.prog)
        parser.exit(2)


# -----------------------------------------------------------------------------
# Checks of a whole configuration

def require(ok: bool, name: str, value, expected: str):
    """Unless `ok`, raise ValueError with the flag, its value and the expected values."""
    if not ok:
        raise ValueError(f"{flag(name)}={cut(value)}: expected {expected}")


def check_options(config):
    """Raise ValueError for a value that its own declaration refuses, and for an option that alone changes nothing."""
    options = declared(type(config))
    for name, o in options.items():
        value = getattr(config, name)
        require(not isinstance(value, float) or math.isfinite(value), name, value, "a finite number")
        require(not o.choices or value in o.choices, name, value, f"one of {', '.join(map(str, o.choices or ()))}")
        require(not o.check or o.check.passes(value), name, value, o.check and o.check.expected)
        if o.means:
            (other, meant), given = o.means, getattr(config, o.means[0])
            require(not value or given == meant, other, given, f"{meant}, or no {flag(name)}")
    for name, o in options.items():  # an arm made of such an option would be the control under another name
        for needed in o.needs if getattr(config, name) != o.default else ():
            require(getattr(config, needed) != options[needed].default, name, getattr(config, name),
                    f"{flag(needed)} beside it: alone it changes nothing")
