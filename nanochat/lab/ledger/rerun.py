"""
Run a row of the ledger again, and compare: the row's command, at its commit, in a worktree outside the tree.

The new run gets a model tag of its own, such as nc_mix005_d4_gate_s1337_rerun. So the artifacts of the first run stay
where they are. Everything else is the command to the letter. On a CPU, without compiling, with the same threads and
versions, val_bpb is equal to the last bit.
"""

import contextlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nanochat.code_identity import tree_hash, tree_hash_of_0_1
from nanochat.common import (
    REPO_ROOT,
    child_environment,
    paste_command,
    paste_setting,
    read_json,
    temporary_folder,
)
from nanochat.config import FIELDS
from nanochat.git import run_git
from nanochat.lab import own_data
from nanochat.lab.commands import RESULTS_DIR
from nanochat.lab.ledger.workload import words_of
from nanochat.lab.profiles import PROFILES
from nanochat.lab.runs import RunSummary
from nanochat.options import flag, tagged
from nanochat.record import read_record
from nanochat.stage import BASE

# Options that are dropped from the command: the name of the first run, and the step from which it was resumed. The seed
# stays: a cell is given its seed too, but the seed is part of the run.
OF_THE_FIRST_RUN = tuple(name for name in tagged(FIELDS, "cell") if FIELDS[name].role == "run")
HASH_LETTERS = 8


@dataclass
class Rerun:
    row: dict
    home: Path  # base dir that holds its data and tokenizer
    repo: Path = REPO_ROOT

    def __post_init__(self):
        number = f"row {self.row['row']}"
        if not self.row["command"] or not words_of(self.row):
            raise ValueError(f"{number} has no command of {BASE.command}: it was imported, or its run left no record")
        if not self.row["git_commit"]:
            raise ValueError(f"{number} has no commit: it was run outside git, and its code cannot be had again")

    @property
    def tag(self) -> str:
        return f"{self.row['run_id']}_rerun"

    def describe(self) -> str:
        row = self.row
        changed = "  # and changes that were not committed" if row["dirty"] else ""
        lines = [f"git checkout {row['git_commit']}{changed}"]
        lines += [f"git apply  # the patch {row['patch_hash']}"] if row["patch_hash"] else []
        # A patched tree has no .venv of its own.
        command = row["command"] if row["patch_hash"] else paste_command(row["command"])
        return "\n".join([*lines, paste_setting("NANOCHAT_BASE_DIR", self.home), command])

    def refuse_patched(self):
        """Raise ValueError for a row whose run had a patch, because the row keeps only the hash of the patch.

        The message gives the command of the row's protocol, which applies the patch and runs the cell anew.
        """
        if not self.row["patch_hash"]:
            return
        label = self.row["label"] or "protocol"
        path = RESULTS_DIR / f"{label}_latest.json"
        command = protocol_of(self.row, path)
        instead = f"\n  {paste_command(command)} --fresh" if command else \
            f" the command of label {label}, with the same --arm and --fresh ({path}, where it would stand, " \
            "is not of this run)"
        raise ValueError(f"row {self.row['row']} ran with a patch, and a row keeps the hash of a patch "
                         f"({self.row['patch_hash'][:HASH_LETTERS]}), not its text and not its tree: it cannot be "
                         f"made again from the row alone. Run its protocol anew, which applies the patch:{instead}")

    def argv(self) -> list[str]:
        """The options of the command, under this run's own tag."""
        dropped, words = tuple(map(flag, OF_THE_FIRST_RUN)), iter(words_of(self.row))
        kept = []
        for word in words:
            if word.partition("=")[0] not in dropped:
                kept.append(word)
            elif "=" not in word and word != flag("resume"):
                next(words, None)  # its value is the next word
        return [*kept, f"{flag('model_tag')}={self.tag}"]

    def run(self, say=print) -> dict:
        """Run the row again; returns the new record. Raises ValueError without its commit, or without a new record."""
        self.refuse_patched()
        with worktree(self.row["git_commit"], self.repo) as tree:
            if self.row["tree_hash"] and self.row["tree_hash"] not in (tree_hash(tree), tree_hash_of_0_1(tree)):
                say("the code of the commit is not the code of the row, which had changes that were not committed")
            environment = child_environment(NANOCHAT_BASE_DIR=self.home, OMP_NUM_THREADS=self.row["threads"] or 1)
            before = read_record(self.home, self.tag)
            command = [sys.executable, "-m", BASE.command, *self.argv()]
            code = subprocess.run(command, cwd=tree, env=environment).returncode
        record = read_record(self.home, self.tag)
        if record is None or record == before:
            raise ValueError(f"the run ended with exit code {code} and left no record")
        return record

    def compare(self, record: dict) -> tuple[bool, list[str]]:
        """(True if val_bpb is equal to the last bit, lines that name differences and the result)."""
        old, new = self.row["val_bpb"], (record.get("results") or {}).get("val_bpb")
        same = ("dataset_id", "tokenizer_id", "threads", "tree_hash")
        lines = [f"{name}: {self.row[name]} then, {record.get(name)} now"
                 for name in same if self.row[name] != record.get(name)]
        versions = " ".join(f"{name}={version}" for name, version in (record.get("versions") or {}).items())
        lines += [f"versions: {self.row['versions']} then, {versions} now"] if self.row["versions"] != versions else []
        if record.get("status") != self.row["status"] or old is None or new is None:
            return False, [*lines, f"not reproduced: {self.row['status']} with val_bpb {old} then, "
                                   f"{record.get('status')} with {new} now"]
        if old == new:
            return True, [*lines, f"reproduced: val_bpb {new} to the last bit"]
        return False, [*lines, f"not reproduced: val_bpb {old} then, {new} now, a difference of {new - old:+.3g}"]


def protocol_of(row: dict, path) -> str | None:
    """The command of the protocol whose result file is at `path`; None if the row's run is not in that file."""
    try:
        facts = read_json(path)
        runs = [RunSummary.from_json(run, path) for run in facts["runs"]]
        known = {(run.run_id, run.config_hash) for run in runs}
        return facts["settings"]["command"] if (row["run_id"], row["config_hash"]) in known else None
    except (OSError, ValueError, KeyError, TypeError):  # the message of refuse_patched names the file
        return None


def home_of(row: dict, base_dir) -> Path:
    """Base dir of the row's run: that of its profile, if the profile is known here, else `base_dir`. A row whose data
    are not those of that folder ran on a corpus of the user's own: the folder of that corpus, if it is here."""
    home = PROFILES[row["profile"]].home(base_dir) if row["profile"] in PROFILES else Path(base_dir).resolve()
    if row["dataset_id"] in (None, own_data.dataset_id(home)):
        return home
    others = (own_data.home_of(name, base_dir) for name in own_data.names(base_dir))
    return next((other for other in others if own_data.dataset_id(other) == row["dataset_id"]), home)


@contextlib.contextmanager
def worktree(commit: str, repo=REPO_ROOT):
    """A checkout of `commit` in a temporary folder; the repository's own tree is not touched."""
    def git(*args):
        code, _, said = run_git(repo, *args)
        if code:
            raise ValueError(f"git {args[0]}: {said.strip()}; is commit {commit[:12]} in {repo}? fetch it first; "
                             "a run of another tree (--arm tree=...) is made again by its protocol")
    with temporary_folder("nanochat-rerun-") as folder:
        tree = folder / "tree"
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))
