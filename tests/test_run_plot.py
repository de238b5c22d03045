"""
The picture of any runs: what is drawn, names at the ends that never overlap, readable ticks.

python -m pytest tests/test_run_plot.py -q
"""

import numpy as np
import pytest
from matplotlib import pyplot as plt

from nanochat.lab.report import run_plot
from scripts import plot
from tests.two_runs_case import put, put_upstream


@pytest.fixture
def figure(monkeypatch):
    """The figures that were drawn, kept open."""
    kept, close = [], plt.close
    monkeypatch.setattr(run_plot.plt, "close", kept.append)
    yield kept
    for fig in kept:
        close(fig)


def curve(end=2.6, n=7, sec=1.0):
    return [(10 * i, 20480 * i, max(0.0, sec * (i - 1)), 3.5 - (3.5 - end) * i / (n - 1)) for i in range(n)]


def names(fig):
    return [text for text in fig.axes[0].texts if text.get_text()]


def test_every_run_is_one_line_with_its_name_beside_the_axes(tmp_path, figure):
    run_plot.draw_runs(tmp_path / "x.png", {"a": curve(2.6), "b": curve(2.7)})
    ax = figure[0].axes[0]
    assert ax.get_legend() is None and [text.get_text() for text in names(figure[0])] == ["a", "b"]
    assert all(text.get_position()[0] > 1 for text in names(figure[0]))
    assert [line.get_xydata().tolist() for line in ax.lines] == [[[p[0], p[3]] for p in curve(e)] for e in (2.6, 2.7)]
    assert "lower is better" in ax.get_ylabel() and (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("n", [2, 7, 30])
def test_names_never_overlap_and_stay_beside_the_axes(tmp_path, figure, n):
    run_plot.draw_runs(tmp_path / "x.png", {f"run {i}": curve(2.6 + 1e-5 * i) for i in range(n)})
    figure[0].canvas.draw()
    boxes = sorted((text.get_window_extent() for text in names(figure[0])), key=lambda box: box.y0)
    axes = figure[0].axes[0].get_window_extent()
    assert all(low.y1 <= high.y0 + 0.5 for low, high in zip(boxes, boxes[1:]))
    assert all(box.x0 > axes.x1 and axes.y0 - box.height < box.y0 < axes.y1 for box in boxes)


@pytest.mark.parametrize("axis, last", [("step", 60), ("tokens", 6 * 20480), ("time", 5.0)])
def test_axis_is_the_one_that_was_asked_for(tmp_path, figure, axis, last):
    run_plot.draw_runs(tmp_path / "x.png", {"a": curve()}, axis)
    x = figure[0].axes[0].lines[0].get_xdata()
    assert x[-1] == last and (axis != "time" or np.sum(x == 0) == 1)


def test_ticks_are_short_numbers(tmp_path, figure):
    run_plot.draw_runs(tmp_path / "x.png", {"a": [(s, s * 524288, None, 3 - s / 20000) for s in range(0, 20001, 1000)]},
                       "tokens")
    figure[0].canvas.draw()
    shown = [label.get_text() for label in figure[0].axes[0].get_xticklabels()]
    assert 3 <= len(shown) <= 8 and all(len(text) <= 6 for text in shown) and any(text.endswith("B") for text in shown)


def test_axis_that_no_run_has_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--x=time: no run says it beside a validation"):
        run_plot.draw_runs(tmp_path / "x.png", {"a": [(1, None, None, 3.0), (2, None, None, 2.0)]}, "time")


@pytest.mark.parametrize("heights", [[0.0] * 5, [1.0] * 5, [0.5, 0.5, 0.51, 0.9, 0.0], [0.3]])
def test_spread_keeps_order_and_distance(heights):
    placed = run_plot.spread(heights, 0.1)
    assert [placed[i] for i in sorted(range(len(heights)), key=lambda i: (heights[i], placed[i]))] == sorted(placed)
    assert all(b - a >= 0.1 - 1e-6 for a, b in zip(sorted(placed), sorted(placed)[1:]))
    assert min(placed) >= 0 and max(placed) <= 1


def test_names_say_arm_and_seed_and_label_where_labels_differ():
    rows = [{"label": label, "arm": "gate", "seed": 1} for label in ("x", "y", "y")]
    assert run_plot.readable(["r1", "r2", "r3"], rows) == ["gate (x), seed 1", "gate (y), seed 1 #1",
                                                          "gate (y), seed 1 #2"]
    assert run_plot.readable(["r1"], [{"label": None, "arm": None, "seed": 1}]) == ["r1"]


# -----------------------------------------------------------------------------
# The command

def test_command_draws_ours_and_upstreams(base_dir, tmp_path, capsys):
    put(base_dir, 1, run_id="a")
    put(base_dir, 1, run_id="going on", status="running")
    out = tmp_path / "pictures" / "x.png"
    assert plot.main(["a", str(put_upstream(base_dir)), "going on", f"--out={out}", "--x", "tokens"]) == 0
    assert out.stat().st_size > 10_000 and f"picture: {out}" in capsys.readouterr().out


@pytest.mark.parametrize("argv, message", [
    (["nobody"], "no such path, and no run of this id"), (["a", "--out=x.pdf"], "expected the name of a .png file"),
    (["a", "--out=/dev/null/x.png"], "cannot be written"), (["bare"], "nothing to draw")])
def test_command_refuses_in_one_line(base_dir, tmp_path, capsys, argv, message):
    put(base_dir, 1, run_id="a")
    (put(base_dir, 1, run_id="bare") / "metrics.jsonl").unlink()
    argv = argv if any(word.startswith("--out") for word in argv) else [*argv, f"--out={tmp_path / 'x.png'}"]
    assert plot.main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_run_without_a_validation_is_left_out_and_named(base_dir, tmp_path, capsys):
    put(base_dir, 1, run_id="a")
    (put(base_dir, 1, run_id="bare") / "metrics.jsonl").unlink()
    assert plot.main(["a", "bare", f"--out={tmp_path / 'x.png'}"]) == 0
    assert "left out: bare has no validation that is known" in capsys.readouterr().out
