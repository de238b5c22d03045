"""
Patches on a checkout of any nanochat: check, apply, revert.

A diff is applied whole or not at all. A revert takes back the lines of the patch and no others, so unrelated edits
stay, also in the same files. Each applied patch is noted in the checkout's git directory, never among its files,
together with a copy. So a patch can be reverted even after its own file has changed. The three agree: all of them are
trees/patch_files.py. scripts/patch.py is the command.
"""

import os
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock

from nanochat.common import atomic_writer, read_json, write_json
from nanochat.lab.trees.checkouts import git_dir, head, open_tree
from nanochat.lab.trees.patch_files import Patch, changes, put, read_patch

NOTES = "nanochat_patches"  # in the git directory: a .json file, and a folder with the copies of patches


# -----------------------------------------------------------------------------
# Check, apply, revert

def why_not(tree, patch: Path, reverse=False) -> str | None:
    """None where the patch would apply, or with `reverse` come off; else why it would not."""
    try:
        changes(tree, patch, reverse)
    except ValueError as e:
        return str(e)
    return None


def check(tree, path) -> Patch:
    """Dry run: the patch, if it would apply. Raises ValueError if it would not, or if it is in the tree already."""
    tree, patch = open_tree(tree), read_patch(path)
    if find_note(tree, patch):
        raise ValueError(f"{patch.name} is applied to {tree} already; `make patch-revert` takes it back")
    # A patch with little context may apply a second time, so ask whether it could be taken back.
    if patch.adds and why_not(tree, patch.path, reverse=True) is None:
        raise ValueError(f"{patch.name} is in {tree} already, though not applied by `make patch-apply`; "
                         "nothing was changed")
    why = why_not(tree, patch.path)
    if why is None:
        return patch
    commit = f"made for {patch.base}" if patch.base else "without a Base: line"
    raise ValueError(f"{patch.name} ({commit}) does not apply to {tree} at {head(tree)}; nothing was changed:\n{why}")


def apply(tree, path) -> dict:
    """Apply a patch and note it. Returns the note: patch, sha256, base_commit (of the tree), applied_at.

    Raises ValueError where `check` does; the tree is then unchanged.
    """
    tree = open_tree(tree)
    with _locked(tree):
        patch = check(tree, path)
        note = {"patch": patch.name, "sha256": patch.sha256, "base_commit": head(tree),
                "applied_at": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        copy = _copy(tree, patch.sha256)
        with atomic_writer(copy) as f:
            f.write(patch.path.read_bytes())
        put(tree, copy)
        _write_notes(tree, [*read_notes(tree), note])
    return note


def revert(tree, path) -> dict:
    """Take an applied patch back, from the copy that `apply` kept; other edits stay. Returns the note.

    Raises ValueError, with the tree unchanged, for a patch that is not applied or whose lines were edited since.
    """
    tree, path = open_tree(tree), Path(os.path.expanduser(path))
    with _locked(tree):
        patch = read_patch(path) if path.exists() else None
        note = find_note(tree, patch) or find_note(tree, name=path.name)
        if note is None and patch is None:
            read_patch(path)  # raises the error that there is no such file
        if note is None:
            raise ValueError(f"{path.name} is not applied to {tree}; applied: {_names(read_notes(tree))}. "
                             "Nothing was changed")
        copy = _copy(tree, note["sha256"])
        if why := why_not(tree, copy, reverse=True):
            notes = read_notes(tree)
            later = notes[notes.index(note) + 1:]
            hint = f"revert {_names(later[::-1])} first, or" if later else "the lines were edited since:"
            raise ValueError(f"{path.name} cannot be taken back from {tree}; nothing was changed. "
                             f"{hint} undo the edits:\n{why}")
        put(tree, copy, reverse=True)
        _write_notes(tree, [other for other in read_notes(tree) if other != note])
        copy.unlink()
    return note


# -----------------------------------------------------------------------------
# Notes

def read_notes(tree) -> list[dict]:
    """The patches that `apply` put into the tree, in that order."""
    path = git_dir(tree) / f"{NOTES}.json"
    try:
        notes = read_json(path).get("applied")
    except FileNotFoundError:
        return []
    if not isinstance(notes, list) or not all({"patch", "sha256"} <= set(note) for note in notes):
        raise ValueError(f"{path} is damaged: expected the list of applied patches; undo them by hand and delete it")
    return notes


def find_note(tree, patch: Patch | None = None, name=None) -> dict | None:
    return next((n for n in read_notes(tree) if (patch and n["sha256"] == patch.sha256) or n["patch"] == name), None)


def _write_notes(tree, notes):
    write_json(git_dir(tree) / f"{NOTES}.json", {"applied": notes})


def _copy(tree, sha256) -> Path:
    return git_dir(tree) / NOTES / f"{sha256}.patch"


def _locked(tree):
    return FileLock(git_dir(tree) / f"{NOTES}.lock")


def _names(notes) -> str:
    return ", ".join(note["patch"] for note in notes) or "none"
