"""
The training options: both spellings, the way back to a command line, messages for bad input, shapes.

python -m pytest tests/test_config.py -q
"""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pytest
from option_case import examples, refused_values

from nanochat.config import FIELDS, HIDDEN, TrainConfig, parse, read_config, validate
from nanochat.config_check import model_shape
from nanochat.options import build_parser, flag, known_options, to_argv
from nanochat.schedule import grad_accum_steps

ROOT = Path(__file__).resolve().parent.parent
# {option: ({what has to stand beside it}, a value that is not its default)}, from the declarations.
OTHER = examples(TrainConfig, validate)


def spelled(name, value, spelling):
    """[one word]: --name=value, --name or --no-name, with hyphens or underscores."""
    if FIELDS[name].type is bool:
        return ["--" + spelling(name if value else "no_" + name)]
    return [f"--{spelling(name)}={value}"]


def error_of(capsys, argv) -> str:
    """What a bad command line prints; it ends with status 2 in one line."""
    with pytest.raises(SystemExit) as stop:
        parse(argv, prog="base_train")
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.startswith("base_train: error: ") and message.count("\n") == 1
    return message


# -----------------------------------------------------------------------------
# Parsing

def test_every_option_accepts_another_value_or_says_that_it_is_not_here_yet():
    """An option that fails here has a check that no plain number or word passes: give that check an `example`."""
    refused = set(FIELDS) - set(OTHER)
    assert all("not here yet" in FIELDS[name].help for name in refused), refused
    assert refused == {"fp8", "core_metric_every"}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("spelling", [str, lambda name: name.replace("_", "-")], ids=["underscores", "hyphens"])
def test_option_parses_in_both_spellings(name, spelling):
    others, value = OTHER[name]
    company = dataclasses.replace(TrainConfig(), **others)
    expected = dataclasses.replace(company, **{name: value})
    argv = spelled(name, value, spelling)
    assert parse([*to_argv(company), *argv]) == expected
    if "=" in argv[0]:
        assert parse([*to_argv(company), *argv[0].split("=", 1)]) == expected, "value as a word of its own"


def test_no_arguments_are_the_defaults_and_they_are_valid():
    assert parse([]) == TrainConfig()
    validate(TrainConfig())


@pytest.mark.parametrize("word", ["--symplectic-gate", "--symplectic-gate-enabled", "--symplectic_gate_enabled"])
def test_gate_has_its_second_name(word):
    assert parse([word]).symplectic_gate and not parse([word, "--no-symplectic-gate"]).symplectic_gate


def test_gate_is_a_spelling_of_its_residual():
    """One configuration and one command line, whichever of the two was said, or made in code, or read from a file."""
    gate, residual = parse(["--symplectic-gate"]), parse(["--residual=symplectic"])
    assert gate == residual == TrainConfig(symplectic_gate=True) == TrainConfig(residual="symplectic")
    assert (gate.symplectic_gate, gate.residual) == (True, "symplectic") and to_argv(gate) == ["--symplectic-gate"]
    assert parse(["--residual=symplectic", "--symplectic-gate-mix=0.3"]).symplectic_gate_mix == 0.3
    assert parse([]).residual == "plain" == parse(["--no-symplectic-gate"]).residual


@pytest.mark.parametrize("argv", ["--residual=symplectic --no-symplectic-gate", "--symplectic-gate --residual=plain",
                                  "--symplectic_gate_enabled --residual=other"])
def test_gate_and_residual_are_not_said_both(argv):
    with pytest.raises(ValueError, match="--symplectic-gate and --residual are two spellings of one option"):
        read_config(argv.split())


def test_gate_with_another_residual_is_refused_where_it_is_made_in_code():
    with pytest.raises(ValueError, match="--residual=other: expected symplectic, or no --symplectic-gate"):
        validate(TrainConfig(symplectic_gate=True, residual="other"))


def test_every_option_has_the_type_of_its_default_and_a_help():
    assert all(type(o.default) is o.type and o.help for o in FIELDS.values())
    listed = {name for name in FIELDS if flag(name) in build_parser(TrainConfig).format_help()}
    assert listed == {name for name, o in FIELDS.items() if o.help is not HIDDEN} == FIELDS.keys() - {"perturb"}


def test_no_abbreviation_is_guessed(capsys):
    assert "--model-di" in error_of(capsys, ["--model-di=256"])


@pytest.mark.parametrize("argv, wrong, near", [
    ("--dept=4", "--dept=4", "--depth"), ("--matrix_lrr 3", "--matrix-lrr", "--matrix-lr"),
    ("--seed=1 --no-compil", "--no-compil", "--no-compile"),
    ("--device-batch 8", "--device-batch", "--device-batch-size"),
    ("--depth=4 --total-batchsize=1", "--total-batchsize=1", "--total-batch-size")])
def test_unknown_flag_is_named_with_its_nearest(capsys, argv, wrong, near):
    message = error_of(capsys, argv.split())
    assert f"unknown flag {wrong};" in message and message.rstrip().endswith(f"did you mean {near}?")


def test_word_that_is_like_no_flag_points_to_help(capsys):
    assert "unknown flag qqqq; --help lists them all" in error_of(capsys, ["qqqq"])


@pytest.mark.parametrize("argv, named", [
    (["--depth=four"], "'four'"), (["--dtype=float16"], "'float16'"), (["--symplectic-gate-layers=even"], "'even'"),
    (["--depth"], "--depth"), (["--num-iterations=1e3"], "'1e3'")])
def test_value_of_a_wrong_kind_is_named(capsys, argv, named):
    assert named in error_of(capsys, argv)


# -----------------------------------------------------------------------------
# And back

@pytest.mark.parametrize("name", OTHER)
def test_one_changed_option_comes_back_from_its_argv(name):
    company, value = OTHER[name]
    config = dataclasses.replace(TrainConfig(), **company, **{name: value})
    argv = to_argv(config)
    assert len(argv) == 1 + len(company)
    assert any(word.startswith((flag(name), flag("no_" + name))) for word in argv)
    assert parse(argv) == config


@pytest.mark.parametrize("argv, name", [
    ("--symplectic-gate-mix=0.05", "mix"), ("--symplectic-gate-layers=odd", "layers"),
    ("--symplectic-gate-eps=1", "eps"), ("--symplectic-gate-ramp-steps=5", "ramp-steps"),
    ("--symplectic-gate --symplectic-gate-ramp-start=5", "ramp-start")])
def test_an_option_that_would_change_nothing_is_refused(capsys, argv, name):
    message = error_of(capsys, argv.split())
    assert f"--symplectic-gate-{name}" in message and "alone it changes nothing" in message


@pytest.mark.parametrize("name", [name for name in FIELDS if FIELDS[name].needs])
def test_what_is_needed_is_named(name):
    with pytest.raises(ValueError) as refusal:
        validate(dataclasses.replace(TrainConfig(), **{name: OTHER[name][1]}))
    message = str(refusal.value)
    assert message.startswith(flag(name)) and f"{flag(FIELDS[name].needs[0])} beside it: alone it changes" in message


def test_defaults_need_no_argv():
    assert to_argv(TrainConfig()) == []


def test_random_configurations_come_back_from_their_argv():
    rng = random.Random(0)
    fresh = {int: lambda: rng.randrange(-9, 10 ** 6),
             float: lambda: rng.choice([1 / 3, rng.random() * 10 ** rng.randrange(-9, 20)]),
             str: lambda: rng.choice(["a b", "=", "--x", "é_ö", "x=y", "'", "0"]), bool: lambda: rng.random() < 0.5}
    for _ in range(300):
        names = set(rng.sample(list(FIELDS), rng.randrange(len(FIELDS))))
        if rng.random() < 0.5:  # one of two spellings
            names.discard("symplectic_gate")
        else:
            names.discard("residual")
        values = {name: rng.choice(FIELDS[name].choices or [fresh[FIELDS[name].type]()]) for name in sorted(names)}
        config = TrainConfig(**values)
        argv = to_argv(config)
        assert TrainConfig(**known_options(TrainConfig, argv)) == config
        assert len(argv) == sum(value != FIELDS[name].default for name, value in values.items())


# -----------------------------------------------------------------------------
# Checks

BAD = [(name, value) for names, values in (
    (("depth", "aspect_ratio", "head_dim", "device_batch_size"), (0, -1)), (("max_seq_len",), (1, 0, -5)),
    (("embedding_lr", "unembedding_lr", "matrix_lr", "scalar_lr"), (0, -0.1, "nan", "inf")),
    (("weight_decay", "logit_softcap"), (-0.1, "nan", "inf")), (("rope_base",), (0, -1, "nan")),
    (("mixer",), ("", "attention,", "a b")), (("mlp", "residual"), ("", "a,b", "a b")),
    (("warmup_steps", "symplectic_gate_ramp_start", "symplectic_gate_ramp_steps", "seed"), (-1,)),
    (("warmdown_ratio", "final_lr_frac", "symplectic_gate_mix"), (-0.01, 1.01, "nan")),
    (("symplectic_gate_eps",), (0, -1e-6, "nan")),
    (("window_pattern",), ("", "SXL", "S L")),
    (("num_iterations", "total_batch_size", "eval_every", "sample_every", "save_every", "keep_last", "ratio_ref",
      "wall_budget_sec", "target_bpb", "eval_near_target"), (0, -2)),
    (("batch_multiplier", "lr_multiplier", "eval_near_bpb"), (0, -1, "nan")), (("wd_multiplier",), (-0.1, "inf")),
    (("target_flops", "target_param_data_ratio", "save_minutes"), ("nan", "inf")),
    (("resume_from_step",), (-2, -100)), (("eval_tokens",), (0, 32 * 2048 - 1)), (("core_metric_every",), (2000, 0, 5)),
    (("model_tag",), ("a/b", "../x", ".hidden", "a\\b")),
    (("n_kv_head",), (0, 3, 40, -2)), (("model_dim",), (0, -2, 100)), (("head_dim",), (7,)),
) for name in names for value in values]


@pytest.mark.parametrize("name, value", BAD, ids=[f"{name}={value}" for name, value in BAD])
def test_bad_value_is_refused_by_name(capsys, name, value):
    message = error_of(capsys, [f"{flag(name)}={value}"])
    shown = str(FIELDS[name].type(value))
    assert f"{flag(name)}={shown}" in message or f"{flag(name)} {shown}" in message


@pytest.mark.parametrize("name", [name for name in FIELDS if FIELDS[name].check])
def test_every_check_refuses_something_by_name(name):
    values = refused_values(FIELDS[name])
    assert values
    for value in values:
        with pytest.raises(ValueError) as refusal:
            validate(dataclasses.replace(TrainConfig(), **{name: value}))
        assert str(refusal.value) == f"{flag(name)}={value}: expected {FIELDS[name].check.expected}"


@pytest.mark.parametrize("argv", [
    "--warmup-steps=0", "--weight-decay=0", "--symplectic-gate --symplectic-gate-mix=0",
    "--symplectic-gate --symplectic-gate-mix=1", "--warmdown-ratio=1", "--seed=0",
    "--eval-tokens=65536", "--eval-every=-1 --eval-tokens=0", "--depth=1", "--final-lr-frac=1", "--window-pattern=sSlL",
    "--target-param-data-ratio=-1 --num-iterations=1", "--resume-from-step=0", "--model-dim=24 --head-dim=2"])
def test_values_at_the_edge_are_accepted(argv):
    parse(argv.split())


def test_fp8_is_refused_before_any_work(capsys):
    message = error_of(capsys, ["--fp8"])
    assert "--fp8" in message and "not here yet" in message and "--dtype bfloat16" in message


def test_run_without_a_horizon_is_refused(capsys):
    message = error_of(capsys, ["--target-param-data-ratio=0"])
    assert all(word in message for word in ("--num-iterations", "--target-flops", "--target-param-data-ratio"))


def test_validate_raises_for_configurations_made_in_code():
    with pytest.raises(ValueError, match=r"--symplectic-gate-mix=1.5: expected a number in \[0, 1\]"):
        validate(TrainConfig(symplectic_gate_mix=1.5))


def test_width_is_depth_times_ratio_rounded_up_to_whole_heads():
    for depth, ratio, head_dim, shape in ((12, 64, 128, (768, 6, 6)), (11, 50, 128, (640, 5, 5)),
                                          (4, 64, 128, (256, 2, 2)), (1, 1, 24, (24, 1, 1)), (6, 64, 64, (384, 6, 6))):
        assert model_shape(TrainConfig(depth=depth, aspect_ratio=ratio, head_dim=head_dim)) == shape


def test_model_dim_overrides_depth_and_ratio():
    """plans.md, section 3: 4 layers, 512 wide, 8 heads of 64; what depth alone gives is 256 wide with 2 heads."""
    assert model_shape(parse(["--depth=4", "--model_dim=512", "--head-dim=64"])) == (512, 8, 8)
    assert model_shape(parse(["--depth=4"])) == (256, 2, 2)
    assert model_shape(parse(["--model-dim=512", "--head-dim=64", "--n-kv-head=2"])) == (512, 8, 2)


def neighbours(candidates, value):
    """The nearest candidate below value and the nearest above."""
    return {max(c for c in candidates if c < value), min(c for c in candidates if c > value)}


@pytest.mark.parametrize("width, head_dim", [(512, 96), (768, 100), (640, 48), (384, 120), (512, 3 * 128)])
def test_head_size_that_does_not_divide_names_the_nearest_that_do(capsys, width, head_dim):
    message = error_of(capsys, [f"--model-dim={width}", f"--head-dim={head_dim}"])
    assert f"--head-dim={head_dim}: expected a divisor of --model-dim {width}" in message
    named = {int(word) for word in message.split("nearest are ")[1].split(", ")}
    valid = {d for d in range(2, width + 1, 2) if width % d == 0}
    assert neighbours(valid, head_dim) <= named <= valid


def test_kv_heads_that_do_not_divide_name_those_that_do(capsys):
    assert "a divisor of the 6 query heads: 1, 2, 3, 6" in error_of(capsys, ["--depth=12", "--n-kv-head=4"])


@pytest.mark.parametrize("batch", [48, 24, 40, 56])
def test_device_batch_that_does_not_divide_names_the_nearest_that_do(capsys, batch):
    """plans.md, section 3: none of these divides 524288 tokens at T = 2048."""
    message = error_of(capsys, ["--total-batch-size=524288", f"--device-batch-size={batch}"])
    assert f"--device-batch-size {batch}" in message and "--total-batch-size=524288" in message
    named = {int(word) for word in message.split("divide it: ")[1].split(", ")}
    valid = {d for d in range(1, 257) if 524288 % (2048 * d) == 0}
    assert neighbours(valid, batch) <= named <= valid


def test_total_batch_that_fits_no_device_batch_names_the_nearest_total():
    with pytest.raises(ValueError, match="nearest total batch size for this device batch is 65536"):
        grad_accum_steps(70000, 32, 2048)
    with pytest.raises(ValueError, match="is 65536"):
        grad_accum_steps(1000, 32, 2048)


def test_accumulation_covers_the_batch_over_all_ranks():
    assert grad_accum_steps(524288, 32, 2048) == 8 and grad_accum_steps(524288, 32, 2048, world_size=8) == 1
    with pytest.raises(ValueError, match="16 ranks"):
        grad_accum_steps(524288, 32, 2048, world_size=16)


# -----------------------------------------------------------------------------

def test_parsing_imports_no_torch():
    code = ("import sys; from nanochat.config import parse; from nanochat.options import to_argv; "
            "to_argv(parse(['--depth=4'])); sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
