"""
The picture of a protocol: it shows the measured values, and odd inputs do not break it.

python -m pytest tests/test_plots.py -v
"""

import struct
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from nanochat.lab.report import plots
from nanochat.lab.report.gains import shown
from nanochat.lab.report.plots import draw_protocol
from nanochat.lab.report.result_file import ResultFile
from nanochat.lab.report.sentence import title
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict.facts import MetricNoise, Noise
from nanochat.lab.verdict.gates import judge
from tests.gates_case import WHEN, declared
from tests.report_case import five_candidates, make_curves, peeking


def make(arms, seeds, steps, every, effect=0.01, noise=None):
    """(results, curves) of made-up runs, judged."""
    rng, curves, runs = np.random.default_rng(0), {}, []
    for seed in seeds:
        for k, arm in enumerate(arms):
            curves[arm, seed] = [
                (s, max(0, s - 11) * 0.5 * (1 + 0.1 * k), 2 + 3 * np.exp(-s / 20) + effect * k + 0.01 * rng.normal())
                for s in range(0, steps + 1, every)]
            runs.append(RunSummary(arm=arm, seed=seed, run_status="ok", val_bpb=float(curves[arm, seed][-1][2]),
                                   profile_hash="p", declared_at=WHEN, started_at=WHEN))
    declaration = replace(declared(len(seeds), arms[1:], noise=noise), seeds=list(seeds))
    return ResultFile(runs=runs, verdicts=judge(declaration, runs), declaration=declaration), curves


def gains_of(results, arm) -> np.ndarray:
    bpb = {(run.arm, run.seed): run.val_bpb for run in results.runs}
    return np.array([bpb["control", seed] - bpb[arm, seed] for seed in results.declaration.seeds])


def unit_of(ax) -> float:
    return {"(bits": 1.0, "(10\u207b\u00b3": 1e-3, "(10\u207b\u2076": 1e-6}[ax.get_ylabel().split()[2]]


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """draw_protocol, and the figure that it would have closed."""
    monkeypatch.setattr(plt, "close", lambda fig: None)

    def draw(*args):
        assert draw_protocol(tmp_path / "x.png", "x", *args)
        return plt.gcf()
    yield draw
    monkeypatch.undo()
    plt.close("all")


def test_png_has_the_promised_size(tmp_path):
    path = tmp_path / "results" / "x.png"
    assert draw_protocol(path, "x", *make(["control", "gate"], [1, 2], 60, 10))
    assert struct.unpack(">II", path.read_bytes()[16:24]) == (1500, 500)
    assert list(path.parent.iterdir()) == [path]


def test_nothing_measured_draws_nothing(tmp_path):
    results, _ = make(["control", "gate"], [1, 2], 60, 10)
    assert not draw_protocol(tmp_path / "x.png", "x", results, {("control", 1): []})
    assert not (tmp_path / "x.png").exists()


def test_control_alone_has_no_panel_of_pairs(figure):
    assert [len(figure(*make(arms, [1, 2], 60, 10)).axes) for arms in (["control"], ["control", "gate"])] == [2, 3]


def test_each_seed_is_a_line_and_the_mean_is_the_mean(figure):
    results, curves = make(["control", "gate"], [1, 2], 60, 10)
    over_step, over_time, paired = figure(results, curves).axes
    assert len(over_step.lines) == 2 * 3
    mean = next(line for line in over_step.lines if line.get_label() == "gate")
    assert np.allclose(mean.get_ydata(), np.mean([[p[2] for p in curves["gate", s]] for s in (1, 2)], axis=0))
    dots = [line.get_ydata() for line in paired.lines if line.get_marker() == "o"]
    assert np.allclose(np.sort(dots[0]) * unit_of(paired), np.sort(gains_of(results, "gate"))), "up is better"
    assert over_time.lines[0].get_xdata()[0] == 0 and np.sum(over_time.lines[0].get_xdata() == 0) == 1


def bar_of(paired) -> list[float]:
    bar, = [path.vertices[:, 1] for bars in paired.collections for path in bars.get_paths()]
    return sorted(bar * unit_of(paired))


def test_interval_of_the_mean_is_that_of_the_verdict(figure):
    """Without a bank it is the paired t interval; with a bank it is the one that the bank gives."""
    results, curves = make(["control", "gate"], [1, 2, 3, 4, 5], 60, 10)
    d = gains_of(results, "gate")
    half = 2.131847 * d.std(ddof=1) / np.sqrt(5)  # t table: one-sided 5 %, 4 degrees of freedom
    assert np.allclose(bar_of(figure(results, curves).axes[2]), [d.mean() - half, d.mean() + half], rtol=1e-6)
    bank = Noise("bank", metrics={"val_bpb": MetricNoise(0.01, 9)})
    results, curves = make(["control", "gate"], [1, 2, 3], 60, 10, noise=bank)
    verdict, = results.verdicts
    assert verdict.noise_source == "bank"
    found = shown(verdict, verdict.gates[0], results.declaration)
    assert np.allclose(bar_of(figure(results, curves).axes[2]), [found.lo, found.hi])


def test_unknown_noise_has_no_bar(figure):
    paired = figure(*make(["control", "gate"], [1, 2], 60, 10)).axes[2]
    assert not paired.collections and any("noise is not known" in text.get_text() for text in paired.texts)


def test_title_is_the_verdict(figure):
    results, curves = make(["control", "gate"], [1, 2, 3, 4, 5], 60, 10)
    said = title(results.verdicts[0], results.declaration)
    assert " ".join(figure(results, curves).get_suptitle().split()) == f"x, {said}"
    five = five_candidates()
    assert figure(five, make_curves(five)).get_suptitle() == (
        "x: lr003 promote, gate005 optional, gate015 reject, wd014 inconclusive, hot reject")
    results, curves = make(["control", *(f"candidate_number_{i}_of_eight" for i in range(8))], [1, 2], 60, 10)
    assert figure(results, curves).get_suptitle() == "x: 8 inconclusive"


def test_times_are_drawn_in_percent(figure):
    results = peeking()
    paired = figure(results, make_curves(results)).axes[2]
    assert paired.get_ylabel() == "time to target, change (%)"
    dots = [line.get_ydata() for line in paired.lines if line.get_marker() == "o"][0]
    sec = {(run.arm, run.seed): run.time_to_target_sec for run in results.runs}
    assert np.allclose(dots, [100 * (1 - sec["lr003", seed] / sec["control", seed]) for seed in (1, 2, 3)])


def test_legend_lies_beside_the_curves_and_no_tick_is_long(figure):
    for effect in (0.01, 1e-3, 1e-5):
        fig = figure(*make(["control", "gate"], [1, 2], 60, 10, effect))
        legend, = fig.legends
        box = legend.get_window_extent()
        assert not any(box.overlaps(ax.get_window_extent()) for ax in fig.axes)
        assert all(len(tick.get_text()) <= 6 for ax in fig.axes for tick in ax.get_yticklabels())
    results, curves = make(["control", "gate"], [1, 2], 60, 10)
    runs = [replace(run, val_bpb=2.6 + 1.5e-5 * (run.arm == "gate") * run.seed) for run in results.runs]
    results = replace(results, runs=runs, verdicts=judge(results.declaration, runs))
    paired = figure(results, curves).axes[2]
    assert unit_of(paired) == 1e-6 and all(len(tick.get_text()) <= 4 for tick in paired.get_yticklabels())


def overlapping(fig):
    """Pairs of visible texts, within one pair of axes, whose boxes overlap; and texts that are cut off."""
    found = []
    for ax in fig.axes:
        ticks = [tick.label1 for axis in (ax.xaxis, ax.yaxis) for tick in axis.get_major_ticks()
                 if min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())]
        texts = [t for t in (*ax.texts, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ticks)
                 if t.get_text() and t.get_visible()]
        boxes = [t.get_window_extent() for t in texts]
        found += [(t.get_text(), "the edge") for t, box in zip(texts, boxes)
                  if box.x0 < -1 or box.x1 > 1501 or box.y0 < -1 or box.y1 > 501]
        found += [(a.get_text(), b.get_text()) for i, a in enumerate(texts) for j, b in enumerate(texts[:i])
                  if boxes[i].overlaps(boxes[j])]
    return found


@pytest.mark.parametrize("arms, seeds, steps, every, effect", [
    (["control", "gate"], [1337, 2026], 60, 10, 0.01), (["control", "gate"], [7], 60, 60, 0.0),
    (["control", "candidate_with_a_name_of_34_chars"], list(range(1337, 1345)), 600, 50, -0.02),
    (["control", *(f"cand{i}" for i in range(8))], [1, 2], 60, 10, 0.003),
    (["control", *(f"candidate_number_{i}_of_eight" for i in range(8))], [1, 2, 3, 4, 5], 60, 10, 0.003),
    (["control", "x"], list(range(12)), 200, 100, 1e-5)])
def test_no_text_lies_on_another(figure, arms, seeds, steps, every, effect):
    fig = figure(*make(arms, seeds, steps, every, effect))
    assert not overlapping(fig)
    assert len({line.get_color() for line in fig.axes[0].lines}) == min(len(arms), len(plots.COLORS))


def test_failed_runs_leave_gaps_and_not_errors(figure):
    results, curves = make(["control", "a", "b"], [1, 2], 60, 10)
    curves["a", 1], curves["b", 2] = curves["a", 1][:2], []
    curves["control", 1] = [(s, None, bpb) for s, _, bpb in curves["control", 1]]  # an old record without the clock
    runs = [replace(run, run_status="crash", val_bpb=None) if (run.arm, run.seed) in (("a", 1), ("b", 2)) else run
            for run in results.runs]
    assert len(figure(replace(results, runs=runs, verdicts=judge(results.declaration, runs)), curves).axes) == 3
