"""
What a command says of bad input: exit code 2 and one line of text, whatever was typed or stands in a file. And its
--help, which states each default once.

    $ python -m scripts.gates --label=$'a\\nb'
    error: results/a b_latest.json is missing: ...

A value that is typed or read goes into messages. It may have a million letters, line breaks, or letters that steer a
terminal. `one_line` is applied where a message is printed, so that no message has to think of it. Torch-free.
"""

import argparse
import re
import sys

from nanochat.checks import cut

MOST = 2000  # letters of a message; the longest of ours hold a command to paste
TOO_LARGE = 10 ** 19  # no count or seed is larger, and a float may not hold it
TAIL = 500  # of them after the cut: the end of a message says what to do
WANTED = {"int": "a whole number", "float": "a number"}


def one_line(message) -> str:
    """The message as one line of printable text. What is too long is cut in its middle.

    A command to paste stays on a line of its own, where the message sets it there with two blanks before it.

    >>> one_line("a\\n b\\x1b[31m"), len(one_line("9" * 100_000))
    ('a  b\\\\x1b[31m', 2000)
    """
    text = str(message)
    if len(text) > MOST:
        text = f"{text[:MOST - TAIL - 5]} ... {text[-TAIL:]}"
    text = "\n  ".join(part.replace("\n", " ") for part in text.strip().split("\n  "))
    if not text.replace("\n  ", "").isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return text if len(text) <= MOST else one_line(text)


def say_error(error, prog: str = ""):
    """Print the line of an error to stderr. prog: the command, where its line begins with that."""
    print(f"{prog}{': ' * bool(prog)}error: {one_line(error)}", file=sys.stderr)


class Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Adds a default to the help of an option that has one, unless its text states it."""

    def _get_help_string(self, action):
        if action.default in (None, "") or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def clear(message: str) -> str:
    """The message of argparse with what was expected, in the words of the other refusals.

    >>> clear("argument --seeds: invalid int value: 'abc'")
    "argument --seeds: expected a whole number, got 'abc'"
    """
    return re.sub(r"invalid (int|float) value: (.*)", lambda m: f"expected {WANTED[m[1]]}, got {m[2]}",
                  str(message))


class Parser(argparse.ArgumentParser):
    """A parser whose error is one line, without the usage, and ends the command with exit code 2."""

    def error(self, message):
        say_error(f"{clear(message)} (--help lists the options)", self.prog)
        self.exit(2)

    def parse_known_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("-") and word.endswith("=--"):  # until Python 3.13 argparse makes an empty list of it
                self.error(f"{word[:-2]}: expected a value in place of --")
        found, rest = super().parse_known_args(args, namespace)
        for name, value in vars(found).items():
            if isinstance(value, int) and abs(value) >= TOO_LARGE:
                self.error(f"--{name.replace('_', '-')}={cut(value)}: expected a number of at most 19 digits")
        return found, rest
