"""
The order of a cell that runs on another tree. The subprocess nanochat/lab/trees/run.py reads it and carries it out.

The order is a file beside the records. The next attempt at the cell reads it too: with the same hash the run is
resumed, with another hash it starts anew.
"""

import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

from nanochat.code_identity import tree_hash
from nanochat.common import hash_json, read_json, write_json
from nanochat.config import profile_hash
from nanochat.lab.arms import Cell
from nanochat.lab.hardware import machine_name
from nanochat.lab.trees.flags import rename_words
from nanochat.lab.trees.score import SCORER, SERVER
from nanochat.options import flag
from nanochat.stage import BASE

READER = "nanochat/lab/trees/run.py"  # the code that runs a cell of another tree, and reads its result


def reader_hash(arms) -> str | None:
    """Hash of the code that reads and scores the results of other trees' cells; None if no arm runs another tree."""
    if not any(arm.tree_id for arm in arms):
        return None
    return hash_json([tree_hash(start=start) for start in (READER, SCORER, SERVER)])


def order_lock(home, tag: str) -> Path:
    """The file that the process of a cell holds locked while it carries out the order."""
    return Path(home) / "tree_cells" / f".{tag}.lock"


def tree_command(arm, cell: Cell, runner) -> list[str]:
    """Write the order of `cell` and return the command that carries it out.

    Raises ValueError when the tree was edited.
    """
    if tree_hash(arm.tree.path) != arm.tree.content:
        raise ValueError(f"arm {arm.name}: {arm.tree.path} changed since this protocol began; put it back and start "
                         "the protocol again to go on, or start it again to run the arm on the new code")
    path = Path(runner.home) / "tree_cells" / f"{cell.tag}.json"
    order = make_order(arm, cell, runner.home)
    try:
        same = read_json(path)["facts"]["config_hash"] == cell.config_hash
    except FileNotFoundError:
        same = False
    except (ValueError, KeyError, TypeError) as e:
        print(f"{e if isinstance(e, ValueError) else f'{path} is no order'}; {cell.title} starts anew")
        same = False
    write_json(path, {**order, "resume": same and not runner.fresh})
    return [sys.executable, "-m", "nanochat.lab.trees.run", str(path)]


def make_order(arm, cell: Cell, home) -> dict:
    config, argv = cell.config, list(arm.argv)
    if "--seed" in arm.known:
        argv.append(f"--seed={config.seed}")
    argv.append(f"--model-tag={cell.tag}")
    if arm.keeps_record:
        saves = config.save_every
    else:  # each validation leaves a meta file: the curve
        saves = config.eval_every
    if flag("save_every") in arm.known:
        argv.append(f"{flag('save_every')}={saves}")
    argv, kind = rename_words(argv, arm.renames), config.device_type or "cpu"
    return {
        "home": str(home), "tag": cell.tag, "tree": str(arm.tree.path), "argv": argv, "environment": arm.environment,
        "keeps_record": arm.keeps_record, "can_resume": "--resume" in arm.known,
        "renames": arm.renames,
        "facts": {
            "model_tag": cell.tag, "config": asdict(replace(config, save_every=saves)), "config_hash": cell.config_hash,
            "dataset_id": cell.dataset_id, "tokenizer_id": cell.tokenizer_id, **arm.tree.facts(),
            "profile_hash": profile_hash(config, kind, cell.dataset_id, cell.tokenizer_id),
            "device": {"kind": kind, "name": machine_name(kind) or None},
            "argv": argv, "command": _command(argv, arm.environment),
            **({"renames": arm.renames} if arm.renames else {}),
        },
    }


def _command(argv, environment) -> str:
    """The command as a user would type it in the tree."""
    variables = [f"{key}={value}" for key, value in environment.items() if value is not None]
    return shlex.join([*variables, "python", "-m", BASE.command, *argv])
