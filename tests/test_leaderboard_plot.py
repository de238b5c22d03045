"""
The picture of the leaderboard: better is right, no legend, and the intervals of the table.

python -m pytest tests/test_leaderboard_plot.py -v
"""

import pytest

from nanochat.lab.report import leaderboard_plot, plots
from nanochat.lab.report.sections import distances, sections
from tests.leaderboard_case import NO_TARGET, make_row, noise_rows


def drawn(tmp_path, monkeypatch, rows):
    """The panels of a picture: [(left, right) of each section]."""
    monkeypatch.setattr(plots.plt, "close", lambda fig: None)
    assert leaderboard_plot.draw_leaderboard(tmp_path / "x.png", sections(rows))
    axes = plots.plt.gcf().axes
    monkeypatch.undo()
    plots.plt.close("all")
    return list(zip(axes[::2], axes[1::2]))


def marked(ax, marker) -> list:
    return [line for line in ax.lines if line.get_marker() == marker]


def test_picture_has_a_line_an_entry_a_dot_a_run_and_a_grey_control(tmp_path, monkeypatch):
    rows = [make_row(arm, seed, bpb=bpb + 0.01 * seed, **NO_TARGET)
            for arm, bpb in (("a", 1.1), ("control", 1.12), ("b", 1.13)) for seed in (1, 2, 3)]
    rows += [make_row("d", 1, status="oom", **NO_TARGET)]
    (left, right), = drawn(tmp_path, monkeypatch, rows)
    assert [len(line.get_xdata()) for line in marked(left, "o")] == [3, 3, 3]
    means = marked(left, "D")
    assert [line.get_xdata()[0] for line in means] == pytest.approx([0, -0.02, -0.03])  # right is better
    assert [line.get_ydata()[0] for line in means] == [0, 1, 2] and left.get_ylim()[0] > left.get_ylim()[1]
    assert [label.get_text().split(":")[0] for label in left.get_yticklabels()] == ["a", "control (n 3)", "b"]
    assert [line.get_color() == plots.COLORS[0] for line in means] == [False, True, False]
    assert left.get_legend() is None and right.get_legend() is None
    assert [line.get_xdata()[0] for line in marked(right, "D")] == [2048.0] * 3


def test_bar_of_the_picture_is_the_interval_of_the_table(tmp_path, monkeypatch):
    rows = noise_rows(a=[1.10, 1.12, 1.14], b=[1.11, 1.13, 1.18], c=[1.12, 1.18])
    (left, _), = drawn(tmp_path, monkeypatch, rows)
    _, found = distances(sections(rows)[0])
    bars = [path.vertices[:, 0] for bar in left.collections for path in bar.get_paths()]
    assert [sorted(bar) for bar in bars] == [pytest.approx([-found[place].mean - found[place].half,
                                                            -found[place].mean + found[place].half])
                                             for place in (1, 2)]


def test_far_entry_is_named_at_the_edge_so_that_near_ones_are_told_apart(tmp_path, monkeypatch):
    (left, _), = drawn(tmp_path, monkeypatch, noise_rows(a=[1.1, 1.101], b=[1.102, 1.103], c=[1.103, 1.104], d=[2, 2]))
    assert [text.get_text() for text in left.texts] == ["\u25c0 0.8995 worse"] and len(marked(left, "D")) == 3
    assert left.get_xlim()[0] > -0.02


def test_ticks_have_few_digits(tmp_path, monkeypatch):
    (left, _), = drawn(tmp_path, monkeypatch, noise_rows(a=[2.6375, 2.63851], b=[2.63777, 2.63902]))
    ticks = [label.get_text() for label in left.get_xticklabels()]
    assert len(ticks) <= 8 and all(len(tick) <= 7 for tick in ticks)


def test_time_to_target_runs_to_the_left_so_that_right_is_faster(tmp_path, monkeypatch):
    rows = [make_row(arm, seed, time=time + seed) for arm, time in (("a", 70), ("b", 90)) for seed in (1, 2)]
    (_, right), = drawn(tmp_path, monkeypatch, [*rows, make_row("never", 1)])
    assert right.xaxis_inverted() and [line.get_xdata()[0] for line in marked(right, "D")] == [71.5, 91.5]


def test_speeds_that_nobody_measured_are_said_and_have_no_axis(tmp_path, monkeypatch):
    rows = [make_row(arm, seed, **NO_TARGET) | {"tok_per_sec_median": None}
            for arm in ("control", "a") for seed in (1, 2)]
    (_, right), = drawn(tmp_path, monkeypatch, rows)
    assert not right.axison and [text.get_text() for text in right.texts] == ["not measured"]
