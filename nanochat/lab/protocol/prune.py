"""
What may be deleted so that nothing that is used goes, and the deletion of it.

A finished cell is reused by its record, judged by its row, and shown by its metrics. Its weights are read by nothing
any more, and take nearly all of the disk. So they may go: records, rows, results, data and tokenizers stay. What stays
too, with the reason: runs that have not ended (they are resumed from their checkpoint), models that a user has trained
under a name of their own, weights that Lane B or a score still reads, and everything whose lock is held.
"""

import contextlib
import os
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from nanochat.code_identity import tree_hash
from nanochat.common import read_json
from nanochat.git import run_git
from nanochat.lab.protocol.disk import KINDS, TEMPORARY, Item
from nanochat.lab.protocol.runner import COMPLETE
from nanochat.lab.table import format_size, table
from nanochat.lab.trees.score import is_scored
from nanochat.record import read_record
from nanochat.stage import BASE

CALIBRATION = "_calibration"  # end of the label whose weights Lane B reads again (runs/lane_b.sh)
HOUR_SEC, DAY_SEC = 3600, 86400
# In the order in which they go: a lock after what it guards.
WHY_IT_GOES = {"checkpoint": "weights of finished cells: records and rows stay, and the cells are reused by them",
               "aside": "earlier starts of cells that were started anew",
               "temporary": "left by saves that were killed",
               "worktree": "made from a tree and its patches, and made anew when they are needed",
               "lock": "held by nobody"}


@dataclass(frozen=True)
class Decision:
    item: Item
    goes: bool
    why: str  # why it may go, or why it stays


def decide(items: list[Item], label: str | None = None, older_than_days: float = 0) -> list[Decision]:
    """A decision for each item that could go; data, tokenizers, records and other files are not among them.

    label: only what belongs to this comparison. older_than_days: the rest stays.
    """
    training, found = any(is_locked(item) for item in items if item.kind == "lock"), []
    for kind in WHY_IT_GOES:
        for item in items:
            if item.kind == kind and (label is None or item.comparison == label):
                stays = why_it_stays(item, training)
                if not stays and item.changed > time.time() - older_than_days * DAY_SEC:
                    stays = f"it changed less than {older_than_days:g} days ago"
                found.append(Decision(item, not stays, stays or WHY_IT_GOES[kind]))
    return found


def why_it_stays(item: Item, training: bool) -> str | None:
    """None where the item may go. training: some run is going on."""
    if is_locked(item):
        return "its run is going on"
    if item.kind == "worktree":
        return "a run is going on, and may use it" if training else _why_worktree_stays(item)
    if item.kind == "temporary":
        return "its process may be alive" if _may_be_written(item) else None
    if item.kind == "lock":
        return None
    if not item.is_of_a_cell:
        return "a model of yours: delete it by hand if you do not need it"
    return _why_checkpoint_stays(item) if item.kind == "checkpoint" else None


def _why_checkpoint_stays(item: Item) -> str | None:
    try:
        record = read_record(item.home, item.tag)
    except ValueError as e:
        return f"its record cannot be read: {e}"
    if record is None:
        return "no record says how its run ended"
    if record.get("status") not in COMPLETE:
        return "its run has not ended well: the same command resumes it from here"
    ordered = (item.home / "tree_cells" / f"{item.tag}.json").exists()  # an arm on another tree (trees/orders.py)
    if ordered and not record.get("tree"):
        return "its run has ended on another tree, and has not been taken over yet"
    if record.get("tree") and not is_scored(record, (record.get("config") or {}).get("eval_every", -1)):
        return "it has no score yet: the next run of its protocol reads the weights"
    if item.comparison.endswith(CALIBRATION):
        return "Lane B reads the weights of its calibration runs again"
    return None


def _may_be_written(item: Item) -> bool:
    """Whether the process that a temporary file names may still write it."""
    if item.changed > time.time() - HOUR_SEC:
        return True
    if os.name == "nt":  # os.kill would end the process there
        return item.changed > time.time() - DAY_SEC
    match = TEMPORARY.fullmatch(item.path.name)
    try:
        os.kill(int(match["pid"] or match["probe"]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True


def _why_worktree_stays(item: Item) -> str | None:
    try:
        made = read_json(item.path.with_suffix(".json")).get("code_hash")
    except (OSError, ValueError):  # unfinished
        return None
    return "its code was edited after it was made" if made and made != tree_hash(item.path) else None


def lock_of(item: Item) -> Path | None:
    """The lock that a training run of the item's tag holds; that of a worktree is held while it is made."""
    if item.kind == "lock":
        return item.path
    if item.kind == "worktree":
        return item.path.with_name(f".{item.path.name}.lock")
    root = next((p for p in item.path.parents if p.parent == item.home and p.name != "records"), BASE.root(item.home))
    return root / f".{item.tag}.lock" if item.tag else None


def is_locked(item: Item) -> bool:
    path = lock_of(item)
    try:
        with FileLock(path, timeout=0) if path and path.exists() else contextlib.nullcontext():
            return False
    except Timeout:
        return True


# -----------------------------------------------------------------------------
# Deleting

def delete(decisions: list[Decision], say=print) -> int:
    """Delete what goes; returns the bytes that were freed. Each item is asked again under the lock of its run."""
    freed = 0
    for item in (decision.item for decision in decisions if decision.goes):
        lock = lock_of(item)
        try:
            with FileLock(lock, timeout=0) if lock and lock.parent.is_dir() else contextlib.nullcontext():
                if stays := item.kind == "checkpoint" and _why_checkpoint_stays(item):
                    say(f"kept {item.path}: {stays}")
                    continue
                _delete(item)
                freed += item.bytes
                if lock and os.name != "nt":  # an open file cannot be deleted there
                    lock.unlink(missing_ok=True)
        except Timeout:
            say(f"kept {item.path}: its run is going on")
        except OSError as e:
            say(f"kept {item.path}: {e.strerror or e}")
    return freed


def _delete(item: Item):
    if item.kind == "worktree":
        _delete_worktree(item.path)
    elif item.path.is_dir() and not item.path.is_symlink():
        for manifest in item.path.glob("manifest_*.json"):  # first, so that a kill leaves no half step that looks whole
            manifest.unlink(missing_ok=True)
        shutil.rmtree(item.path)
    elif item.kind != "lock":  # delete() does it, after the lock was taken
        item.path.unlink(missing_ok=True)


def _delete_worktree(path: Path):
    note = path.with_suffix(".json")
    source = read_json(note).get("source") if note.exists() else None
    note.unlink(missing_ok=True)  # first: a worktree without it is unfinished
    if source and Path(source).is_dir():
        run_git(source, "worktree", "remove", "--force", str(path))
    shutil.rmtree(path, ignore_errors=True)
    if source and Path(source).is_dir():
        run_git(source, "worktree", "prune")


# -----------------------------------------------------------------------------
# As text

def text(decisions: list[Decision]) -> str:
    """What goes and what stays, a line for each reason and comparison."""
    parts = [_group(f"what {verb}", [d for d in decisions if d.goes == goes])
             for verb, goes in (("may go", True), ("stays", False))]
    return "\n\n".join(filter(None, parts)) or "nothing that could go"


def _group(title: str, decisions: list[Decision]) -> str:
    groups = defaultdict(list)
    for d in decisions:
        whose = d.item.comparison if d.item.is_of_a_cell else d.item.tag
        groups[KINDS[d.item.kind], "" if d.item.kind == "lock" else whose, d.why].append(d.item)
    rows = [[kind, whose, why, str(len(items)), format_size(sum(item.bytes for item in items))]
            for (kind, whose, why), items in groups.items()]
    return f"{title}\n" + table(["what", "of", "why", "number", "disk"], rows, left=3) if rows else ""
