"""
The metrics that gates judge, in one table: where runs and rows keep them, how they are compared, which way is better.

Times, rates and the train loss are compared as ratios, by the differences of their natural logarithms.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    key: str  # of a run in a result file
    column: str  # of the ledger
    log: bool  # compared as a ratio
    sign: int  # +1: lower is better
    good: str
    bad: str


METRICS = {
    "val_bpb": Metric("val_bpb", "val_bpb", False, 1, "bpb better", "bpb worse"),
    "final_train_loss": Metric("final_train_loss", "final_train_loss", True, 1, "lower train loss",
                               "higher train loss"),
    "tok_per_sec": Metric("tok_per_sec_median", "tok_per_sec_median", True, -1, "more tokens a second",
                          "fewer tokens a second"),
    "time_to_target": Metric("time_to_target_sec", "time_to_target_sec_measured", True, 1, "less time to target",
                             "more time to target"),
    # training steps alone, without start-up, validation and saving: an arm can change only these
    "wall_time": Metric("training_sec", "training_sec", True, 1, "less wall time", "more wall time"),
}
