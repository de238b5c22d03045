"""
Stages of training: where each keeps its checkpoints, and which command runs it. Torch-free: the lab reads it too.

A base model with the tag d12 lies in base_checkpoints/d12, and its fine-tuned successor in chatsft_checkpoints/d12.
The folders have upstream's names, so that either project finds the other's checkpoints.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stage:
    name: str  # the `source` that load_model takes
    checkpoint_root: str  # folder under the base directory, with one folder in it for each model tag
    command: str | None = None  # module that trains the stage; None where only checkpoints made elsewhere are read

    def root(self, base_dir) -> Path:
        return Path(base_dir) / self.checkpoint_root

    def folder(self, base_dir, tag: str) -> Path:
        return self.root(base_dir) / tag

    def lock(self, base_dir, tag: str) -> Path:
        """The file that a trainer of this tag holds locked while it runs."""
        return self.root(base_dir) / f".{tag}.lock"

    def command_line(self, argv: list[str]) -> str:
        """The command of a run as its record states it, the same on every machine.

        >>> BASE.command_line(["--depth=4", "--run=my run"])
        "python -m scripts.base_train --depth=4 '--run=my run'"
        """
        return shlex.join(["python", "-m", self.command, *argv])


BASE = Stage("base", "base_checkpoints", "scripts.base_train")
STAGES = {stage.name: stage for stage in (BASE, Stage("sft", "chatsft_checkpoints"), Stage("rl", "chatrl_checkpoints"))}
