"""
The leaderboard: who stands above whom, what is not comparable, and that only what is between the markers changes.

python -m pytest tests/test_leaderboard.py -v
"""

import random
import re
import struct
from pathlib import Path

import pytest

from nanochat.lab.ledger.experiments import append, schema
from nanochat.lab.report import plots
from nanochat.lab.report.leaderboard import (
    BEGIN,
    END,
    make_entries,
    markdown,
    profiles,
    ranking_target,
    replaced,
    verdicts_of,
)
from scripts import leaderboard as script
from tests.report_case import five_candidates

ROOT = Path(__file__).resolve().parent.parent
TARGET = {"target_metric_name": "val_bpb", "target_metric_threshold": 1.12}


def make_row(arm="control", seed=1, time=None, bpb=1.1, status="ok", flags="", **cells) -> dict:
    row = dict.fromkeys(schema()) | TARGET | {
        "timestamp": f"2026-03-04T05:06:{seed:02d}+00:00", "git_commit": "0123456789abcdef",
        "experiment_name": "mix", "seed": seed,
        "depth": 4, "time_to_target_sec_measured": time, "tok_per_sec_median": 2048.0,
        "status": status, "arm": arm, "label": "mix",
        "profile": "smoke-cpu", "profile_hash": "9f8e7d6c5b4a3210", "config_hash": f"hash-{arm}-{seed}", "dirty": False,
        "device": "cpu", "tree_hash": "aa11",
        "val_bpb": bpb if status == "ok" else None, "training_sec": time or 60.0,
        "command": f"python -m scripts.base_train --depth=4 {flags} --seed={seed} --model-tag=nc_mix_d4_{arm}_s{seed}"}
    return row | cells


def table(text) -> list[list[str]]:
    """Cells of the first table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def order(rows) -> list[str]:
    return [row[1] for row in table(markdown(rows))]


def test_measured_time_ranks_first_then_val_bpb():
    rows = [make_row("slow", time=90.0, bpb=1.05), make_row("fast", time=70.0, bpb=1.11), make_row("near", bpb=1.13),
            make_row("far", bpb=1.20)]
    assert order(rows) == ["fast", "slow", "near", "far"]


def test_extrapolated_time_is_shown_and_never_ranks_above_a_measured_one():
    guess = {"time_to_target_sec_extrapolated": 1.0, "extrapolation_method": "power_law"}
    rows = [make_row("guess", bpb=1.13, **guess), make_row("measured", time=999.0, bpb=1.119),
            make_row("other", bpb=1.125)]
    assert order(rows) == ["measured", "other", "guess"], "not by the extrapolated time among themselves either"
    cells = {row[1]: row for row in table(markdown(rows))}
    assert cells["guess"][4] == "0 of 1 reached it" and cells["guess"][5] == "1.0 (power_law, n 1)"
    assert cells["measured"][4] == "999.0" and cells["measured"][5] == ""
    both, = table(markdown([make_row("both", 1, time=50.0, **guess), make_row("both", 2, **guess)]))
    assert both[4:6] == ["1 of 2 reached it", "1.0 (power_law, n 1)"], "a guess beside a measured time is not shown"


def test_time_counts_only_where_every_run_reached_the_target():
    rows = [make_row("lucky", seed=1, time=10.0), make_row("lucky", seed=2), make_row("steady", seed=1, time=80.0),
            make_row("steady", seed=2, time=90.0), make_row("broken", seed=1, time=5.0),
            make_row("broken", seed=2, status="diverged")]
    assert order(rows) == ["steady", "lucky", "broken"]
    cells = {row[1]: row for row in table(markdown(rows))}
    assert cells["steady"][4] == "85.0 \u00b1 7.1" and cells["lucky"][4] == "1 of 2 reached it"
    assert cells["broken"][2:4] == ["1", "1"] and cells["broken"][9] == "1 diverged"


def test_times_to_another_target_do_not_rank():
    old = [make_row("old", seed=1, time=5.0, target_metric_threshold=1.5, bpb=1.119)]
    new = [make_row("new", seed=2, time=50.0)]
    assert ranking_target(old + new) == ("val_bpb", 1.12)
    assert order(old + new) == ["new", "old"] and table(markdown(old + new))[1][4] == "another target"


def test_profiles_have_tables_of_their_own():
    text = markdown([make_row("a"), make_row("b", profile="big", profile_hash="77"), make_row("c", profile_hash=None)])
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["big (77)", "smoke-cpu (9f8e7d6c5b4a)"]
    assert "| c " not in text


def test_arm_alone_in_its_profile_is_a_line_beside_tables_that_rank_something():
    text = markdown([make_row("a"), make_row("b"), make_row("long", bpb=1.25, profile="big", profile_hash="77")])
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["smoke-cpu (9f8e7d6c5b4a)", "One arm alone"]
    assert "- big (77): long, n 1, val_bpb 1.25000" in text


def test_mean_sd_and_seeds_are_of_the_last_run_of_each_seed():
    rows = [make_row(seed=1, bpb=1.10), make_row(seed=2, bpb=1.12), make_row(seed=10, bpb=1.14),
            make_row(seed=2, bpb=1.12, label="again", timestamp="2026-03-05T00:00:00+00:00"),
            make_row(seed=3, status="oom")]
    cells, = table(markdown(rows))
    assert cells[2:4] == ["3", "1 2 10"] and cells[6:8] == ["1.12000", "0.02000"] and cells[9] == "1 oom"


def test_machine_failure_does_not_replace_a_result_and_a_result_replaces_it():
    later = "2026-03-05T00:00:00+00:00"
    for rows in ([make_row(bpb=1.1), make_row(status="timeout", timestamp=later)],
                 [make_row(status="timeout"), make_row(bpb=1.1, timestamp=later)]):
        cells, = table(markdown(rows))
        assert cells[2] == "1" and cells[6] == "1.10000" and cells[9] == ""


@pytest.mark.parametrize("change", [{"flags": "--matrix-lr=0.03"}, {"tree_hash": "bb22"},
                                    {"patch_hash": "p"}, {"arm": "other"}])
def test_other_options_code_or_patch_are_another_entry(change):
    assert len(make_entries([make_row(seed=1), make_row(seed=2)])) == 1
    assert len(make_entries([make_row(seed=1), make_row(**{"seed": 2, **change})])) == 2


def test_same_rows_in_any_order_give_the_same_bytes():
    rows = [make_row(arm, seed, time=70.0 + seed + len(arm))
            for arm in ("control", "gate", "lr") for seed in range(1, 6)]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert markdown(rows) == markdown(shuffled)


def test_rows_as_text_read_like_typed_ones():
    rows = [make_row("a", time=70.0, dirty=True, overloaded=True), make_row("b", bpb=1.13)]
    as_text = [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
    assert markdown(as_text) == markdown(rows) and "70.0, loaded" in markdown(rows) and "0123456+" in markdown(rows)


def test_verdict_is_that_of_the_same_cells():
    facts = five_candidates()
    found = verdicts_of([facts])
    rows = [make_row("lr003"), make_row("gate015"),
            make_row("lr003", flags="--depth=4", config_hash="of other options")]
    verdicts = [row[10] for row in table(markdown(rows, found))]
    assert sorted(verdicts) == ["", "promote", "reject"]


def test_odd_names_stay_in_their_cell():
    text = markdown([make_row("a|b <b>x</b>\n## c", flags=f"'{END} ```'", label="x")])
    assert END not in text and "\n## c" not in text.split("```")[0] and "<b>" not in text.split("```")[0]
    assert table(text)[0][1] == "a\\|b &lt;b>x&lt;/b> ## c"
    assert "````\n" in text


def test_only_what_is_between_the_markers_changes():
    page = f"# Mine\n\nabove\n{BEGIN}\nold\n{END}\nbelow | x\n"
    new = replaced(page, "table")
    assert new == f"# Mine\n\nabove\n{BEGIN}\n\ntable\n\n{END}\nbelow | x\n" and replaced(new, "table") == new


@pytest.mark.parametrize("page", ["no markers", BEGIN, END, f"{END} {BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_missing_markers_are_an_error_that_says_what_to_add(page):
    with pytest.raises(ValueError, match=f"x.md: .*{re.escape(BEGIN)}.*{re.escape(END)}.*add both lines"):
        replaced(page, "table", "x.md")


# -----------------------------------------------------------------------------
# The command

@pytest.fixture
def files(tmp_path):
    page = tmp_path / "dev" / "BOARD.md"
    page.parent.mkdir()
    page.write_text(f"mine\n{BEGIN}\n{END}\nalso mine\n", encoding="utf-8")
    return tmp_path / "experiments.csv", page


def run(ledger, page):
    return script.main([f"--ledger={ledger}", f"--page={page}", f"--results={page.parent}"])


def test_command_writes_table_and_picture_and_again_the_same_bytes(files, capsys):
    ledger, page = files
    for row in [make_row(arm, seed, time=70.0 + seed) for arm in ("control", "gate") for seed in (1, 2)]:
        append(ledger, row)
    assert run(ledger, page) == 0 and "4 rows" in capsys.readouterr().out
    first, picture = page.read_bytes(), page.with_name("board.png").read_bytes()
    assert first.startswith(b"mine\n") and first.endswith(b"\nalso mine\n")
    assert b"| 1 | control | 2 | 1 2 | 71.5 " in first
    assert struct.unpack(">II", picture[16:24]) == (750, 500)
    assert run(ledger, page) == 0 and (page.read_bytes(), page.with_name("board.png").read_bytes()) == (first, picture)


def test_picture_has_a_dot_a_run_a_mean_an_entry_and_a_grey_control(tmp_path, monkeypatch):
    rows = [make_row(arm, seed, bpb=1.1 + 0.01 * seed, training_sec=60.0 + seed)
            for arm in ("a", "control", "b") for seed in (1, 2, 3)]
    rows += [make_row("a", 4, status="diverged"), make_row("c", 1, training_sec=None)]
    monkeypatch.setattr(plots.plt, "close", lambda fig: None)
    assert plots.draw_leaderboard(tmp_path / "x.png", profiles(rows))
    lines = plots.plt.gcf().axes[0].lines
    monkeypatch.undo()
    plots.plt.close("all")
    dots, means = ([line for line in lines if line.get_marker() == marker] for marker in "oD")
    assert [len(line.get_xdata()) for line in dots] == [3, 3, 3]
    assert {tuple(line.get_xdata()) for line in dots} == {(61.0, 62.0, 63.0)}
    assert [(*line.get_xdata(), *line.get_ydata()) for line in means] == [(62.0, pytest.approx(1.12))] * 3
    assert {line.get_label(): line.get_color() for line in means}["control (n 3)"] == plots.COLORS[0]


def test_no_row_leaves_a_page_that_says_so(files, capsys):
    ledger, page = files
    assert run(ledger, page) == 0 and "No row in the ledger yet." in page.read_text(encoding="utf-8")
    assert "nothing to draw yet" in capsys.readouterr().out and not page.with_name("board.png").exists()


def test_foreign_ledger_and_missing_markers_leave_the_page_alone(files, capsys):
    ledger, page = files
    ledger.write_text("a,b\n1,2\n")
    before = page.read_bytes()
    assert run(ledger, page) == 2 and "other columns" in capsys.readouterr().err and page.read_bytes() == before
    ledger.unlink()
    page.write_text("no markers")
    assert run(ledger, page) == 2 and "add both lines" in capsys.readouterr().err and page.read_text() == "no markers"


def test_page_of_the_project_has_markers_and_a_table_per_profile():
    text = (ROOT / "dev/LEADERBOARD.md").read_text(encoding="utf-8")
    assert replaced(text, "x").count("\n") < len(text) and [title for title, *_ in profiles([])] == []
    assert text.index("# Leaderboard") < text.index(BEGIN)
