"""
A comparison on a corpus of the user's own: DATA=name. Its folder, its tokenizer, its bank, and what is refused.

python -m pytest tests/test_own_data.py -q
"""

import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from nanochat import dataset, manifest
from nanochat.common import REPO_ROOT, read_json, write_json
from nanochat.lab import own_data, profiles
from nanochat.lab.csv_file import read_rows
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.rerun import home_of
from nanochat.lab.protocol.build import build_protocol, choose_workload
from scripts import gates, noise, protocol
from tests.lab_case import FAKE, enter


def id_of(facts) -> str:
    return manifest.dataset_id(*(facts[key] for key in ("shards", "validation_shard", "split_rule")))


def corpus(base_dir, name="mine", chars=200_000):
    """A corpus as nanochat.dataset leaves it, as far as the lab reads it."""
    folder = base_dir / "lab" / name / manifest.DATA_FOLDER
    folder.mkdir(parents=True)
    for shard in ("shard_00000.parquet", "shard_00001.parquet"):
        (folder / shard).touch()
    shards = [{"name": shard, "chars": size, "bytes": 0, "sha256": f"{name} {shard}", "documents": 1, "row_groups": 1}
              for shard, size in (("shard_00000.parquet", chars), ("shard_00001.parquet", 1000))]
    facts = {"validation_shard": "shard_00001.parquet", "shards": shards, "split_rule": "made up", "source": {},
             "packing_share": 0.5, "packing_assumptions": {"bytes_per_token": 4.0}}
    write_json(folder / manifest.MANIFEST, {"dataset_id": id_of(facts), **facts})
    return folder.parent


def write_words(folder):
    """Text files of made-up words, enough for the smallest vocabulary."""
    folder.mkdir()
    for i in range(30):
        words = (hashlib.sha256(f"{i * j % 1999}".encode()).hexdigest()[:6] for j in range(900))
        (folder / f"note {i}.txt").write_text(f"{i} " + " ".join(words))


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch, base_dir):
    enter(tmp_path, monkeypatch)
    monkeypatch.setattr(profiles, "cuda_memory_mib", lambda: None)
    monkeypatch.setattr(noise.profiles, "usable_cores", lambda: 2)


@pytest.fixture
def stand_in(monkeypatch):
    """The quick trainer, no corpus to build, no torch to wait for; its records name the data "data" and "tok"."""
    quick = functools.partial(build_protocol, trainer=FAKE)
    monkeypatch.setattr(profiles, "prepare", lambda *args: ("data", "tok"))
    for script in (protocol, noise):
        monkeypatch.setattr(script, "build_protocol", quick)
        monkeypatch.setattr(script, "check_arms", lambda *args: None)


def test_own_corpus_is_found_and_everything_of_it_lies_in_its_folder(base_dir):
    home = corpus(base_dir)
    workload = choose_workload("smoke-cpu", "", data="mine")
    assert workload.home == home.resolve() == own_data.home_of("mine", base_dir)
    assert choose_workload("smoke-cpu", "").home == (base_dir / "lab" / "smoke-cpu").resolve()
    assert own_data.names(base_dir) == ["mine"]


def test_base_dir_that_is_the_corpus_itself_finds_it_too(base_dir, monkeypatch):
    home = corpus(base_dir)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(home))  # as the command that made it suggests
    assert choose_workload("smoke-cpu", "", data="mine").home == home.resolve()
    assert "DATA=mine trains on yours" in choose_workload("smoke-cpu", "").why, "silence would be a wrong default"
    assert dataset.lab_data_dir("two") == base_dir / "lab" / "two" / manifest.DATA_FOLDER


def test_names_that_are_no_corpus_are_refused_with_the_next_step(base_dir):
    with pytest.raises(ValueError, match="there are: none yet.*nanochat.dataset --from PATH --name nope makes it"):
        own_data.find("nope", base_dir)
    corpus(base_dir, "b")
    corpus(base_dir, "a")
    with pytest.raises(ValueError, match="DATA=nope: no corpus of this name in .*; there are: a, b"):
        own_data.find("nope", base_dir)
    for path, name in (("~/my texts", "'my texts'"), ("../x.txt", "x"), ("C:\\texts", "texts"), (".hidden", "hidden")):
        says = f"DATA={path} is a path.*--from {shlex.quote(path)} --name {name}, then DATA={name}"
        with pytest.raises(ValueError, match=says.replace("\\", ".").replace("(", ".")):
            own_data.find(path, base_dir)


@pytest.mark.parametrize("chars, flag", [(10_000_000, "--vocab-size=4096"), (200_000, "--vocab-size=512"),
                                         (500_000, "--vocab-size=2048")])
def test_vocabulary_is_the_profiles_or_smaller_where_the_text_is_short(base_dir, chars, flag):
    corpus(base_dir, chars=chars)
    profile = choose_workload("smoke-cpu", "", data="mine").profile
    assert flag in profile.tokenizer_flags and len(profile.tokenizer_flags) == 2


def test_text_makes_corpus_and_tokenizer_of_its_own_once(base_dir, tmp_path):
    """Without stand-ins: the command of the README, on a folder with a space in its name."""
    from nanochat import tokenizer
    write_words(tmp_path / "my texts")
    assert dataset.main([f"--from={tmp_path / 'my texts'}", "--name=mine"]) == 0
    said, profile = [], choose_workload("smoke-cpu", "", data="mine").profile
    home = profile.home(base_dir)
    ids = [profiles.prepare(profile, home, dataset, tokenizer, tmp_path / "logs", said.append) for _ in range(2)]
    assert ids[0] == ids[1] and ids[0][0] == own_data.dataset_id(home)
    assert len(said) == 1 and "scripts.tok_train --vocab-size=512" in said[0]


def printed_command(out, module):
    """The words of the last printed command of a module, without the environment and the Python before it."""
    line = re.findall(rf"[^`\n]* -m {module} [^`\n]*", out)[-1]
    words = shlex.split(line)
    return words[words.index(module) + 1:]


def test_every_printed_command_runs_and_the_bank_is_then_found(stand_in, base_dir, capsys):
    corpus(base_dir)
    flags = "--flags=--num-iterations=20 --matrix-lr=0.03"
    argv = ["--profile=smoke-cpu", "--data=mine", flags, "--jobs=1", "--candidate=gate: --symplectic-gate"]
    assert protocol.main([*argv, "--label=first", "--seeds=1 2"]) == 0
    out = capsys.readouterr().out
    assert "data mine: dataset_id data" in out
    bank = printed_command(out, "scripts.noise")
    assert bank == ["--run", "--seeds=8", "--profile=smoke-cpu", "--data=mine", flags, "--jobs=1"]
    assert protocol.main(printed_command(out, "scripts.protocol")) == 0  # "to settle it": five seeds
    assert len(read_json("results/first_latest.json")["runs"]) == 10
    assert noise.main(bank) == 0
    capsys.readouterr()
    assert protocol.main([*argv, "--label=second", "--seeds=11 12"]) == 0
    assert "noise from the noise bank" in capsys.readouterr().out
    homes = {path.parent.parent.parent.name for path in base_dir.glob("lab/*/records/*/run.json")}
    assert homes == {"mine"}


def test_bank_of_other_data_does_not_count_and_it_is_said(stand_in, base_dir, capsys, monkeypatch, tmp_path):
    corpus(base_dir)
    ledger = f"--ledger={tmp_path / 'ledger.csv'}"
    assert noise.main(["--run", "--profile=smoke-cpu", "--seeds=3", ledger]) == 0
    monkeypatch.setattr(profiles, "prepare", lambda *args: ("other data", "tok"))
    capsys.readouterr()
    assert protocol.main(["--profile=smoke-cpu", "--data=mine", "--label=x", "--seeds=1 2", ledger]) in (0, 1)
    out = capsys.readouterr().out
    assert "the 3 banked runs of smoke-cpu do not count" in out and "dataset data -> other" in out
    assert "noise from no source, because none is banked yet" in out
    monkeypatch.setattr(profiles, "prepare", lambda *args: ("third", "tok"))
    assert protocol.main(["--profile=smoke-cpu", "--data=mine", "--label=x", "--seeds=1 2", ledger]) in (0, 1)
    assert "was a comparison on other data (dataset_id other da) and is replaced" in capsys.readouterr().out


def test_gates_name_the_base_dir_of_the_comparison_where_another_is_set(stand_in, base_dir, capsys, monkeypatch,
                                                                         tmp_path):
    corpus(base_dir)
    ledger = f"--ledger={tmp_path / 'ledger.csv'}"
    assert protocol.main(["--profile=smoke-cpu", "--data=mine", "--label=g", "--seeds=1 2", ledger]) == 0
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "another"))
    capsys.readouterr()
    assert gates.main(["--label=g"]) == 0
    out = capsys.readouterr().out
    assert f"NANOCHAT_BASE_DIR={base_dir}" in out
    assert printed_command(out, "scripts.noise") == ["--run", "--seeds=8", "--profile=smoke-cpu", "--data=mine"]


def test_row_on_own_data_is_run_again_in_its_own_folder(base_dir):
    mine, other = corpus(base_dir), corpus(base_dir, "other")
    row = dict.fromkeys(experiments.schema()) | {"profile": "smoke-cpu", "dataset_id": own_data.dataset_id(other)}
    assert home_of(row, base_dir) == other.resolve()
    assert home_of(row | {"dataset_id": own_data.dataset_id(mine)}, base_dir) == mine.resolve()
    assert home_of(row | {"dataset_id": "gone"}, base_dir) == (base_dir / "lab" / "smoke-cpu").resolve()


def test_command_of_a_comparison_and_of_its_bank_say_the_data(base_dir):
    corpus(base_dir)
    parse = protocol.build_parser().parse_args
    made = protocol.make_protocol(parse(["--profile=lane-b-small", "--data=mine", "--seeds=1", "--jobs=1"]))
    assert "--data=mine" in shlex.split(made.command()) and made.extra == ("--jobs=1",)
    assert made.again().endswith("--jobs=1")
    assert made.noise_options() == ["--profile=lane-b-small", "--data=mine", "--jobs=1"]
    bank = noise.make_protocol(noise.build_parser().parse_args(["--data=mine", "--profile=smoke-cpu", "--seeds=2"]))
    assert "--data=mine" in bank.command() and bank.home == made.home


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_lines_run_as_they_are_pasted_into_a_shell(tmp_path):
    """The commands of the README on text of one's own, for real, with a space in every path; then what they print."""
    texts, ledger = tmp_path / "my texts", tmp_path / "my ledger.csv"
    write_words(texts)
    given = {"NANOCHAT_BASE_DIR": str(tmp_path / "base dir"), "NANOCHAT_LEDGER": str(ledger)}
    bare = {name: value for name, value in os.environ.items() if not name.startswith("NANOCHAT_")}
    bare["PYTHONPATH"] = str(REPO_ROOT)

    def python(module, *argv):
        run = subprocess.run([sys.executable, "-m", module, *argv], cwd=tmp_path, env=bare | given, text=True,
                             capture_output=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    python("nanochat.dataset", f"--from={texts}", "--name=mine")
    tiny = ("--flags=--depth=2 --max-seq-len=64 --model-dim=64 --head-dim=32 --device-batch-size=4 "
            "--total-batch-size=256 --num-iterations=4 --eval-tokens=512")
    argv = ["--profile=smoke-cpu", "--data=mine", tiny, "--candidate=x: --matrix-lr=0.03"]
    out = python("scripts.protocol", *argv, "--label=first", "--seeds=1 2")
    lines = [re.findall(rf"[^`\n]*NANOCHAT_BASE_DIR[^`\n]* -m {module} [^`\n]*", out)[-1].strip()
             for module in ("scripts.noise", "scripts.protocol")]
    lines = [lines[0].replace("--seeds=8", "--seeds=2"), lines[1].replace("1 2 3 4 5", "1 2")]
    for line in lines:  # in a new terminal: nothing is set
        run = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=bare, text=True, capture_output=True)
        assert run.returncode == 0, run.stderr
    assert "noise from the noise bank" in python("scripts.protocol", *argv, "--label=second", "--seeds=8")
    assert {row["label"] for row in read_rows(ledger)} == {"first", "noise", "second"}
