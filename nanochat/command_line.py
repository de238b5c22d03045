"""
The parser of a command: bad input is refused in one line, and --help states each default once.

argparse prints the whole usage before an error, which are 20 lines where a reader needs one. Torch-free.
"""

import argparse
import re

WANTED = {"int": "a whole number", "float": "a number"}


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
    return re.sub(r"invalid (int|float) value: (.*)", lambda m: f"expected {WANTED[m[1]]}, got {m[2]}", message)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser for the scripts."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {clear(message)} (--help lists the options)\n")
