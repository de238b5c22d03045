"""
python -m pytest tests/test_stage.py -q
"""

import ast

import pytest

from nanochat.record import read_record
from nanochat.stage import BASE, STAGES, Stage
from tests.conftest import REPO_ROOT
from tests.tiny import make_base


def strings(path):
    """Constants of a module that are not docstrings or lines of text on their own."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [node.value for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose]


OWNER = REPO_ROOT / "nanochat" / "stage.py"
OTHERS = [path for path in sorted((REPO_ROOT / "nanochat").rglob("*.py")) if path != OWNER]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.relative_to(REPO_ROOT).as_posix())
def test_folders_and_commands_of_stages_are_written_in_one_place(path):
    names = [stage.checkpoint_root for stage in STAGES.values()] + [stage.command for stage in STAGES.values()]
    found = [text for text in strings(path) if any(name in text for name in names if name)]
    assert not found, f"{path.name} has {found}; take it from nanochat/stage.py"


def test_folders_are_those_of_upstream_and_no_two_stages_share_one():
    roots = {name: stage.checkpoint_root for name, stage in STAGES.items()}
    assert roots == {"base": "base_checkpoints", "sft": "chatsft_checkpoints", "rl": "chatrl_checkpoints"}
    assert STAGES["base"] is BASE and all(name == stage.name for name, stage in STAGES.items())


def test_the_command_of_a_stage_is_a_module_of_this_repository():
    for stage in STAGES.values():
        assert stage.command is None or (REPO_ROOT / (stage.command.replace(".", "/") + ".py")).is_file()


def test_another_stage_trains_saves_and_resumes_with_the_same_loop_in_its_own_folder(base_dir):
    from nanochat.checkpoint_manager import manifest_steps
    from nanochat.config import parse
    from nanochat.trainer import train
    from tests.tiny import TRAIN_FLAGS
    make_base(base_dir)
    stage = Stage("other", "other_checkpoints", "scripts.other_train")
    argv = [*TRAIN_FLAGS, "--num-iterations=2", "--save-every=1", "--model-tag=a"]
    facts = train(parse(argv), argv, stage)
    assert facts["status"] == "ok" and facts == read_record(base_dir, "a")
    assert facts["command"].startswith("python -m scripts.other_train --depth=2 ")
    assert manifest_steps(stage.folder(base_dir, "a")) == [1, 2] and not BASE.root(base_dir).exists()
    again = [*argv, "--resume-from-step=1"]
    assert train(parse(again), again, stage)["resumed_from_step"] == 1
