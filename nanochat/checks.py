"""
Checks of one value, for the declaration of an option, and the largest numbers that an option takes. Torch-free.

A number with too many zeros is a typing error. Without a bound it would begin a loop or an allocation that never ends:
`--depth=1000000000` would build a billion layers. Each bound below is far above any run that has been published.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST_LAYERS = 1_000  # DeepNet (arXiv:2203.00555), the deepest published transformer, has 1,000
MOST_CHANNELS = 2 ** 20  # width of a model, size of a head, entries of a vocabulary
MOST_TOKENS = 2 ** 40  # in a context, a batch or a validation: a million millions
MOST_STEPS = 10 ** 10  # optimizer steps: ten million millions of tokens at 1,000 tokens a step
MOST_FLOPS = 1e30  # 10,000 times the largest training run of 2025
MOST_RATIO = 1e6  # training tokens per parameter
MOST_RATE = 1e6  # learning rates, decay, and factors on them: finite in every dtype, beside any scale of the laws
MOST_SEC = 1e10  # 300 years
MOST_SEEDS = 10_000  # runs of one comparison or of one bank
MOST_JOBS = 1_024  # cells side by side
MOST_LETTERS = 200  # of a name that becomes a folder: file systems end at 255, and .1 or .lock is added


@dataclass(frozen=True)
class Check:
    """`passes(value)` says whether a value is possible; `expected` ends the message where it is not. `example`: a value
    that passes, for the tests, where the type alone suggests none."""
    expected: str
    passes: Callable[[Any], bool]
    example: Any = None

    def up_to(self, most) -> "Check":
        """The same check with an upper bound.

        >>> positive.up_to(1000).expected, positive.up_to(1000).passes(1001)
        ('a positive number, at most 1,000', False)
        """
        shown = f"{most:,}" if isinstance(most, int) else f"{most:g}"
        return Check(f"{self.expected}, at most {shown}", lambda value: self.passes(value) and value <= most,
                     self.example)


positive = Check("a positive number", lambda value: value > 0)
positive_rate = Check(f"a rate above 0, at most {MOST_RATE:g}", lambda value: 0 < value <= MOST_RATE)
non_negative = Check("0 or more", lambda value: value >= 0)
unit_interval = Check("a number in [0, 1]", lambda value: 0 <= value <= 1)
positive_or_minus_one = Check("a positive number, or -1", lambda value: value > 0 or value == -1)
names_per_layer = Check("names, with commas between those of several layers",
                        lambda value: all(re.fullmatch(r"\w+", name) for name in value.split(",")))
plain_name = Check("one name", lambda value: re.fullmatch(r"\w+", value) is not None)


def only(value, expected: str) -> Check:
    """Accepts nothing but `value`: for an option of upstream that this repository does not have yet."""
    return Check(expected, lambda given: given == value)


def cut(value, letters: int = 60) -> str:
    """The value as a message shows it. A line of a message stays a line, whatever was typed.

    >>> cut("9" * 100, 8), cut("a\\nb")
    ('99999999...', 'a b')
    """
    text = " ".join(str(value).split()) if isinstance(value, str) else _digits(value)
    return text if len(text) <= letters else f"{text[:letters]}..."


def _digits(value) -> str:
    """A whole number of thousands of digits cannot be turned into text, by a limit of Python's."""
    try:
        return str(value)
    except ValueError:
        return "a number of thousands of digits"
