"""
The leaderboard: who stands above whom, what is not comparable, and that only what is between the markers changes.

python -m pytest tests/test_leaderboard.py -v
"""

import random
import re
import struct
from pathlib import Path

import pytest

from nanochat.lab.ledger.experiments import append
from nanochat.lab.report.entries import verdicts_of
from nanochat.lab.report.leaderboard import BEGIN, END, markdown, replaced
from nanochat.lab.report.sections import ranking_target, sections
from scripts import leaderboard as script
from tests.leaderboard_case import (
    GUESSED,
    NO_TARGET,
    TIME,
    by_arm,
    make_row,
    order,
    split,
    table,
    titles,
)
from tests.report_case import five_candidates

ROOT = Path(__file__).resolve().parent.parent
WORKLOAD = "depth 4, 12 tokens per parameter, on cpu"


def test_measured_time_ranks_first_then_val_bpb():
    rows = [make_row("slow", time=90.0, bpb=1.05), make_row("fast", time=70.0, bpb=1.11), make_row("near", bpb=1.13),
            make_row("far", bpb=1.20)]
    assert order(rows) == ["fast", "slow", "near", "far"]


def test_extrapolated_time_is_shown_and_never_ranks_above_a_measured_one():
    guess = {"time_to_target_sec_extrapolated": 1.0, "extrapolation_method": "power_law"}
    rows = [make_row("guess", bpb=1.13, **guess), make_row("measured", time=999.0, bpb=1.119),
            make_row("other", bpb=1.125)]
    assert order(rows) == ["measured", "other", "guess"], "not by the extrapolated time among themselves either"
    found = by_arm(rows)
    assert found["guess"][TIME] == "0 of 1 reached it" and found["guess"][GUESSED] == "1.0 (power_law, n 1)"
    assert found["measured"][TIME] == "999.0" and found["measured"][GUESSED] == ""
    both, = table(markdown([make_row("both", 1, time=50.0, **guess), make_row("both", 2, **guess)]))
    assert (both[TIME], both[GUESSED]) == ("1 of 2 reached it", "1.0 (power_law, n 1)"), \
        "a guess beside a measured time is not shown"


def test_time_counts_only_where_every_run_reached_the_target():
    rows = [make_row("lucky", seed=1, time=10.0), make_row("lucky", seed=2), make_row("steady", seed=1, time=80.0),
            make_row("steady", seed=2, time=90.0), make_row("broken", seed=1, time=5.0),
            make_row("broken", seed=2, status="diverged")]
    assert order(rows) == ["steady", "lucky", "broken"]
    found = by_arm(rows)
    assert found["steady"][TIME] == "85.0 \u00b1 7.1" and found["lucky"][TIME] == "1 of 2 reached it"
    assert found["broken"]["n"] == "1" and found["broken"]["failed"] == "1 diverged"


def test_times_to_another_target_do_not_rank():
    old = [make_row("old", seed=1, time=5.0, target_metric_threshold=1.5, bpb=1.119)]
    new = [make_row("new", seed=2, time=50.0)]
    assert ranking_target(old + new) == ("val_bpb", 1.12)
    assert order(old + new) == ["new", "old"] and by_arm(old + new)["old"][TIME] == "another target"


def test_profiles_have_tables_of_their_own():
    text = markdown([make_row("a"), make_row("b", profile="big", profile_hash="77"), make_row("c", profile_hash=None)])
    assert titles(text) == [f"big: {WORKLOAD}", f"smoke-cpu: {WORKLOAD}"]
    assert re.findall(r'<a id="(.*)"></a>', text) == ["big-77", "smoke-cpu-9f8e7d6c5b4a"]  # old links lead there
    assert [row["arm"] for row in table(text)] == ["b", "a"]


def test_device_is_a_section_of_its_own_and_equal_titles_are_told_apart():
    rows = [make_row("a"), make_row("b", device="cpu: AMD EPYC"), make_row("c", profile_hash="77")]
    assert titles(markdown(rows)) == [f"smoke-cpu: {WORKLOAD[:-3]}AMD EPYC", f"smoke-cpu: {WORKLOAD} (77)",
                                      f"smoke-cpu: {WORKLOAD} (9f8e7d6c)"]
    longer = make_row("c", flags="--eval-every=7", profile_hash="77", num_iterations=60, total_batch_size=1024)
    shorter = make_row("a", num_iterations=60, total_batch_size=1024)
    for row in (longer, shorter):
        row["command"] += " --num-iterations=60"
    assert titles(markdown([longer, shorter])) == [
        f"smoke-cpu: depth 4, 60 steps of 1,024 tokens, on cpu, eval-every {n}" for n in (250, 7)]


def test_arm_alone_in_its_profile_is_a_line_beside_tables_that_rank_something():
    text = markdown([make_row("a"), make_row("b"), make_row("long", bpb=1.25, profile="big", profile_hash="77")])
    assert titles(text) == [f"smoke-cpu: {WORKLOAD}", "One arm alone"]
    assert f"- big: {WORKLOAD}: long, n 1, val_bpb 1.25000" in text


def test_mean_sd_and_seeds_are_of_the_last_run_of_each_seed():
    rows = [make_row(seed=1, bpb=1.10), make_row(seed=2, bpb=1.12), make_row(seed=10, bpb=1.14),
            make_row(seed=2, bpb=1.12, label="again", timestamp="2026-03-05T00:00:00+00:00"),
            make_row(seed=3, status="oom")]
    found, = table(markdown(rows))
    assert (found["n"], found["val_bpb"], found["sd"], found["failed"]) == ("3", "1.12000", "0.02000", "1 oom")
    assert "\n# seeds 1, 2, 10 (3 rows)\n" in markdown(rows)


def test_machine_failure_does_not_replace_a_result_and_a_result_replaces_it():
    later = "2026-03-05T00:00:00+00:00"
    for rows in ([make_row(bpb=1.1), make_row(status="timeout", timestamp=later)],
                 [make_row(status="timeout"), make_row(bpb=1.1, timestamp=later)]):
        found, = table(markdown(rows))
        assert (found["n"], found["val_bpb"], found["failed"]) == ("1", "1.10000", "")


def test_columns_without_a_value_are_left_out():
    text = markdown([make_row("a", tok_per_sec_median=None, **NO_TARGET), make_row("b", bpb=1.2, **NO_TARGET)])
    header = split(next(line for line in text.splitlines() if line.startswith("| ")))
    assert header == ["rank", "arm", "n", "against the best", "val_bpb", "tok_per_sec", "commits"]


def test_rows_of_the_project_and_the_users_own_are_told_apart():
    rows = [make_row("a", 1, row="r1"), make_row("a", 2, row=1), make_row("b", 3, row="r2"), make_row("c", 4, row=2)]
    assert {arm: row["rows of"] for arm, row in by_arm(rows).items()} == {
        "a": "project 1, you 1", "b": "project 1", "c": "you 1"}
    assert "rows of" not in markdown([make_row("a", 1, row=1), make_row("b", 2, row=2)])


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
            make_row("lr003", flags="--warmup-steps=4", config_hash="of other options")]
    verdicts = [row["verdict"] for row in table(markdown(rows, found))]
    assert sorted(verdicts) == ["", "promote", "reject"]
    aa = [make_row("control"), make_row("lr003", 2, flags="")]  # an A/A candidate: the control has no verdict
    assert [row["verdict"] for row in table(markdown(aa, found))] == [""]


def test_odd_names_stay_in_their_cell():
    text = markdown([make_row("a|b <b>x</b>\n## c", flags=f"'{END} ```'", label="x")])
    assert END not in text and "\n## c" not in text.split("```")[0] and "<b>" not in text.split("```")[0]
    assert table(text)[0]["arm"].startswith("a\\|b &lt;b>x&lt;/b> ## c")
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
    assert b"| 1= | control | 2 | best | 71.5 " in first
    assert struct.unpack(">II", picture[16:24])[0] == 1200
    assert run(ledger, page) == 0 and (page.read_bytes(), page.with_name("board.png").read_bytes()) == (first, picture)


def test_no_row_leaves_a_page_that_says_so(files, capsys):
    ledger, page = files
    assert run(ledger, page) == 0 and "No row in the ledger yet." in page.read_text(encoding="utf-8")
    assert "nothing to draw yet" in capsys.readouterr().out and not page.with_name("board.png").exists()


def test_default_page_is_begun_in_results_and_no_tracked_page_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ledger = tmp_path / "experiments.csv"
    append(ledger, make_row("a"))
    assert script.main([f"--ledger={ledger}"]) == 0
    page = tmp_path / "results/leaderboard.md"
    assert "| a" in page.read_text(encoding="utf-8") and page.with_name("leaderboard.png").exists()
    page.write_text(page.read_text(encoding="utf-8") + "mine\n", encoding="utf-8")
    assert script.main([f"--ledger={ledger}"]) == 0 and page.read_text(encoding="utf-8").endswith("mine\n")
    assert script.main([f"--ledger={ledger}", "--page=other.md"]) == 2 and "other.md" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [".experiments.csv.lock", "experiments.csv", "results"]


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
    assert replaced(text, "x").count("\n") < len(text) and sections([]) == []
    assert text.index("# Leaderboard") < text.index(BEGIN)
