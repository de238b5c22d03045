"""
Results of made-up protocols for the tests of what is printed from them: gates and noise come from lab/verdict/stats.py,
verdicts are set by hand.

five_candidates(): promote, optional, reject, inconclusive and a diverged cell; unbanked(): two seeds, nothing to lean
on; peeking(): three candidates in the middle of declared looks, with missed targets and missing cells.
"""

import math
from dataclasses import replace

import numpy as np

from nanochat.lab.metrics import METRICS
from nanochat.lab.protocol.results import delta_rows, means
from nanochat.lab.report.gains import pair_gains
from nanochat.lab.report.result_file import Delta, Means, ResultFile, Settings
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict.facts import (
    Correlation,
    Declaration,
    DeclaredArm,
    Floor,
    GateRow,
    MetricNoise,
    Noise,
    Target,
    Verdict,
)
from nanochat.lab.verdict.stats import compare, seeds_needed, smallest_gain

BANK = {"val_bpb": (0.0013, 9, 1.1023), "tok_per_sec": (0.012, 9, 52000.0), "final_train_loss": (0.002, 9, 3.05),
        "time_to_target": (0.01, 9, 100.0)}
FLOORS = [Floor("final_train_loss", math.log(1.01)), Floor("tok_per_sec", -math.log(0.90))]
SECTION = {"val_bpb": "7.1 gate 6", "final_train_loss": "7.1 gate 5", "tok_per_sec": "7.1 throughput",
           "time_to_target": "7.1 gate 1"}
WHEN = "2026-03-04T05:06:07+00:00"


def make_runs(arms: dict, seeds, status=None) -> list[RunSummary]:
    """arms: {name: (gain in bpb, speed ratio)}; status: {(arm, seed): how it ended}, for those that did not end ok."""
    rng, status, runs = np.random.default_rng(7), status or {}, []
    for seed in seeds:
        shared = 0.0006 * rng.normal()
        for arm, (gain, speed) in arms.items():
            how = status.get((arm, seed), "ok")
            bpb = 1.1023 + shared - gain + 0.0011 * rng.normal()
            sec = 100 * (1 - 10 * gain) / speed * (1 + 0.004 * rng.normal())
            rate = 52000 * speed * (1 + 0.003 * rng.normal())
            loss = 3.05 * (1 + 0.002 * rng.normal() - gain) if how == "ok" else None
            tag = f"nc_mix_d4_{arm}_s{seed}"
            runs.append(RunSummary(
                timestamp=WHEN, run_tag=tag, recipe="smoke-cpu", seed=seed, duration_sec=round(sec + 20, 3),
                avg_tok_per_sec=rate * 0.98, val_bpb=bpb if how == "ok" else None, min_val_bpb=bpb - 1e-4,
                num_iterations=60, resumed_from_step=20 if (arm, seed) == ("control", 2) else None, run_status=how,
                arm=arm, config_hash=f"hash-{arm}-{seed}", reused=seed == 1 and arm == "control", declared_at=WHEN,
                error=None if how == "ok" else f"step 31: {how} <of a run>",
                command=f"python -m scripts.base_train --depth=4 --seed={seed} --model-tag={tag}",
                load=1.2, overloaded=False, final_train_loss=loss, tok_per_sec_median=rate, dt_median_ms=2.048e6 / rate,
                steps=60 if how == "ok" else 31, time_to_target_sec=sec if how == "ok" else None,
                steps_to_target=52.5 if how == "ok" else None, device="cpu", threads=1))
    return runs


def gate_of(role, metric, margin, runs, candidate, level) -> GateRow:
    s_b, nu, _ = BANK[metric]
    c = compare([d for _, d in pair_gains(metric, runs, candidate)], s_b, nu, margin, level)
    result = "pass" if c.p <= level else "fail" if c.hi < -margin else "cannot tell"
    return GateRow(
        metric, role, metric, "log" if METRICS[metric].log else "bpb", margin, margin / s_b, SECTION[metric],
        f"loose: its margin is {margin / s_b:.1f} sd" if margin / s_b > 5 else None, c.n, f"{c.source} nu={nu}", result,
        c.mean, c.mean / s_b, c.lo, c.hi, level, c.p)


def stability_gate(diverged: int) -> GateRow:
    return GateRow("no instability", "count", "run_status", section="7.1 gate 3", note=f"{diverged} diverged",
                   result="fail" if diverged else "pass")


def make_verdict(candidate, verdict, reason, runs, k, primary="val_bpb", diverged=0) -> Verdict:
    """A verdict with its gates; only the count where a run diverged."""
    found = Verdict(candidate, verdict, verdict or "no verdict", reason, primary, k, len({run.seed for run in runs}))
    if diverged or verdict is None:
        return replace(found, gates=[stability_gate(diverged)] if diverged else [])
    level = 0.05 / k
    first = gate_of("primary", primary, 0.0, runs, candidate, level)
    floors = [gate_of("floor", floor.metric, floor.margin, runs, candidate, level) for floor in FLOORS]
    s_b, nu, _ = BANK[primary]
    return replace(
        found, n=first.n, mean_gain=first.mean, se=0.0006, df=nu + first.n - 1,
        p=max(gate.p for gate in (first, *floors)), lo=first.lo, hi=first.hi, level=level,
        noise_source=first.noise_source,
        chance_at_max=0.41 if verdict == "inconclusive" else None, smallest_gain=smallest_gain(first.n, s_b, nu, level),
        seeds_needed=seeds_needed(s_b, s_b, nu, level), min_gain=s_b, sign_flip_p=0.03125,
        gates=[first, *floors, stability_gate(0)])


def make_results(label, arms, seeds, verdicts, flags=None, status=None, looks=None, primary="val_bpb",
                 target=None) -> ResultFile:
    """arms: as make_runs; verdicts: {candidate: (verdict, reason)}; flags: {arm: what it adds}."""
    runs, k = make_runs(arms, seeds, status), len(arms) - 1
    diverged = {arm: sum(how == "diverged" for (a, _), how in (status or {}).items() if a == arm) for arm in arms}
    flags = {arm: "" if arm == "control" else f"--{arm}=0.03" for arm in arms} | (flags or {})
    deltas = delta_rows(list(arms), list(seeds), runs)
    bank = {metric: MetricNoise(s, nu, s * 0.729, s * 1.645, nu + 1, median)
            for metric, (s, nu, median) in BANK.items()}
    command = f"python -m scripts.protocol --profile=smoke-cpu --label={label} --seeds {' '.join(map(str, seeds))}"
    settings = Settings(label, "smoke-cpu", ["--depth=4"], [], [], list(seeds),
                        [{"name": arm, "flags": flags[arm]} for arm in arms], "base", None, 2, command)
    looks = looks or [len(seeds)]
    declaration = Declaration(
        WHEN, label, "smoke-cpu", primary, 0.0, None, list(FLOORS), target, 0.05, BANK[primary][0], list(seeds), looks,
        looks[-1], K=k, noise_source="bank", noise=Noise(metrics=bank),
        arms=[DeclaredArm(arm, flags[arm]) for arm in arms])
    return ResultFile(
        "2026-03-04T06:07:08+00:00", settings, runs, [Delta.from_json(row) for row in deltas],
        {name: Means.from_json(mean) for name, mean in means(list(arms), deltas)["by_candidate"].items()},
        [make_verdict(name, *verdict, runs, k, primary, diverged[name]) for name, verdict in verdicts.items()],
        Noise("bank", "9f8e7d6c5b4a", bank, ["seed 1337: a seed of this protocol"],
              {"val_bpb": Correlation(0.31, 16, 0.0)}),
        {"git_commit": "0123456789abcdef0123", "dirty": False, "tree_hash": "aa11", "patch_hash": None,
         "upstream_commit": None, "dataset_id": "books", "tokenizer_id": "tok4096"}, declaration)


def five_candidates() -> ResultFile:
    arms = {"control": (0, 1), "lr003": (0.006, 1.0), "gate005": (0.005, 0.955), "gate015": (-0.006, 0.96),
            "wd014": (0.0009, 1.0), "hot": (0, 1)}
    verdicts = {"lr003": ("promote", "better by 0.006 bpb (at least 0.004); every floor holds"),
                "gate005": ("optional",
                            "better by 0.005 bpb (at least 0.003), at a price in tok_per_sec inside its floor"),
                "gate015": ("reject", "worse by 0.006 bpb (at least 0.0048)"),
                "wd014": ("inconclusive", "the gain lies in [-0.0010, 0.0028] bpb; about 12 seeds would settle it"),
                "hot": ("reject", "a candidate run diverged where the control did not")}
    flags = {"gate005": "--symplectic-gate --symplectic-gate-mix=0.05"}
    return make_results("mix", arms, [1, 2, 3, 4, 5], verdicts, flags, {("hot", 3): "diverged"})


def unbanked() -> ResultFile:
    """As a first `make smoke`: two seeds and no noise, read from a file of the time before gates, which had only what
    was measured, and other names."""
    results = make_results("smoke", {"control": (0, 1), "gate": (-0.001, 0.97)}, [1337, 2026], {})
    stored = results.to_json()
    for run in stored["runs"]:
        for key in ("final_train_loss", "tok_per_sec_median", "time_to_target_sec", "steps_to_target", "device",
                    "threads"):
            del run[key]
    reason = "2 seeds without banked noise cannot tell a gain from luck: run `make noise SEEDS=8`"
    mean = -float(np.mean([delta.candidate_minus_control_bpb for delta in results.deltas]))
    stored["verdicts"] = [{
        "candidate": "gate", "verdict": "inconclusive", "text": "inconclusive (2 seeds, no noise bank)",
        "reason": reason, "metric": "val_bpb", "n": 2, "mean_gain": mean, "se": None, "df": 0, "p": 1.0, "level": 0.05,
        "lo": None, "hi": None, "noise_source": "none", "smallest_gain": None}]
    stored["noise"] = {"source": "none", "s_b": None, "nu": 0}
    stored["declaration"]["noise_source"] = "none"
    stored["declaration"]["primary_metric"] = stored["declaration"].pop("primary")
    return ResultFile.from_json(stored)


def peeking() -> ResultFile:
    arms = {"control": (0, 1), "lr003": (0.007, 1.0), "gate005": (0.0002, 0.99), "gate015": (-0.004, 0.96)}
    verdicts = {"lr003": ("promote", "better by 0.07 (at least 0.05); every floor holds"),
                "gate005": ("inconclusive", "the gain lies in [-0.02, 0.02]: add seeds"),
                "gate015": (None, "control on seed 4 ended as timeout: re-run it")}
    target = Target("val_bpb", 1.12, "bank: worst final + 1 sigma")
    return make_results("peek", arms, [1, 2, 3, 4], verdicts, status={("control", 4): "timeout"},
                        looks=list(range(2, 13)), primary="time_to_target", target=target)


def make_curves(results: ResultFile) -> dict:
    """A falling curve for every run that ends at its val_bpb; a diverged one ends in NaN, one run has no clock."""
    curves = {}
    for run in results.runs:
        end, pace = run.val_bpb or 1.15, run.duration_sec / 60
        points = [(step, max(0, step - 11) * pace, end + 1.6 * math.exp(-step / 9))
                  for step in range(0, run.steps + 1, 5)]
        curves[run.arm, run.seed] = points
        if run.run_status == "diverged":
            points[-2:] = [(25, 40.0, 9.5), (30, 50.0, float("nan"))]
    first = results.runs[0]
    curves[first.arm, first.seed] = [(step, None, bpb) for step, _, bpb in curves[first.arm, first.seed]]
    return curves
