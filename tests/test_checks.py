"""
Numbers with too many zeros: refused in one line, before anything is built, looped over or allocated.

python -m pytest tests/test_checks.py -q
"""

import dataclasses
import subprocess
import sys
from time import process_time

import pytest

from nanochat.checks import MOST_CHANNELS, MOST_LAYERS, MOST_STEPS, MOST_TOKENS, cut, positive
from nanochat.config import FIELDS, TrainConfig, profile_hash, read_config
from nanochat.config_check import model_shape
from nanochat.schedule import divisors, grad_accum_steps, scale_run
from tests.conftest import REPO_ROOT

# Options of a number that may be of any size, with the reason.
UNBOUNDED = {
    "logit_softcap": "a cap far above the logits is none", "rope_base": "a long wavelength is a constant",
    "symplectic_gate_eps": "a large eps closes the gate", "target_bpb": "a target that every run reaches",
    "eval_near_bpb": "always near", "core_metric_max_per_task": "read by nothing yet", "perturb": "for measurements",
}
NUMBERS = [name for name, o in FIELDS.items() if o.type in (int, float) and name not in UNBOUNDED]


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [10 ** 31, -10 ** 31])
def test_number_of_31_digits_is_refused_by_name(name, value):
    o = FIELDS[name]
    if value < 0 and o.check.passes(-1e31):
        pytest.skip("any number below 0 means: not given")
    with pytest.raises(ValueError) as caught:
        read_config([f"--{name.replace('_', '-')}={o.type(value)}"])
    assert str(caught.value).startswith(f"--{name.replace('_', '-')}=") and "\n" not in str(caught.value)


def test_exceptions_to_the_bounds_are_options():
    assert set(UNBOUNDED) <= set(FIELDS)


@pytest.mark.parametrize("flags", [
    ["--model-dim=10000000000"], ["--aspect-ratio=1000000000"], ["--depth=1000000000"], ["--depth=1000000"],
    ["--model-dim=1048576", "--n-kv-head=7"], [f"--depth={MOST_LAYERS}", f"--aspect-ratio={MOST_CHANNELS}"],
    ["--total-batch-size=1099511627775", "--max-seq-len=3"], ["--num-iterations=1" + "0" * 18],
    ["--eval-tokens=1" + "0" * 18], ["--depth=" + "9" * 5000], ["--no-such-flag=" + "9" * 5000]],
    ids=lambda flags: flags[0][:40])
def test_answer_comes_at_once_and_in_one_short_line(flags):
    started = process_time()
    with pytest.raises(ValueError) as caught:
        read_config(["--head-dim=32", "--num-iterations=1", *flags])
    assert process_time() - started < 2 and "\n" not in str(caught.value) and len(str(caught.value)) <= 420


def test_script_exits_with_2_and_one_line():
    code = "import sys; from nanochat.config import parse; parse(['--depth=1000000000'], prog='base_train')"
    run = subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr == "base_train: error: --depth=1000000000: expected a positive number, at most 1,000\n"


def test_largest_values_pass():
    config = read_config([f"--depth={MOST_LAYERS}", f"--model-dim={MOST_CHANNELS}", f"--num-iterations={MOST_STEPS}",
                          f"--total-batch-size={MOST_TOKENS}", "--device-batch-size=1", "--max-seq-len=1024"])
    assert model_shape(config)[0] == MOST_CHANNELS


@pytest.mark.parametrize("n", [1, 2, 12, 49, 97, 360, 1024, 9973])
def test_divisors_are_those_of_the_naive_loop(n):
    assert sorted(divisors(n)) == [d for d in range(1, n + 1) if n % d == 0]


def test_nearest_divisors_in_the_message_are_those_of_the_naive_loop():
    rows = 720720
    all_of_them = [d for d in range(1, rows + 1) if rows % d == 0]
    near = sorted(sorted(all_of_them, key=lambda d: (abs(d - 17), d))[:4])
    with pytest.raises(ValueError, match=f"device batch sizes that divide it: {', '.join(map(str, near))}"):
        grad_accum_steps(rows * 64, 17, 64)


def test_horizon_that_gives_no_token_or_too_many_steps_names_its_flag():
    config = dataclasses.replace(TrainConfig(), target_param_data_ratio=1e-300)
    with pytest.raises(ValueError, match="--target-param-data-ratio gives less than one token"):
        scale_run(config, 10 ** 6, 10 ** 6)
    config = dataclasses.replace(TrainConfig(), target_flops=1e30, total_batch_size=65536)
    with pytest.raises(ValueError, match="--target-flops gives 1.53e.22 steps of 65536 tokens, expected at most"):
        scale_run(config, 10 ** 6, 10 ** 6, flops_per_token=1000)


def test_bounds_change_no_hash():
    """The hash of a default run on a CPU, as it was before there were bounds."""
    assert profile_hash(TrainConfig(), "cpu", "d", "t") == (
        "a4b92f85c918445b7e0c6341b485fa36ca573862c9c38a11a58e709b5d76f13c")


def test_up_to_keeps_the_example_and_the_lower_end():
    bounded = positive.up_to(5)
    assert [bounded.passes(x) for x in (0, 1, 5, 6)] == [False, True, True, False]


def test_cut_makes_one_line_of_anything():
    assert cut("9" * 6000) == "9" * 60 + "..." and cut("a\n b") == "a b" and cut(7) == "7" and cut(10 ** 5000)
