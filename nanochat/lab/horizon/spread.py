"""
How much the final loss of one calibration run varies from seed to seed: the width of every prediction of a length.

With a spread of a third of the true one, the 80 % band of D* holds the truth in a third of all cases. So the spread is
measured where it can be, in this order: calibration runs of one length on several seeds; the bank of these runs'
profile; else an assumption, which the answer calls one.
"""

from dataclasses import dataclass

from nanochat.lab.ledger.bank import measure
from nanochat.lab.ledger.experiments import row_of_record
from nanochat.lab.ledger.workload import option_differences

MUST_AGREE = ("device", "threads", "tree_hash")  # of a banked run and a calibration run; the profile says the rest
FROM_RUNS, FROM_BANK, ASSUMED = "calibration runs", "bank", "assumed"


@dataclass(frozen=True)
class Spread:
    """sd of one run's loss; df: its degrees of freedom, None for an assumption."""
    sd: float
    df: int | None = None

    @property
    def source(self) -> str:
        return ASSUMED if self.df is None else FROM_BANK


def banked_spread(records: list[dict], rows: list[dict]) -> Spread | None:
    """The spread of val_bpb in the bank of the longest of these runs whose profile has a bank; None where none has.

    records: run.json of the calibration runs. rows: of the ledger. A banked run with other options, on another device,
    thread count or code lends nothing, and neither does one on a calibration run's own seed.
    """
    own = {record["config"]["seed"] for record in records}
    for record in sorted(records, key=lambda record: -record["results"]["trained_tokens"]):
        asks = row_of_record(record, [])
        agree = [row for row in rows if all(row[name] == asks[name] for name in MUST_AGREE)
                 and not option_differences(asks, row)]
        found = measure(agree, record["profile_hash"], own)["metrics"].get("val_bpb")
        if found:
            return Spread(found["s_b"], found["nu"])
    return None
