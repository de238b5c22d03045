"""
The draft of a LOG entry: the format of STYLE.md, and every number from the facts.

python -m pytest tests/test_log_entry.py -v
"""

import re
from pathlib import Path
from statistics import mean, stdev

import pytest

from nanochat.lab.report.log_entry import log_entry
from tests.report_case import five_candidates, peeking, unbanked

ROOT = Path(__file__).resolve().parent.parent
PARTS = ["Change", "Why", "Setup", "Result", "Decision"]


def entries(facts):
    """{candidate: its entry}"""
    drafts = re.split(r"^(?=## )", log_entry(facts), flags=re.MULTILINE)[1:]
    return {re.match(r"## [\d-]+: .*, (\S+) \(", draft).group(1): draft for draft in drafts}


@pytest.mark.parametrize("make", [five_candidates, unbanked, peeking])
def test_each_candidate_has_an_entry_in_the_format_of_the_style_guide(make):
    facts = make()
    style = (ROOT / "dev/STYLE.md").read_text(encoding="utf-8")
    assert re.findall(r"\*\*(\w+)\*\*", style[style.index("LOG entry:"):]) == PARTS
    drafts = entries(facts)
    assert list(drafts) == [entry["candidate"] for entry in facts["verdicts"]]
    for entry in facts["verdicts"]:
        draft = drafts[entry["candidate"]]
        assert re.match(rf"## 2026-03-04: {facts['settings']['label']}, \S+ \({entry['verdict'] or 'no verdict'}\)\n", draft)
        assert re.findall(r"^\*\*(\w+)\*\*", draft, re.MULTILINE) == PARTS
        assert draft.count("TODO") == 1 and "**Why** TODO: why" in draft
        assert entry["reason"] in draft and facts["settings"]["command"] in draft


def test_control_and_candidate_are_given_as_mean_sd_and_n():
    facts = five_candidates()
    values = [run["val_bpb"] for run in facts["runs"] if run["arm"] == "gate005"]
    control = [run["val_bpb"] for run in facts["runs"] if run["arm"] == "control"]
    wanted = [f"{mean(v):.5f} \u00b1 {stdev(v):.5f} (n 5)" for v in (control, values)]
    assert f"| val_bpb | {wanted[0]} | {wanted[1]} |" in entries(facts)["gate005"]
    assert "peak_mem_mib" not in entries(facts)["gate005"], "never measured, so not listed"


def test_every_gate_is_a_row_with_its_numbers():
    facts = five_candidates()
    for entry in facts["verdicts"]:
        rows = [line for line in entries(facts)[entry["candidate"]].splitlines() if line.startswith("| ")]
        for gate in entry["gates"]:
            row, = [line for line in rows if line.startswith(f"| {gate['gate']}") and f" | {gate['role']} | " in line]
            assert f"| {gate['result']} |" in row
            if gate["mean"] is not None:
                assert f"| {gate['mean']:+.5f} " in row and f"| [{gate['lo']:.5f}, {gate['hi']:.5f}] |" in row
                assert f"| {gate['level']:.3g} | {gate['p']:.3g} |" in row


def test_numbers_follow_the_facts():
    facts = five_candidates()
    before = entries(facts)
    facts["verdicts"][0]["gates"][0]["lo"] = 0.0031
    after = entries(facts)
    assert "at least 0.0031 bpb better" in after["lr003"] and "at least 0.0031" not in before["lr003"]
    assert {name for name in after if after[name] != before[name]} == {"lr003"}


def test_what_failed_and_what_would_settle_it_is_said():
    facts = five_candidates()
    drafts = entries(facts)
    assert "Runs that did not end ok: hot s3 diverged." in drafts["hot"]
    speeds = [run["tok_per_sec_median"] for run in facts["runs"] if run["arm"] == "hot" and run["run_status"] == "ok"]
    assert f"| {mean(speeds):,.0f} \u00b1 {stdev(speeds):,.0f} (n 4) |" in drafts["hot"]
    assert "seeds are needed for a gain of" in drafts["wd014"] and "seeds are needed" not in drafts["lr003"]
    assert "sigma of val_bpb: 0.0013" in drafts["lr003"] and "commit 0123456789ab." in drafts["lr003"]


def test_code_spans_and_tables_survive_odd_flags():
    facts = five_candidates()
    facts["declaration"]["arms"][1]["flags"] = "--run='a `b` | c'"
    facts["verdicts"][0]["gates"][0]["noise_source"] = "a|b"
    draft = entries(facts)["lr003"]
    assert "`` --run='a `b` | c' ``" in draft
    gates = [line for line in draft.splitlines() if re.match(r"\| .* \| (primary|floor) ", line)]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in gates] == [12] * 3 and "| a\\|b |" in gates[0]


def test_no_verdict_yet_is_refused():
    with pytest.raises(ValueError, match="no verdict yet"):
        log_entry(five_candidates() | {"verdicts": []})
