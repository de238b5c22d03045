"""
Gates and what a label rests on, as text.

python -m pytest tests/test_text.py -v
"""

from dataclasses import replace

import pytest

from nanochat.lab.report import text as report
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict.stats import smallest_gain
from tests.report_case import five_candidates, peeking, unbanked


def rows_of(text) -> list[list[str]]:
    lines = text.splitlines()
    rule = next(line for line in lines if line.strip().startswith("---"))
    starts = [i for i in range(len(rule)) if rule[i] == "-" and (i == 0 or rule[i - 1] == " ")]
    ends = [*starts[1:], None]
    return [[line[a:b].strip() for a, b in zip(starts, ends)] for line in lines[lines.index(rule) + 1:]]


def test_gates_table_has_a_row_a_gate_with_its_numbers():
    entry = five_candidates().verdicts[1]
    rows = rows_of(report.gates_table(entry))[:len(entry.gates)]
    for gate, row in zip(entry.gates, rows):
        assert row[1] == gate.role and row[-3:] == [gate.result, gate.noise_source or "", gate.section]
    gate = entry.gates[0]
    assert rows[0][:7] == ["val_bpb (bpb)", "primary", "5", f"{gate.mean:+.5f} ({gate.mean / 0.0013:+.1f})",
                            f"[{gate.lo:.5f}, {gate.hi:.5f}]", "0.01", f"{gate.p:.3g}"]
    assert [row[0] for row in rows][2:] == ["tok_per_sec (log)", "no instability: run_status"]
    assert [row[7] for row in rows] == ["0", "-0.00995 (-5.0)", "-0.10536 (-8.8)", ""]
    assert "tok_per_sec: loose: its margin is 8.8 sd" in report.gates_table(entry)


def test_gate_that_was_missed_or_unbounded_has_empty_cells_and_infinite_ends():
    gate = five_candidates().verdicts[0].gates[0]
    assert report.gate_cells(replace(gate, lo=None, hi=None))[4] == "[-inf, inf]"
    empty = dict.fromkeys(("mean", "mean_in_sd", "lo", "hi", "level", "p", "noise_source"))
    assert report.gate_cells(replace(gate, **empty, result="fail")) == [
        "val_bpb (bpb)", "primary", "5", "", "", "", "", "0", "fail", "", "7.1 gate 6"]
    assert report.gates_table(unbanked().verdicts[0]) == ""


def test_basis_lines_say_what_the_verdicts_rest_on():
    results = five_candidates()
    lines = report.basis_lines(results)
    assert lines[0] == ("5 candidates; a verdict may be given at 5 seeds (looks); at most 0.05 of such comparisons "
                        "promote a useless change; noise from the noise bank")
    assert "sigma of val_bpb: 0.0013 [0.0009477, 0.002138] at 90 %, df 9 (10 control runs, median 1.1023)" in lines
    assert "correlation of earlier pairs on val_bpb: r 0.31, n 16, lo 0" in lines
    assert "left out of the bank: seed 1337: a seed of this protocol" in lines
    shown, = [line for line in lines if line.startswith("smallest gain")]
    assert shown.endswith(", ".join(f"n={n} {smallest_gain(n, 0.0013, 9, 0.01):.4g}" for n in (2, 3, 5, 8, 12)))
    named = [verdict.candidate for verdict in results.verdicts if report.seeds_text(verdict)]
    assert named == ["gate005", "gate015", "wd014"], "not beside a promotion, nor without a test"
    assert report.basis_lines(peeking())[0].startswith("3 candidates; a verdict may be given at 2 to 12 seeds")


def test_smallest_gains_are_those_of_the_published_table():
    results = five_candidates()
    def gains_of(K):
        return dict(report.smallest_gains(replace(results, declaration=replace(results.declaration, K=K))))
    gains = gains_of(1)
    assert gains[2] == pytest.approx(0.00349897, rel=1e-4) and gains[8] == pytest.approx(0.00169686, rel=1e-4)
    assert gains_of(4)[5] == pytest.approx(0.00279775, rel=1e-4)
    assert report.smallest_gains(unbanked()) == []


@pytest.mark.parametrize("make", [five_candidates, unbanked, peeking])
def test_verdicts_end_with_the_label_and_name_every_candidate(make):
    results = make()
    text = report.verdicts(results)
    for entry in results.verdicts:
        assert f"verdict {entry.candidate}: {entry.text}\n  {entry.reason}" in text
        assert report.gates_table(entry) in text
    assert text.splitlines()[-1] == report.basis_lines(results)[-1]
    assert report.results_table(results)


def test_gain_is_named_in_the_unit_of_its_metric():
    text = report.verdict_text(peeking().verdicts[0])
    assert "of log time_to_target_sec (positive = better)" in text and "bpb" not in text
    assert "bpb (positive = better)" in report.verdict_text(five_candidates().verdicts[0])


def test_failure_shows_of_the_log_what_was_not_said_yet_and_once(tmp_path):
    log = tmp_path / "run.log"
    log.write_text("early\n" + "".join(f"line {i}\n" for i in range(3)) + "warning: slow\n" * 5
                   + "RuntimeError: made up\n\nRun ended crash: RuntimeError: made up\n")
    run = RunSummary(run_status="crash", error="RuntimeError: made up")
    assert report.failure(run, log).splitlines() == [
        f"  crash: RuntimeError: made up; {log} ends:", "    | early", "    | line 0", "    | line 1", "    | line 2",
        "    | warning: slow (5 times)"]
    run = RunSummary(run_status="interrupted", error="stopped by SIGTERM")
    assert report.failure(run, log) == f"  stopped by SIGTERM; log: {log}"
