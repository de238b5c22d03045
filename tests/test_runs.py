"""
The recipes in runs/, run with a `python` that only writes down its arguments. So flags are checked as bash expands
them.

python -m pytest tests/test_runs.py -q
"""

import ast
import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from nanochat.config import parse
from nanochat.config_check import model_shape
from nanochat.record import RunRecord
from nanochat.schedule import grad_accum_steps

ROOT = Path(__file__).resolve().parent.parent
NOT_YET = ("fusion.sh",)  # its flags come later; tests/test_templates.py tests its behaviour until then
LONGER = {"lane_b.sh": 50}  # five commands, each with its flags
FALLS_BACK = {"lane_b.sh": 3}  # nothing is inferred on the stage, and a fallback is no success
RECIPES = sorted(path for path in (ROOT / "runs").glob("*.sh") if path.name != "common.sh")
TRAINER = "scripts.base_train"

pytestmark = pytest.mark.skipif(not shutil.which("bash") or os.name == "nt",
                                reason="no bash, or none that starts a shell script in place of Python")
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
each_that_runs = pytest.mark.parametrize("recipe", [path for path in RECIPES if path.name not in NOT_YET],
                                         ids=lambda path: path.name)


@pytest.mark.parametrize("script", [*(ROOT / "runs").glob("*.sh"), ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_script_is_valid_bash(script):
    run = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@each_recipe
def test_recipe_is_short_strict_and_says_what_to_expect(recipe):
    lines = recipe.read_text(encoding="utf-8").splitlines()
    assert 15 <= len(lines) <= LONGER.get(recipe.name, 40)
    assert "set -euo pipefail" in lines and 'source "$(dirname "$0")/common.sh"' in lines
    header = " ".join(line for line in lines[:lines.index("set -euo pipefail")]).lower()
    assert all(word in header for word in ("hardware", "time", "expect"))


class Stage:
    """Runs a recipe; `python -` (the skip check of common.sh) is real, every other call is written down."""

    def __init__(self, tmp_path, base_dir):
        self.calls_path, self.base_dir = tmp_path / "calls.jsonl", base_dir
        self.bin = tmp_path / "bin"
        self.bin.mkdir()
        python = self.bin / "python"
        python.write_text("#!/bin/bash\n"
                          f'if [ "$1" = - ]; then exec {shlex.quote(sys.executable)} "$@"; fi\n'
                          f'{shlex.quote(sys.executable)} -S -c "import json, sys; print(json.dumps(sys.argv[1:]))" '
                          '"$@" >> "$CALLS"\n'
                          'case " $* " in *" $FAIL_AT "*) exit 7;; esac\n')
        python.chmod(0o755)

    def run(self, recipe, fail_at="no module", **env):
        self.calls_path.write_text("")
        env = {**os.environ, "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}", "SKIP_SETUP": "1",
               "CALLS": str(self.calls_path), "FAIL_AT": fail_at, "NANOCHAT_BASE_DIR": str(self.base_dir), **env}
        self.result = subprocess.run(["bash", str(recipe)], env=env, stdin=subprocess.DEVNULL, capture_output=True,
                                     text=True)
        return [json.loads(line) for line in self.calls_path.read_text().splitlines()]


@pytest.fixture
def stage(tmp_path, base_dir):
    return Stage(tmp_path, base_dir)


def words_of(module):
    """Every string in the module's source: where its flags are declared, without importing it."""
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.exists(), f"no module {module}"
    return {node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def training_configs(calls):
    return [parse(call[2:]) for call in calls if call[1] == TRAINER]


@each_that_runs
def test_recipe_calls_what_exists_with_flags_that_exist(recipe, stage):
    calls = stage.run(recipe)
    assert stage.result.returncode == FALLS_BACK.get(recipe.name, 0), stage.result.stderr
    assert calls and all(call[0] == "-m" for call in calls)
    for _, module, *argv in calls:
        if module == TRAINER:
            parse(argv)  # exits on an unknown flag, or a batch that does not divide
        else:
            flags = {word.split("=")[0] for word in argv if word.startswith("-")}
            assert flags <= words_of(module), f"{module}: {flags - words_of(module)}"


@each_that_runs
def test_recipe_stops_at_the_first_error(recipe, stage):
    first = stage.run(recipe)[0][1]
    assert len(stage.run(recipe, fail_at=first)) == 1
    assert stage.result.returncode == 7


@pytest.mark.parametrize("written", [True, False])
def test_lane_b_answers_statistics_that_are_refused_and_stops_without_them(stage, tmp_path, written):
    """Statistics with an error are a file and an exit code, and the inference makes the fallback of them.

    An older file is not taken for the new statistics.
    """
    shutil.copytree(ROOT / "runs", tmp_path / "runs")  # its results are written beside it
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "lane_b_stats.json").write_text("of another context")
    if written:
        python = stage.bin / "python"
        write = 'case " $* " in *" scripts.lane_b_stats "*) echo "{}" > results/lane_b_stats.json;; esac\n'
        python.write_text(python.read_text().replace("#!/bin/bash\n", f"#!/bin/bash\n{write}"))
    modules = [call[1] for call in stage.run(tmp_path / "runs" / "lane_b.sh", fail_at="scripts.lane_b_stats")]
    assert ("scripts.lane_b_infer_ratio" in modules) == written
    assert stage.result.returncode == (3 if written else 7), "the fallback's own code, or that of the statistics"


@each_that_runs
def test_comparison_passes_the_corpus_of_the_user_on(recipe, stage):
    calls = stage.run(recipe, DATA="my texts", TARGET_BPB="2.5")
    compared = [call for call in calls if call[1] in ("scripts.protocol", "scripts.miniseries", "scripts.cycle")]
    assert all("--data=my texts" in call for call in compared)


def test_lane_b_on_own_text_runs_in_its_folder_and_asks_for_a_target_of_its_own(stage):
    (stage.base_dir / "lab" / "mine").mkdir(parents=True)
    recipe = ROOT / "runs" / "lane_b.sh"
    assert stage.run(recipe, DATA="mine") == [] and stage.result.returncode == 2
    assert "DATA=mine needs a TARGET_BPB of its own" in stage.result.stderr
    assert "make noise PROFILE=lane-b-small DATA=mine" in stage.result.stderr
    for base in (stage.base_dir, stage.base_dir / "lab" / "mine"):  # the second: as the command that made it suggests
        calls = stage.run(recipe, DATA="mine", TARGET_BPB="2.5", NANOCHAT_BASE_DIR=str(base))
        positions = [word for call in calls for word in call if word.startswith("--per-position=")]
        assert len(positions) == 1 and f"{stage.base_dir.resolve()}/lab/mine/lane_b/" in positions[0]


@pytest.mark.parametrize("name", ["baseline_d12", "ittybitty", "runcpu"])
def test_finished_run_is_skipped_and_another_configuration_is_not(name, stage):
    recipe = ROOT / "runs" / f"{name}.sh"
    config, = training_configs(stage.run(recipe))
    assert config.resume
    home = stage.base_dir / "lab" / name if name == "ittybitty" else stage.base_dir
    record = RunRecord(home, config.model_tag, {"config": asdict(config)})
    record.update()
    assert training_configs(stage.run(recipe)), "a run that is still going on is not done"
    record.finish("ok")
    assert not training_configs(stage.run(recipe))
    assert "skipped, done already" in stage.result.stdout
    assert training_configs(stage.run(recipe, NUM_ITERATIONS="7"))[0].num_iterations == 7


def test_baseline_d12_is_the_profile_of_the_plans(stage):
    plan = ("--depth=12 --head-dim=128 --window-pattern=L --max-seq-len=512 --device-batch-size=16 "
            "--total-batch-size=16384 --eval-every=100 --eval-tokens=524288 --core-metric-every=-1 --sample-every=-1 "
            "--save-every=-1 --num-iterations=1500 --run=dummy")
    recipe = ROOT / "runs" / "baseline_d12.sh"
    config, = training_configs(stage.run(recipe))
    assert config == dataclasses.replace(training_configs(stage.run(recipe, QUIET_START=""))[0], quiet_start=True)
    config = dataclasses.replace(config, quiet_start=False)  # the one flag that is ours
    own = dict(seed=config.seed, model_tag=config.model_tag, resume=config.resume)
    assert {**asdict(config), **own} == {**asdict(parse(plan.split())), **own}


def test_ittybitty_is_the_model_of_the_notes(stage):
    calls = stage.run(ROOT / "runs" / "ittybitty.sh")
    config, = training_configs(calls)
    dim, n_head, _ = model_shape(config)
    vocab, = (int(word.split("=")[1]) for call in calls for word in call if word.startswith("--vocab-size"))
    assert (config.depth, dim, n_head, vocab) == (4, 512, 8, 24576)
    assert 12 * config.depth * dim ** 2 == vocab * dim == 37_748_736 // 3
    assert config.num_iterations * config.total_batch_size == 500_170_752
    assert grad_accum_steps(config.total_batch_size, config.device_batch_size, config.max_seq_len) == 8


def test_ittybitty_keeps_its_tokenizer_apart_and_shares_the_shards(stage):
    (stage.base_dir / "base_data_climbmix").mkdir(parents=True)
    stage.run(ROOT / "runs" / "ittybitty.sh", NANOCHAT_BASE_DIR=os.path.relpath(stage.base_dir))
    link = stage.base_dir / "lab" / "ittybitty" / "base_data_climbmix"
    assert link.resolve() == (stage.base_dir / "base_data_climbmix").resolve()


def test_lane_b_compares_what_was_inferred_with_the_control_and_logs_it(stage):
    label = f"t_{os.getpid()}"
    infer = ROOT / "results" / f"{label}_infer.json"
    (stage.base_dir / "lab" / "lane-b-small").mkdir(parents=True)
    infer.parent.mkdir(exist_ok=True)
    try:
        arms = {"control": {"flags": "-"}, "inferred": {"flags": "--target-param-data-ratio=1.6"},
                "confirmation": {"flags": "--x=1.7 --y"}}
        infer.write_text(json.dumps({"arms": arms}))
        calls = [call[1:] for call in stage.run(ROOT / "runs" / "lane_b.sh", LABEL=label, SEEDS="3 4",
                                                TARGET_BPB="2.5")]
        assert stage.result.returncode == 0
        infer.write_text(json.dumps({"arms": {"control": {"flags": "-"}}}))
        fallback = stage.run(ROOT / "runs" / "lane_b.sh", LABEL=label)
        assert stage.result.returncode == 3, "a fallback is no success"
    finally:
        infer.unlink()
    assert [call[0] for call in calls] == [f"scripts.{name}" for name in (
        "protocol", "base_loss", "lane_b_stats", "lane_b_infer_ratio", "protocol", "lane_b_log_run")]
    calibration, positions, _, inference, comparison, log = calls
    assert ({f"--label={label}_calibration", "--seeds=3"} <= set(calibration)
            and not any("primary" in word for word in calibration))
    assert f"--model-tag=nc_{label}_calibration_d2_control_s3" in positions
    assert any(word.startswith(f"--per-position={stage.base_dir.resolve()}/lab/lane-b-small/lane_b/")
               for word in positions)
    assert {f"--label={label}_calibration", "--target-threshold=2.5"} <= set(inference)
    assert {"--seeds=3 4", "--primary=time_to_target", "--target-bpb=2.5",
            "--candidate=inferred: --target-param-data-ratio=1.6",
            "--candidate=confirmation: --x=1.7 --y"} <= set(comparison)
    assert {f"--label={label}", f"--inference=results/{label}_infer.json"} <= set(log)
    assert fallback[-1][1] == "scripts.lane_b_infer_ratio" and "nothing to compare" in stage.result.stdout
