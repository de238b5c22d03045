"""
Profiles: each is a valid training command, and some of its flags come from the machine.

python -m pytest tests/test_profiles.py -v
"""

import sys
from types import SimpleNamespace

import pytest

from nanochat.config import parse
from nanochat.lab import hardware, profiles
from nanochat.lab.profiles import (
    PROFILES,
    choose,
    cuda_memory_mib,
    fit_device_batch,
    get_profile,
    machine_flags,
    prepare,
)
from nanochat.schedule import grad_accum_steps, scale_run


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_profile_is_what_the_trainer_accepts(profile):
    config = parse(profile.flags)
    steps = scale_run(config, 524_300, 85_721_520).num_iterations  # of a depth 2 and a depth 12 at 1,024 tokens
    assert steps >= 60 and config.eval_every > 0 and config.sample_every == -1


def test_profiles_have_the_published_sizes():
    cpu, smoke, protocol = (parse(PROFILES[name].flags) for name in ("smoke-cpu", "smoke-16gb", "protocol-16gb"))
    def sizes(c):
        return (c.depth, c.max_seq_len, c.device_batch_size, c.total_batch_size, c.num_iterations, c.eval_every,
                c.eval_tokens, c.window_pattern)
    assert sizes(cpu) == (4, 256, 8, 2048, 60, 10, 16384, "L") and cpu.warmup_steps == 5 and not cpu.compile
    assert sizes(smoke) == (12, 512, 1, 32768, 200, 100, 262144, "L")
    assert sizes(protocol) == (12, 1024, 1, 65536, 30000, 200, 262144, "L") and protocol.save_every == 2000


def test_profile_of_lane_b_sees_a_million_tokens_of_which_the_laws_are_pinned_at_its_own_ratio():
    config = parse(PROFILES["lane-b-small"].flags)
    done = scale_run(config, 524_300, 85_721_520)
    assert (config.depth, config.max_seq_len, config.ratio_ref) == (2, 256, 2)
    assert (done.num_iterations, done.total_tokens) == (256, 2 ** 20)
    assert "--vocab-size=1024" in PROFILES["lane-b-small"].tokenizer_flags


def test_builtin_profiles_live_apart_from_the_users_own_artifacts(tmp_path):
    assert PROFILES["smoke-cpu"].home(tmp_path) == tmp_path.resolve() / "lab" / "smoke-cpu"
    assert PROFILES["protocol-16gb"].home(tmp_path) == tmp_path.resolve()


def test_unknown_profile_names_those_that_exist():
    with pytest.raises(ValueError, match="smoke-cpu, smoke-mps, lane-b-small, smoke-16gb, protocol-16gb"):
        get_profile("smoke")


def test_device_batch_grows_with_the_card_and_always_divides():
    fitted = [fit_device_batch(gib * 1024) for gib in (2, 8, 16, 24, 141)]
    assert fitted == sorted(fitted) and fitted[0] == 1 and fitted[-1] == 64 and fitted[2] > 1
    config = parse(PROFILES["smoke-16gb"].flags)
    assert all(grad_accum_steps(config.total_batch_size, b, config.max_seq_len) for b in fitted)


def test_machine_flags_are_one_knob_compilation_and_the_environments_dtype(monkeypatch):
    smoke, protocol = PROFILES["smoke-16gb"], PROFILES["protocol-16gb"]
    assert machine_flags(smoke, 16384, has_triton=False) == [f"--device-batch-size={fit_device_batch(16384)}"]
    assert machine_flags(protocol, 16384, has_triton=True) == []
    assert machine_flags(protocol, 16384, has_triton=False) == ["--no-compile"]
    monkeypatch.setenv("NANOCHAT_DTYPE", "bfloat16")
    assert machine_flags(PROFILES["smoke-cpu"], None, has_triton=True) == ["--dtype=bfloat16"]


def test_no_card_is_seen_where_none_is_visible(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cuda_memory_mib() is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")
    assert cuda_memory_mib() is None


@pytest.mark.parametrize("memory_gib, mps, name, says", [
    (None, False, "smoke-cpu", "torch finds no CUDA device and no Apple GPU"),
    (None, True, "smoke-mps", "torch finds an Apple GPU"),
    (8, False, "smoke-16gb", "a card of 8 GiB"), (12, False, "smoke-16gb", "a card of 12 GiB"),
    (15, False, "protocol-16gb", "a card of 15 GiB"), (24, False, "protocol-16gb", "a card of 24 GiB")])
def test_default_follows_the_device_and_is_said(monkeypatch, memory_gib, mps, name, says):
    monkeypatch.setattr(profiles, "cuda_memory_mib", lambda: memory_gib and memory_gib * 1024)
    monkeypatch.setattr(profiles, "has_mps", lambda: mps)
    found = choose(None, "protocol-16gb")
    assert found.profile.name == name and says in found.why and "PROFILE= names another" in found.why
    assert found.memory_mib == (memory_gib and memory_gib * 1024)


def test_profile_that_was_named_is_taken_or_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(profiles, "cuda_memory_mib", lambda: None)
    monkeypatch.setattr(profiles, "has_mps", lambda: False)
    assert choose("smoke-cpu", "") == (PROFILES["smoke-cpu"], None, "")
    with pytest.raises(ValueError, match="--profile=smoke-mps needs an Apple GPU .* --profile=smoke-cpu"):
        choose("smoke-mps", "")
    with pytest.raises(ValueError, match="--profile=smoke-16gb needs a CUDA device"):
        choose("smoke-16gb", "")
    monkeypatch.setattr(profiles, "cuda_memory_mib", lambda: 8 * 1024)
    found = choose("protocol-16gb", "")
    assert found.profile.name == "protocol-16gb" and "this one has 8 GiB" in found.why
    assert choose("smoke-16gb", "").why == ""  # its batch is fitted to the card


def test_a_macs_gpu_is_named_as_records_name_it(monkeypatch):
    monkeypatch.setattr(hardware, "cpu_name", lambda: "Apple M2")
    assert hardware.machine_name("mps") == hardware.machine_name("cpu") == "Apple M2"  # as device.device_name


# -----------------------------------------------------------------------------
# prepare

@pytest.fixture
def modules(tmp_path):
    """Stand-ins for nanochat.dataset and nanochat.tokenizer that note the calls."""
    calls = []

    def list_parquet_files(data_dir):
        raise FileNotFoundError(data_dir)
    dataset = SimpleNamespace(calls=calls, get_data_dir=lambda home: home / "base_data_climbmix",
                              list_parquet_files=list_parquet_files,
                              build_builtin=lambda data_dir: calls.append(data_dir), get_dataset_id=lambda home: "data")
    return dataset, SimpleNamespace(get_tokenizer_id=lambda home: "tok")


def fake_python(monkeypatch, tmp_path, body):
    """sys.executable as a script that writes its arguments to a file, then does `body`."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\necho \"$@ NANOCHAT_BASE_DIR=$NANOCHAT_BASE_DIR\" >> {tmp_path}/asked\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(path))
    return tmp_path / "asked"


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_builtin_profile_makes_corpus_and_tokenizer_once(monkeypatch, tmp_path, modules):
    profile, home, said = PROFILES["smoke-cpu"], tmp_path / "home", []
    asked = fake_python(monkeypatch, tmp_path,
                        "mkdir -p $NANOCHAT_BASE_DIR/tokenizer; touch $NANOCHAT_BASE_DIR/tokenizer/tokenizer.json")
    for _ in range(2):
        assert prepare(profile, home, *modules, tmp_path / "logs", said.append) == ("data", "tok")
    assert asked.read_text() == (f"-m scripts.tok_train {' '.join(PROFILES['smoke-cpu'].tokenizer_flags)} "
                                 f"NANOCHAT_BASE_DIR={home}\n")
    # build_builtin itself is idempotent
    assert modules[0].calls == [home / "base_data_climbmix"] * 2 and len(said) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
def test_missing_data_is_downloaded_and_a_failure_shows_the_end_of_its_log(monkeypatch, tmp_path, modules):
    asked = fake_python(monkeypatch, tmp_path, "echo no network; exit 3")
    with pytest.raises(ValueError, match="nanochat.dataset failed with exit code 3(.|\n)*no network"):
        prepare(PROFILES["protocol-16gb"], tmp_path / "home", *modules, tmp_path / "logs", lambda line: None)
    assert asked.read_text().startswith(f"-m nanochat.dataset -n {profiles.SHARDS} ")


def test_foreign_tokenizer_is_not_trained_over(tmp_path, modules):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.pkl").touch()
    with pytest.raises(ValueError, match="--import-pkl"):
        prepare(PROFILES["smoke-cpu"], tmp_path, *modules, tmp_path / "logs", lambda line: None)
