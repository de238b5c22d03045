"""
The paragraph of a report that says where the promise of a verdict bends.

At most one label in twenty promotes a useless change: so it is promised, and so it is simulated where the noise is as
assumed. The figures here are those of table 9.2 of ideas/simulation_targets.csv, for one candidate and a bank of 8
runs. A test compares them.
"""

from typing import NamedTuple

from nanochat.lab.verdict.facts import Declaration


class Setting(NamedTuple):
    words: str
    data: str  # its name in the table
    percent: tuple[int, int]  # of labels that promote a useless change, with 2 seeds and with 5


BENDS = (Setting("the runs spread twice as much as the banked ones", "bank at 1/2", (9, 6)),
         Setting("the bank came out low by luck, as one in ten does", "unlucky bank", (9, 8)),
         Setting("a candidate has four times the variance of the control", "candidate variance x4", (8, 6)),
         Setting("each run resembles the run before it, with a correlation of one half", "AR(1) 0.5", (10, 16)))
HOLDS = (Setting("one run in twenty has five times the noise", "5% outliers", (4, 4)),
         Setting("the noise has the tails of Student's t with 3 degrees of freedom", "t with 3 df", (4, 4)),
         Setting("all runs of a seed drift together", "drift of 2 sd", (2, 4)))


def promise_lines(declaration: Declaration) -> list[str]:
    """Where the promise bends and where it holds; nothing for a label without candidates or without a bank."""
    if not declaration.K or declaration.noise_source != "bank":
        return []
    bends = "; ".join(f"{one.words}: {one.percent[0]} % and {one.percent[1]} %" for one in BENDS)
    holds = "; ".join(one.words for one in HOLDS)
    return [f"The promise that at most {100 * declaration.alpha:.3g} % of such labels promote a useless change was "
            f"simulated. It bends, with 2 and with 5 seeds, where {bends}. It holds where {holds}. "
            "All settings: python -m scripts.simulate_gates --table=9.2"]
