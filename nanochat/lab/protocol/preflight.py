"""
What a protocol will take, said before its first run: cells, time, disk, and how often the text repeats.

    24 cells at most (it may end after 10), 4 of them reused; 2 side by side
    time: about 12:00, computed from 8 runs of this workload on this machine (1:02 a run ...)
    disk: 0.4 GB for the checkpoints of 20 cells, 80.1 GB are free

Time and disk are computed from runs that this machine has done. Where there are none, the line says so: a guess would
be taken for a promise.
"""

import shutil
from dataclasses import dataclass
from statistics import median

from nanochat.config import TrainConfig
from nanochat.lab import own_data
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.workload import options_of
from nanochat.lab.protocol.progress import last_end
from nanochat.lab.table import format_size, format_time
from nanochat.stage import BASE

BYTES_A_PARAMETER = 12  # of a checkpoint, at most: weights and two moments in float32
MANY_BYTES = 1.1  # times the free disk: clearly too small


@dataclass(frozen=True)
class CellTime:
    sec: float  # of one control cell
    source: str


def lines(session) -> list[str]:
    """The lines to print. Raises ValueError where the disk is clearly too small for the first look."""
    protocol = session.protocol
    reused = [cell for cell in protocol.cells if session.runner.reusable(cell)]
    to_run = [cell for cell in protocol.cells if cell not in reused]
    if not to_run:
        return []
    first = session.declaration.looks[0] * len(protocol.arms)
    early = f" (it may end after {first})" if first < len(protocol.cells) else ""
    at_most = " at most" if early else ""
    said = [f"{len(protocol.cells)} cells{at_most}{early}, {len(reused)} of them reused"
            + (f"; {protocol.jobs} side by side" if protocol.jobs > 1 else ""),
            time_line(session, len(to_run), at_most)]
    return said + [*disk_lines(session, reused, to_run, first), *repeat_lines(protocol)]


# -----------------------------------------------------------------------------
# Time

def time_line(session, n_to_run: int, at_most: str) -> str:
    found = cell_time(session)
    if found is None:
        return "time: unknown until the first cell has run"
    share = _mean_share(session.protocol)
    sec = last_end([0.0] * session.protocol.jobs, n_to_run, found.sec * share)
    return (f"time: about {format_time(sec)}{at_most}, computed from {found.source} ({format_time(found.sec)} a run, "
            "not counting the seconds in which it starts)")


def _mean_share(protocol) -> float:
    """Mean cost of a cell, in cells of the control: arms may be longer or larger."""
    costs = [flops for arm in protocol.arms if (flops := flops_of(protocol, arm.config))]
    return sum(costs) / len(costs) / costs[0] if len(costs) == len(protocol.arms) else 1.0


def flops_of(protocol, config) -> float | None:
    """FLOPs of a run; None where they cannot be computed here, as for an arm of another tree."""
    try:
        done = protocol.cost(config) if protocol.cost else None
    except ValueError:
        return None
    return done and done.flops_per_token * done.total_tokens


def cell_time(session) -> CellTime | None:
    """The time of a cell, from the runs of this machine in the ledger: of this workload, else of another, scaled."""
    protocol, like = session.protocol, session.like()
    ledger = protocol.bank or protocol.ledger or protocol.times
    rows = [row for row in (experiments.read_all(ledger) if ledger else [])
            if row["status"] == "ok" and row["device"] == like["device"] and row["wall_time_sec"]]
    same = [row for row in rows if row["profile_hash"] == protocol.profile_hash]
    same = [row for row in same if row["threads"] == like["threads"]] or same
    same = [row for row in same if not experiments.from_reference(row)] or same
    if same:
        return CellTime(median(row["wall_time_sec"] for row in same),
                        f"{len(same)} run{'s' * (len(same) > 1)} of this workload {_where(same[-1])}")
    ours = flops_of(protocol, protocol.arms[0].config)
    for row in reversed(rows if ours else []):
        if options_of(row) and (theirs := flops_of(protocol, TrainConfig(**options_of(row)))):
            return CellTime(row["wall_time_sec"] * ours / theirs,
                            f"a run of {row['profile'] or 'another workload'} {_where(row)} "
                            f"({format_time(row['wall_time_sec'])}, row {row['row']}), scaled by FLOPs")
    return None


def _where(row) -> str:
    """The project's rows are of a device of this name, which another machine may have: "AMD EPYC" names many."""
    return "that came with the project, on a device of this name" if experiments.from_reference(row) else \
        "on this machine"


# -----------------------------------------------------------------------------
# Disk and text

def disk_lines(session, reused, to_run, first: int) -> list[str]:
    protocol = session.protocol
    size = cell_bytes(protocol, reused)
    if size is None:
        return []
    free = shutil.disk_usage(next(p for p in (protocol.home, *protocol.home.absolute().parents) if p.exists())).free
    cells = min(len(to_run), first)
    if size * cells > MANY_BYTES * free:
        raise ValueError(f"{cells} cells leave about {format_size(size * cells)} of checkpoints in {protocol.home}, "
                         f"and {format_size(free)} are free there: free some, or set NANOCHAT_BASE_DIR to a larger one")
    return [f"disk: {format_size(size * len(to_run))} for the checkpoints of {len(to_run)} cells, {format_size(free)} "
            "are free"]


def cell_bytes(protocol, reused) -> int | None:
    """Bytes that a cell leaves: as a finished one did, else from the parameters."""
    for cell in reused:
        folder = BASE.folder(protocol.home, cell.tag)
        if found := sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()):
            return found
    control = protocol.arms[0].config
    return protocol.cost and BYTES_A_PARAMETER * protocol.cost(control).num_params * max(1, control.keep_last)


def repeat_lines(protocol) -> list[str]:
    """A line where a run is longer than its text. Tokens that repeat teach less, and all arms alike see them."""
    have, control = own_data.train_tokens(protocol.home), protocol.arms[0].config
    wanted = protocol.cost(control).total_tokens if protocol.cost else control.num_iterations * control.total_batch_size
    if not have or wanted <= have:
        return []
    steps = max(1, int(have / (wanted / control.num_iterations))) if control.num_iterations > 0 else None
    shorter = f", or NUM_ITERATIONS={steps}," if steps else ""
    return [f"text: a run reads {wanted:,} tokens, and the corpus has about {have:,}, so they repeat "
            f"{wanted / have:.1f} times; more text{shorter} avoids it"]
