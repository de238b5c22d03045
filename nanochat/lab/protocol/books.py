"""
The rows that the runs of a protocol leave: in the label's history, and in the ledger of experiments.

Every run gets a row in both, once. A run may end while nobody writes its rows: its protocol was killed, or the disk was
full. The next protocol that takes the run over, or resumes it, appends the missing rows first. Before the first run
both files are checked, so that no run is trained whose row could not be written.
"""

from datetime import datetime, timezone

from nanochat.lab.csv_file import check_appendable, read_rows
from nanochat.lab.ledger import declarations, experiments
from nanochat.lab.runs import RunSummary
from nanochat.record import read_metrics, record_dir


class Books:
    def __init__(self, protocol):
        self.home, self.ledger, self.results = protocol.home, protocol.ledger, protocol.results
        self.declares = bool(protocol.arms[1:])

    def check(self):
        """Raise ValueError or OSError, in one line, where a row could not be written."""
        check_appendable(self.results.history, self.results.schema)
        if self.ledger:
            experiments.check(self.ledger)
        if self.ledger and self.declares:
            check_appendable(declarations.beside(self.ledger), declarations.schema())

    def write(self, run: RunSummary, record: dict, target: dict | None):
        """The rows of a run that has just ended. A run without a record has no row in the ledger."""
        self.results.append(run)
        if self.ledger and record:
            experiments.append_missing(self.ledger, self._row(run, record, target))

    def complete(self, run: RunSummary, record: dict, target: dict | None):
        """The rows of a run that ended earlier, where they are missing."""
        if self.timestamp(run.run_tag, record) is None:
            self.results.append(run)
        if self.ledger:
            row = self._row(run, record, target)
            # Here the status does not count: a protocol calls a run that it stopped for its time "timeout".
            experiments.append_missing(self.ledger, row, experiments.start_of)

    def timestamp(self, tag: str, record: dict) -> str | None:
        """When a run ended, by its row in the history; None where it has no row there."""
        started = record.get("started_at") or ""
        ends = [row["timestamp"] for row in read_rows(self.results.history)
                if (row["run_tag"], row["config_hash"]) == (tag, record.get("config_hash"))
                and row["timestamp"] >= started]
        return min(ends, default=None)

    def ended_at(self, tag: str, record: dict) -> str:
        """UTC at which the run wrote its record last, for a run that ended while no protocol watched it."""
        written = (record_dir(self.home, tag) / "run.json").stat().st_mtime
        at = datetime.fromtimestamp(written, timezone.utc).isoformat(timespec="seconds")
        return max(at, record.get("started_at") or "")

    def _row(self, run, record, target) -> dict:
        metrics = read_metrics(record_dir(self.home, run.run_tag) / "metrics.jsonl")
        return experiments.row_of_run(run, record, metrics, target)
