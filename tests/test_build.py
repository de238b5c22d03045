"""
The protocols that the three commands build: what they share, and what each of them leaves to the machine.

python -m pytest tests/test_build.py -q
"""

import importlib.util
import shlex
from types import SimpleNamespace

import pytest

from nanochat.lab import profiles
from nanochat.lab.arms import make_arms
from nanochat.lab.protocol.build import build_protocol, check_arms, choose_workload
from nanochat.lab.protocol.plan import Plan
from scripts import noise, protocol, smoke
from tests.lab_case import enter


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, base_dir):
    enter(tmp_path, monkeypatch)
    monkeypatch.delenv("NANOCHAT_DTYPE", raising=False)
    monkeypatch.setattr(profiles, "cuda_memory_mib", lambda: None)


def of_command(script, *argv):
    return script.make_protocol(script.build_parser().parse_args(argv))


def test_the_three_commands_give_one_profile_one_home_and_the_same_flags():
    made = [of_command(protocol), of_command(noise), smoke.make_protocol(None, fresh=False)]
    assert len({(m.profile.name, m.home, tuple(m.workload.flags), m.machine) for m in made}) == 1
    assert [m.arms[0].config for m in made[1:]] == [made[0].arms[0].config] * 2 and made[0].machine


def test_machine_decides_what_was_not_asked_for(monkeypatch):
    monkeypatch.setattr(profiles, "usable_cores", lambda: 4)
    assert of_command(protocol).jobs == 2 and of_command(protocol, "--jobs=1").jobs == 1  # the arms of a seed
    assert of_command(noise, "--seeds=3").jobs == profiles.NOISE_SIDE_BY_SIDE == 2
    assert of_command(noise, "--jobs=1").jobs == 1
    monkeypatch.setattr(profiles, "cuda_memory_mib", lambda: 16 * 1024)
    assert of_command(protocol).jobs == 1 and of_command(protocol).profile.name == "protocol-16gb"
    assert smoke.make_protocol(None, fresh=False).profile.name == "smoke-16gb"


def test_runs_that_never_earn_back_their_compilation_are_not_compiled(monkeypatch):
    monkeypatch.setattr(profiles, "cuda_memory_mib", lambda: 16 * 1024)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "triton")
    assert choose_workload("protocol-16gb", "").machine_flags == []
    assert choose_workload("protocol-16gb", "", worth_compiling=False).machine_flags == ["--no-compile"]


def test_plan_of_the_command_is_said_by_the_command_again():
    argv = ["--profile=smoke-cpu", "--label=t", "--seeds", "1", "2", "--flags=--num-iterations=20",
            "--candidate=x: --matrix-lr=0.03", "--min-gain=0.002", "--primary=time_to_target", "--fallback=wall_time",
            "--target-bpb=2.5", "--noise=own", "--until=decided", "--max-seeds=4"]
    made = of_command(protocol, *argv)
    assert made.plan == Plan("time_to_target", "wall_time", 0.002, 2.5, "own", until_decided=True)
    assert made.seeds == [1, 2, 3, 4] and shlex.split(made.command([1, 2]))[3:] == argv
    assert shlex.split(of_command(protocol, "--seeds=1", "--aa").command())[-2:] == ["--candidate=aa: ", "--aa"]


def test_command_of_a_bank_is_its_own():
    workload = choose_workload("smoke-cpu", "")
    made = build_protocol("noise", workload, make_arms([], workload.flags), [1, 2, 3], kind=noise.NoiseProtocol)
    assert made.command() == "python -m scripts.noise --run --seeds=3 --profile=smoke-cpu"


# -----------------------------------------------------------------------------
# Arms that cannot be run

class Tokenizer:
    """Stands in for the module nanochat.tokenizer."""
    @staticmethod
    def get_tokenizer(home):
        return Tokenizer

    @staticmethod
    def get_vocab_size():
        return 300


@pytest.mark.parametrize("flags, candidates, arm", [
    (["--mlp=cubd"], [], "control"), ([], ["typo: --mlp=cubd"], "typo"), (["--mlp=cubd"], ["aa:"], "control"),
    ([], ["typo: --matrix-optimizer=sgd"], "typo")])
def test_a_name_that_is_no_row_is_refused_for_every_arm_by_name(flags, candidates, arm):
    from nanochat.cost import resolve
    arms = make_arms(candidates, ["--depth=2", *flags])
    with pytest.raises(ValueError, match=f"arm {arm}: --.* there is no such row"):
        check_arms(SimpleNamespace(home=None, arms=arms), resolve, Tokenizer)


def test_an_arm_of_another_tree_may_name_a_row_of_that_tree():
    from nanochat.cost import resolve
    control, other = make_arms(["idea: --mixer=linear"], ["--depth=2"])
    elsewhere = SimpleNamespace(name=other.name, flags=other.flags, config=other.config, tree_id="t")
    check_arms(SimpleNamespace(home=None, arms=[control, elsewhere]), resolve, Tokenizer)
