"""
What the declarations of the training options say to others: to the model, the laws, stored runs, and to the hashes of
profiles and cells.

python -m pytest tests/test_config_record.py -q
"""

import dataclasses

import pytest
from option_case import examples

from nanochat.common import hash_json
from nanochat.config import (
    FIELDS,
    TrainConfig,
    changed_options,
    config_hash,
    config_of_record,
    hashed_options,
    model_options,
    parse,
    profile_hash,
    validate,
)
from nanochat.lab.profiles import PROFILES
from nanochat.options import ROLES, TAGS, option, tagged, with_role
from nanochat.schedule import BOUNDS

OTHER = examples(TrainConfig, validate)


# -----------------------------------------------------------------------------
# What a declaration says

def test_roles_and_tags_are_each_of_some_option():
    assert all(with_role(FIELDS, role) for role in ROLES) and all(tagged(FIELDS, tag) for tag in TAGS)


def test_lists_that_were_kept_by_hand_are_what_they_were():
    """The sets that the lab asks for, spelled out once: a mark that is lost or added shows here."""
    from nanochat.lab import arms
    from nanochat.lab.cycle import miniseries
    from nanochat.lab.horizon import calibration
    from nanochat.lab.ledger import rerun, workload
    from nanochat.lab.report import entries
    from nanochat.lab.trees import flags
    run = set(with_role(FIELDS, "run"))
    steps = {"num_iterations", "target_flops", "target_param_data_ratio"}
    heads = {"aspect_ratio", "model_dim", "head_dim", "n_kv_head"}
    cell = {"seed", "model_tag", "resume", "resume_from_step"}
    for found, expected in (
            (tagged(FIELDS, "shape"), {"depth", *heads}), (arms.LENGTH, {*steps, "total_batch_size"}),
            (tagged(FIELDS, "resolved"), {*heads, *steps, "total_batch_size", "weight_decay", "batch_multiplier",
                                          "wd_multiplier", "ratio_ref"}),
            (tagged(FIELDS, "cell"), cell), (flags.CELLS_OWN, {*cell, "save_every"}),
            (rerun.OF_THE_FIRST_RUN, cell - {"seed"}), (workload.OF_A_CELL, {"seed", *run}),
            (tagged(FIELDS, "ledger_row"), {"depth", "max_seq_len", "device_batch_size", "num_iterations"}),
            (tagged(FIELDS, "machine"), {"device_type", "dtype", "compile", "device_batch_size"}),
            (tagged(FIELDS, "environment"), {"dtype", "compile"}), (calibration.OF_A_RUN, {"seed", *steps, *run}),
            (miniseries.MAY_DIFFER, {"depth", "device_batch_size", "model_tag", "run"}),
            (entries.OF_ONE_RUN, {"--seed", "--model-tag", "--run"})):
        assert set(found) == expected


def test_the_laws_know_the_options_that_decide_the_horizon():
    assert tagged(FIELDS, "horizon") == tuple(BOUNDS)


def test_model_options_are_fields_of_the_model_with_its_defaults():
    from nanochat.cost import gpt_config
    from nanochat.gpt import GPTConfig
    model = {f.name: f.default for f in dataclasses.fields(GPTConfig)}
    for name, value in model_options(TrainConfig()).items():
        assert name in model, f"{name}: model=True, but GPTConfig has no field of this name"
        assert value == model[name], f"{name}: the defaults of TrainConfig and GPTConfig differ"
    assert gpt_config(TrainConfig(), 1000).variant_dict() == {}


@pytest.mark.parametrize("name", [name for name in OTHER if FIELDS[name].model and FIELDS[name].type is not str])
def test_model_option_reaches_the_model(name):
    from nanochat.cost import gpt_config
    company, value = OTHER[name]
    config = gpt_config(dataclasses.replace(TrainConfig(), **company, **{name: value}), 1000)
    assert getattr(config, name) == value and name in config.variant_dict()


@pytest.mark.parametrize("name", ["mixer", "mlp", "residual"])
def test_name_that_is_no_row_is_refused_before_any_training_with_the_rows(name):
    from nanochat import gpt
    from nanochat.cost import resolve
    rows = getattr(gpt, f"{name.upper()}S")
    with pytest.raises(ValueError, match=f"--{name}=nosuch: .*rows are .*{list(rows)[0]}"):
        resolve(parse([f"--{name}=nosuch"]), 1000)


def test_kind_of_optimizer_that_is_no_row_is_refused_before_any_training_with_the_rows():
    from nanochat.cost import resolve
    with pytest.raises(ValueError, match="--matrix-optimizer=nosuch: .*rows are adamw, muon"):
        resolve(parse(["--matrix-optimizer=nosuch"]), 1000)


def test_new_row_of_the_model_needs_no_second_list(monkeypatch):
    from nanochat import gpt
    from nanochat.cost import resolve
    monkeypatch.setitem(gpt.MLPS, "mine", type("Mine", (gpt.MLPS["relu_squared"],), {}))
    assert resolve(parse(["--mlp=mine", "--depth=2"]), 1000) == resolve(parse(["--depth=2"]), 1000)


# -----------------------------------------------------------------------------
# Stored configurations

def before(config: TrainConfig) -> dict:
    """What a record of `config` held before the later options came."""
    return {name: value for name, value in dataclasses.asdict(config).items() if FIELDS[name].before is None}


@pytest.mark.parametrize("flags", ["", "--symplectic-gate --symplectic-gate-mix=0.3"])
def test_stored_configuration_from_before_an_option_has_its_default(flags):
    config = parse(flags.split())
    assert config_of_record(before(config)) == config == config_of_record(dataclasses.asdict(config) | {"gone": 1})
    assert changed_options(config, before(config)) == changed_options(config, dataclasses.asdict(config)) == []
    other = dataclasses.replace(config, smear=False, depth=3, run="x")
    assert changed_options(other, before(config)) == ["depth", "smear"]
    assert changed_options(config, dataclasses.asdict(other)) == ["depth", "smear"]


def test_checkpoint_of_upstream_says_less_and_passes():
    assert changed_options(parse(["--data-order=file", "--depth=3"]), {"depth": 3, "run": "theirs"}) == []
    assert changed_options(parse(["--symplectic-gate"]), {"depth": 20}) == []
    assert changed_options(parse(["--residual=other"]), {"depth": 20}) == ["residual"]


# -----------------------------------------------------------------------------
# Hashes

# Of the profiles as they were banked before --quiet-start, which made new profiles of them. An option that is added has
# to leave these hashes: see `before` in nanochat/options.py.
PROFILE_HASHES = {
    "smoke-cpu": "c83bdba3113f9a88f37e5d1c3c0e9e0c287e6e4513bb89869764fa6b19601b7b",
    "smoke-mps": "790afa4917890d0cb4d042d09a14bd08095badf25313f76c59790819198b6d08",
    "lane-b-small": "a27a5da094817eb9831f618fa0418919950d20d45bd45b8c808bf1034bd6db57",
    "smoke-16gb": "7e80180f40f791b480a1e16388923f00ae7058bf873b375ad34fe04b4c319ceb",
    "protocol-16gb": "c74b2298608b5e3f88c79270a70e018fc5a5eeffe0dcc50c84453f49d08cecf2",
}
QUIET_HASHES = {
    "smoke-cpu": "1339e9577d9833d091c76c95384b644b79171691ffc228ec84b0d138a4a43c93",
    "smoke-mps": "5cf2934ebe4253a02609fa6ae98319d696450f3838f9e79112857e26ba8063c3",
    "lane-b-small": "889b17eafa061d74a7b1a3cf8bcaaac853cdb0c15dfbe9152259900d39c01b9a",
    "smoke-16gb": "f3f7df9deae97b3bd6709ac2dcef0fc06d1f3f209427050a4a35030e73533e57",
    "protocol-16gb": "ca57e5ec07f059cd29fdfdb1b4837765b613d073782d3a15676da45deeaf6a66",
}
# Of the names of the options that cells were hashed with. Their defaults are not in it: those may change.
HASHED_NAMES = "1dc2b0cb55381972eb40aba0880a138c80aefcb3079b8be664fe52edddd18b9f"


@pytest.mark.parametrize("more, hashes", [(["--no-quiet-start"], PROFILE_HASHES), ([], QUIET_HASHES)])
@pytest.mark.parametrize("name", PROFILES)
def test_hash_of_a_profile_is_what_it_was(name, more, hashes):
    flags = PROFILES[name].flags
    kind = PROFILES[name].device_type
    assert profile_hash(parse([*flags, *more]), kind, "data", "tok") == hashes[name], \
        "the noise that is banked for this profile would be lost: mark a new option with before="


@pytest.mark.parametrize("flags", ["", "--symplectic-gate"])
def test_cells_are_hashed_by_the_names_of_their_time(flags):
    """Equal names and values give the hash that finished cells have, those of other trees too."""
    names = sorted(hashed_options(parse(flags.split())))
    assert hash_json(names) == HASHED_NAMES, f"mark a new option with before=; hashed are {names}"


def cell(config):
    return config_hash(config, "dataset", "tokenizer", "tree")


def profile(config):
    return profile_hash(config, "cpu", "dataset", "tokenizer")


@pytest.mark.parametrize("name", OTHER)
def test_hashes_change_with_what_they_cover_and_with_nothing_else(name):
    base, changed = TrainConfig(), dataclasses.replace(TrainConfig(), **{name: OTHER[name][1]})
    assert (cell(changed) != cell(base)) == (FIELDS[name].role != "run")
    assert (profile(changed) != profile(base)) == (FIELDS[name].role == "workload")


def test_later_option_is_hashed_only_where_it_is_set():
    @dataclasses.dataclass
    class More(TrainConfig):
        later: float = option(0.5, "workload", role="workload", before=0.5)
        knob: float = option(0.5, "treatment", before=0.5)

    @dataclasses.dataclass
    class Forgotten(TrainConfig):
        later: float = option(0.5, "workload", role="workload")
    assert profile(More()) == profile(TrainConfig()) != profile(Forgotten())
    assert cell(More()) == cell(TrainConfig()) != cell(Forgotten())
    assert profile(More(later=0.25)) != profile(More()) and cell(More(later=0.25)) != cell(More())
    assert profile(More(knob=0.25)) == profile(More()) and cell(More(knob=0.25)) != cell(More())


def test_hashes_change_with_data_tokenizer_code_and_device():
    config = TrainConfig()
    cells = [("other", "tokenizer", "tree"), ("dataset", "other", "tree"), ("dataset", "tokenizer", "other")]
    profiles = [("cuda", "dataset", "tokenizer"), ("cpu", "other", "tokenizer"), ("cpu", "dataset", "other")]
    hashes = [cell(config), *(config_hash(config, *args) for args in cells),
              profile(config), *(profile_hash(config, *args) for args in profiles)]
    assert len(set(hashes)) == len(hashes) and hashes[0] == cell(TrainConfig())


def test_what_is_not_hashed_names_or_watches_a_run():
    """Everything that could change a number is hashed; the profile never holds what the hash leaves out."""
    hashed = set(hashed_options(TrainConfig()))
    later = {name for name, o in FIELDS.items() if o.before is not None}
    assert hashed == set(FIELDS) - set(with_role(FIELDS, "run")) - later
    assert with_role(FIELDS, "run") == (
        "run", "tensorboard", "core_metric_every", "core_metric_max_per_task", "sample_every", "model_tag",
        "resume_from_step", "resume", "save_every", "save_minutes", "keep_last")
    assert {"seed", "data_order", "eval_every", "eval_tokens", "compile", "dtype", "device_type"} <= hashed
