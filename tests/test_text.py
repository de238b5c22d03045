"""
Gates and what a label rests on, as text.

python -m pytest tests/test_text.py -v
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.lab.report import text as report
from nanochat.lab.report.sentence import sentence
from nanochat.lab.report.verdict_table import DETAIL_HEADER, detail_rows, detail_table, user_rows, user_table
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict.evidence import Evidence
from nanochat.lab.verdict.gate_rows import SECTION, stability_row
from nanochat.lab.verdict.stats import smallest_gain
from tests.report_case import five_candidates, peeking, unbanked

ROOT = Path(__file__).resolve().parent.parent


def rows_of(text) -> list[list[str]]:
    lines = text.splitlines()
    rule = next(line for line in lines if line.strip().startswith("---"))
    starts = [i for i in range(len(rule)) if rule[i] == "-" and (i == 0 or rule[i - 1] == " ")]
    ends = [*starts[1:], None]
    return [[line[a:b].strip() for a, b in zip(starts, ends)] for line in lines[lines.index(rule) + 1:]]


def test_table_of_a_user_has_a_row_a_gate_in_one_sign_and_in_percent():
    results = five_candidates()
    entry = results.verdicts[1]
    rows = rows_of(user_table(entry, results.declaration))
    bpb, loss, speed, _ = entry.gates
    assert rows[0] == ["val_bpb (decides)", f"{bpb.mean:+.4f}", f"{bpb.lo:+.4f} and {bpb.hi:+.4f}",
                       "nothing: has to gain", "yes"]
    # A train loss of d = log(control / candidate) is 1 - exp(-d) lower, a speed of d is exp(d) - 1 higher.
    def percent(x, digits):
        return f"{100 * x:+.{digits}f}"
    assert rows[1][:4] == ["train loss", percent(1 - math.exp(-loss.mean), 2) + " %", percent(1 - math.exp(-loss.lo), 2)
                           + " and " + percent(1 - math.exp(-loss.hi), 2) + " %", "1 %"]
    assert rows[2][:4] == ["tokens a second", percent(math.exp(speed.mean) - 1, 1) + " %", percent(
        math.exp(speed.lo) - 1, 1) + " and " + percent(math.exp(speed.hi) - 1, 1) + " %", "10 %"]
    assert speed.mean < 0 and rows[2][1].startswith("-"), "slower, so it has a minus"
    assert rows[3][0] == "runs that diverge" and rows[3][-1] == "yes"


def test_table_of_details_has_a_row_a_gate_with_the_numbers_of_its_test():
    entry = five_candidates().verdicts[1]
    rows = rows_of(detail_table(entry))
    for gate, row in zip(entry.gates, rows):
        assert row[1] == gate.role and row[-2:] == [gate.noise_source or "", gate.section]
    gate = entry.gates[0]
    assert rows[0][:6] == ["val_bpb", "primary", "5", "0.01", f"{gate.p:.3g}", f"{gate.mean / 0.0013:+.1f}"]
    assert [row[0] for row in rows][2:] == ["tok_per_sec", "no instability: run_status"]
    assert [row[6] for row in rows] == ["+0.0", "-5.0", "-8.8", ""]
    assert "tok_per_sec: loose: its margin is 8.8 sd" in report.details_text(entry)


def test_gate_that_was_missed_or_unbounded_has_words_instead_of_numbers():
    results = five_candidates()
    entry = results.verdicts[0]
    def with_gate(**changes):
        return user_rows(replace(entry, gates=[replace(entry.gates[0], **changes)]), results.declaration)[0]
    assert with_gate(lo=None, hi=None)[2] == "not known"
    empty = dict.fromkeys(("mean", "mean_in_sd", "lo", "hi", "level", "p", "noise_source"))
    assert with_gate(**empty, result="fail") == [
        "val_bpb (decides)", "not measured", "", "nothing: has to gain", "no"]
    missed = replace(entry, gates=[replace(entry.gates[0], **empty)])
    assert detail_rows(missed)[0] == ["val_bpb", "primary", "5", "", "", "", "+0.0", "", "7.1 gate 6"]
    assert user_table(unbanked().verdicts[0], results.declaration) == detail_table(unbanked().verdicts[0]) == ""


def test_every_section_of_a_gate_is_a_heading_of_the_plan():
    plan = (ROOT / "ideas/plan.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", plan, re.MULTILINE)
    sections = {*SECTION.values(), stability_row(Evidence()).section}
    assert len(sections) == 6 and sections <= set(headings)
    assert DETAIL_HEADER[-1] == "ideas/plan.md"


def test_basis_lines_say_what_the_verdicts_rest_on():
    results = five_candidates()
    lines = report.basis_lines(results)
    assert lines[0] == ("5 candidates; a verdict may be given at 5 seeds (looks); at most 5 % of such comparisons "
                        "promote a useless change; noise from the noise bank")
    sd = f"{100 * math.expm1(0.002):.4g} %"  # of a ratio: its logarithm spreads 0.002
    assert any(line.startswith(f"sigma of final_train_loss: {sd} [") for line in lines)
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


def flat(text: str) -> str:
    """Without line breaks, which depend on the width of a terminal."""
    return " ".join(text.split())


@pytest.mark.parametrize("make", [five_candidates, unbanked, peeking])
def test_verdicts_begin_with_their_sentence_and_end_with_the_label(make):
    results = make()
    text = report.verdicts(results)
    for entry in results.verdicts:
        said = sentence(entry, results.declaration, results.noise)
        assert f"verdict {entry.candidate}: {entry.text}. {said}" in flat(text)
        assert user_table(entry, results.declaration) in text and detail_table(entry) in text
        assert text.index(f"verdict {entry.candidate}:") < text.index("\nDetails\n")
    assert flat(text).endswith(flat(report.basis_lines(results)[-1]))
    assert flat(text) in flat(report.results_table(results))
    assert max(len(line) for line in text.splitlines() if "  " not in line.strip()) <= report.WIDTH + 2


def test_pairs_have_the_sign_and_the_mean_of_the_gates():
    results = five_candidates()
    delta, gates = results.deltas[0], results.verdicts[0].gates
    said = report.results_table(results).split("(+ is better)")[1].split("\nverdict")[0]
    assert delta.candidate == "lr003" and f"{-delta.candidate_minus_control_bpb:+.5f}" in said
    mean, = [row for row in rows_of(said) if row[:2] == ["lr003", "mean"]]
    assert mean[2:] == [f"{gates[0].mean:+.5f}", f"{100 * (math.exp(gates[2].mean) - 1):+.1f} %"]
    assert "minus" not in said
    older = replace(results, runs=[replace(run, tok_per_sec_median=None) for run in results.runs])
    said = report.results_table(older).split("(+ is better)")[1]
    assert f"{100 * (delta.candidate_speed_ratio - 1):+.1f} %" in said, "an older file has the averages alone"


def test_logarithms_are_printed_nowhere():
    for make in (five_candidates, peeking):
        text = report.verdicts(make())
        assert "log" not in text.replace("python -m", "") and "0.10536" not in text and "0.00995" not in text


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
