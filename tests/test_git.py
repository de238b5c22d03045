"""
The state of a repository, as records state it: what is known, and nothing without noise where nothing is known.

python -m pytest tests/test_git.py -q
"""

import os
import shutil
import subprocess

import pytest

from nanochat.common import atomic_write
from nanochat.git import git_state, run_git

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="no git")
UNKNOWN = {"git_commit": None, "dirty": None}


def make_tree(root):
    for name in ("nanochat/a.py", "nanochat/layers/b.py", "scripts/c.py", "tests/t.py", "nanochat/notes.txt"):
        atomic_write(root / name, f"# {name}\n")
    return root


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A repository with one commit, and its git(*args)."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    root = make_tree(tmp_path / "repo")

    def git(*args):
        return subprocess.run(["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e@x", *args], check=True,
                              capture_output=True, text=True).stdout.strip()
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")
    return root, git


def test_clean_repository_names_its_commit(repo):
    root, git = repo
    assert git_state(root) == {"git_commit": git("rev-parse", "HEAD"), "dirty": False}
    assert len(git_state(root)["git_commit"]) == 40


@pytest.mark.parametrize("name, dirty", [
    ("nanochat/a.py", True), ("scripts/c.py", True), ("nanochat/new.py", True), ("patches/new.patch", True),
    ("tests/t.py", False), ("README.md", False), ("results/x.csv", False)])
def test_dirty_means_changes_that_could_change_numbers(repo, name, dirty):
    root, git = repo
    atomic_write(root / name, "changed")
    assert git_state(root) == {"git_commit": git("rev-parse", "HEAD"), "dirty": dirty}
    git("add", "-A")
    assert git_state(root)["dirty"] == dirty, "staged is not committed"
    git("commit", "-qm", "two")
    assert git_state(root) == {"git_commit": git("rev-parse", "HEAD"), "dirty": False}


def test_deleted_file_is_dirty(repo):
    root, _ = repo
    (root / "nanochat/a.py").unlink()
    assert git_state(root)["dirty"] is True


def test_variables_of_a_git_hook_do_not_lead_to_another_repository(repo, tmp_path, monkeypatch):
    """git sets GIT_DIR while a hook runs, and that beats -C."""
    root, git = repo
    expected = {"git_commit": git("rev-parse", "HEAD"), "dirty": False}
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", str(other)], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert git_state(root) == expected


def test_without_git_or_commit_or_in_a_strangers_repository_nothing_is_known(repo, tmp_path, monkeypatch):
    root, git = repo
    unknown = {"git_commit": None, "dirty": None}
    bare = make_tree(tmp_path / "no_git")
    assert git_state(bare) == unknown
    assert git_state(make_tree(root / "vendor" / "copy_of_ours")) == unknown
    git("update-ref", "-d", "HEAD")
    assert git_state(root) == unknown
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(root) == unknown


def test_new_file_is_dirty_though_the_user_hides_such_files(repo):
    root, git = repo
    git("config", "status.showUntrackedFiles", "no")
    atomic_write(root / "nanochat" / "new.py", "1")
    assert git_state(root)["dirty"] is True


def test_shallow_clone_and_detached_head_have_a_commit(repo, tmp_path):
    root, git = repo
    atomic_write(root / "nanochat" / "a.py", "two")
    git("commit", "-qam", "two")
    subprocess.run(["git", "clone", "-q", "--depth=1", root.as_uri(), str(tmp_path / "shallow")], check=True)
    assert git_state(tmp_path / "shallow") == {"git_commit": git("rev-parse", "HEAD"), "dirty": False}
    git("checkout", "-q", "--detach", "HEAD~1")
    assert git_state(root) == {"git_commit": git("rev-parse", "HEAD"), "dirty": False}


def test_repository_of_another_user_is_unknown_without_noise(repo, monkeypatch, capfd):
    """git refuses it until safe.directory names it. A run goes on, and its record says that nothing is known."""
    root, _ = repo
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # git's own switch
    assert git_state(root) == UNKNOWN and capfd.readouterr() == ("", "")
    assert "safe.directory" in run_git(root, "status")[2]


@pytest.mark.skipif(os.name == "nt", reason="such names are POSIX's")
def test_repository_in_a_folder_whose_name_is_no_utf8(repo, tmp_path):
    root, git = repo
    commit = git("rev-parse", "HEAD")
    odd = tmp_path / os.fsdecode(b"caf\xe9 \n x")
    root.rename(odd)
    assert git_state(odd) == {"git_commit": commit, "dirty": False}
    (odd / "nanochat" / os.fsdecode(b"\xff.py")).write_bytes(b"")
    assert git_state(odd) == {"git_commit": commit, "dirty": True}


def test_machine_without_git_says_to_install_it(repo, tmp_path, monkeypatch):
    root, _ = repo
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(root) == UNKNOWN
    with pytest.raises(OSError, match="git cannot be run .*install it"):
        run_git(root, "status")
