"""
The p-values of many protocols at once, as the page of verdicts (verdict/gates.py) finds them for one.

Its parts decide real protocols: stats.moderated_t tests a gate, lending.disagrees refuses a bank. A test compares the
two, protocol by protocol.
"""

from typing import NamedTuple

import numpy as np

from nanochat.lab.verdict.lending import disagrees
from nanochat.lab.verdict.stats import MIN_PAIRS_WITHOUT_BANK, moderated_t


class AtLooks(NamedTuple):
    """Arrays [P, looks, K] over protocols, looks and candidates."""
    p: np.ndarray
    waits: np.ndarray  # nothing can be told yet: the bank is refused, and the pairs are too few

    @property
    def for_chance(self) -> np.ndarray:
        """The p that futility reads."""
        return np.where(self.waits, np.nan, self.p)

    @classmethod
    def of_all_gates(cls, gates: list["AtLooks"]) -> "AtLooks":
        """All gates must pass: the largest p counts."""
        return cls(np.max([gate.p for gate in gates], axis=0), np.any([gate.waits for gate in gates], axis=0))


def p_at_looks(d, s_b, nu: int, looks, margin: float = 0.0, refused=None) -> AtLooks:
    """d [P, K, N]: gains of the candidates, seed by seed. s_b [P, 1]: spread of the bank, of nu degrees of freedom.

    refused [P, looks]: where the bank is not lent (refusals); None: it is lent always.
    """
    p, waits = [], []
    for i, n in enumerate(looks):
        p.append(moderated_t(d[..., :n], s_b, nu, margin).p)
        waits.append(np.zeros(p[-1].shape, dtype=bool))
        if refused is not None and nu:
            not_lent = refused[:, i, None]
            p[-1] = np.where(not_lent, moderated_t(d[..., :n], None, 0, margin).p, p[-1])
            waits[-1] |= not_lent & (n < MIN_PAIRS_WITHOUT_BANK)
    return AtLooks(np.stack(p, axis=-2), np.stack(waits, axis=-2))


def refusals(x, s_b, nu: int, looks) -> np.ndarray:
    """[P, looks]: True from the first look on at which the runs x [P, arms, N] refuse their bank s_b [P, 1]."""
    at_look = np.stack([disagrees(x[..., :n], s_b[:, 0], nu) for n in looks], axis=-1)
    return np.logical_or.accumulate(at_look, axis=-1)
