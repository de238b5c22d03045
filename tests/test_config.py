"""
Options: both spellings, the way back to a command line, messages for bad input, shapes, hashes.

python -m pytest tests/test_config.py -q
"""

import argparse
import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat import config as module
from nanochat.config import FIELDS, NOT_HASHED, TrainConfig, flag, model_shape, option, parse, to_argv, validate
from nanochat.schedule import grad_accum_steps

ROOT = Path(__file__).resolve().parent.parent
# A value of each option that is valid beside the defaults of all others, and is not its own default.
OTHER = dict(
    run="a_b c", tensorboard=True, device_type="cpu", dtype="bfloat16", compile=False, deterministic=True, seed=7, depth=3,
    aspect_ratio=128, model_dim=256, head_dim=64, n_kv_head=5, max_seq_len=1024, window_pattern="sl", symplectic_gate=True,
    symplectic_gate_mix=0.05, symplectic_gate_eps=0.001, symplectic_gate_layers="odd", symplectic_gate_ramp_start=10,
    symplectic_gate_ramp_steps=20, num_iterations=64, target_flops=1e18, target_param_data_ratio=8.25, device_batch_size=16,
    total_batch_size=524288, embedding_lr=0.2, unembedding_lr=0.004, weight_decay=0.18, matrix_lr=0.018, scalar_lr=1.0, warmup_steps=5,
    warmdown_ratio=0.3, final_lr_frac=0.0, data_order="file", eval_every=100, eval_tokens=2 ** 20, sample_every=-1,
    core_metric_max_per_task=20, model_tag="nc_x_d4_control_s1337", resume_from_step=40, resume=True, save_every=50, save_minutes=2.5,
    keep_last=3, wall_budget_sec=60.0, warmdown_shape="cosine", batch_multiplier=2.0, lr_multiplier=0.9, wd_multiplier=1.4, ratio_ref=12.0,
    target_bpb=0.9, eval_near_target=10, eval_near_bpb=0.1)
REFUSED = ("fp8", "core_metric_every")  # only the default is accepted: not here yet


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

def test_examples_cover_every_option():
    assert set(OTHER) | set(REFUSED) == set(FIELDS)
    assert all(OTHER[name] != FIELDS[name].default for name in OTHER)


def company_of(name) -> dict:
    """Options without which `name` would change nothing, and is refused."""
    company = {"symplectic_gate": True} if name.startswith("symplectic_gate_") else {}
    if name == "symplectic_gate_ramp_start":
        company["symplectic_gate_ramp_steps"] = 100
    together = ("target_bpb", "eval_near_target", "eval_near_bpb")
    return {**company, **{other: OTHER[other] for other in together[:2] if name in together and other != name}}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("spelling", [str, lambda name: name.replace("_", "-")], ids=["underscores", "hyphens"])
def test_option_parses_in_both_spellings(name, spelling):
    company = dataclasses.replace(TrainConfig(), **company_of(name))
    expected = dataclasses.replace(company, **{name: OTHER[name]})
    argv = spelled(name, OTHER[name], spelling)
    assert parse([*to_argv(company), *argv]) == expected
    if "=" in argv[0]:
        assert parse([*to_argv(company), *argv[0].split("=", 1)]) == expected, "value as a word of its own"


def test_no_arguments_are_the_defaults_and_they_are_valid():
    assert parse([]) == TrainConfig()
    validate(TrainConfig())


@pytest.mark.parametrize("word", ["--symplectic-gate", "--symplectic-gate-enabled", "--symplectic_gate_enabled"])
def test_gate_has_its_second_name(word):
    assert parse([word]).symplectic_gate and not parse([word, "--no-symplectic-gate"]).symplectic_gate


def test_every_option_has_the_type_of_its_default_and_a_help():
    for name, f in FIELDS.items():
        assert type(f.default) is f.type and f.metadata["help"], name
    assert all(flag(name) in module.build_parser().format_help() for name in FIELDS)


def test_values_keep_their_underscores():
    assert module.hyphenate(["--model_tag", "a_b", "--run=x_y", "-k_v", "p_q"]) == ["--model-tag", "a_b", "--run=x_y", "-k_v", "p_q"]
    assert parse(["--model_tag", "a_b"]).model_tag == "a_b"


def test_no_abbreviation_is_guessed(capsys):
    assert "--model-di" in error_of(capsys, ["--model-di=256"])


@pytest.mark.parametrize("argv, wrong, near", [
    ("--dept=4", "--dept=4", "--depth"), ("--matrix_lrr 3", "--matrix-lrr", "--matrix-lr"),
    ("--seed=1 --no-compil", "--no-compil", "--no-compile"), ("--device-batch 8", "--device-batch", "--device-batch-size"),
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


def test_adding_an_option_touches_one_line(monkeypatch):
    """A new field is a flag, is checked for a wrong kind, goes through to_argv and is hashed, with nothing else changed."""
    @dataclasses.dataclass
    class More(TrainConfig):
        brand_new: float = option(0.5, "something", profile=True)
    monkeypatch.setattr(module, "TrainConfig", More)
    monkeypatch.setattr(module, "FIELDS", {f.name: f for f in dataclasses.fields(More)})
    config = parse(["--brand_new=0.25"])
    assert config.brand_new == 0.25 and to_argv(config) == ["--brand-new=0.25"]
    assert module.profile_hash(config, "cpu", "d", "t") != module.profile_hash(parse([]), "cpu", "d", "t")


# -----------------------------------------------------------------------------
# And back

@pytest.mark.parametrize("name", OTHER)
def test_one_changed_option_comes_back_from_its_argv(name):
    company = company_of(name)
    config = dataclasses.replace(TrainConfig(), **company, **{name: OTHER[name]})
    argv = to_argv(config)
    assert len(argv) == 1 + len(company) and any(word.startswith((flag(name), flag("no_" + name))) for word in argv)
    assert parse(argv) == config


@pytest.mark.parametrize("argv, name", [
    ("--symplectic-gate-mix=0.05", "mix"), ("--symplectic-gate-layers=odd", "layers"), ("--symplectic-gate-eps=1", "eps"),
    ("--symplectic-gate --symplectic-gate-ramp-start=5", "ramp-start")])
def test_an_option_that_would_change_nothing_is_refused(capsys, argv, name):
    message = error_of(capsys, argv.split())
    assert f"--symplectic-gate-{name}" in message and "alone it changes nothing" in message


def test_defaults_need_no_argv():
    assert to_argv(TrainConfig()) == []


def test_random_configurations_come_back_from_their_argv():
    rng = random.Random(0)
    fresh = {int: lambda: rng.randrange(-9, 10 ** 6), float: lambda: rng.choice([1 / 3, rng.random() * 10 ** rng.randrange(-9, 20)]),
             str: lambda: rng.choice(["a b", "=", "--x", "é_ö", "x=y", "'", "0"]), bool: lambda: rng.random() < 0.5}
    parser = module.build_parser()
    for _ in range(300):
        config = TrainConfig()
        for name in rng.sample(list(FIELDS), rng.randrange(len(FIELDS))):
            choices = FIELDS[name].metadata["choices"]
            setattr(config, name, rng.choice(choices) if choices else fresh[FIELDS[name].type]())
        argv = to_argv(config)
        assert TrainConfig(**vars(parser.parse_args(module.hyphenate(argv)))) == config
        assert len(argv) == sum(getattr(config, n) != f.default for n, f in FIELDS.items())


# -----------------------------------------------------------------------------
# Checks

BAD = [(name, value) for names, values in (
    (("depth", "aspect_ratio", "head_dim", "device_batch_size"), (0, -1)), (("max_seq_len",), (1, 0, -5)),
    (("embedding_lr", "unembedding_lr", "matrix_lr", "scalar_lr"), (0, -0.1, "nan", "inf")), (("weight_decay",), (-0.1, "nan", "inf")),
    (("warmup_steps", "symplectic_gate_ramp_start", "symplectic_gate_ramp_steps", "seed"), (-1,)),
    (("warmdown_ratio", "final_lr_frac", "symplectic_gate_mix"), (-0.01, 1.01, "nan")), (("symplectic_gate_eps",), (0, -1e-6, "nan")),
    (("window_pattern",), ("", "SXL", "S L")),
    (("num_iterations", "total_batch_size", "eval_every", "sample_every", "save_every", "keep_last", "ratio_ref",
      "wall_budget_sec", "target_bpb", "eval_near_target"), (0, -2)),
    (("batch_multiplier", "lr_multiplier", "eval_near_bpb"), (0, -1, "nan")), (("wd_multiplier",), (-0.1, "inf")),
    (("target_flops", "target_param_data_ratio", "save_minutes"), ("nan", "inf")), (("resume_from_step",), (-2, -100)),
    (("eval_tokens",), (0, 32 * 2048 - 1)), (("core_metric_every",), (2000, 0, 5)), (("model_tag",), ("a/b", "../x", ".hidden", "a\\b")),
    (("n_kv_head",), (0, 3, 40, -2)), (("model_dim",), (0, -2, 100)), (("head_dim",), (7,)),
) for name in names for value in values]


@pytest.mark.parametrize("name, value", BAD, ids=[f"{name}={value}" for name, value in BAD])
def test_bad_value_is_refused_by_name(capsys, name, value):
    message = error_of(capsys, [f"{flag(name)}={value}"])
    shown = str(FIELDS[name].type(value))
    assert f"{flag(name)}={shown}" in message or f"{flag(name)} {shown}" in message


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
    for depth, ratio, head_dim, shape in ((12, 64, 128, (768, 6, 6)), (11, 50, 128, (640, 5, 5)), (4, 64, 128, (256, 2, 2)),
                                          (1, 1, 24, (24, 1, 1)), (6, 64, 64, (384, 6, 6))):
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
# Hashes

def cell(config):
    return module.config_hash(config, "dataset", "tokenizer", "tree")


def profile(config):
    return module.profile_hash(config, "cpu", "dataset", "tokenizer")


@pytest.mark.parametrize("name", OTHER)
def test_hashes_change_with_what_they_cover_and_with_nothing_else(name):
    base, changed = TrainConfig(), dataclasses.replace(TrainConfig(), **{name: OTHER[name]})
    assert (cell(changed) != cell(base)) == (name not in NOT_HASHED)
    assert (profile(changed) != profile(base)) == FIELDS[name].metadata["profile"]


def test_hashes_change_with_data_tokenizer_code_and_device():
    config = TrainConfig()
    cells = [("other", "tokenizer", "tree"), ("dataset", "other", "tree"), ("dataset", "tokenizer", "other")]
    profiles = [("cuda", "dataset", "tokenizer"), ("cpu", "other", "tokenizer"), ("cpu", "dataset", "other")]
    hashes = [cell(config), *(module.config_hash(config, *args) for args in cells),
              profile(config), *(module.profile_hash(config, *args) for args in profiles)]
    assert len(set(hashes)) == len(hashes) and hashes[0] == cell(TrainConfig())


def test_what_is_not_hashed_names_or_watches_a_run():
    """Everything that could change a number is hashed; the profile never holds what the hash leaves out."""
    hashed = set(module.hashed_options(TrainConfig()))
    assert set(NOT_HASHED) < set(FIELDS) and hashed == set(FIELDS) - set(NOT_HASHED)
    assert not [name for name in NOT_HASHED if FIELDS[name].metadata["profile"]]
    assert {"seed", "data_order", "eval_every", "eval_tokens", "compile", "dtype", "device_type", "deterministic"} <= hashed


# -----------------------------------------------------------------------------

def test_parsing_imports_no_torch():
    code = "import sys; from nanochat.config import parse, to_argv; to_argv(parse(['--depth=4'])); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_boolean_flags_have_a_negation():
    for action in module.build_parser()._actions:
        if isinstance(action, argparse.BooleanOptionalAction):
            assert any(word.startswith("--no-") for word in action.option_strings)
