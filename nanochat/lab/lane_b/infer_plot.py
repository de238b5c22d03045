"""The picture of an inference: final losses over tokens, the law through them, and where it meets the target."""

import numpy as np

from nanochat.lab import plots

RUNS, LAW, TARGET = "#4d4d4d", "#0072b2", "#d55e00"
SIZE_IN = (8, 5)


def draw_inference(path, facts: dict):
    """facts: what scripts.lane_b_infer_ratio writes. Without a law only the runs and the target are drawn."""
    tokens = np.array([point["tokens"] for point in facts["points"]])
    name, unit = facts["target_metric_name"], facts["target_metric_unit"]
    ends = [tokens.min(), tokens.max(), *(facts[key] for key in ("target_tokens", "target_tokens_q90") if facts[key])]
    with plots.plt.rc_context(plots.STYLE):
        fig, ax = plots.plt.subplots(figsize=SIZE_IN, layout="constrained")
        ax.axhline(facts["target_metric_threshold"], color=TARGET, lw=1, ls=(0, (4, 3)), label="target")
        if facts["l_inf"] is not None:
            grid = np.geomspace(0.8 * min(ends), 1.25 * max(ends), 200)
            ax.plot(grid, facts["l_inf"] + facts["a"] * grid ** -facts["alpha_d"], color=LAW, lw=2,
                    label=f"L = {facts['l_inf']:.4g} + A D^-{facts['alpha_d']:.3g}")
        if facts["target_tokens"] is not None:
            ax.plot(facts["target_tokens"], facts["target_metric_threshold"], "D", color=TARGET, ms=10, mec="white", label="D*")
        if facts["target_tokens_q10"] and facts["target_tokens_q90"]:
            ax.axvspan(facts["target_tokens_q10"], facts["target_tokens_q90"], color=TARGET, alpha=0.15, lw=0, label="80 % of the draws")
        ax.plot(tokens, [point["loss"] for point in facts["points"]], "o", color=RUNS, ms=7, mec="white", label="complete runs")
        ax.set(xscale="log", xlabel="training tokens", ylabel=f"{name} at the end" + (f" ({unit})" if unit else ""),
               title=f"{facts['decision']}: ratio {facts['chosen_ratio']:.4g}")
        ax.legend(frameon=False)
        plots._save(fig, path)
        plots.plt.close(fig)
