"""
results/index.html: every report newest first, links that lead somewhere, and no file that breaks it.

python -m pytest tests/test_index.py -v
"""

import json
import os
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest

from nanochat.common import write_json
from nanochat.lab.report.index import index_for, line_of, write_index
from tests import lab_case
from tests.report_case import five_candidates, unbanked

VOID = {"meta", "img", "br", "hr", "wbr"}
MINISERIES = {"timestamp": "2026-03-04T10:00:00+00:00", "label": "m", "depths": [2, 4], "verdicts": [
    {"candidate": "gate", "verdict": "promote", "reason": "better at depth 2", "rollback": None,
     "depths": [{"depth": 2, "says": "promote", "why": "a < b", "n": 5, "mean_gain": 0.01, "lo": None, "hi": 0.1}]}]}
CYCLE = {"timestamp": "2026-03-05T10:00:00+00:00", "label": "c", "profile": "smoke-cpu", "flags": "", "accepted": [],
         "phases": [{"phase": 0, "what": "noise", "state": "done", "why": "8 of 8"}], "stopped": "phase 1: no winner",
         "complete": False, "improvement": 0.0, "promoted": False}
STATS = {"schema_version": 1, "alpha_d": 0.2512, "error": None, "warnings": []}
INFERENCE = {"schema_version": 1, "decision": "inferred", "chosen_ratio": 1.6, "reasons": [], "error": None,
             "arms": {"control": {"target_param_data_ratio": 2.0, "pinned": {"tau": 3.0}}}}
BANK = {"timestamp": "2026-03-06T10:00:00+00:00", "workload": "smoke-cpu: depth 4", "command": "python",
        "noise": {"source": "bank", "metrics": {"val_bpb": {"s_b": 0.00361, "n": 8}}}}


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects links, entries and text."""

    def __init__(self, path):
        super().__init__()
        self.open, self.links, self.items, self.text, self.tags, self.meta = [], [], [], [], [], {}
        text = path.read_text(encoding="utf-8")
        assert text.startswith("<!DOCTYPE html>")
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        assert not [name for name in values if name.startswith("on")]
        self.links += [values[name] for name in ("href", "src") if name in values]
        self.meta |= {values["name"]: values["content"]} if tag == "meta" and "name" in values else {}
        if tag == "li":
            self.items.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)
            if "li" in self.open:
                self.items[-1] += data


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def protocol(folder, label, results, at, report=True):
    write_json(folder / f"{label}_latest.json", results.to_json() | {"timestamp": at})
    if report:
        (folder / label).mkdir()
        (folder / label / "report.html").write_text("<p>it")


def fill(folder):
    protocol(folder, "mix", five_candidates(), "2026-03-01T10:00:00+00:00")
    protocol(folder, "smoke", unbanked(), "2026-03-07T12:00:00+02:00")
    for name, facts in (("m_miniseries", MINISERIES), ("c_cycle", CYCLE), ("p_1908e647_bank", BANK)):
        write_json(folder / f"{name}.json", facts)
    for name, facts in (("b_stats", STATS), ("b_infer", INFERENCE)):
        write_json(folder / f"{name}.json", facts)
        os.utime(folder / f"{name}.json", (0, 0))


def read(folder) -> Page:
    assert write_index(folder) == folder / "index.html"
    return Page(folder / "index.html")


def test_every_kind_has_a_line_newest_first_with_its_date_and_what_it_says(folder):
    fill(folder)
    page = read(folder)
    assert [item.split()[0] for item in page.items] == ["smoke", "p_1908e647", "c", "m", "mix", "b", "b"]
    smoke, bank, cycle, miniseries, mix, stats, inference = sorted(page.items, key=page.items.index)
    assert "protocol, 2026-03-07 10:00" in smoke and "inconclusive" in smoke and "gate" in smoke  # UTC
    assert "noise bank, 2026-03-06" in bank and "varies by 0.0036 from run to run (8 control runs)" in bank
    assert "cycle, 2026-03-05" in cycle and "stopped: phase 1: no winner; accepted: nothing" in cycle
    assert "miniseries, 2026-03-04" in miniseries and "depths 2, 4: better at depth 2" in miniseries
    assert "promote" in miniseries and "gate" in miniseries
    assert all(word in mix for word in ("promote", "lr003", "reject", "gate015", "inconclusive", "wd014"))
    assert {stats, inference} == {i for i in page.items if "Lane B" in i} and "1970-01-01" in stats  # of the file
    said = stats + inference
    assert "alpha_D 0.2512" in said and "inferred: ratio 1.6" in said


def test_links_lead_to_pages_that_exist_and_nothing_comes_from_elsewhere(folder):
    fill(folder)
    page = read(folder)
    assert len(page.links) == 7 and all(link.startswith("./") for link in page.links)
    assert all((folder / unquote(link)).is_file() for link in page.links)
    assert "./mix/report.html" in page.links and "./b_infer.html" in page.links
    assert set(page.tags).isdisjoint({"script", "link", "iframe", "img"})


def test_page_fits_a_phone_and_both_kinds_of_screen(folder):
    fill(folder)
    page = read(folder)
    assert page.meta["viewport"] == "width=device-width, initial-scale=1" and "table" not in page.tags
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "prefers-color-scheme:dark" in text and "overflow-wrap:anywhere" in text


def test_protocol_without_a_report_links_to_its_file(folder):
    protocol(folder, "mix", five_candidates(), "2026-03-01T10:00:00+00:00", report=False)
    assert read(folder).links == ["./mix_latest.json"]


def test_kinds_without_a_report_get_a_page_with_what_is_in_the_file_and_a_way_back(folder):
    fill(folder)
    (folder / "b_infer.png").write_bytes(b"png")
    read(folder)
    page = Page(folder / "m_miniseries.html")
    text = "|".join(page.text)
    assert "|miniseries m|" in text and "|mean_gain|" in text and "|0.01|" in text and "|a < b|" in text
    assert "./index.html" in page.links
    page = Page(folder / "b_infer.html")
    assert "./b_infer.png" in page.links and {"chosen_ratio", "1.6", "pinned", "tau"} <= set(page.text)
    assert "walked" not in "|".join(Page(folder / "c_cycle.html").text)


EVIL = '<img src=x onerror="alert(1)">'


def test_texts_and_names_never_become_markup(folder):
    write_json(folder / f"{EVIL.replace('/', '')}_infer.json", INFERENCE | {"reasons": [EVIL], EVIL: {EVIL: EVIL}})
    facts = five_candidates().to_json()
    for verdict in facts["verdicts"]:
        verdict |= {"candidate": EVIL, "verdict": f"{EVIL}</span>", "reason": f"</p>{EVIL}"}
    write_json(folder / "x_latest.json", facts)
    write_json(folder / "javascript:alert(1)_stats.json", STATS)
    (folder / f"{EVIL}.json").write_text("{")
    page = read(folder)
    assert set(page.tags).isdisjoint({"img", "script"}) and "".join(page.text).count(EVIL) >= 4
    assert all(link.startswith("./") for link in page.links)
    assert all((folder / unquote(link)).is_file() for link in page.links)
    pages = [Page(path) for path in folder.glob("*_infer.html")]
    assert len(pages) == 1 and "img" not in pages[0].tags


DAMAGED = {"torn_latest": '{"a": ', "list_latest": "[1]", "empty_cycle": "", "number_stats": "7",
           "odd_latest": '{"runs": 3}', "odd_miniseries": '{"verdicts": 3, "depths": 1}', "bare_infer": "{}",
           "package": '{"name": "x"}',
           "deep_stats": "[" * 100_000, "null_bank": '{"noise": null, "workload": null}',
           "flat_cycle": '{"complete": 1}',
           "odd_bank": '{"noise": {"metrics": {"val_bpb": {"s_b": "x", "n": 1}}}, "workload": "w"}'}


def test_damaged_and_foreign_files_are_named_with_the_reason_and_hide_no_other(folder, capsys):
    fill(folder)
    for name, text in DAMAGED.items():
        (folder / f"{name}.json").write_text(text)
    (folder / "bytes_latest.json").write_bytes(b"\xff\xfe")
    (folder / "folder_latest.json").mkdir()
    (folder / "gone_latest.json").symlink_to(folder / "nowhere")
    page = read(folder)
    named = {item.partition(".json: ")[0]: item.partition(".json: ")[2] for item in page.items if ".json: " in item}
    assert set(named) == {*DAMAGED, "bytes_latest", "folder_latest", "gone_latest"} and all(named.values())
    assert named["bare_infer"] == "it has no 'reasons'" and "expected a name that ends in _latest" in named["package"]
    assert len(page.items) == 7 + len(named) and capsys.readouterr().out == ""


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_name_that_is_no_utf_8_and_a_lone_surrogate_are_shown(folder):
    (folder / os.fsdecode(b"caf\xe9_stats.json")).write_text(json.dumps(STATS | {"note": "\ud800"}))
    page = read(folder)
    assert page.links == ["./caf%E9_stats.html"] and "caf?" in "".join(page.text)
    assert os.path.exists(os.fsencode(folder) + b"/caf\xe9_stats.html")


def test_odd_dates_are_replaced_by_that_of_the_file(folder):
    for i, stored in enumerate((None, "soon", 7, ["x"], "9999-99-99", "2026-01-01")):
        write_json(folder / f"l{i}_stats.json", STATS | {"timestamp": stored})
        os.utime(folder / f"l{i}_stats.json", (86400, 86400))
    found = [line_of(path).date for path in sorted(folder.glob("*_stats.json"))]
    assert found == ["1970-01-02T00:00:00+00:00"] * 5 + ["2026-01-01T00:00:00+00:00"]


def test_empty_folder_has_a_page_and_deleted_results_leave_no_line(folder):
    assert "No report yet." in read(folder).text
    fill(folder)
    assert len(read(folder).items) == 7
    (folder / "mix_latest.json").unlink()
    assert len(read(folder).items) == 6


def test_full_disk_ends_no_command(folder, monkeypatch, capsys):
    def full(path, text):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("nanochat.lab.report.index.atomic_write", full)
    assert write_index(folder) is None and "No space left on device" in capsys.readouterr().out


def test_file_outside_the_results_folder_is_in_no_index(folder, tmp_path):
    assert index_for(tmp_path / "x_infer.json") is None and not list(tmp_path.glob("*.html"))
    assert index_for("results/x_infer.json").name == "index.html"


def test_protocol_writes_the_index(tmp_path, monkeypatch, capsys):
    lab_case.enter(tmp_path, monkeypatch)
    from nanochat.lab.protocol.protocol import run
    assert run(lab_case.make()) == 0
    assert "results/index.html" in capsys.readouterr().out.replace("\\", "/")
    assert Page(tmp_path / "results/index.html").links == ["./t/report.html"]
