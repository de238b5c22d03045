"""
The report page: whole, self-contained, escaped, and with every verdict and number that the results have.

python -m pytest tests/test_html.py -v
"""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from nanochat.lab.metrics import METRICS
from nanochat.lab.report import svg
from nanochat.lab.report.advice import page_sentence
from nanochat.lab.report.gains import gain_text, pair_gains, shown
from nanochat.lab.report.html import page, write_report
from nanochat.lab.report.html_style import STYLE
from nanochat.lab.report.result_file import ResultFile
from nanochat.lab.report.verdict_table import SHOWN
from nanochat.lab.runs import RunSummary
from tests.report_case import five_candidates, make_curves, peeking, unbanked

CASES = [five_candidates, unbanked, peeking]
VOID = {"meta", "wbr", "br", "hr", "img", "link", "input"}
HOSTILE = "<script>alert('x')</script>\"&amp;<img src=x onerror=y>"


class Reader(HTMLParser):
    """Raises on a tag that does not close what is open; collects tags, attributes and text."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


def read(html) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open, f"never closed: {reader.open}"
    return reader


def read_case(make) -> tuple[ResultFile, Reader, str]:
    results = make()
    html = page(results, make_curves(results))
    return results, read(html), html


@pytest.mark.parametrize("make", CASES)
def test_page_is_well_formed_and_needs_nothing_else(make):
    _, reader, html = read_case(make)
    assert html.startswith("<!DOCTYPE html>") and {"html", "head", "body", "title", "svg", "table"} <= set(reader.tags)
    assert not {"script", "link", "img", "iframe", "object"} & set(reader.tags)
    assert not re.search(r"https?:|//\w|url\(|@import|\bsrc=|\bhref=", html)
    assert "prefers-color-scheme:dark" in html and "@media print" in html


@pytest.mark.parametrize("make", CASES)
def test_verdicts_come_first_and_every_number_is_there(make):
    results, reader, html = read_case(make)
    text = "".join(reader.text)
    assert html.index('class="verdict ') < html.index("<svg ")
    for entry in results.verdicts:
        said = page_sentence(entry, results).replace("`", "")  # a command is a code element
        assert f"{entry.verdict or 'no verdict'} {entry.candidate}: {said}" in text
        for gate in entry.gates:
            assert SHOWN[gate.result] in text and gate.section in text
            if gate.mean is not None:
                found = shown(entry, gate, results.declaration)
                m = METRICS[gate.metric]
                cells = [found.text(found.mean, m.unit), f"{found.text(found.lo)} and {found.text(found.hi, m.unit)}"]
                assert "".join(cells) in text, "neighbouring cells"
                ends = f"{found.text(found.mean, m.unit)} ({found.text(found.lo)} to {found.text(found.hi)})"
                assert ends in text, "the picture has the interval of the table"
                assert f"{gate.level:.3g}{gate.p:.3g}{gate.mean_in_sd:+.1f}".replace("-0.0", "+0.0") in text
    for run in results.runs:
        assert run.command in text and (run.val_bpb is None or f"{run.val_bpb:.5f}" in text)
        assert run.error is None or run.error in text
    assert results.settings.command in text
    assert results.provenance["git_commit"] in text and results.declaration.declared_at in text


def test_headline_of_a_promotion_quotes_the_lower_bound():
    results, reader, _ = read_case(five_candidates)
    gate = results.verdicts[0].gates[0]
    text = "".join(reader.text)
    said = f"lr003 makes val_bpb at least {gate.lo:.4f} better (measured: {gate.mean:.4f}, at most {gate.hi:.4f})"
    assert f"promote lr003: Better: {said}" in text
    worse = results.verdicts[2].gates[0]
    assert f"reject gate015: Worse: gate015 makes val_bpb {-worse.mean:.4f} worse" in text


def test_noise_and_its_smallest_gains_are_shown_and_no_noise_is_said():
    _, reader, _ = read_case(five_candidates)
    text = "".join(reader.text)
    assert "0.0013 [0.0009477, 0.002138] at 90 %, df 9 (10 control runs, median 1.1023)" in text and "r 0.31" in text
    assert "seed 1337: a seed of this protocol" in text
    bare = "".join(read_case(unbanked)[1].text)
    assert "Source: none." in bare and "sd of one control run" not in bare.split("Noise")[-1].split("Declared")[0]


@pytest.mark.parametrize("make", CASES)
def test_curves_have_a_line_a_run_and_a_mean_an_arm(make):
    results, reader, _ = read_case(make)
    classes = [value for tag, name, value in reader.attributes if tag == "polyline" and name == "class"]
    arms, runs = len(results.declaration.arms), len(results.runs)
    timed = runs - 1  # one curve has no clock
    late = sum(run.steps == 60 for run in results.runs)
    assert sum(c.startswith("thin") for c in classes) == runs + timed + late
    thick = sum(c.startswith("thick") for c in classes)
    assert thick == (2 + 1 + 1) * arms, "over step, over time, the later half; and the legend"
    assert {value for tag, name, value in reader.attributes if name == "points" and "nan" in value} == set()


def test_curve_is_drawn_where_its_numbers_are():
    points = np.array([(0, np.nan, 3.0), (10, 0.0, 2.0), (20, 5.0, 1.5), (30, 10.0, 1.25)])
    html = svg.curve_chart(["control"], {("control", 1): points}, 0, "step", {})
    drawn = re.search(r'class="thin c0" points="([^"]*)"', html).group(1).split()
    xs, ys = zip(*(map(float, point.split(",")) for point in drawn))
    assert np.allclose(np.diff(xs), (svg.WIDTH - svg.LEFT - svg.RIGHT) / 3, atol=0.02)
    steps = (ys[1] - ys[0]) / (ys[3] - ys[2])
    assert np.allclose(steps, (3 - 2) / (1.5 - 1.25), rtol=1e-2), "equal steps in bpb are equal in pixels"
    assert ys[3] > ys[0], "lower is further down"


def test_gain_chart_puts_seeds_mean_bounds_and_floor_on_one_scale():
    row = {"name": "a", "color": 1, "gains": [(1, -0.002), (2, 0.006)], "mean": 0.002, "lo": -0.001, "hi": 0.005,
           "value": ""}
    html = svg.gain_chart("x", [row], 0.004)
    dots = [float(x) for x in re.findall(r'<circle[^>]*cx="([\d.]+)"', html)]
    mean = float(re.search(r'class="mean c1" d="M([\d.]+)', html).group(1))
    bar = [float(x) for x in re.search(r'class="bar c1" x1="([\d.]+)" y1="[\d.]+" x2="([\d.]+)"', html).groups()]
    floor, zero = (float(re.search(f'class="{cls}" x1="([\\d.]+)"', html).group(1)) for cls in ("margin", "zero"))
    per_bpb = (dots[1] - dots[0]) / 0.008
    wanted = {mean: 0.002, bar[0]: -0.001, bar[1]: 0.005, floor: -0.004, dots[0]: -0.002}
    assert all(at - zero == pytest.approx(value * per_bpb, abs=0.05) for at, value in wanted.items())


def test_open_interval_and_no_pairs_are_drawn():
    row = {"name": "a", "color": 1, "gains": [], "mean": 0.1, "lo": None, "hi": 0.3, "value": ""}
    html = svg.gain_chart("x", [row], None)
    read(html)
    assert re.search(rf'class="bar c1" x1="{svg.SIDE}" y1="\d+" x2="[\d.]+"', html)
    html = svg.gain_chart("x", [row | {"lo": 0.05, "hi": None}], None)
    assert re.search(rf'class="bar c1" x1="[\d.]+" y1="\d+" x2="{svg.WIDTH - svg.SIDE}"', html)
    html = svg.gain_chart("x", [row | {"hi": None}], None)  # the noise is not known: no bar, as in the other picture
    assert 'class="bar' not in html and 'class="mean c1"' in html


def test_text_is_large_enough_to_read_on_a_phone():
    """A screen 390 px wide shows a chart at its natural size or larger, so its 15 px stay 15."""
    screen = STYLE.split("@media print")[0]
    sizes = [float(size) for size in re.findall(r"font(?:-size)?:([\d.]+)px", screen)]
    assert min(sizes) >= 15 and len(sizes) > 5
    padding = int(re.search(r"max-width:600px\)\{main\{padding:\d+px (\d+)px", screen).group(1))
    assert svg.WIDTH <= 390 - 2 * padding
    assert ".wide{overflow-x:auto}" in screen
    assert page(five_candidates(), {}).count('class="wide"') == page(five_candidates(), {}).count("<table>")


@pytest.mark.parametrize("size", [0.3, 0.03, 0.002, 1.5e-4, 1.5e-5, 3e-7])
def test_ticks_of_small_changes_have_few_digits_and_a_unit(size):
    row = {"name": "a", "color": 1, "gains": [(1, size)], "mean": 0.0, "lo": -size, "hi": size, "value": ""}
    html = svg.gain_chart("x", [row], None, "bits per byte")
    ticks = re.findall(r'class="tick"[^>]*>([^<]*)<', html)
    label = re.findall(r'class="label"[^>]*>([^<]*)<', html)[1]
    power = {"": 0, "10\u207b\u00b3 ": -3, "10\u207b\u2076 ": -6}[label.removesuffix("bits per byte")]
    assert all(len(name.lstrip("-")) <= 5 for name in ticks)
    assert 0.3 * size < max(map(float, ticks)) * 10 ** power < 1.2 * size


def test_ticks_of_close_losses_are_shown_after_an_offset():
    points = np.array([(0, 0.0, 2.641231), (10, 1.0, 2.641269), (20, 2.0, 2.641233)])
    html = svg.curve_chart(["control"], {("control", 1): points}, 0, "step", {})
    label = re.findall(r'class="label"[^>]*>([^<]*)<', html)[0]
    assert label == "2.6412 + 10^-5 x bits per byte"
    assert all(len(name) <= 4 for name in re.findall(r'class="tick"[^>]*>([^<]*)<', html))


@pytest.mark.parametrize("lo, hi", [
    (0, 1), (2.61, 2.83), (-0.0049, 0.0021), (0, 60), (1e-7, 3e-7), (-3.2, 1e4), (1.1, 1.1000001)])
def test_ticks_are_few_round_and_told_apart(lo, hi):
    found = svg.ticks(lo, hi)
    assert 2 <= len(found) <= 6 and len({name for _, name in found}) == len(found)
    slack = 1e-9 * (hi - lo)
    assert all(lo - slack <= v <= hi + slack and float(name) == pytest.approx(v, abs=slack) for v, name in found)
    assert np.allclose(np.diff([v for v, _ in found]), found[1][0] - found[0][0])


def test_pair_gains_are_positive_where_the_candidate_is_better():
    control = RunSummary(arm="control", seed=1, run_status="ok", val_bpb=1.2, tok_per_sec_median=100.0,
                         time_to_target_sec=50.0)
    a = RunSummary(arm="a", seed=1, run_status="ok", val_bpb=1.1, tok_per_sec_median=110.0, time_to_target_sec=40.0)
    runs = [control, a, replace(control, seed=2),
            RunSummary(arm="a", seed=2, run_status="diverged", tok_per_sec_median=90.0)]
    assert pair_gains("val_bpb", runs, "a") == [(1, pytest.approx(0.1))]
    assert pair_gains("tok_per_sec", runs, "a") == [(1, pytest.approx(np.log(1.1)))]
    assert pair_gains("time_to_target", runs, "a") == [(1, pytest.approx(np.log(50 / 40)))]
    assert gain_text("tok_per_sec", np.log(1.1)) == "10 % more tokens a second"
    assert gain_text("time_to_target", np.log(50 / 40)) == "20 % less time to target"


def test_mean_curve_is_that_of_the_runs_that_ended_ok():
    points = {seed: np.array([(0, 0.0, 2.0), (10, 1.0, bpb)]) for seed, bpb in ((1, 1.0), (2, 1.2), (3, 1.9))}
    curves = {("control", seed): p for seed, p in points.items()}
    ok = {key: curves[key] for key in (("control", 1), ("control", 2))}
    html = svg.curve_chart(["control"], curves, 0, "step", ok)
    first, second, _ = [float(points.split(",")[-1]) for points in re.findall('class="thin c0" points="([^"]*)"', html)]
    mean, = [float(points.split(",")[-1]) for points in re.findall('class="thick c0" points="([^"]*)"', html)]
    assert mean == pytest.approx((first + second) / 2, abs=0.02)


@pytest.mark.parametrize("make", CASES)
def test_hostile_names_become_text(make):
    stored = re.sub('"(gate\\d*)"(?!:)', lambda name: json.dumps(name[1] + HOSTILE), json.dumps(make().to_json()))
    stored = json.loads(stored)  # keys are ours, values are anybody's
    stored["settings"]["label"], stored["provenance"]["upstream_commit"], stored["runs"][0]["error"] = [HOSTILE] * 3
    stored["noise"]["left_out"] = [HOSTILE]
    results = ResultFile.from_json(stored)
    reader = read(page(results, make_curves(results)))
    assert not {"script", "img"} & set(reader.tags) and not [a for a in reader.attributes if a[1].startswith("on")]
    assert "".join(reader.text).count("<script>alert('x')</script>") > 5


def test_protocol_without_runs_has_a_page():
    results = replace(five_candidates(), runs=[], verdicts=[], deltas=[])
    text = "".join(read(page(results, {})).text)
    assert "no verdict" in text and "Curves" not in text and results.settings.command in text


def test_control_alone_has_a_page_and_nothing_to_judge():
    results = five_candidates()
    declaration = replace(results.declaration, arms=results.declaration.arms[:1], K=0)
    runs = [run for run in results.runs if run.arm == "control"]
    results = replace(results, declaration=declaration, runs=runs, verdicts=[], deltas=[])
    text = "".join(read(page(results, make_curves(results))).text)
    assert "The control alone on 5 seeds" in text and "No candidate was declared" in text and "Curves" in text


def test_same_facts_give_the_same_file(tmp_path):
    results = five_candidates()
    for name in ("a.html", "b.html"):
        write_report(tmp_path / "new" / name, results, make_curves(results))
    assert (tmp_path / "new/a.html").read_bytes() == (tmp_path / "new/b.html").read_bytes()
    assert len(list((tmp_path / "new").iterdir())) == 2
