"""
Checkpoints that survive a kill, a full disk or a reboot at any moment.

A step is four files. The first three are written under temporary names; then each is fsynced and renamed, in this
order: optim_%06d_rank0.pt, meta_%06d.json, model_%06d.pt. Last comes manifest_%06d.json, with the size and hash of the
others. With several ranks, each writes an optimizer file named after its rank, and rank 0 writes the rest.
A step counts only when its manifest is there, names exactly these files, and every file matches it.

The first three files have upstream's names and formats, so each project loads the other's checkpoints. Upstream
writes no manifest: a step without manifest is used when it is named, or when the folder has no manifest at all.
"""

import contextlib
import hashlib
import json
import pickle
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


# -----------------------------------------------------------------------------
# Writing

# Eight parameters: the folder and step, the three parts of a checkpoint, how long it is kept, and the ranks.
def save_checkpoint(folder, step: int, model_state: dict, optim_state: dict | None, meta: dict, keep_last: int = -1,
                    ranks: Ranks = ONE_RANK, timed: bool = False):
    """Write one whole step, then delete the older steps that it makes superfluous. Every rank calls it.

    keep_last: N keeps the newest N steps. -1 keeps all but those that were saved with timed=True: each later step takes
    the place of a timed one. The caller holds the lock of the tag, because what killed saves have left is deleted too.
    """
    folder = Path(folder)
    names = file_names(step, ranks.rank)
    parts = [] if optim_state is None else [(names["optim"], optim_state)]
    if ranks.rank == 0:
        parts += [(names["meta"], meta), (names["model"], model_state)]
    with contextlib.ExitStack() as stack:  # all is written before the first rename: a full disk changes nothing
        for name, part in reversed(parts):  # a stack is left in the opposite order
            f = stack.enter_context(atomic_writer(folder / name))
            f.write(_json(part)) if part is meta else _save(part, f)
            f.flush()
        if ranks.rank == 0:
            manifest_path(folder, step).unlink(missing_ok=True)  # a step written again is not whole meanwhile
        ranks.any(False)  # no rank replaces an old file before the manifest with that file's hash is gone
    ranks.any(False)  # the manifest is written only after the files of all ranks
    if ranks.rank == 0:
        optim = [] if optim_state is None else [file_names(step, r)["optim"] for r in range(ranks.world_size)]
        files = {name: _entry(folder / name) for name in (*optim, names["meta"], names["model"])}
        write_json(manifest_path(folder, step), {"step": step, "files": files} | ({"timed": True} if timed else {}))
        _sweep(folder, step, keep_last)
    ranks.any(False)  # no rank begins the next save while this one is swept


def _save(part: dict, f):
    try:
        torch.save(part, f)
    except RuntimeError as e:  # torch closes its archive after a full disk or a Ctrl-C, and that error hides the reason
        if isinstance(e.__context__, (OSError, KeyboardInterrupt)):
            raise e.__context__ from None
        raise


def _json(obj) -> bytes:
    return (json.dumps(obj, indent=2, allow_nan=False) + "\n").encode("utf-8")


def _entry(path: Path) -> dict:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def replace_meta(folder, step: int, meta: dict):
    """Write the meta file of a whole step again. The step is whole at every moment: for a while its manifest allows the
    old and the new file."""
    path, manifest = Path(folder) / file_names(step)["meta"], manifest_path(folder, step)
    if not manifest.exists():  # upstream's step
        return write_json(path, meta)
    told, text = read_json(manifest), _json(meta)
    new = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    told["files"][path.name] = {**_entry(path), "next": new}
    write_json(manifest, told)
    write_json(path, meta)
    told["files"][path.name] = new
    write_json(manifest, told)


def _sweep(folder: Path, step: int, keep_last: int):
    """Delete the steps that `step`, just written, makes superfluous, and what killed saves have left.

    Steps of a higher number stay. They are of an earlier run, which was resumed from a step before them.
    """
    older = [old for old in manifest_steps(folder) if old < step]
    spare = older[:len(older) + 1 - keep_last] if keep_last > 0 else [old for old in older if _timed(folder, old)]
    for old in spare:
        delete_step(folder, old)
    sweep_remains(folder)
    for old in set(_steps(folder, r"model_(\d+)\.pt")) - set(manifest_steps(folder)):
        if _is_ours(folder, old):  # killed between its last file and its manifest; upstream's are never touched
            delete_step(folder, old)


def sweep_remains(folder):
    """Delete temporary files, and steps without manifest and model: no reader can use them. The model is renamed last,
    and deleted first. The caller holds the lock of the tag."""
    folder = Path(folder)
    usable = set(manifest_steps(folder)) | set(_steps(folder, r"model_(\d+)\.pt"))
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        match = re.fullmatch(r"(?:meta|optim)_(\d+)(?:_rank\d+)?\.(?:json|pt)", path.name)
        if (match and int(match[1]) not in usable) or re.fullmatch(
                r"\.(?:optim|meta|model|manifest)_\d+\w*\.(?:json|pt)\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def _timed(folder, step: int) -> bool:
    try:
        return read_json(manifest_path(folder, step)).get("timed") is True
    except (OSError, ValueError):
        return False


def _is_ours(folder, step: int) -> bool:
    try:
        return "run_id" in read_json(Path(folder) / file_names(step)["meta"])
    except (OSError, ValueError):
        return False


def delete_step(folder, step: int):
    folder = Path(folder)
    manifest_path(folder, step).unlink(missing_ok=True)  # first, so that a kill leaves no half step that looks whole
    fsync_dir(folder)
    names = file_names(step)
    for name in (names["model"], names["meta"], *(path.name for path in folder.glob(f"optim_{step:06d}_rank*.pt"))):
        (folder / name).unlink(missing_ok=True)


# -----------------------------------------------------------------------------
# Finding

def _steps(folder, pattern: str) -> list[int]:
    folder = Path(folder)
    matches = [re.fullmatch(pattern, p.name) for p in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(m.group(1)) for m in matches if m)


def manifest_steps(folder) -> list[int]:
    return _steps(folder, r"manifest_(\d+)\.json")


def is_whole(folder, step: int) -> bool:
    """Whether the manifest of this step is readable and names exactly the files of the step, and every file has the
    size and hash that it states."""
    return fault_of(folder, step) is None


def fault_of(folder, step: int) -> str | None:
    """Why a step with a manifest is not whole, in words; None for a whole step."""
    path = manifest_path(folder, step)
    try:
        told = read_json(path)
    except (OSError, ValueError) as e:
        return str(e)
    files, names = told.get("files"), file_names(step)
    if told.get("step") != step or not isinstance(files, dict):
        return f"{path.name} is not the manifest of step {step}"
    optim = [file_names(step, rank)["optim"] for rank in range(len(files) - 2)]
    if set(files) != {names["meta"], names["model"], *optim}:
        return f"{path.name} does not name the files of step {step}"
    return next((f"{name} does not match {path.name}" for name, entry in files.items()
                 if not _matches(Path(folder) / name, entry)), None)


def _matches(path: Path, entry) -> bool:
    """Whether the file has the size and hash of its entry, or those of the file that is about to replace it."""
    if not isinstance(entry, dict):
        return False
    try:
        found = {"bytes": path.stat().st_size}
        allowed = [e for e in (entry, entry.get("next")) if isinstance(e, dict) and e.get("bytes") == found["bytes"]]
        return bool(allowed) and sha256_file(path) in [e.get("sha256") for e in allowed]
    except OSError:
        return False


def find_last_step(folder) -> int | None:
    """Newest whole step; in a folder without any manifest (upstream's), the newest step whose meta can be read.

    None where no step can be used. Every step that is passed over is named, with its fault.
    """
    steps = manifest_steps(folder)
    for step in reversed(steps or _steps(folder, r"model_(\d+)\.pt")):
        fault = fault_of(folder, step) if steps else _fault_of_meta(folder, step)
        if fault is None:
            return step
        print0(f"Skipping step {step} of {folder}: {fault}")
    return None


def _fault_of_meta(folder, step: int) -> str | None:
    try:
        read_json(Path(folder) / file_names(step)["meta"])
    except (OSError, ValueError) as e:
        return str(e)
    return None


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
    if manifest_path(folder, step).exists() and (fault := fault_of(folder, step)):
        raise ValueError(f"step {step} of {folder} is damaged: {fault}; name another step, or resume with --resume, "
                         "which takes the newest whole one")

    def load(kind):
        try:
            return torch.load(folder / names[kind], map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as e:
            if isinstance(e, torch.OutOfMemoryError):
                raise
            reason = (str(e).strip() or "it is empty").splitlines()[0]
            raise ValueError(f"{folder / names[kind]} cannot be read ({reason}); name another step") from None
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
