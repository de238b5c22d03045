"""
Arms that run another tree: any nanochat checkout, or a tree (this one too) with patches applied.

    --arm "control: tree=../nanochat patch=patches/nanochat_seed.patch"
    --arm "gate: tree=../nanochat patch=patches/nanochat_seed.patch patch=patches/x.patch flags=--symplectic-gate"
    --arm "idea: patch=patches/idea.patch"                                  (this repository with a patch)
    --arm "other: tree=../other rename=matrix-lr:lr-matrix"   (a trainer that has our --matrix-lr as --lr-matrix)

A patched arm runs in a git worktree of its own. It is made from the tree's HEAD under <base dir>/lab/trees/ and kept
for the next time; the tree itself is never touched. Every flag is checked against the tree's own --help before any
cell runs. trees/flags.py turns a profile into flags of that tree; trees/run.py runs one cell and writes its record.
"""

import os
import re
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from nanochat.code_identity import CODE_DIRS, code_files, tree_hash, tree_hash_of_0_1
from nanochat.common import REPO_ROOT, hash_json, read_json, write_json
from nanochat.config import FIELDS
from nanochat.git import git_state, run_git
from nanochat.lab.arms import CONTROL, Arm, make_arms, parse_arm, split_flags
from nanochat.lab.trees.checkouts import git, head, open_tree
from nanochat.lab.trees.flags import check_values, group_words, known_flags, read_renames, rename_words, settle
from nanochat.lab.trees.orders import tree_command
from nanochat.lab.trees.patch_files import Patch, put, read_patch
from nanochat.lab.trees.score import is_scored
from nanochat.options import flag, tagged

SEED_PATCH = "patches/nanochat_seed.patch"
OF_EVERY_CELL = {*map(flag, (*tagged(FIELDS, "cell", "name"), "save_every", "resume"))}  # added to an arm's own flags


@dataclass(frozen=True)
class TreeSpec:
    """An arm's text in its parts: tree, patches, flags, renamed flags."""
    tree: str | None  # None = this repository
    patches: tuple[str, ...]
    flags: str
    renames: tuple[str, ...] = ()  # "OURS:THEIRS" each


@dataclass(frozen=True)
class Tree:
    """The code that an arm runs. `content` is the hash of the files that can change a run's numbers."""
    path: Path  # where it runs: the checkout itself, or a worktree of it with the patches
    source: Path
    commit: str | None
    dirty: bool | None
    patches: tuple[Patch, ...]
    content: str

    def facts(self) -> dict:
        return {"tree": str(self.source), "git_commit": self.commit, "dirty": self.dirty, "tree_hash": self.content,
                "patch_hash": "+".join(patch.sha256 for patch in self.patches) or None,
                "patches": [{"name": patch.name, "sha256": patch.sha256, "base": patch.base} for patch in self.patches]}


@dataclass(frozen=True)
class TreeArm(Arm):
    """Arm.flags is the arm's whole text; Arm.config holds the options in it that our own parser knows."""
    tree: Tree | None = None
    argv: tuple[str, ...] = ()  # of the tree's trainer, without the flags that name or seed a cell
    environment: dict = field(default_factory=dict)  # variables in place of flags that the trainer lacks
    known: frozenset = frozenset()  # flags of the tree's trainer, and ours that it has under another name
    renames: dict = field(default_factory=dict)  # {our flag: its flag}; argv has ours

    @property
    def tree_id(self) -> str:
        """A flag that is renamed and never given makes no other arm: its labels would be counted from 1 again."""
        given = {word.partition("=")[0] for word in self.argv} | OF_EVERY_CELL
        renames = {old: new for old, new in self.renames.items() if old in given}
        return hash_json({"commit": self.tree.commit, "patches": [patch.sha256 for patch in self.tree.patches],
                          "content": self.tree.content, "argv": self.argv, "environment": self.environment,
                          **({"renames": renames} if renames else {})})

    @property
    def argument(self) -> str:
        return f"--arm={self.name}: {self.flags}"

    @property
    def keeps_record(self) -> bool:
        """True if its trainer writes records as ours does. Otherwise records are made from its meta files."""
        return (self.tree.path / "nanochat" / "record.py").exists()

    def is_complete(self, record, cell) -> bool:
        return is_scored(record, cell.config.eval_every)

    def command(self, cell, runner, resume: bool) -> list[str]:
        return tree_command(self, cell, runner)


# -----------------------------------------------------------------------------
# From text to arms

def names_tree(text: str) -> bool:
    return bool(re.match(r"\s*(tree|patch|rename)=", text))


def split_spec(text: str) -> TreeSpec:
    """
    >>> split_spec("tree=../nanochat patch=a.patch patch=b.patch flags=--symplectic-gate --depth=4")
    TreeSpec(tree='../nanochat', patches=('a.patch', 'b.patch'), flags='--symplectic-gate --depth=4', renames=())
    """
    start = re.search(r"(?:^|\s)(flags=|--)", text)
    heads, flags = (text[:start.start()], text[start.start():].strip().removeprefix("flags=")) if start else (text, "")
    found = {"tree": [], "patch": [], "rename": []}
    for word in split_flags("arm", heads):
        key, _, value = word.partition("=")
        if key not in found or not value:
            raise ValueError(f"{word!r} is not understood; expected tree=PATH, patch=FILE..., rename=OURS:THEIRS... "
                             "and flags=... last")
        found[key].append(value)
    if len(found["tree"]) > 1:
        raise ValueError("an arm runs one tree; the others are arms of their own")
    if len(set(found["patch"])) < len(found["patch"]):
        raise ValueError(f"{text!r}: a patch is applied once")
    return TreeSpec(next(iter(found["tree"]), None), tuple(found["patch"]), flags, tuple(found["rename"]))


def make_all_arms(candidates, arm_texts, common, base_dir) -> list[Arm]:
    """All arms, the control first. arm_texts: "NAME: [tree=PATH] [patch=FILE]... [rename=...]... [flags=...]" each.

    An arm named control takes the place of the profile's own. Raises ValueError naming the arm.
    """
    arms = {arm.name: arm for arm in make_arms(list(candidates), common)}
    named = set(arms) - {CONTROL}
    for text in arm_texts:
        name, colon, rest = text.partition(":")
        name, rest = name.strip(), rest.strip()
        if not colon:
            raise ValueError(f"--arm={text!r}: expected 'NAME: tree=PATH patch=FILE flags=...'")
        if name in named:
            raise ValueError(f"arm {name}: the name is taken; every arm needs its own")
        named.add(name)
        if names_tree(rest):
            arms[name] = parse_tree_arm(name, rest, common, base_dir)
        elif name == CONTROL:
            raise ValueError(f"--arm={text!r}: the control is the profile; "
                             "give it a tree= or a patch=, and flags for all arms in --flags")
        else:
            arms[name] = parse_arm(name, rest.removeprefix("flags="), common)
    return list(arms.values())


def parse_tree_arm(name, text, common, base_dir) -> TreeArm:
    """The arm, its worktree made and its flags checked. Raises ValueError naming the arm."""
    try:
        spec = split_spec(text)
        tree = prepare(spec, base_dir)
        known = known_flags(tree.path, tree.content)
        renames = read_renames(spec.renames, known)
        known |= renames.keys()
        groups = group_words(split_flags(f"arm {name}", spec.flags))
        own = parse_arm(name, shlex.join(word for group in groups if group.ours for word in group.words), common)
        config, argv, environment = settle(own.config, common, groups, known)
        check_values(tree.path, rename_words(argv, renames))
    except ValueError as e:
        raise ValueError(str(e) if str(e).startswith(f"arm {name}:") else f"arm {name}: {e}") from e
    return TreeArm(name, text, config, tree, argv, environment, known, renames)


def check_seeds(arms: list[Arm], seeds: list[int]):
    """Raise ValueError for several seeds and a trainer without --seed: it would repeat one run under several names."""
    for arm in arms:
        if arm.tree_id and "--seed" not in arm.known and len(seeds) > 1:
            raise ValueError(f"arm {arm.name}: the trainer of {arm.tree.source} has no --seed, "
                             f"so {len(seeds)} seeds would be the same run again; "
                             f"give one seed, or add patch={SEED_PATCH} to EVERY arm on that tree")


def provenance(arms: list[Arm]) -> dict:
    """Trees and patches of a protocol's arms; {} where every arm runs this repository as it is."""
    trees = {arm.name: arm.tree.facts() for arm in arms if arm.tree_id}
    foreign = [arm.tree.commit for arm in arms if arm.tree_id and arm.tree.source != REPO_ROOT]
    patch_hashes = sorted({facts["patch_hash"] for facts in trees.values() if facts["patch_hash"]})
    return {"trees": trees, "upstream_commit": next(iter(foreign), None),
            "patch_hash": " ".join(patch_hashes) or None} if trees else {}


# -----------------------------------------------------------------------------
# Trees

def prepare(spec: TreeSpec, base_dir) -> Tree:
    """The tree that an arm runs: the checkout itself where there is no patch, otherwise a worktree with the patches."""
    source = REPO_ROOT if spec.tree is None else Path(os.path.expanduser(spec.tree)).resolve()
    if not source.is_dir():
        raise ValueError(f"tree={spec.tree}: no such folder; `make upstream` makes a checkout and prints its path")
    if not (source / "scripts" / "base_train.py").is_file():
        raise ValueError(f"tree={spec.tree} is no nanochat: it has no scripts/base_train.py; "
                         "`make upstream` makes a checkout of one and prints its path")
    if not spec.patches:
        state = git_state(source)
        return Tree(source, source, state["git_commit"], state["dirty"], (), tree_hash(source))
    return worktree(open_tree(source), tuple(read_patch(path) for path in spec.patches), base_dir)


def worktree(source: Path, wanted: tuple[Patch, ...], base_dir) -> Tree:
    """A worktree of source's HEAD with the patches, in order. The same commit and patches share one worktree.

    Raises ValueError for a source with uncommitted changes, and for a worktree that was changed after it was made.
    """
    if changed := uncommitted(source):
        raise ValueError(f"{source} has changes that are not committed, and a patched arm would run without them; "
                         "commit or undo them, or make them a patch:\n" + "\n".join(changed))
    commit = head(source)
    folder = Path(base_dir).resolve() / "lab" / "trees" / hash_json([commit, [patch.sha256 for patch in wanted]])[:16]
    note = folder.with_name(f"{folder.name}.json")  # written last: a worktree without it is unfinished
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if not (note.exists() and folder.is_dir()):
            _discard(source, folder)
            _make(source, commit, wanted, folder)
            write_json(note, {"source": str(source), "commit": commit, "patches": [patch.sha256 for patch in wanted],
                              "code_hash": tree_hash(folder)})
        content, made = tree_hash(folder), read_json(note)
        if made.get("code_hash", content) != content or made.get("tree_hash", old := tree_hash_of_0_1(folder)) != old:
            raise ValueError(f"{folder} is not what it was made as; it belongs to the protocol: "
                             f"delete it and {note.name}, it is made anew")
    return Tree(folder, source, commit, False, wanted, content)


def uncommitted(source: Path) -> list[str]:
    """Files that can change a run's numbers and differ from the tree's HEAD, deleted ones included."""
    def names(*words) -> set[str]:
        return set(filter(None, git(source, *words).split("\0")))
    diff = ("diff", "--name-only", "--no-renames", "-z")
    counted = {path.relative_to(source.resolve()).as_posix() for path in code_files(source)}
    changed = names(*diff, "HEAD") | names("ls-files", "--others", "--exclude-standard", "-z")
    return sorted(changed & counted | names(*diff, "--diff-filter=D", "HEAD", "--", *CODE_DIRS))


def _make(source, commit, wanted, folder):
    # The same bytes on every system, because code is compared by its hash.
    git(source, "-c", "core.autocrlf=false", "worktree", "add", "--quiet", "--force", "--detach", folder, commit)
    for patch in wanted:
        try:
            put(folder, patch.path)
        except ValueError as e:
            _discard(source, folder)
            before = [other.name for other in wanted[:wanted.index(patch)]]
            raise ValueError(f"{patch.name} does not apply to {source} at {commit}"
                             + (f" after {', '.join(before)}" if before else "") + f":\n{e}") from e


def _discard(source, folder):
    """Remove a worktree that is unfinished, with its note, so that it can be made again."""
    if folder.exists():
        run_git(source, "worktree", "remove", "--force", str(folder))
        shutil.rmtree(folder, ignore_errors=True)
    folder.with_name(f"{folder.name}.json").unlink(missing_ok=True)
    run_git(source, "worktree", "prune")
