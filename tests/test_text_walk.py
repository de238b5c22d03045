"""
python -m pytest tests/test_text_walk.py -q

Which files of a folder are read, and how the others are named. Paths are of every kind that a system makes.
"""

import json
import os
import random
import socket
import subprocess
import sys

import pytest
from corpus_case import documents, prose

from nanochat import corpus, dataset
from nanochat.common import REPO_ROOT
from nanochat.manifest import DATA_FOLDER, read_manifest
from nanochat.text_walk import LeftOut, find_files, open_regular, shown

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
unrooted = pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    for i in range(4):
        put(folder / f"text{i}.txt", prose(i))
    return folder


def put(path, content="some words, and then some more"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def walk(folder, **options):
    """(names of the files to read, lines about what is left out)"""
    left_out = LeftOut()
    files = find_files([folder], left_out, **options)
    return sorted(p.relative_to(folder).as_posix() for p in files), left_out.take_lines()


OURS = [f"text{i}.txt" for i in range(4)]
HIDDEN = [".git/notes.txt", ".ipynb_checkpoints/text1-checkpoint.txt", ".venv/lib/LICENSE.txt", "._text1.txt",
          ".x.swp.txt", ".cache/deep/er/a.jsonl", "sub/.hidden/a.md"]
TOOLS = ["__MACOSX/text1.txt", "__pycache__/a.txt", "node_modules/pkg/README.md", "venv/a.txt", "LOST+FOUND/a.txt",
         "$RECYCLE.BIN/a.txt", "System Volume Information/a.txt", "base_checkpoints/d4/notes.txt", "Thumbs.db",
         "desktop.ini", "~$text1.txt", "checkpoint-500/merges.txt", "lib/site-packages/x/a.md", "myenv/a/b.txt",
         "base_data_climbmix/shard_00000.parquet"]


@pytest.mark.parametrize("name", HIDDEN + TOOLS)
def test_hidden_files_and_those_of_tools_are_left_out_and_named(texts, name):
    put(texts / name, b"\x00\x05\x16\x07\xb0\xff")  # reading it would fail
    if name.startswith("myenv"):
        put(texts / "myenv" / "pyvenv.cfg")
    names, lines = walk(texts)
    kind = "hidden" if name in HIDDEN else "of tools or systems"
    assert names == OURS and len(lines) == 1 and lines[0].startswith(f"left out, {kind}: 1 (")
    assert lines[0].removesuffix(")").partition("(")[2] in name


def test_a_corpus_is_the_same_with_and_without_hidden_copies(texts, tmp_path, capsys):
    before = corpus.build_from_paths(tmp_path / "a", [texts], progress=False)
    assert capsys.readouterr().out == ""
    for i in range(4):
        put(texts / ".ipynb_checkpoints" / f"text{i}-checkpoint.txt", prose(i).replace("alpha", "Alpha"))
    assert corpus.build_from_paths(tmp_path / "b", [texts], progress=False)["dataset_id"] == before["dataset_id"]
    assert capsys.readouterr().out == (
        "left out, hidden: 1 (.ipynb_checkpoints)\n"
        "read: .txt .md .jsonl .jsonl.gz .parquet; to read a path that is hidden or a link, type it after --from\n")


@pytest.mark.parametrize("hidden", [".notes", "venv", ".a/b"])
def test_a_path_that_is_typed_is_read_wherever_it_is(tmp_path, hidden):
    folder = put(tmp_path / hidden / ".draft.txt", prose(0)).parent
    put(folder / "open.txt", prose(1))
    assert walk(folder) == (["open.txt"], ["left out, hidden: 1 (.draft.txt)"])
    assert find_files([folder / ".draft.txt"]) == [folder / ".draft.txt"]


def test_other_files_are_counted_by_suffix_with_their_first_names(texts):
    for i in range(5):
        put(texts / "docs" / f"paper{i}.PDF")
    for name in ("a.docx", "page.html", "table.csv", "LICENSE", "empty.txt", "sub/void.jsonl", "UPPER.TXT", "b.Jsonl"):
        put(texts / name, "" if name in ("empty.txt", "sub/void.jsonl") else "x")
    names, lines = walk(texts)
    assert names == sorted([*OURS, "UPPER.TXT", "b.Jsonl"])
    assert lines[0] == "left out, .pdf files: 5 (docs/paper0.PDF, docs/paper1.PDF, docs/paper2.PDF, ...)".replace(
        "/", os.sep)
    assert sorted(lines[1:]) == [
        "left out, .csv files: 1 (table.csv)", "left out, .docx files: 1 (a.docx)",
        "left out, .html files: 1 (page.html)", f"left out, empty files: 2 (empty.txt, sub{os.sep}void.jsonl)",
        "left out, files without suffix: 1 (LICENSE)"]


def test_many_kinds_are_summed_up(texts):
    for i in range(40):
        put(texts / f"file.x{i}")
    _, lines = walk(texts)
    assert len(lines) == 13 and lines[-1] == "left out, of 28 further kinds: 28"


def test_a_folder_without_texts_says_what_it_holds(tmp_path):
    put(tmp_path / "docs" / "paper.pdf")
    with pytest.raises(ValueError, match=r"docs: expected \.txt .*; left out, \.pdf files: 1 \(paper\.pdf\)$"):
        find_files([tmp_path / "docs"])


@posix
def test_links_are_left_out_and_a_typed_link_is_read(texts, tmp_path):
    put(tmp_path / "else" / "secret.txt", prose(9))
    for name, target in {"out.txt": tmp_path / "else" / "secret.txt", "in.txt": texts / "text1.txt",
                         "dangling.txt": "nowhere", "loop": texts, "folder": tmp_path / "else", "self": "self"}.items():
        (texts / name).symlink_to(target)
    names, lines = walk(texts)
    assert names == OURS and lines == ["left out, symbolic links: 6 (folder, loop, dangling.txt, ...)"]
    assert find_files([texts / "out.txt"]) == [texts / "out.txt"]
    assert [p.name for p in find_files([texts / "folder"])] == ["secret.txt"]
    for name, why in (("dangling.txt", "no such file or folder"), ("self", "Too many levels of symbolic links")):
        with pytest.raises(ValueError, match=f"{name}: {why}"):
            find_files([texts / name])


@posix
def test_pipes_and_sockets_are_named_and_never_waited_for(texts, monkeypatch):
    os.mkfifo(texts / "pipe.txt")
    monkeypatch.chdir(texts)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("sock.txt")
        assert walk(texts) == (OURS, ["left out, pipes, sockets or devices: 2 (pipe.txt, sock.txt)"])
    for path in (texts / "pipe.txt", "/dev/null"):
        with pytest.raises(ValueError, match="expected a file or a folder, this is a pipe, socket or device"):
            find_files([path])
    with pytest.raises(ValueError, match=r"pipe\.txt is no regular file"):  # it took the place of a file
        open_regular(texts / "pipe.txt")


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a\0b", "nowhere", "nowhere/at/all.txt"])
def test_a_path_that_cannot_be_is_one_line(path):
    with pytest.raises(ValueError, match=r"^[^\n]+: [^\n]+$"):
        find_files([path])


@unrooted
def test_what_may_not_be_read_is_named(texts):
    (texts / "text1.txt").chmod(0)
    with pytest.raises(ValueError, match=r"text1\.txt cannot be opened \(Permission denied\); make it readable"):
        open_regular(texts / "text1.txt")
    put(texts / "closed" / "a.txt")
    (texts / "closed").chmod(0)
    try:
        with pytest.raises(ValueError, match=r"closed cannot be listed \(Permission denied\)"):
            find_files([texts])
    finally:
        (texts / "closed").chmod(0o700)


def test_a_file_that_vanishes_is_named(texts):
    files = find_files([texts])
    (texts / "text2.txt").unlink()
    with pytest.raises(ValueError, match=r"text2\.txt cannot be opened \(No such file or directory\)"):
        list(corpus.file_texts(files, False, False))


def test_a_file_that_grows_while_it_is_read_is_named(texts):
    reader = corpus.file_texts([texts / "text2.txt"], False, False)
    next(reader)
    with open(texts / "text2.txt", "a") as f:
        f.write("more")
    with pytest.raises(ValueError, match=r"text2\.txt was changed while it was read; run this again"):
        next(reader)


# -----------------------------------------------------------------------------
# Outputs, names of corpora, names of files

def test_a_second_build_does_not_read_the_first(texts, monkeypatch, capsys):
    """The base directory lies inside the folder that is read."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(texts / "made"))
    first = [dataset.main(["--from", str(texts), "--name", "mine"]), dataset.get_dataset_id(texts / "made/lab/mine")]
    put(texts / "made" / "lab" / "mine" / "records" / "run" / "metrics.jsonl", '{"step": 1}\n')
    capsys.readouterr()
    again = [dataset.main(["--from", str(texts), "--name", "mine"]), dataset.get_dataset_id(texts / "made/lab/mine")]
    assert first == again and first[0] == 0
    out = capsys.readouterr().out
    assert "left out, written by this project: 1 (made)\n" in out and "replaced" not in out


def test_what_is_replaced_is_said_and_what_is_not_listed_is_kept(texts, tmp_path, capsys):
    data_dir = tmp_path / "data"
    first = corpus.build_from_paths(data_dir, [texts], progress=False)
    put(texts / "more.txt", prose(7))
    corpus.build_from_paths(data_dir, [texts], progress=False)
    assert f"replaced the dataset {first['dataset_id'][:12]} that was in {data_dir}" in capsys.readouterr().out
    put(data_dir / "notes.txt")
    with pytest.raises(ValueError, match=r"1 files that its manifest does not list \(notes\.txt\), and they would be"):
        corpus.build_from_paths(data_dir, [texts], progress=False)
    assert (data_dir / "notes.txt").exists()


@pytest.mark.parametrize("name", ["a/b", "..", ".", "../x", "a\\b", ".hidden", " a", "a ", "a.", "nul", "COM1.txt",
                                  "a\nb", "caf\udce9", "-x", "a:b", "x" * 101, "$(x)", "a;b", "'"])
def test_a_name_that_is_no_plain_folder_name_is_refused(name, capsys):
    with pytest.raises(SystemExit) as e:
        dataset.main(["--from", "x.txt", f"--name={name}"])
    assert e.value.code == 2 and "expected a plain folder name" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine", "my own", "天地", "a.b-c_d+e=f@g", "x", "console", "Größe 2"])
def test_a_plain_folder_name_is_taken(name, texts, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    assert dataset.main(["--from", str(texts), "--name", name]) == 0
    assert read_manifest(tmp_path / "base" / "lab" / name / DATA_FOLDER)["source"]["kind"] == "files"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_names_that_are_not_utf8_work_in_every_place(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/b\xfccher\n1")
    os.mkdir(folder)
    for i in range(3):
        with open(os.fsdecode(os.fsencode(folder) + b"/caf\xe9%d.txt" % i), "w") as f:
            f.write(prose(i))
    os.mkfifo(os.fsencode(folder) + b"/pipe\xe9.txt")
    env = {**os.environ, "NANOCHAT_BASE_DIR": os.fsdecode(os.fsencode(tmp_path) + b"/b\xe4se"), "PYTHONUTF8": "1"}
    run = subprocess.run([sys.executable, "-m", "nanochat.dataset", "--from", folder, "--name", "x"], cwd=REPO_ROOT,
                         env=env, capture_output=True)
    assert run.returncode == 0, run.stderr
    assert rb"pipes, sockets or devices: 1 (pipe\xe9.txt)" in run.stdout
    data_dir = os.path.join(env["NANOCHAT_BASE_DIR"], "lab", "x", DATA_FOLDER)
    with open(os.path.join(data_dir, "manifest.json"), "rb") as f:
        paths = json.loads(f.read().decode("utf-8"))["source"]["paths"]
    assert paths == [str(tmp_path.resolve()) + r"/b\xfccher\n1"]
    assert len(documents(data_dir)["train"]) > 10
    with open(os.path.join(folder, "bad.txt"), "wb") as f:
        f.write(b"caf\xe9")
    run = subprocess.run([sys.executable, "-m", "nanochat.dataset", "--from", folder, "--name", "x"], cwd=REPO_ROOT,
                         env=env, capture_output=True)
    assert run.returncode == 2 and run.stderr.count(b"\n") == 1 and rb"b\xfccher\n1/bad.txt is not UTF-8" in run.stderr


def test_shown_paths_are_one_line_of_valid_unicode():
    rng = random.Random(0)
    for _ in range(300):
        name = os.fsdecode(bytes(rng.randrange(1, 256) for _ in range(20)))
        text = shown(name)
        assert text.isprintable() and text.encode("utf-8")
    for name in ("plain.txt", "with space", "天地.md", "naïve🌊"):
        assert shown(name) == name
