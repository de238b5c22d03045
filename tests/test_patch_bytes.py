"""
Patches change bytes, and take them back: line ends, encodings, names and modes; whatever git is told to do elsewhere.

python -m pytest tests/test_patch_bytes.py -q
"""

import os
import shutil
import subprocess

import pytest

from nanochat.lab.trees import checkouts, patches
from nanochat.lab.trees.patch_files import changes, read_patch
from nanochat.lab.trees.tree_arms import make_all_arms
from scripts.patch import main
from tests.tree_case import BETTER_EDIT, commit, git, insert, make_patch, make_repo, snapshot

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="no git")
posix = pytest.mark.skipif(os.name == "nt", reason="modes, links and such names are POSIX's")
BINARY = bytes(range(256)) * 8


def put(folder, files):
    """Make the files {name: bytes, None = not there, or a callable that takes the path}."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        elif content is None:
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(content)


def state(folder):
    """Bytes, kind and x bit of every file outside .git."""
    links = {path: os.readlink(path) for path in folder.rglob("*") if path.is_symlink()}
    return snapshot(folder), links, {p: os.access(p, os.X_OK) for p in folder.rglob("*") if ".git" not in p.parts}


def diff_of(tree, path, before, after, *how):
    """Commit `before`, and write the diff to `after` to the file `path`, as the bytes that git gives."""
    put(tree, before)
    if before:
        commit(tree, "before")
    put(tree, after)
    git(tree, "add", "--all")
    words = ["git", "-C", str(tree), "-c", "core.autocrlf=false", "diff", "--cached", *how]
    path.write_bytes(subprocess.run(words, check=True, capture_output=True).stdout)
    git(tree, "reset", "--quiet", "--hard")
    return path


CASES = {
    "crlf lines": ({"a.py": b"1\r\n2\r\n3\r\n"}, {"a.py": b"1\r\n2 and\r\n3\r\n"}),
    "mixed ends": ({"a.py": b"1\r\n2\n3\r\n4\n"}, {"a.py": b"1\r\n2\n3 and\r\n4\n5\r\n"}),
    "crlf to lf": ({"a.py": b"1\r\n2\r\n"}, {"a.py": b"1\n2\n"}),
    "new file with crlf": ({}, {"sub/new.py": b"a\r\nb\r\n"}),
    "file with crlf goes": ({"sub/old.py": b"a\r\nb\r\n"}, {"sub/old.py": None}),
    "lone cr": ({"a.py": b"x = 1\n"}, {"a.py": b'x = "a\rb"\n'}),
    "latin-1": ({"a.py": b"# na\xefve\nx = 1\n"}, {"a.py": b"# na\xefve\nx = 2 # \xe9\n"}),
    "no final newline": ({"a.py": b"x\ny"}, {"a.py": b"x\nz"}),
    "final newline comes": ({"a.py": b"x\ny"}, {"a.py": b"x\ny\n"}),
    "trailing blanks and tabs": ({"a.py": b"x  \n\ty\n"}, {"a.py": b"x \t\n\t\ty  \n\n\n"}),
    "other separators": ({"a.py": b"x\n"}, {"a.py": "x = '\u2028\u0085\x0c'\n".encode()}),
    "empty file": ({}, {"empty.py": b""}),
    "binary": ({"b.bin": BINARY}, {"b.bin": BINARY[::-1] + b"\r\n"}),
    "names that git quotes": ({"mit \u00fc und blank.py": b"1\n"}, {"mit \u00fc und blank.py": b"2\n"}),
    "rename": ({"a.py": b"1\r\n2\r\n3\r\n4\r\n"}, {"a.py": None, "b/c.py": b"1\r\n2\r\n3\r\n5\r\n"}),
    "a file becomes a folder": ({"a": b"1\n"}, {"a": lambda path: (path.unlink(), put(path, {"b.py": b"2\n"}))}),
}
POSIX_CASES = {
    "mode": ({"run.sh": b"1\n"}, {"run.sh": lambda path: path.chmod(0o755)}),
    "mode and lines": ({"run.sh": b"1\r\n"}, {"run.sh": lambda path: (path.write_bytes(b"2\r\n"), path.chmod(0o755))}),
    "link": ({"a.py": b"1\n"}, {"link.py": lambda path: path.symlink_to("a.py")}),
    "quotes and newlines in names": ({'a"\n\tb.py': b"1\n"}, {'a"\n\tb.py': b"2\n"}),
    "names that are no utf-8": ({os.fsdecode(b"caf\xe9.py"): b"1\n"}, {os.fsdecode(b"caf\xe9.py"): b"2\n"}),
}
ALL = [*(pytest.param(*case, id=name) for name, case in CASES.items()),
       *(pytest.param(*case, id=name, marks=posix) for name, case in POSIX_CASES.items())]


@pytest.fixture
def tree(tmp_path):
    return make_repo(tmp_path / "my tree")


def round_trip(tree, patch):
    """apply and revert by the command; the states before, in between and after."""
    states = [state(tree)]
    for command in ("apply", "revert"):
        assert main([command, f"--patch={patch}", f"--tree={tree}"]) == 0
        states.append(state(tree))
    return states


@pytest.mark.parametrize("before, after", ALL)
def test_what_check_accepts_is_applied_and_comes_off_to_the_byte(tree, tmp_path, before, after):
    patch = diff_of(tree, tmp_path / "x.patch", before, after, "--binary", "-U1")
    assert main(["check", f"--patch={patch}", f"--tree={tree}"]) == 0
    first, between, last = round_trip(tree, patch)
    assert first == last and git(tree, "status", "--porcelain") == ""
    git(tree, "apply", str(patch))  # git alone comes to the same files
    assert state(tree) == between != first


@pytest.mark.parametrize("setting", ["core.autocrlf true", "core.autocrlf input", "core.eol crlf",
                                     "apply.whitespace fix", "apply.whitespace error-all",
                                     "apply.ignoreWhitespace change", "core.safecrlf true", "diff.noprefix true",
                                     "core.quotePath false", "color.ui always", "core.fileMode false"])
@pytest.mark.parametrize("case", ["crlf lines", "mixed ends", "trailing blanks and tabs", "rename"])
def test_settings_of_the_user_change_no_byte(tree, tmp_path, monkeypatch, setting, case):
    patch = diff_of(tree, tmp_path / "x.patch", *CASES[case])
    (tmp_path / "gitconfig").write_text("[{}]\n{} = {}\n".format(*setting.replace(" ", ".").split(".")))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    git(tree, "config", *setting.split())
    (tree / ".gitattributes").write_bytes(b"* text=auto eol=crlf\n")
    first, between, last = round_trip(tree, patch)
    assert first == last
    content = {name: CASES[case][1].get(name, old) for name, old in first[0].items()}
    content |= {name: new for name, new in CASES[case][1].items()}
    assert between[0] == {name: new for name, new in content.items() if new is not None}


def test_checkout_of_windows_takes_a_patch_that_was_made_for_lf(tree, tmp_path):
    """Git for Windows writes CRLF into the checkout. Its files keep CRLF, new ones get it, and one with LF stays so."""
    files = {"a.py": b"1\n2\n3\n", "lf.py": b"1\n2\n"}
    patch = diff_of(tree, tmp_path / "x.patch", files,
                    {"a.py": b"1\n2 and\n3\n", "lf.py": b"1\n3\n", "new.py": b"new\n"})
    put(tree, {"a.py": b"1\r\n2\r\n3\r\n"})
    first, between, last = round_trip(tree, patch)
    assert first == last
    assert [between[0][name] for name in ("a.py", "lf.py", "new.py")] == [b"1\r\n2 and\r\n3\r\n", b"1\n3\n", b"new\r\n"]


@posix
def test_patch_that_would_not_come_off_is_refused_by_check_and_apply_alike(tree, tmp_path):
    """git only warns that the file has the new mode already, and the revert would take the mode away."""
    (tmp_path / "x.patch").write_bytes(b"diff --git a/README.md b/README.md\nold mode 100644\nnew mode 100755\n")
    (tree / "README.md").chmod(0o755)
    for command in (patches.check, patches.apply):
        with pytest.raises(ValueError, match="would not take it back"):
            command(tree, tmp_path / "x.patch")
    assert os.access(tree / "README.md", os.X_OK) and patches.read_notes(tree) == []


@posix
@pytest.mark.parametrize("name", ["../outside.py", "link/x.py", ".git/hooks/x"])
def test_patch_writes_nothing_outside_the_tree(tree, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    text = f"--- /dev/null\n+++ b/{name}\n@@ -0,0 +1 @@\n+x\n"
    (tmp_path / "x.patch").write_text(text)
    for command in (patches.check, patches.apply):
        with pytest.raises(ValueError, match="does not apply"):
            command(tree, tmp_path / "x.patch")
    assert not list((tmp_path / "elsewhere").iterdir()) and not (tmp_path / "outside.py").exists()


@posix
def test_disk_that_fills_up_leaves_the_files_as_they_were(tree, tmp_path, monkeypatch):
    from nanochat.lab.trees import patch_files
    patch = diff_of(tree, tmp_path / "x.patch", {"a.py": b"1\n", "b.py": b"1\n"}, {"a.py": b"2\n", "b.py": b"2\n"})
    before, write = state(tree), patch_files.write_file

    def fail_at_b(path, file):
        if path.name == "b.py" and file.content == b"2\n":
            raise OSError(28, "No space left on device")
        write(path, file)
    monkeypatch.setattr(patch_files, "write_file", fail_at_b)
    assert main(["apply", f"--patch={patch}", f"--tree={tree}"]) == 2
    assert state(tree) == before and patches.read_notes(tree) == []


def test_temporary_folder_inside_a_repository_changes_nothing(tree, tmp_path, monkeypatch):
    """git applies a patch below the top of a repository in part, and says nothing of the rest."""
    patch = diff_of(tree, tmp_path / "x.patch", *CASES["crlf lines"])
    (tree / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tree / "tmp"))
    found = changes(tree, read_patch(patch).path)
    assert {name: after.content for name, (_, after) in found.items()} == CASES["crlf lines"][1]
    assert not list((tree / "tmp").iterdir())


def test_patched_arm_gets_the_bytes_too(tree, tmp_path, monkeypatch):
    """The worktree of an arm is made with LF, though the user's git converts, and the patch of CRLF lines fits."""
    monkeypatch.setenv("TREE_PLAN", "{}")
    put(tree, {"nanochat/win.py": b"1\r\n2\r\n"})
    patch = diff_of(tree, tmp_path / "x.patch", {}, {"nanochat/win.py": b"1\r\n2 and\r\n"})
    git(tree, "config", "core.autocrlf", "true")
    git(tree, "update-index", "--refresh", "-q")
    arm = make_all_arms([], [f'x: tree="{tree}" patch={patch}'], [], tmp_path / "base")[-1]
    assert (arm.tree.path / "nanochat/win.py").read_bytes() == b"1\r\n2 and\r\n"
    assert b"\r" not in (arm.tree.path / "nanochat/model.py").read_bytes()


# -----------------------------------------------------------------------------
# git itself

def test_advice_of_git_reaches_the_user(tree, tmp_path, monkeypatch, capsys):
    patch = make_patch(tree, tmp_path / "x.patch", BETTER_EDIT)
    (tmp_path / "plain").mkdir()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert main(["check", f"--patch={patch}", f"--tree={tmp_path / 'plain'}"]) == 2
    assert "fatal: not a git repository" in capsys.readouterr().err
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch: as if another user owned it
    assert main(["check", f"--patch={patch}", f"--tree={tree}"]) == 2
    said = capsys.readouterr().err
    assert "dubious ownership" in said and "git config --global --add safe.directory" in said


def test_tree_without_a_commit_and_machine_without_git_get_one_line(tree, tmp_path, monkeypatch, capsys):
    patch = make_patch(tree, tmp_path / "x.patch", BETTER_EDIT)
    git(tmp_path, "init", "--quiet", "new")
    assert main(["check", f"--patch={patch}", f"--tree={tmp_path / 'new'}"]) == 2
    assert "has no commit yet" in capsys.readouterr().err
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["check", f"--patch={patch}", f"--tree={tree}"]) == 2
    said = capsys.readouterr().err
    assert "git cannot be run" in said and "install it" in said and said.count("\n") == 1


def test_damaged_notes_are_named(tree, tmp_path):
    patch = make_patch(tree, tmp_path / "x.patch", BETTER_EDIT)
    for text in ("{}", '{"applied": [{"patch": "x"}]}', '{"applied": 3}'):
        (tree / ".git" / "nanochat_patches.json").write_text(text)
        with pytest.raises(ValueError, match="nanochat_patches.json is damaged"):
            patches.check(tree, patch)


@posix
def test_patch_that_is_a_pipe_is_refused_and_not_waited_for(tree, tmp_path):
    os.mkfifo(tmp_path / "x.patch")
    with pytest.raises(ValueError, match="cannot be read .it is no regular file"):
        patches.check(tree, tmp_path / "x.patch")


def test_upstream_is_checked_out_with_lf_whatever_git_converts(tree, tmp_path, monkeypatch):
    (tmp_path / "gitconfig").write_text("[core]\nautocrlf = true\n[clone]\ndefaultRemoteName = theirs\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    checkouts.upstream(tmp_path / "up", str(tree))
    assert b"\r" not in (tmp_path / "up/nanochat/model.py").read_bytes()
    insert(tmp_path / "up/nanochat/model.py", "# the rest", "# mine\n")  # no CRLF there that would be a difference
