"""
The draft of a LOG entry: the format of STYLE.md, and every number from the facts.

python -m pytest tests/test_log_entry.py -v
"""

import re
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import pytest

from nanochat.lab.report.advice import page_sentence
from nanochat.lab.report.log_entry import log_entry
from nanochat.lab.report.verdict_table import user_rows
from tests.report_case import five_candidates, peeking, unbanked

ROOT = Path(__file__).resolve().parent.parent
PARTS = ["Did it help?", "How sure?", "Caveat", "How to repeat"]
CAME_OF_IT = "promote|optional|reject|inconclusive|measurement"
BOLD = r"\*\*([^*\n]+)\*\*"


def entries(results):
    """{candidate: its entry}"""
    drafts = re.split(r"^(?=## )", log_entry(results), flags=re.MULTILINE)[1:]
    return {re.match(r"## [\d-]+: (\S+) of ", draft).group(1): draft for draft in drafts}


@pytest.mark.parametrize("make", [five_candidates, unbanked, peeking])
def test_each_candidate_has_an_entry_in_the_format_of_the_style_guide(make):
    results = make()
    style = (ROOT / "dev/STYLE.md").read_text(encoding="utf-8")
    assert re.findall(BOLD, style[style.index("LOG entry:"):]) == PARTS
    drafts = entries(results)
    assert list(drafts) == [entry.candidate for entry in results.verdicts]
    for entry in results.verdicts:
        draft = drafts[entry.candidate]
        label, verdict = results.settings.label, entry.verdict or "no verdict"
        assert re.match(rf"## 2026-03-04: \S+ of {label}: \w.* \({verdict}\)\n", draft)
        assert re.findall("^" + BOLD, draft, re.MULTILINE) == PARTS
        assert draft.count("TODO") == 1 and "TODO: why (source)" in draft.split("**")[0]
        said = page_sentence(entry, results)
        assert f"**Did it help?** {said}" in draft and f"```\n{results.settings.command}\n```" in draft


def test_the_headline_says_the_result_in_plain_words():
    drafts = entries(five_candidates())
    assert re.match(r"## \S+ lr003 of \S+ at least 0\.\d+ bpb better \(promote\)\n", drafts["lr003"])
    undecided = r"## \S+ wd014 of \S+ cannot tell yet, measured 0\.\d+ bpb better \(inconclusive\)\n"
    assert re.match(undecided, drafts["wd014"])
    assert re.match(r"## \S+ gate015 of \S+ not taken, measured 0\.\d+ bpb worse \(reject\)\n", drafts["gate015"])
    assert re.match(r"## \S+ hot of \S+ not taken \(reject\)\n", drafts["hot"]), "a diverged run has no gain"


def test_the_log_has_the_same_form():
    _, *written = re.split(r"^(?=## )", (ROOT / "dev/LOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    dates = []
    for draft in written:
        found = re.match(rf"## (\d{{4}}-\d\d-\d\d): \S.* \(({CAME_OF_IT})\)\n\S", draft)
        assert found, draft.splitlines()[0]
        dates.append(found.group(1))
        assert re.findall("^" + BOLD, draft, re.MULTILINE)[:4] == PARTS, found.group()
        assert "TODO" not in draft
    assert dates == sorted(dates, reverse=True), "newest first"


def test_control_and_candidate_are_given_as_mean_sd_and_n():
    results = five_candidates()
    values = [run.val_bpb for run in results.runs if run.arm == "gate005"]
    control = [run.val_bpb for run in results.runs if run.arm == "control"]
    wanted = [f"{mean(v):.5f} \u00b1 {stdev(v):.5f} (n 5)" for v in (control, values)]
    assert f"| val_bpb | {wanted[0]} | {wanted[1]} |" in entries(results)["gate005"]
    assert "peak_mem_mib" not in entries(results)["gate005"], "never measured, so not listed"


def test_every_gate_is_a_row_with_its_numbers():
    results = five_candidates()
    for entry in results.verdicts:
        rows = [line for line in entries(results)[entry.candidate].splitlines() if line.startswith("| ")]
        for gate in entry.gates:
            row, = [line for line in rows if line.startswith(f"| {gate.gate}") and f" | {gate.role} | " in line]
            if gate.mean is not None:
                assert f"| {gate.level:.3g} | {gate.p:.3g} |" in row
        for cells in user_rows(entry, results.declaration):
            assert "| " + " | ".join(cells) + " |" in rows


def test_numbers_follow_the_facts():
    results = five_candidates()
    before = entries(results)
    gates = results.verdicts[0].gates
    gates[0] = replace(gates[0], lo=0.0031)
    after = entries(results)
    assert "at least 0.0031 bpb better" in after["lr003"] and "at least 0.0031" not in before["lr003"]
    assert {name for name in after if after[name] != before[name]} == {"lr003"}


def test_what_failed_and_what_would_settle_it_is_said():
    results = five_candidates()
    drafts = entries(results)
    assert "Runs that did not end ok: hot s3 diverged." in drafts["hot"]
    speeds = [run.tok_per_sec_median for run in results.runs if run.arm == "hot" and run.run_status == "ok"]
    assert f"| {mean(speeds):,.0f} \u00b1 {stdev(speeds):,.0f} (n 4) |" in drafts["hot"]
    assert "seeds are needed for a gain of" in drafts["wd014"] and "seeds are needed" not in drafts["lr003"]
    assert "sigma of val_bpb: 0.0013" in drafts["lr003"] and "commit 0123456789ab." in drafts["lr003"]


def test_code_spans_and_tables_survive_odd_flags():
    results = five_candidates()
    arms, gates = results.declaration.arms, results.verdicts[0].gates
    arms[1], gates[0] = replace(arms[1], flags="--run='a `b` | c'"), replace(gates[0], noise_source="a|b")
    draft = entries(results)["lr003"]
    assert "`` --run='a `b` | c' ``" in draft
    gates = [line for line in draft.splitlines() if re.match(r"\| .* \| (primary|floor) ", line)]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in gates] == [10] * 3 and "| a\\|b |" in gates[0]


def test_no_verdict_yet_is_refused():
    with pytest.raises(ValueError, match="no verdict yet"):
        log_entry(replace(five_candidates(), verdicts=[]))
