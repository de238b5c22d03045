"""
The marks of a run on other code: its patches, the commit of its tree, and whose evaluator gave its val_bpb.

    nanochat_seed.patch 1a2b3c4d, nanochat 92d63d4, own evaluator

The ledger has the hash of patches in a column. The other marks stand in the column of versions, as nanochat=92d63d4...
beside torch=2.13.0: the columns of a ledger never change, and a tree is another version of nanochat.
"""

import os

from nanochat.common import REPO_ROOT

LETTERS = 8  # of a patch's hash
COMMIT = 7
SAYS = {"own": "own evaluator", "refused": "refused by the control's evaluator"}


def versions_of_tree(record: dict) -> dict:
    """What the column of versions says of the run of another tree; {} where the run was this repository as it is."""
    if not record.get("tree"):
        return {}
    foreign = os.path.realpath(record["tree"]) != os.path.realpath(REPO_ROOT)
    names = ["_".join(patch["name"].split()).replace("+", "_") for patch in record.get("patches") or []]
    found = {"nanochat": record.get("git_commit") or "unknown"} if foreign else {}
    found |= {"patches": "+".join(names)} if names else {}
    results = record.get("results") or {}
    word = "refused" if results.get("fault") else "own" if results.get("evaluator") == "own" else None
    return found | ({"evaluator": word} if word else {})


def marks_of_row(row: dict) -> str:
    """The marks of a ledger row, for a reader; empty where its run was this repository as it was.

    >>> marks_of_row({"patch_hash": "1a2b3c4d5e", "versions": "torch=2.13.0 nanochat=92d63d4e8bb4 patches=seed.patch"})
    'nanochat 92d63d4, seed.patch 1a2b3c4d'
    """
    versions = dict(word.partition("=")[::2] for word in (row.get("versions") or "").split())
    hashes, names = ((text or "").split("+") for text in (row.get("patch_hash"), versions.get("patches")))
    if len(names) != len(hashes) or names == [""]:
        names = ["patch"] * len(hashes)
    marks = [f"nanochat {versions['nanochat'][:COMMIT]}"] if "nanochat" in versions else []
    marks += [f"{name} {sha[:LETTERS]}" for name, sha in zip(names, hashes) if sha]
    says = SAYS.get(versions.get("evaluator"))
    return ", ".join([*marks, *([says] if says else [])])
