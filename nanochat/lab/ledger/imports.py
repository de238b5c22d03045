"""
Find the record of any run: by its run id in a base directory and the lab's homes below it, or by a path.

An upstream checkpoint has no record. But each of its meta_*.json files has the options of the run and one validation.
That is enough for a row, with some empty cells. The path may be the folder of a base model under base_checkpoints/.
"""

from pathlib import Path

from nanochat.lab.profiles import PROFILES
from nanochat.lab.trees.metas import read_metas
from nanochat.record import read_metrics, read_record_file
from nanochat.stage import BASE


def find_run(what: str, base_dir) -> tuple[dict, list[dict], str | None]:
    """(record, metrics rows, name of the profile whose home it is in), of a run that has ended.

    Raises ValueError where there is not exactly one run of this name.
    """
    folder = folder_of(what, base_dir)
    record, metrics, profile = read_run(folder)
    if record.get("status") == "running":
        raise ValueError(f"{folder}: the run has not ended (or was killed, and says so when it is started again)")
    return record, metrics, profile


def folder_of(what: str, base_dir) -> Path:
    """The folder of a run's record, or of an upstream checkpoint. ValueError: not exactly one has this name."""
    folders = [_folder(Path(what))] if Path(what).exists() else _by_id(what, Path(base_dir))
    if not folders:
        raise ValueError(f"{what}: no such path, and no run of this id in {base_dir} or {Path(base_dir) / 'lab'}; "
                         "give the folder of its run.json, or NANOCHAT_BASE_DIR")
    if len(folders) > 1:
        raise ValueError(f"{what}: {len(folders)} runs have this id; give the path of one: "
                         f"{', '.join(map(str, folders))}")
    return folders[0].resolve()


def read_run(folder: Path) -> tuple[dict, list[dict], str | None]:
    """(record, metrics rows, name of the profile whose home it is in), of a run that may be going on."""
    profile = folder.parent.parent.name
    profile = profile if profile in PROFILES and folder.parent.parent.parent.name == "lab" else None
    if (folder / "run.json").exists():
        return read_record_file(folder / "run.json"), read_metrics(folder / "metrics.jsonl"), profile
    return *record_of_metas(folder), profile


def _folder(path: Path) -> Path:
    folder = path if path.is_dir() else path.parent
    if not _holds_run(folder):
        raise ValueError(f"{path}: expected a folder with run.json, or with an upstream checkpoint's meta_*.json")
    return folder


def _holds_run(folder: Path) -> bool:
    return (folder / "run.json").exists() or any(folder.glob("meta_*.json"))


def _by_id(run_id: str, base_dir: Path) -> list[Path]:
    if Path(run_id).name != run_id or run_id in (".", ".."):
        return []
    homes = [base_dir, *sorted(path for path in (base_dir / "lab").glob("*") if path.is_dir())]
    found = [home / "records" / run_id for home in homes] + [BASE.folder(home, run_id) for home in homes]
    folders = [folder for folder in found if _holds_run(folder)]
    recorded = [folder for folder in folders if folder.parent.name == "records"]
    return recorded or folders  # a run of ours has both: its record says more


def record_of_metas(folder: Path) -> tuple[dict, list[dict]]:
    """An upstream checkpoint as (record, metrics rows), as far as its meta files go."""
    metas = read_metas(folder)
    last, config = metas[-1], metas[-1].user_config
    asked = config.get("num_iterations", -1)
    status = ("ok" if last.step >= asked else "interrupted") if asked > 0 else None
    record = {
        "run_id": folder.name, "config": config, "status": status,
        "resolved": {"num_iterations": asked if asked > 0 else None, "total_batch_size": last.total_batch_size},
        "clocks": {"total_training_time": last.training_sec},
        "results": {"val_bpb": last.val_bpb, "min_val_bpb": last.min_val_bpb, "final_train_loss": last.train_loss,
                    "trained_tokens": last.trained_tokens}}
    rows = [{"step": meta.step, "val/bpb": meta.val_bpb, "total_training_time": meta.training_sec}
            for meta in metas if meta.val_bpb is not None]
    return record, rows
