"""
The picture of a corpus' two statistics: correlations over the lag, and losses over the context.

Both axes are logarithmic, so that a power law is a line. A fitted line is drawn over the window of its fit only.
"""

import numpy as np

from nanochat.lab.horizon.correlation import VISIBLE
from nanochat.lab.horizon.entropy import few_an_octave
from nanochat.lab.report import plots
from nanochat.lab.verdict.stats import Z95

MEASURED, FIT, OTHER, QUIET = "#0072b2", "#d55e00", "#009e73", "#666666"
SIZE_IN = (13, 5.5)
RUNS, LAW, TARGET = "#4d4d4d", "#0072b2", "#d55e00"  # of an inference
INFERENCE_SIZE_IN = (8, 5)


def draw_stats(path, facts: dict):
    """facts: the result of stats.collect, with a measured curve. The losses are drawn where there are any."""
    has_losses = any(row["context"] > 0 for row in facts["h_curve_nats"] or [])
    with plots.plt.rc_context(plots.STYLE):
        fig, axes = plots.plt.subplots(1, 1 + has_losses, figsize=SIZE_IN if has_losses else (8, 5.5),
                                       layout="constrained", squeeze=False)
        _correlations(axes[0, 0], facts)
        if has_losses:
            _losses(axes[0, 1], facts)
        fig.suptitle(_headline(facts), x=0.01, ha="left", fontsize=14)
        plots._save(fig, path)
        plots.plt.close(fig)


def _headline(facts) -> str:
    corpus = f"{facts['num_tokens']:,} tokens, vocabulary {facts['vocab_size']:,}"
    if facts["alpha_d"] is None:
        return corpus + (f": no alpha_D, {facts['error']['code']}" if facts["error"] else "")
    low, high = facts["alpha_d_ci95"]
    return f"{corpus}: alpha_D {facts['alpha_d']:.3f} ({low:.3f} to {high:.3f})"


def _legend(ax, loc):
    ax.legend(facecolor="white", edgecolor="none", framealpha=0.9, fontsize=9, loc=loc)


def _columns(rows, *names):
    """Arrays of a list of rows; null is nan."""
    return [np.array([row[name] for row in rows], dtype=float) for name in names]


# -----------------------------------------------------------------------------
# |C(n)|

def _correlations(ax, facts):
    ax.set(xscale="log", yscale="log")
    ax.xaxis.set_major_formatter("{x:g}")
    lag, fro, se, op, floor, valid = _columns(facts["curve"], "lag", "fro", "fro_se", "op", "op_floor", "valid")
    below = np.minimum(Z95 * se, 0.9 * fro)  # a bar that reaches zero has no end on this axis
    for is_valid, fill, text in ((1, MEASURED, "Frobenius norm across blocks, 95 %"),
                                 (0, "white", "the same, within 3 se of zero")):
        keep = (valid == is_valid) & np.isfinite(fro)
        if keep.any():
            bars = [below[keep], Z95 * se[keep]]
            ax.errorbar(lag[keep], fro[keep], yerr=bars, fmt="o", color=MEASURED, mfc=fill, ms=6, lw=1.2, label=text)
    seen = op > VISIBLE * floor
    ax.plot(lag, op, "-", color=OTHER, lw=0.8, alpha=0.6)
    ax.plot(lag[seen], op[seen], "s", color=OTHER, ms=4, label="operator norm, raw")
    ax.plot(lag[~seen], op[~seen], "s", color=OTHER, mfc="white", ms=4)
    ax.plot(lag, VISIBLE * floor, color=OTHER, lw=1.2, ls=(0, (1.2, 1.2)), label=f"{VISIBLE:g} x its noise floor")
    _decay_lines(ax, facts)
    _uprights(ax, facts)
    ax.set(xlabel="lag n (tokens)", ylabel="|C(n)|", title=_beta_title(facts))
    low, high = ax.get_ylim()
    ax.set_ylim(low * (low / high) ** 0.35, high)  # room for words below what was measured
    _legend(ax, "lower left")
    _windows(ax, facts)


def _decay_lines(ax, facts):
    window = facts["beta_window"]
    if not window:
        return
    n, beta = np.array([window["lo"], window["reach"]], dtype=float), window["beta"]
    ax.plot(n, np.exp(window["intercept"]) * n ** -beta, color=FIT, lw=2.4, zorder=5,
            label=f"n^-{beta:.2f}, lags {_name(window)}")


def _uprights(ax, facts):
    """n*, a quarter of the context, and the knot of the hinge."""
    marks = [(facts["n_star_tokens"], "n* {:g}" + " or more" * bool(facts["n_star_censored"]), OTHER),
             (facts["max_seq_len"] and facts["max_seq_len"] / 4, "T/4 {:g}", QUIET),
             (facts["n_break"], "break {:g}", FIT)]
    for i, (at, text, color) in enumerate(mark for mark in marks if mark[0]):
        ax.axvline(at, color=color, lw=1, ls=(0, (4, 3)))
        ax.text(at, 0.995 - 0.045 * i, " " + text.format(at), color=color, fontsize=9, va="top",
                transform=ax.get_xaxis_transform(), bbox=dict(facecolor="white", edgecolor="none", pad=1))


def _windows(ax, facts):
    rows = [f"{_name(w):>7}  {w['beta']:.2f} ± {Z95 * w['se']:.2f}" + ("" if w["whole"] else f" (to {w['reach']})")
            for w in facts["beta_windows"] or [] if w["beta"] is not None]
    if facts["n_break"]:
        rows.append(f"hinge at {facts['n_break']}: {facts['beta_short']:.2f}, then {facts['beta_long']:.2f}")
    if rows:
        ax.text(0.99, 0.02, "\n".join(["beta by lags, bootstrap only", *rows]), transform=ax.transAxes, ha="right",
                va="bottom", fontsize=9, family="monospace", color=QUIET,
                bbox=dict(facecolor="white", edgecolor="none", alpha=0.9))


def _name(window) -> str:
    return f"{window['lo']}..{window['hi']}"


def _beta_title(facts) -> str:
    if facts["beta"] is None:
        return "Correlations: no beta"
    low, high = facts["beta_ci95"]
    return f"Correlations: beta {facts['beta']:.2f} ({low:.2f} to {high:.2f})"


# -----------------------------------------------------------------------------
# L_n

def _losses(ax, facts):
    ax.set(xscale="log", yscale="log")
    rows = [row for row in facts["h_curve_nats"] if row["context"] > 0 and few_an_octave(row["context"])]
    n, loss, se, extrapolated = _columns(rows, "context", "loss", "se", "h_extrapolated")
    h_inf = facts["h_inf_nats"] or 0.0
    ngram = np.isfinite(extrapolated).any()
    above = np.nan_to_num(Z95 * se)
    below = np.minimum(above, 0.9 * np.maximum(loss - h_inf, 0))
    ax.errorbar(n, loss - h_inf, yerr=[below, above], fmt="o", color=MEASURED, ms=5, lw=1.2,
                label="held-out loss of the largest corpus" if facts["gamma_source"] == "ngram"
                else "validation loss by position")
    if ngram:
        ax.plot(n, extrapolated - h_inf, "D", color=OTHER, ms=6, label="carried to an infinite corpus")
    if facts["gamma"] is not None:
        fitted = (extrapolated if ngram else loss) - h_inf
        low, high = facts["gamma_window"]
        inside = (n >= low) & (n <= high) & (fitted > 0)
        level = np.exp(np.mean(np.log(fitted[inside]) + facts["gamma"] * np.log(n[inside])))
        ends, label = np.array([low, high], dtype=float), f"n^-{facts['gamma']:.2f}, contexts {low}..{high}"
        ax.plot(ends, level * ends ** -facts["gamma"], color=FIT, lw=2.4, zorder=5, label=label)
    name = f"L(n) - {h_inf:.2f}" if h_inf else "L(n)"
    ax.set(xlabel="context n (tokens)", ylabel=f"{name} (nats per token)", title=_gamma_title(facts))
    _legend(ax, "upper right")
    ticks = [tick for tick in 2 ** np.arange(20) if n.min() <= tick <= n.max()]
    ax.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
    ax.xaxis.set_minor_formatter("")
    _level_ticks(ax)


def _gamma_title(facts) -> str:
    if facts["gamma"] is None:
        return "Losses: no gamma"
    low, high = facts["gamma_ci95"]
    return f"Losses: gamma {facts['gamma']:.2f} ({low:.2f} to {high:.2f})"


def _level_ticks(ax):
    """Ticks of the losses: 1, 2, 5 over decades; over less than one, where matplotlib puts the small ones."""
    low, high = ax.get_ylim()
    if high > 10 * low:
        ax.yaxis.set_major_locator(plots.plt.LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_formatter("")
    else:
        ax.yaxis.set_minor_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")


# -----------------------------------------------------------------------------
# An inference: final losses over tokens, the law through them, and where it meets the target

def draw_inference(path, facts: dict):
    """facts: the result of scripts.lane_b_infer_ratio. Without a law only the runs and the target are drawn."""
    tokens = np.array([point["tokens"] for point in facts["points"]])
    name, unit = facts["target_metric_name"], facts["target_metric_unit"]
    ends = [tokens.min(), tokens.max(), *(facts[key] for key in ("target_tokens", "target_tokens_q90") if facts[key])]
    with plots.plt.rc_context(plots.STYLE):
        fig, ax = plots.plt.subplots(figsize=INFERENCE_SIZE_IN, layout="constrained")
        ax.axhline(facts["target_metric_threshold"], color=TARGET, lw=1, ls=(0, (4, 3)), label="target")
        if facts["l_inf"] is not None:
            grid = np.geomspace(0.8 * min(ends), 1.25 * max(ends), 200)
            ax.plot(grid, facts["l_inf"] + facts["a"] * grid ** -facts["alpha_d"], color=LAW, lw=2,
                    label=f"L = {facts['l_inf']:.4g} + A D^-{facts['alpha_d']:.3g}")
        if facts["target_tokens"] is not None:
            ax.plot(facts["target_tokens"], facts["target_metric_threshold"], "D", color=TARGET, ms=10, mec="white",
                    label="D*")
        if facts["target_tokens_q10"] and facts["target_tokens_q90"]:
            ax.axvspan(facts["target_tokens_q10"], facts["target_tokens_q90"], color=TARGET, alpha=0.15, lw=0,
                       label="80 % of the draws")
        ax.plot(tokens, [point["loss"] for point in facts["points"]], "o", color=RUNS, ms=7, mec="white",
                label="complete runs")
        ax.set(xscale="log", xlabel="training tokens", ylabel=f"{name} at the end" + (f" ({unit})" if unit else ""),
               title=f"{facts['decision']}: ratio {facts['chosen_ratio']:.4g}")
        ax.legend(frameon=False)
        plots._save(fig, path)
        plots.plt.close(fig)
