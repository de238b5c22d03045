"""
"Your own idea, in five lines" of the README, followed on a copy of the tree: one idea in each seam.

python -m pytest tests/test_own_idea.py -q

The copy gets the lines that the README asks for, and nothing else. Then the tests that go through the rows of a dict
are run in it, and a few training steps with each idea.
"""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPO_ROOT

from nanochat.record import read_record
from tests.tiny import TRAIN_FLAGS, make_base

COPIED = ("nanochat", "scripts", "tests", "ideas", "runs", "patches", "dev", "Makefile", "README.md", "pyproject.toml")
IDEAS = {  # flag -> (file of the class, the class, file of the dict, the dict's row)
    "--mlp=readme_cubed": ("nanochat/layers/mlp.py", """

class ReadmeCubed(ReluSquaredMLP):
    \"\"\"relu(x)^3.\"\"\"

    def forward(self, x, ctx):
        return self.c_proj(F.relu(self.c_fc(x)) ** 3), {}
""", "nanochat/gpt.py", ("MLPS", "readme_cubed", "ReadmeCubed", "nanochat.layers.mlp")),
    "--residual=readme_halved": ("nanochat/layers/residual.py", """

class ReadmeHalved(PlainResidual):
    \"\"\"s + y / 2.\"\"\"

    def write(self, s, x, y, carry, ctx):
        return s + y / 2
""", "nanochat/gpt.py", ("RESIDUALS", "readme_halved", "ReadmeHalved", "nanochat.layers.residual")),
    "--mixer=attention,readme_quiet --readme-divisor=3": ("nanochat/layers/attention.py", """

class ReadmeQuiet(CausalSelfAttention):
    \"\"\"Attention at a part of its strength, by an option of its own.\"\"\"

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        self.divisor = config.readme_divisor

    def forward(self, x, ctx):
        y, aux = super().forward(x, ctx)
        return y / self.divisor, aux
""", "nanochat/gpt.py", ("MIXERS", "readme_quiet", "ReadmeQuiet", "nanochat.layers.attention")),
    "--matrix-optimizer=readme_sign": ("nanochat/optim.py", """

class ReadmeSign:
    \"\"\"Steps of one size, against the sign of the gradient.\"\"\"
    defaults = dict(weight_decay=0.0)
    scheduled = ("weight_decay",)

    def __init__(self, polar_dtype, compile_update: bool):
        pass

    def step(self, group: dict, state: dict):
        for p in group["params"]:
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * p.grad.sign())


KINDS["readme_sign"] = ReadmeSign
""", None, None),
}
OPTION = """\
    readme_divisor: float = option(2.0, "divisor of quiet attention", model=True, check=positive, before=2.0)
"""
REGISTRY_TESTS = ("test_gpt.py", "test_blocks.py", "test_optim.py", "test_config.py", "test_config_record.py",
                  "test_options.py", "test_structure.py")


def add_row(tree, dict_name, row, class_name, module):
    """One row in the dict, and the import of its class: the second of the README's lines."""
    path = tree / "nanochat/gpt.py"
    text = path.read_text(encoding="utf-8")
    new = re.sub(rf"^({dict_name} = {{)", rf'\1"{row}": {class_name}, ', text, flags=re.MULTILINE)
    new = re.sub(rf"^(from {re.escape(module)} import )", rf"\1{class_name}, ", new, flags=re.MULTILINE)
    assert new.count(class_name) == 2
    path.write_text(new, encoding="utf-8")


def add_option(tree):
    """One line among the options: the third of the README's lines."""
    path = tree / "nanochat/config.py"
    text = path.read_text(encoding="utf-8")
    assert text.count("    # Parts of the model.") == 1
    path.write_text(text.replace("    # Parts of the model.", OPTION + "    # Parts of the model."), encoding="utf-8")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("own") / "nanochat-lab"
    for name in COPIED:
        copy = shutil.copytree if (REPO_ROOT / name).is_dir() else shutil.copy
        root.mkdir(exist_ok=True)
        copy(REPO_ROOT / name, root / name)
    for file, text, _, row in IDEAS.values():
        with open(root / file, "a", encoding="utf-8") as f:
            f.write(text)
        if row:
            add_row(root, *row)
    add_option(root)
    return root


def python(tree, *words, **environment):
    return subprocess.run([sys.executable, *words], cwd=tree, capture_output=True, text=True,
                          env={**os.environ, **environment})


@pytest.mark.slow
def test_the_tests_pass_with_a_new_row_in_every_dict(tree):
    tests = [f"tests/{name}" for name in REGISTRY_TESTS]
    run = python(tree, "-m", "pytest", "-q", "-m", "not slow and not gpu", *tests)
    assert run.returncode == 0, run.stdout[-3000:]
    assert all(word in python(tree, "-m", "pytest", "--collect-only", "-q", "tests/test_gpt.py").stdout
               for word in ("readme_cubed", "readme_halved", "readme_quiet"))


def test_a_row_is_a_flag_and_each_idea_trains_to_another_loss(tree, tmp_path):
    make_base(tmp_path)
    losses = {}
    for i, flags in enumerate(["", *IDEAS]):
        run = python(tree, "-m", "scripts.base_train", *TRAIN_FLAGS, f"--model-tag=t{i}", *flags.split(),
                     NANOCHAT_BASE_DIR=str(tmp_path))
        assert run.returncode == 0, run.stderr
        losses[flags] = read_record(tmp_path, f"t{i}")["results"]["final_train_loss"]
    assert len(set(losses.values())) == len(losses)


def test_an_idea_is_checked_as_an_arm_before_anything_is_trained(tree):
    words = ("-c", "import sys; from dataclasses import asdict; from nanochat.cost import resolve; "
             "from nanochat.lab.arms import make_arms, refuse_rounded; arms = make_arms(sys.argv[1:], ['--depth=2']); "
             "refuse_rounded(arms, [asdict(resolve(arm.config, 300)) for arm in arms]); print(len(arms))")
    run = python(tree, *words, *(f"idea{i}: {flags}" for i, flags in enumerate(IDEAS)))
    assert run.stdout.strip() == str(len(IDEAS) + 1), run.stderr
    run = python(tree, *words, "typo: --mlp=readme_cubd")
    said = "--mlp=readme_cubd: there is no such row; the rows are"
    assert run.returncode and said in run.stderr and "readme_cubed" in run.stderr
