"""
What lies under the base directory, how much disk it takes, and what refers to what. Nothing here changes a file.

    items = survey(base_dir, rows)
    print(listing(items))

A checkpoint is referred to by the record of its run, the record by a row of the ledger, and the row by its label: by
the label's result file, by its declaration, or by the noise bank. `prune.py` decides from this what may go.
"""

import os
import re
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from nanochat.common import read_json
from nanochat.lab.ledger import declarations, experiments
from nanochat.lab.report.result_file import path_of
from nanochat.lab.table import format_size, table
from nanochat.record import read_record
from nanochat.stage import STAGES

# The tag of a cell, as arms.cell_tag makes it, and as `scripts.ledger --rerun` repeats it; .1 and so on: moved aside by
# a fresh start of the same tag.
CELL = re.compile(r"nc_(?:(?P<label>.+)_)?d\d+_(?P<arm>.+)_s\d+(?:_rerun)?")
ASIDE = re.compile(r"(?P<tag>.+)\.[1-9]\d*")
TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)\.tmp|\.probe\.(?P<probe>\d+)")
KINDS = {"checkpoint": "checkpoints", "aside": "checkpoints that a fresh start moved aside",
         "temporary": "left by a killed save", "record": "records of runs", "data": "training data",
         "tokenizer": "tokenizers", "worktree": "worktrees of patched arms", "lock": "locks",
         "compiled": "caches of compiled code", "other": "other files"}
DATA = re.compile(r"base_data.*")  # the folders of training data; nanochat/manifest.py has their names


@dataclass(frozen=True)
class Item:
    """A file or folder that is shown, and may be deleted, as a whole. `home`: the base directory that it belongs to."""
    kind: str  # a key of KINDS
    path: Path
    home: Path
    bytes: int
    changed: float  # of its newest file, seconds since 1970
    tag: str = ""  # of the run that it belongs to
    label: str | None = None  # of the comparison that the run belongs to
    status: str | None = None  # of the run's record; None where it has none
    has_row: bool = False  # the ledger has the row of this run

    @property
    def is_of_a_cell(self) -> bool:
        return CELL.fullmatch(self.tag) is not None

    @property
    def comparison(self) -> str:
        """The name of its results: a comparison without a label is called protocol. Empty for what is of no cell."""
        return (self.label or "protocol") if self.is_of_a_cell else ""


def size_of(path: Path) -> tuple[int, float]:
    """(bytes on disk, time of the newest change) of a file or a folder; links are not followed.

    Temporary files in a folder are items of their own, and do not count."""
    total, newest, todo = 0, 0.0, [path]
    while todo:
        at = todo.pop()
        if at != path and TEMPORARY.fullmatch(at.name):
            continue
        try:
            found = at.lstat()
            total += getattr(found, "st_blocks", 0) * 512 or found.st_size
            newest = max(newest, found.st_mtime)
            if at.is_dir() and not at.is_symlink():
                todo += at.iterdir()
        except OSError:  # it went away meanwhile, or may not be read
            continue
    return total, newest


def homes(base_dir: Path) -> list[Path]:
    """The base directory and those of the lab below it, which are laid out alike."""
    lab = base_dir / "lab"
    return [base_dir, *sorted(path for path in _children(lab) if path.is_dir() and path.name != "trees")]


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def survey(base_dir, rows: list[dict]) -> list[Item]:
    """Every file below the base directory, in items. rows: of the ledger."""
    base_dir, items = Path(base_dir).resolve(), []
    labels = {row["run_id"]: row for row in rows}
    for home in homes(base_dir):
        for path in _children(home):
            if path == base_dir / "lab":
                items += [_item("other", other, base_dir) for other in _children(path)
                          if not other.is_dir()]
            elif path.name in {stage.checkpoint_root for stage in STAGES.values()}:
                items += [_of_checkpoints(home, child, labels) for child in _children(path)]
                items += [item for child in _children(path) for item in _temporary(home, child)]
            elif path.name == "records":
                items += [_of_run("record", home, child, labels) for child in _children(path)]
                items += [item for child in _children(path) for item in _temporary(home, child)]
            else:
                items.append(_item(_kind(path), path, home))
    trees = base_dir / "lab" / "trees"
    items += [_item("worktree" if path.is_dir() else "lock" if path.suffix == ".lock" else "other", path, base_dir)
              for path in _children(trees) if not (path.suffix == ".json" and path.with_suffix("").is_dir())]
    return items


def _kind(path: Path) -> str:
    if TEMPORARY.fullmatch(path.name):
        return "temporary"
    if path.suffix == ".lock":
        return "lock"
    return "data" if DATA.fullmatch(path.name) else "tokenizer" if path.name == "tokenizer" else "other"


def _item(kind: str, path: Path, home: Path, **facts) -> Item:
    size, changed = size_of(path)
    return Item(kind, path, home, size, changed, **facts)


def _of_checkpoints(home: Path, path: Path, labels: dict) -> Item:
    if path.is_dir():
        aside = ASIDE.fullmatch(path.name)
        if aside and was_moved_aside(path, aside["tag"]):
            return _of_run("aside", home, path, labels, tag=aside["tag"])
        return _of_run("checkpoint", home, path, labels)
    return _of_run(_kind(path), home, path, labels, tag=path.name.removeprefix(".").removesuffix(".lock"))


def _temporary(home: Path, folder: Path) -> list[Item]:
    return [_item("temporary", path, home, tag=folder.name) for path in (_children(folder) if folder.is_dir() else [])
            if TEMPORARY.fullmatch(path.name)]


def was_moved_aside(folder: Path, tag: str) -> bool:
    """Whether the checkpoints in `folder` are those of `tag`, by their own meta files.

    A user may call a model v1.2, which is no earlier v1. So the name alone is no evidence.
    """
    for path in sorted(folder.glob("meta_*.json"))[-1:]:
        try:
            meta = read_json(path)
        except (OSError, ValueError):
            return False
        return tag in (meta.get("run_id"), (meta.get("user_config") or {}).get("model_tag"))
    return False


def _of_run(kind: str, home: Path, path: Path, labels: dict, tag: str | None = None) -> Item:
    tag = path.name if tag is None else tag
    record, row, cell = _record(home, tag), labels.get(tag), CELL.fullmatch(tag)
    label = (row or {}).get("label") or (cell and cell["label"])
    return _item(kind, path, home, tag=tag, label=label, status=record.get("status"),
                 has_row=bool(row) and experiments.is_of(record, row))


def _record(home: Path, tag: str) -> dict:
    """run.json, or {} where it is missing or damaged. What is damaged is listed too, and prune says why it stays."""
    try:
        return read_record(home, tag) or {}
    except ValueError:
        return {}


# -----------------------------------------------------------------------------
# As text

def listing(items: list[Item], ledger: Path, results: Path) -> str:
    """Disk use by kind, then the comparisons with what refers to each of them, then other checkpoints."""
    by_kind = [[KINDS[kind], str(len(mine)), format_size(sum(item.bytes for item in mine))]
               for kind in KINDS if (mine := [item for item in items if item.kind == kind])]
    total = ["in all", str(len(items)), format_size(sum(item.bytes for item in items))]
    parts = [table(["what", "number", "disk"], [*by_kind, total])]
    parts += [text for text in (_labels_text(items, ledger, results), _own_text(items), _compiled_text()) if text]
    return "\n\n".join(parts)


def _labels_text(items: list[Item], ledger: Path, results: Path) -> str:
    groups = defaultdict(list)
    for item in items:
        if item.is_of_a_cell and item.kind in ("checkpoint", "aside", "record"):
            groups[item.comparison].append(item)
    declared = {d.label for d in declarations.read(declarations.beside(ledger))} if groups else set()
    rows = [[label, str(len({i.tag for i in mine})), str(sum(i.kind == "record" for i in mine)),
             str(len({i.tag for i in mine if i.has_row})), _ends(label, declared, results),
             format_size(sum(i.bytes for i in mine))] for label, mine in sorted(groups.items())]
    header = ["comparison", "runs", "records", "rows in the ledger", "referred to by", "disk"]
    return table(header, rows) if rows else ""


def _ends(label: str, declared: set, results: Path) -> str:
    """What refers to the rows of a label."""
    ends = ["noise bank"] if label == experiments.NOISE else []
    ends += ["results"] if path_of(label, results).exists() else []
    ends += ["declaration"] if label in declared else []
    return ", ".join(ends) or "nothing"


def _own_text(items: list[Item]) -> str:
    rows = [[item.path.name, str(item.home), "yes" if item.status else "no", item.status or "", format_size(item.bytes)]
            for item in items if item.kind in ("checkpoint", "aside") and not item.is_of_a_cell]
    return table(["other checkpoint", "in", "record", "status", "disk"], rows, left=2) if rows else ""


def _compiled_text() -> str:
    """torch keeps compiled code outside the base directory, for all programs of a user."""
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR")
                  or Path(tempfile.gettempdir()) / f"torchinductor_{os.environ.get('USER', 'root')}")
    return f"torch's cache of compiled code, used by other programs too: {folder}, {format_size(size_of(folder)[0])}" \
        if folder.is_dir() else ""
