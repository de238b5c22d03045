"""
A start that fails moves nothing aside, says why in one line, and hangs at no prompt.

python -m pytest tests/test_start.py -q
"""

import getpass
import os
import subprocess
import sys

import pytest
import torch

from nanochat import device as dev
from nanochat import run_setup, trainer
from nanochat.checkpoint_manager import find_last_step
from nanochat.loss import CrossEntropy
from nanochat.record import RunRecord, WandbSink, read_record
from tests.conftest import REPO_ROOT
from tests.tiny import make_base
from tests.train_case import cli, metrics, run


@pytest.fixture
def base(base_dir):
    make_base(base_dir)
    run("--model-tag=a", "--num-iterations=2", "--eval-every=-1")
    return base_dir


def names(base):
    return sorted(path.name for folder in ("base_checkpoints", "records") for path in (base / folder).iterdir())


def assert_untouched(base, before):
    assert names(base) == before and find_last_step(base / "base_checkpoints" / "a") == 2
    assert read_record(base, "a")["status"] == "ok" and len(metrics(base, "a")) == 2


def raising(error):
    def fail(*args, **kwargs):
        raise error
    return fail


@pytest.mark.parametrize("error, status", [(torch.OutOfMemoryError("CUDA out of memory"), "oom"),
                                           (RuntimeError("a kernel that cannot be built"), "crash"),
                                           (KeyboardInterrupt(), "interrupted")], ids=repr)
def test_a_first_step_that_fails_leaves_the_earlier_run_where_it_is(base, monkeypatch, error, status):
    before = names(base)
    monkeypatch.setattr(CrossEntropy, "__call__", raising(error))
    for flags in ([], ["--eval-every=-1"]):  # in the first validation, in the first step
        assert run("--model-tag=a", *flags)["status"] == status
        assert_untouched(base, before)


def test_data_that_cannot_be_read_are_found_before_anything_is_moved(base):
    shard = next((base / "base_data_climbmix").glob("shard_00000*"))
    shard.write_bytes(shard.read_bytes()[:100])
    before = names(base)
    with pytest.raises(ValueError, match="shard_00000"):
        run("--model-tag=a")
    assert_untouched(base, before)


def test_a_run_that_begins_moves_the_earlier_one_with_its_record_under_one_name(base, capsys):
    (base / "records" / "a.1").mkdir()
    assert run("--model-tag=a", "--num-iterations=3")["status"] == "ok"
    assert read_record(base, "a.2")["results"]["steps"] == 2 and find_last_step(base / "base_checkpoints" / "a.2") == 2
    assert [row["step"] for row in metrics(base, "a")] == [0, 0, 1, 2, 3], "the validation before the first step too"
    assert capsys.readouterr().out.count("Moved the earlier") == 2


@pytest.mark.parametrize("flag, package", [("--tensorboard", "tensorboard"), ("--run=x", "wandb")])
def test_a_logger_that_is_not_installed_is_one_line_that_names_the_package(base, monkeypatch, flag, package):
    before = names(base)
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    with pytest.raises(ValueError, match=f"{flag.split('=')[0]} needs the package {package}: .*pip install {package}"):
        run("--model-tag=a", flag)
    assert_untouched(base, before)


@pytest.mark.slow
def test_wandb_without_a_login_is_one_line_and_no_prompt(base, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    before = names(base)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    result = cli(base, "--model-tag=a", "--run=x", stdin=subprocess.DEVNULL, timeout=300)
    assert result.returncode == 2 and "wandb login" in result.stderr, result.stderr
    assert_untouched(base, before)


class Sink:
    def __init__(self):
        self.calls = 0

    def log(self, row):
        self.calls += 1
        raise ConnectionError("no network")

    finish = log


def test_a_logger_that_fails_is_told_once_and_left_out(base_dir, capsys):
    sink = Sink()
    record = RunRecord(base_dir, "r", {}, [sink])
    for step in range(3):
        record.log({"step": step})
    record.finish("ok")
    assert sink.calls == 1 and capsys.readouterr().out.count("Sink failed and is left out") == 1
    assert len(metrics(base_dir, "r")) == 3 and read_record(base_dir, "r")["status"] == "ok"


def test_a_wandb_that_cannot_begin_is_bad_input(monkeypatch):
    class Fake:
        login = staticmethod(lambda prompt: True)
        init = staticmethod(raising(RuntimeError("no route to host\nand a page more")))
    monkeypatch.setitem(sys.modules, "wandb", Fake)
    with pytest.raises(ValueError, match=r"--run=x: wandb cannot begin a run \(no route to host\); set WANDB_MODE"):
        WandbSink("x", {})


# -----------------------------------------------------------------------------
# Memory, compiler, user

def test_a_model_that_does_not_fit_is_out_of_memory_and_says_what_to_try(base, monkeypatch):
    before = names(base)
    monkeypatch.setattr(run_setup, "build_model", raising(RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")))
    with pytest.raises(MemoryError, match="before the first step .*; try --device-batch-size=1, and see .*vram"):
        run("--model-tag=a")
    assert_untouched(base, before)


def test_out_of_memory_in_a_step_says_what_to_try(base, monkeypatch):
    monkeypatch.setattr(trainer, "train_step", raising(MemoryError()))
    facts = run("--model-tag=b")
    assert facts["status"] == "oom" and "try --device-batch-size=1" in facts["error"]


def test_a_user_without_a_name_gets_one(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", raising(KeyError("getpwuid(): uid not found: 4242")))
    dev.name_the_user()
    assert getpass.getuser() == f"uid{os.getuid()}"


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the compiler is a shell script")
def test_a_compiler_that_cannot_build_is_told_and_the_run_is_recorded_as_eager(base, tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'x.cpp:1:10: fatal error: Python.h: No such file or directory' >&2\nexit 1\n")
    compiler.chmod(0o755)
    env = {**os.environ, "NANOCHAT_BASE_DIR": str(base), "CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
           "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    flags = ["--depth=2", "--head-dim=32", "--aspect-ratio=32", "--max-seq-len=32", "--device-batch-size=2",
             "--total-batch-size=128", "--num-iterations=2", "--eval-every=-1", "--sample-every=-1", "--model-tag=b"]
    result = subprocess.run([sys.executable, "-m", "scripts.base_train", *flags], cwd=REPO_ROOT, env=env, text=True,
                            capture_output=True)
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("Not compiling"))
    assert "could not be built" in line and "--no-compile" in line
    facts = read_record(base, "b")
    assert facts["config"]["compile"] and not facts["resolved"]["compile"] and facts["clocks"]["compile_sec"] is None
