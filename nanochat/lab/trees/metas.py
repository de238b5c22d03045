"""
The checkpoints of a trainer that keeps no records, as upstream leaves them: one meta file each.

    meta_000250.json  {"step": 250, "val_bpb": 1.1, "loop_state": {"smooth_train_loss": 3.2, ...}, "user_config": {...}}

Read by the run of a tree's cell while they appear (trees/run.py), and by an import long afterwards (ledger/imports.py).
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import is_zipfile

from nanochat.common import read_regular
from nanochat.record import EMA_BETA, LARGEST


@dataclass(frozen=True)
class Meta:
    """The values of a meta file as they were written: a loss may be infinite or nan. A missing value is None."""
    step: int
    val_bpb: float | None = None
    min_val_bpb: float | None = None
    smooth_train_loss: float | None = None
    training_sec: float | None = None
    total_batch_size: int | None = None  # tokens
    user_config: dict = field(default_factory=dict)
    model_config: dict | None = None

    @property
    def train_loss(self) -> float | None:
        """The smoothed loss without the weight of the 0 that it started from."""
        smooth = self.smooth_train_loss
        return smooth / (1 - EMA_BETA ** self.step) if smooth is not None and self.step else None

    @property
    def trained_tokens(self) -> int | None:
        return self.total_batch_size * self.step if self.total_batch_size else None

    @property
    def is_finite(self) -> bool:
        losses = (self.val_bpb, self.smooth_train_loss)
        return all(math.isfinite(loss) for loss in losses if isinstance(loss, float))


NUMBER = (int, float)  # also one that is not finite
OF_META = (int, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, dict, dict)  # the types of Meta's fields


def finite(value) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def read_meta(path: Path) -> Meta | None:
    """The values of a meta file, or None while the file is still being written.

    Upstream's files may hold a bare Infinity or NaN, which Python's json can read.
    """
    try:
        said = json.loads(read_regular(path))
        loop = said.get("loop_state") or {}
        meta = Meta(said.get("step"), said.get("val_bpb"), loop.get("min_val_bpb"), loop.get("smooth_train_loss"),
                    loop.get("total_training_time"), said.get("total_batch_size"), said.get("user_config") or {},
                    said.get("model_config"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return meta if all(_fits(value, kind) for value, kind in zip(vars(meta).values(), OF_META)) else None


def _fits(value, kind) -> bool:
    if value is None or isinstance(value, bool):
        return value is None and kind is not int
    return isinstance(value, kind) and not (isinstance(value, int) and abs(value) > LARGEST)


def read_metas(folder: Path) -> list[Meta]:
    """Every meta file of a run that has ended, by step. Raises ValueError for a file that cannot be read."""
    found = {path: read_meta(path) for path in folder.glob("meta_*.json")}
    for path, meta in found.items():
        if meta is None:
            raise ValueError(f"{path}: expected the meta file of a checkpoint, JSON with its step; it was cut off, or "
                             "is another file: move it away")
    return sorted(found.values(), key=lambda meta: meta.step)


def meta_path(folder: Path, step: int) -> Path:
    return folder / f"meta_{step:06d}.json"


def meta_steps(folder: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in folder.glob("meta_*.json") if path.stem[5:].isdigit())


# -----------------------------------------------------------------------------
# With their weights

def is_whole(folder: Path, step: int) -> bool:
    """True if model, meta and optimizer files are complete. torch writes the directory of the zip last."""
    weights = [folder / f"model_{step:06d}.pt", *folder.glob(f"optim_{step:06d}_rank*.pt")]
    return len(weights) > 1 and all(path.is_file() and is_zipfile(path) for path in weights) \
        and read_meta(meta_path(folder, step)) is not None


def last_whole_step(folder: Path) -> int | None:
    return next((step for step in reversed(meta_steps(folder)) if is_whole(folder, step)), None)


def set_aside(folder: Path):
    """Rename the folder of an older run, because its files would be taken for those of the new run."""
    if folder.is_dir() and any(folder.iterdir()):
        names = (folder.with_name(f"{folder.name}.{i}") for i in range(1, 10 ** 6))
        folder.rename(next(path for path in names if not path.exists()))


def drop(folder: Path, step: int, *kinds: str):
    for kind in kinds:
        for path in folder.glob(f"{kind}_{step:06d}*"):
            path.unlink(missing_ok=True)
