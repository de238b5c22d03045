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
from nanochat.lab.report.plots import draw_protocol
from nanochat.lab.report.result_file import Delta


def make(arms, seeds, steps, every, effect=0.01):
    rng, curves, deltas = np.random.default_rng(0), {}, []
    for seed in seeds:
        for k, arm in enumerate(arms):
            curves[arm, seed] = [
                (s, max(0, s - 11) * 0.5 * (1 + 0.1 * k), 2 + 3 * np.exp(-s / 20) + effect * k + 0.01 * rng.normal())
                for s in range(0, steps + 1, every)]
        final = {arm: curves[arm, seed][-1][2] for arm in arms}
        deltas += [Delta(seed, final[arm] - final["control"], candidate=arm) for arm in arms[1:]]
    return arms, curves, deltas


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
    assert not draw_protocol(tmp_path / "x.png", "x", ["control", "gate"], {("control", 1): []}, [])
    assert not (tmp_path / "x.png").exists()


def test_control_alone_has_no_panel_of_pairs(figure):
    assert [len(figure(*make(arms, [1, 2], 60, 10)).axes) for arms in (["control"], ["control", "gate"])] == [2, 3]


def test_each_seed_is_a_line_and_the_mean_is_the_mean(figure):
    arms, curves, deltas = make(["control", "gate"], [1, 2], 60, 10)
    over_step, over_time, paired = figure(arms, curves, deltas).axes
    assert len(over_step.lines) == 2 * 3
    mean = next(line for line in over_step.lines if line.get_label() == "gate")
    assert np.allclose(mean.get_ydata(), np.mean([[p[2] for p in curves["gate", s]] for s in (1, 2)], axis=0))
    dots = [line.get_ydata() for line in paired.lines if line.get_marker() == "o"]
    assert np.allclose(np.sort(dots[0]), sorted(delta.candidate_minus_control_bpb for delta in deltas))
    assert over_time.lines[0].get_xdata()[0] == 0 and np.sum(over_time.lines[0].get_xdata() == 0) == 1


def test_interval_of_the_mean_is_the_paired_t_interval(figure):
    arms, curves, deltas = make(["control", "gate"], [1, 2, 3, 4, 5], 60, 10)
    paired = figure(arms, curves, deltas).axes[2]
    d = np.array([delta.candidate_minus_control_bpb for delta in deltas])
    bar = paired.collections[0].get_paths()[0].vertices[:, 1]
    half = 2.131847 * d.std(ddof=1) / np.sqrt(5)  # t table: one-sided 5 %, 4 degrees of freedom
    assert np.allclose(sorted(bar), [d.mean() - half, d.mean() + half], rtol=1e-6)


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
    (["control", "x"], list(range(12)), 200, 100, 1e-5)])
def test_no_text_lies_on_another(figure, arms, seeds, steps, every, effect):
    fig = figure(*make(arms, seeds, steps, every, effect))
    assert not overlapping(fig)
    assert len({line.get_color() for line in fig.axes[0].lines}) == min(len(arms), len(plots.COLORS))


def test_failed_runs_leave_gaps_and_not_errors(figure):
    arms, curves, deltas = make(["control", "a", "b"], [1, 2], 60, 10)
    curves["a", 1], curves["b", 2] = curves["a", 1][:2], []
    curves["control", 1] = [(s, None, bpb) for s, _, bpb in curves["control", 1]]  # an old record without the clock
    deltas[:2] = [replace(delta, candidate_minus_control_bpb=None) for delta in deltas[:2]]
    assert len(figure(arms, curves, deltas).axes) == 3
