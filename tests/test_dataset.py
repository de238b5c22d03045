"""
python -m pytest tests/test_dataset.py

The command line. test_manifest.py, test_shards.py, test_corpus.py and test_download.py have what it calls.
"""

import functools
import json
import socket
import subprocess
import sys

import pytest

from nanochat import dataset, download
from nanochat.common import REPO_ROOT
from nanochat.manifest import DATA_FOLDER


@pytest.fixture
def base_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    return tmp_path / "base"


def test_from_builds_beside_the_users_own_data_and_says_how_to_use_it(base_dir, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("\n\n".join(f"paragraph {i} " + "word " * 30 for i in range(400)))
    assert dataset.main(["--from", str(tmp_path / "notes.txt"), "--name", "notes"]) == 0
    out = capsys.readouterr().out
    assert f"export NANOCHAT_BASE_DIR={base_dir / 'lab' / 'notes'}" in out.replace("set ", "export ")
    assert not (base_dir / DATA_FOLDER).exists()
    manifest = json.loads((base_dir / "lab" / "notes" / DATA_FOLDER / "manifest.json").read_text())
    assert manifest["dataset_id"] == dataset.get_dataset_id(base_dir / "lab" / "notes")
    assert manifest["dataset_id"] in out
    assert manifest["validation_shard"] == max(s["name"] for s in manifest["shards"])


def test_a_second_corpus_goes_beside_the_first_not_inside_it(base_dir, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir / "lab" / "one"))
    assert dataset.lab_data_dir("two") == base_dir / "lab" / "two" / DATA_FOLDER


@pytest.mark.parametrize("argv, message", [
    ([], "one of the arguments"),
    (["--builtin", "-n", "2"], "not allowed with"),
    (["--from", "x.txt"], "--from needs --name"),
    (["--builtin", "--name", "../x"], "expected a plain folder name"),
    (["-n", "2", "--max_doc_chars=5"], "go with --builtin and --from"),
])
def test_bad_arguments_exit_2(base_dir, capsys, argv, message):
    with pytest.raises(SystemExit) as e:
        dataset.main(argv)
    assert e.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("argv, message", [
    (["--from", "nowhere.txt", "--name", "x"], "nowhere.txt: no such file"),
    (["-n", "-2"], "--num-files=-2"),
    (["-n", "1", "-w", "0"], "--num-workers=0"),
    (["--builtin", "--max-doc-chars=-1"], "--max-doc-chars=-1"),
])
def test_bad_values_exit_2_with_one_line(base_dir, capsys, argv, message):
    assert dataset.main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def no_name(*args):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize("address, proxy, cause", [
    ("127.0.0.1:9", "", "Connection refused"),
    ("shards.example", "", "its name cannot be looked up; is there a network?"),
    ("shards.example", "http://127.0.0.1:9", "through the proxy: Connection refused"),
], ids=("refused", "no name", "proxy"))
def test_host_that_does_not_answer_is_named_once_with_the_offline_way(base_dir, monkeypatch, capsys, address, proxy,
                                                                      cause):
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    quick = functools.partial(download.download_shards, sleep_base=0.001, progress=False)
    monkeypatch.setattr(download, "download_shards", quick)
    if address == "shards.example" and not proxy:
        monkeypatch.setattr(socket, "getaddrinfo", no_name)
    assert dataset.main(["-n", "3", "-w", "2", f"--base-url=http://{address}/repo"]) == 2
    out, err = capsys.readouterr()
    assert out == f"{address} cannot be reached ({cause}); trying 4 more times\n"
    assert err.startswith(f"error: {address} cannot be reached ({cause}), so 4 shards are missing; ")
    assert err.count("\n") == 1
    assert "--builtin, or --from PATH --name NAME" in err and list((base_dir / DATA_FOLDER).iterdir()) == []


def test_no_torch_is_imported():
    code = ("import sys; from nanochat import dataset, corpus, download, manifest, shards, text_files; "
            "corpus.package_files(); sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT).returncode == 0
