"""
The metrics that gates judge, in one table: where runs and rows keep them, how they are compared, which way is better.

Times, rates and the train loss are compared as ratios, by the differences of their natural logarithms. Files hold
these logarithms. People read percent: `change` and `spread` convert.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    key: str  # of a run in a result file
    column: str  # of the ledger
    log: bool  # compared as a ratio
    sign: int  # +1: lower is better
    good: str
    bad: str
    name: str  # in tables and pictures

    def change(self, d: float) -> float:
        """A gain d as people read it, plus = better: percent of the control's value for a ratio, else in its unit.

        >>> round(METRICS["tok_per_sec"].change(-0.105361), 3), round(METRICS["time_to_target"].change(0.0519), 2)
        (-10.0, 5.06)
        """
        return -self.sign * 100 * math.expm1(-self.sign * d) if self.log else d

    def spread(self, s: float) -> float:
        """A standard deviation as people read it: in percent for a ratio, else in its unit."""
        return 100 * math.expm1(s) if self.log else s

    @property
    def unit(self) -> str:
        return " %" if self.log else ""


METRICS = {
    "val_bpb": Metric("val_bpb", "val_bpb", False, 1, "bpb better", "bpb worse", "val_bpb"),
    "final_train_loss": Metric("final_train_loss", "final_train_loss", True, 1, "lower train loss",
                               "higher train loss", "train loss"),
    "tok_per_sec": Metric("tok_per_sec_median", "tok_per_sec_median", True, -1, "more tokens a second",
                          "fewer tokens a second", "tokens a second"),
    "time_to_target": Metric("time_to_target_sec", "time_to_target_sec_measured", True, 1, "less time to target",
                             "more time to target", "time to target"),
    # training steps alone, without start-up, validation and saving: an arm can change only these
    "wall_time": Metric("training_sec", "training_sec", True, 1, "less wall time", "more wall time",
                        "training time"),
}
