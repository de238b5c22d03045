"""
Checkpoints that survive a kill, a full disk or a reboot at any moment.

A step is four files, each written under a temporary name, fsynced and renamed, in this order:
optim_%06d_rank0.pt, meta_%06d.json, model_%06d.pt, and last manifest_%06d.json with the size and hash of
the others. With several ranks, each writes an optimizer file named after its rank, and rank 0 writes the rest.
A step counts only when its manifest is there and every file matches it.

The first three files have upstream's names and formats, so each project loads the other's checkpoints. Upstream
writes no manifest: a step without manifest is used when it is named, or when the folder has no manifest at all.
"""

import json
import re
from pathlib import Path

import torch

from nanochat.common import atomic_writer, fsync_dir, get_base_dir, print0, read_json, sha256_file, to_paste, write_json
from nanochat.gpt import GPT, make_gpt
from nanochat.gpt_config import GPTConfig
from nanochat.ranks import ONE_RANK, Ranks
from nanochat.stage import BASE, STAGES


def file_names(step: int, rank: int = 0) -> dict[str, str]:
    """Names of the files of a step, in the order in which they are written; the manifest comes after them."""
    return {"optim": f"optim_{step:06d}_rank{rank}.pt", "meta": f"meta_{step:06d}.json",
            "model": f"model_{step:06d}.pt"}


def manifest_path(folder, step: int) -> Path:
    return Path(folder) / f"manifest_{step:06d}.json"


# Seven parameters: the folder and step, the three parts of a checkpoint, how many steps to keep, and the ranks.
def save_checkpoint(folder, step: int, model_state: dict, optim_state: dict | None, meta: dict, keep_last: int = -1,
                    ranks: Ranks = ONE_RANK):
    """Write one whole step, then delete all but the newest `keep_last` steps (-1 = keep all). Every rank calls it."""
    folder = Path(folder)
    names = file_names(step, ranks.rank)
    if ranks.rank == 0:
        manifest_path(folder, step).unlink(missing_ok=True)  # a step written again is not whole meanwhile
    ranks.any(False)  # no rank replaces an old file before the manifest with that file's hash is gone
    if optim_state is not None:
        with atomic_writer(folder / names["optim"]) as f:
            torch.save(optim_state, f)
    ranks.any(False)  # the manifest is written only after the files of all ranks
    if ranks.rank == 0:
        _finish_step(folder, step, model_state, meta, 0 if optim_state is None else ranks.world_size)
        for old in manifest_steps(folder)[:-keep_last] if keep_last > 0 else []:
            delete_step(folder, old)


def _finish_step(folder: Path, step: int, model_state: dict, meta: dict, num_optim_files: int):
    """Write weights, meta and the manifest of a step whose optimizer files are already written."""
    names = file_names(step)
    write_json(folder / names["meta"], meta)
    with atomic_writer(folder / names["model"]) as f:
        torch.save(model_state, f)
    optim = [file_names(step, rank)["optim"] for rank in range(num_optim_files)]
    written = [*optim, names["meta"], names["model"]]
    write_json(manifest_path(folder, step), {"step": step, "files": {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in written}})


def delete_step(folder, step: int):
    manifest_path(folder, step).unlink(missing_ok=True)  # first, so that a kill leaves no half step that looks whole
    fsync_dir(Path(folder))
    optim = [path.name for path in Path(folder).glob(f"optim_{step:06d}_rank*.pt")]
    for name in (*optim, *file_names(step).values()):
        (Path(folder) / name).unlink(missing_ok=True)


def _steps(folder, pattern: str) -> list[int]:
    folder = Path(folder)
    matches = [re.fullmatch(pattern, p.name) for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(m.group(1)) for m in matches if m)


def manifest_steps(folder) -> list[int]:
    return _steps(folder, r"manifest_(\d+)\.json")


def is_whole(folder, step: int) -> bool:
    """Whether the manifest of this step is readable, and every file has the size and hash that it states."""
    try:
        files = read_json(manifest_path(folder, step))["files"]
        return all(path.stat().st_size == entry["bytes"] and sha256_file(path) == entry["sha256"]
                   for path, entry in ((Path(folder) / name, entry) for name, entry in files.items()))
    except (OSError, json.JSONDecodeError, KeyError):
        return False


def find_last_step(folder) -> int | None:
    """Newest whole step; in a folder without any manifest (upstream's), the step of the newest model file.

    None where no step can be used.
    """
    steps = manifest_steps(folder)
    for step in reversed(steps):
        if is_whole(folder, step):
            return step
        print0(f"Skipping step {step} of {folder}: its files do not match its manifest")
    models = [] if steps else _steps(folder, r"model_(\d+)\.pt")
    return models[-1] if models else None


def find_largest_model(folder) -> str:
    """The model tag to use when none is named: the deepest d<N>, else the folder that was written to last."""
    folders = [p for p in Path(folder).iterdir() if p.is_dir()] if Path(folder).is_dir() else []
    tags = [p for p in folders if _steps(p, r"model_(\d+)\.pt")]
    if not tags:
        raise FileNotFoundError(to_paste(f"no checkpoints in {folder}; train one with python -m {BASE.command}"))
    by_depth = [(int(m.group(1)), p.name) for p in tags if (m := re.fullmatch(r"d(\d+)", p.name))]
    return max(by_depth)[1] if by_depth else max(tags, key=lambda p: p.stat().st_mtime).name


def load_checkpoint(folder, step: int, device, load_optimizer=False, rank: int = 0):
    """(model state, this rank's optimizer state or None, meta) of one step. A step with a manifest must match it."""
    folder, names = Path(folder), file_names(step, rank)
    for kind in ("model", "meta") + (("optim",) if load_optimizer else ()):
        if not (folder / names[kind]).is_file():
            have = _steps(folder, r"model_(\d+)\.pt")
            raise FileNotFoundError(f"{folder / names[kind]} is missing; steps in this folder: {have or 'none'}")
    if manifest_path(folder, step).exists() and not is_whole(folder, step):
        raise ValueError(f"step {step} of {folder} is damaged: its files do not match "
                         f"{manifest_path(folder, step).name}; name another step, or resume with --resume, "
                         "which takes the newest whole one")

    def load(kind):
        return torch.load(folder / names[kind], map_location=device, weights_only=True)
    model_state = {k.removeprefix("_orig_mod."): v for k, v in load("model").items()}
    return model_state, load("optim") if load_optimizer else None, read_json(folder / names["meta"])


def model_config_of(meta: dict) -> GPTConfig:
    """GPTConfig of a checkpoint, upstream's or ours.

    Upstream's older checkpoints have no window_pattern. Their models had full attention, which is "L".
    """
    return GPTConfig(**{"window_pattern": "L", **meta["model_config"], **meta.get("variant", {})})


def restore_model(model_state: dict, meta: dict, device, compute_dtype=torch.float32) -> GPT:
    model = make_gpt(model_config_of(meta), compute_dtype).to_empty(device=device)
    model_state = {k: v.float() if v.dtype == torch.bfloat16 else v for k, v in model_state.items()}
    model.load_state_dict(model_state, strict=True)
    model.init_tables()
    model.step.fill_(meta.get("step", 0))
    return model


def load_model(source: str, device, model_tag=None, step=None, compute_dtype=torch.float32, base_dir=None):
    """(model in eval mode, tokenizer, meta). `source` is a name of STAGES.

    Without a tag the largest model is loaded, and without a step its newest whole step.
    """
    from nanochat.tokenizer import get_tokenizer
    base_dir = Path(base_dir or get_base_dir())
    root = STAGES[source].root(base_dir)
    folder = root / (model_tag or find_largest_model(root))
    if step is None and (step := find_last_step(folder)) is None:
        raise FileNotFoundError(to_paste(f"no whole checkpoint in {folder}; train one with python -m {BASE.command}"))
    model_state, _, meta = load_checkpoint(folder, step, device)
    tokenizer = get_tokenizer(base_dir)
    check_tokenizer(meta, base_dir, folder)
    return restore_model(model_state, meta, device, compute_dtype).eval(), tokenizer, meta


def check_tokenizer(meta: dict, base_dir, folder):
    """Raise ValueError where the checkpoint was trained with another tokenizer than that of base_dir."""
    from nanochat.tokenizer import get_tokenizer, get_tokenizer_id
    ours, theirs = get_tokenizer_id(base_dir), meta.get("tokenizer_id")
    size, wanted = get_tokenizer(base_dir).get_vocab_size(), meta["model_config"]["vocab_size"]
    if (theirs or ours) != ours or size != wanted:
        raise ValueError(f"the tokenizer in {Path(base_dir) / 'tokenizer'} (id {ours[:12]}, {size} tokens) is not the "
                         f"one that {folder} was trained with (id {(theirs or 'unknown')[:12]}, {wanted} tokens); "
                         "put that tokenizer back, or name another checkpoint")
