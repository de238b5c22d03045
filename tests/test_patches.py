"""
Patches on made-up checkouts: a revert restores the checkout to the byte, and no other file is ever touched.

python -m pytest tests/test_patches.py -q
"""

import re
import shutil

import pytest

from nanochat.common import REPO_ROOT, read_json, sha256_file
from nanochat.lab.trees import checkouts, patches
from nanochat.lab.trees.patch_files import read_patch
from scripts.patch import main
from tests.tree_case import BETTER_EDIT, SEED_EDIT, commit, git, insert, make_patch, make_repo, snapshot, write

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="no git")
OURS = sorted((REPO_ROOT / "patches").glob("*.patch"))


@pytest.fixture
def tree(tmp_path):
    return make_repo(tmp_path / "tree")


@pytest.fixture
def better(tree, tmp_path):
    return make_patch(tree, tmp_path / "better.patch", BETTER_EDIT)


def test_apply_then_revert_is_the_tree_as_it_was(tree, better):
    before = snapshot(tree)
    patches.apply(tree, better)
    assert "LOSS -= 0.25" in (tree / "nanochat/model.py").read_text() and snapshot(tree).keys() == before.keys()
    patches.revert(tree, better)
    assert snapshot(tree) == before and git(tree, "status", "--porcelain") == ""


def test_check_changes_nothing(tree, better):
    before = snapshot(tree)
    assert patches.check(tree, better).sha256 == sha256_file(better)
    assert snapshot(tree) == before and patches.read_notes(tree) == []


def test_unrelated_edits_stay_also_in_the_same_file_made_before_and_after(tree, better):
    model = tree / "nanochat/model.py"
    insert(model, "# the model", "# mine, before\n")
    write(tree / "notes.txt", "untracked")
    write(tree / "README.md", "staged\n")
    git(tree, "add", "README.md")
    patches.apply(tree, better)
    insert(model, "WIDTH = 4", "# mine, after\n")
    write(tree / "scripts/base_train.py", "other work\n")
    patches.revert(tree, better)
    assert model.read_text() == "# mine, before\n# the model\nLOSS = 3.0\n\n# the rest\n# mine, after\nWIDTH = 4\n"
    assert ((tree / "notes.txt").read_text() == "untracked"
            and (tree / "scripts/base_train.py").read_text() == "other work\n")
    assert git(tree, "diff", "--cached", "--name-only").split() == ["README.md"]


def test_patch_that_adds_a_file_takes_it_away_again(tree, tmp_path):
    write(tree / "nanochat/idea.py", "IDEA = 1\n")
    git(tree, "add", "-N", "nanochat/idea.py")
    write(tmp_path / "idea.patch", git(tree, "diff", "-U1"))
    git(tree, "reset", "--quiet")
    (tree / "nanochat/idea.py").unlink()
    before = snapshot(tree)
    patches.apply(tree, tmp_path / "idea.patch")
    assert (tree / "nanochat/idea.py").read_text() == "IDEA = 1\n"
    patches.revert(tree, tmp_path / "idea.patch")
    assert snapshot(tree) == before


def test_note_says_hash_and_base_commit_and_lies_in_the_git_directory(tree, better):
    note = patches.apply(tree, better)
    assert read_json(tree / ".git" / "nanochat_patches.json")["applied"] == [note]
    assert note["patch"] == "better.patch" and note["sha256"] == sha256_file(better)
    assert note["base_commit"] == git(tree, "rev-parse", "HEAD").strip()
    assert git(tree, "status", "--porcelain").split() == ["M", "nanochat/model.py"]


@pytest.mark.parametrize("by_hand", [False, True])
def test_patch_is_not_applied_twice(tree, better, by_hand):
    if by_hand:
        git(tree, "apply", str(better))
    else:
        patches.apply(tree, better)
    before = snapshot(tree)
    with pytest.raises(ValueError, match="already"):
        patches.apply(tree, better)
    assert snapshot(tree) == before and len(patches.read_notes(tree)) == (not by_hand)


def test_patch_that_applies_in_part_changes_nothing(tree, tmp_path):
    both = make_patch(tree, tmp_path / "both.patch", BETTER_EDIT, SEED_EDIT, base="Base: 0123456789\n\n")
    write(tree / "nanochat/model.py", "LOSS = 5.0\n")
    before = snapshot(tree)
    for command in (patches.check, patches.apply):
        with pytest.raises(ValueError,
                           match=r"both.patch \(made for 0123456789\) does not apply .*nothing was changed"):
            command(tree, both)
    assert snapshot(tree) == before and patches.read_notes(tree) == []


def test_revert_of_edited_lines_changes_nothing_and_works_after_the_edit_is_undone(tree, better):
    original = snapshot(tree)
    patches.apply(tree, better)
    model = tree / "nanochat/model.py"
    write(model, model.read_text().replace("0.25", "0.5"))
    before = snapshot(tree)
    with pytest.raises(ValueError, match="cannot be taken back .*nothing was changed.* edited"):
        patches.revert(tree, better)
    assert snapshot(tree) == before and len(patches.read_notes(tree)) == 1
    write(model, model.read_text().replace("0.5", "0.25"))
    patches.revert(tree, better)
    assert snapshot(tree) == original and patches.read_notes(tree) == []


def test_revert_takes_back_what_was_applied_though_the_patch_file_changed_or_went(tree, better):
    before = snapshot(tree)
    for change in (lambda: write(better, better.read_text().replace("0.25", "0.75")), better.unlink):
        shutil.copy(better, better.with_suffix(".kept"))
        patches.apply(tree, better)
        change()
        patches.revert(tree, better)
        assert snapshot(tree) == before
        shutil.copy(better.with_suffix(".kept"), better)


def test_revert_of_what_was_not_applied_is_refused(tree, better, tmp_path):
    with pytest.raises(ValueError, match="better.patch is not applied .*applied: none"):
        patches.revert(tree, better)
    with pytest.raises(ValueError, match="cannot be read"):
        patches.revert(tree, tmp_path / "no.patch")


def test_patches_on_one_another_come_off_in_reverse(tree, better, tmp_path):
    patches.apply(tree, better)
    commit(tree, "better")  # so that the next diff is against it
    on_top = make_patch(tree, tmp_path / "top.patch", ("nanochat/model.py", "LOSS -= 0.25", "LOSS *= 1\n"))
    git(tree, "reset", "--quiet", "--soft", "HEAD~1")
    before = snapshot(tree)
    patches.apply(tree, on_top)
    with pytest.raises(ValueError, match="revert top.patch first"):
        patches.revert(tree, better)
    patches.revert(tree, on_top)
    assert snapshot(tree) == before
    patches.revert(tree, better)
    assert "0.25" not in (tree / "nanochat/model.py").read_text()


def test_worktrees_have_notes_of_their_own(tree, better, tmp_path):
    git(tree, "worktree", "add", "--quiet", "--detach", str(tmp_path / "other"))
    patches.apply(tmp_path / "other", better)
    patches.apply(tree, better)
    patches.revert(tree, better)
    assert (len(patches.read_notes(tmp_path / "other")) == 1
            and "0.25" in (tmp_path / "other/nanochat/model.py").read_text())


def test_what_is_no_checkout_or_no_patch_is_refused(tree, better, tmp_path):
    write(tmp_path / "empty.patch", "no diff here\n")
    for folder, patch, message in ((tmp_path / "no", better, "no such folder"),
                                   (tree / "nanochat", better, "not the top"),
                                   (tree, tmp_path / "empty.patch", "holds no diff"),
                                   (tree, tmp_path / "none", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            patches.apply(folder, patch)


def test_commands_print_what_they_did_and_exit_2_where_they_did_nothing(tree, better, capsys):
    arguments = ["--tree", str(tree), "--patch", str(better)]
    for command, code, said in (("check", 0, "nothing was changed"), ("apply", 0, sha256_file(better)),
                                ("apply", 2, "already"), ("revert", 0, "everything else is as it was"),
                                ("revert", 2, "is not applied")):
        assert main([command, *arguments]) == code
        out = capsys.readouterr()
        assert said in (out.err if code else out.out)


def test_patch_for_another_commit_says_so(tree, tmp_path, capsys):
    patch = make_patch(tree, tmp_path / "a.patch", BETTER_EDIT, base="Base: 0123456789\n\n")
    main(["check", "--tree", str(tree), "--patch", str(patch)])
    assert "it was made for 0123456789" in capsys.readouterr().out
    patch = make_patch(tree, tmp_path / "b.patch", BETTER_EDIT, base=f"Base: {checkouts.head(tree)[:10]}\n\n")
    main(["check", "--tree", str(tree), "--patch", str(patch)])
    assert "made for" not in capsys.readouterr().out


# -----------------------------------------------------------------------------
# A checkout

def test_upstream_clones_pins_and_updates(tree, tmp_path):
    first, folder = checkouts.head(tree), tmp_path / "up"
    made = checkouts.upstream(folder, str(tree))
    assert made == {"path": str(folder), "branch": "main", "commit": first, "remote": str(tree)}
    assert git(folder, "rev-parse", "--abbrev-ref", "HEAD").strip() == "HEAD"  # detached
    write(tree / "README.md", "second\n")
    second = commit(tree, "second")
    assert checkouts.upstream(folder, str(tree), first)["commit"] == first
    assert checkouts.upstream(folder)["commit"] == second == checkouts.head(folder)  # the remote's HEAD
    assert checkouts.upstream(folder, commit="main")["commit"] == second
    assert checkouts.upstream(folder, commit=first[:12])["commit"] == first == checkouts.head(folder)


def test_upstream_leaves_a_changed_or_foreign_checkout_alone(tree, tmp_path):
    folder, first = tmp_path / "up", checkouts.head(tree)
    checkouts.upstream(folder, str(tree))
    write(tree / "README.md", "second\n")
    commit(tree, "second")
    write(folder / "nanochat/model.py", "mine\n")
    with pytest.raises(ValueError, match="has changes"):
        checkouts.upstream(folder)
    assert checkouts.upstream(folder, commit=first)["commit"] == first  # it is there already: nothing to lose
    assert (folder / "nanochat/model.py").read_text() == "mine\n"
    other = make_repo(tmp_path / "other")
    with pytest.raises(ValueError, match="is a checkout of"):
        checkouts.upstream(folder, str(other))


def test_upstream_refuses_what_cannot_be(tree, tmp_path):
    with pytest.raises(ValueError, match="inside this repository"):
        checkouts.upstream(REPO_ROOT / "checkout", str(tree))
    with pytest.raises(ValueError, match="no such commit"):
        checkouts.upstream(tmp_path / "up", str(tree), "nowhere")
    with pytest.raises(ValueError, match="git clone"):
        checkouts.upstream(tmp_path / "up2", str(tmp_path / "nothing"))
    assert not (tmp_path / "up2").exists() and not list(tmp_path.glob(".up2*"))


# -----------------------------------------------------------------------------
# The patches of this repository

@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_patch_names_its_commit_has_the_least_context_and_is_in_the_readme(path):
    text = path.read_text(encoding="utf-8")
    assert read_patch(path).base == checkouts.UPSTREAM_COMMIT
    readme = (REPO_ROOT / "patches" / "README.md").read_text(encoding="utf-8")
    assert path.name in readme and checkouts.UPSTREAM_COMMIT[:7] in readme
    for head, body in re.findall(r"^(@@ .*)\n((?:[ +-].*\n)+)", text, re.MULTILINE):
        assert re.fullmatch(r"@@ -\d+(,\d+)? \+\d+(,\d+)? @@", head)  # no upstream line behind it
        signs = "".join(line[0] for line in body.splitlines())
        assert not re.match(r"  ", signs) and not re.search(r"  $", signs) and "   " not in signs, head
    assert (sum(line.startswith("+") for line in text.splitlines())
            > 3 * sum(line.startswith("-") for line in text.splitlines()))


def test_readme_names_the_commit_that_the_code_pins():
    assert checkouts.UPSTREAM_COMMIT[:7] in (REPO_ROOT / "README.md").read_text(encoding="utf-8") and OURS
