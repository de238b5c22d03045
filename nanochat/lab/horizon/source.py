"""
The input of Lane B, token arrays that a script hands over, and the named reasons for which it gives no number.

A source is read several times (frequencies first, then pairs). So it is a function that starts a new pass, not an
iterator; nothing here holds the whole corpus.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

BAD_INPUT = "bad_input"  # the code of an error whose reason has no name of its own


class Refusal(ValueError):
    """The inputs do not determine the answer. code: the reason's name, as it stands in the JSON.

    A message that was read from a JSON begins with the name already.
    """

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message.removeprefix(f'{code}: ')}")
        self.code = code


@dataclass(frozen=True)
class TokenSource:
    """A corpus as integer arrays of token ids.

    read: starts a pass and yields 1-D arrays. documents: each array is one document, and no pair or context crosses its
    end. Otherwise the arrays are pieces of one stream, and the places of the cuts mean nothing.
    """
    read: Callable[[], Iterator[np.ndarray]]
    vocab_size: int
    documents: bool = True
