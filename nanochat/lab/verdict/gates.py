"""
A verdict, gate by gate, as the plan declares it: read from top to bottom.

A candidate is compared with the control of the same seeds on one primary metric; floors say what it may not cost.
d = control - candidate, so positive is better; times, losses and speeds as natural logs, so that ratios are
differences. All that decides (metrics, margins, looks, noise) is in the declaration, which is on disk before the
first run. `judge` replays the declared looks over the finished runs and holds no state.

Sources: one-sided moderated t (Smyth 2004), intersection-union over gates (Berger 1982), Holm over candidates (1979),
rising levels over looks (Pocock 1977, Kim & DeMets 1987). Gate 4 of the plan, checkpoint and resume, is `make test`'s.
"""

import math
from dataclasses import dataclass

import numpy as np

from nanochat.lab.arms import CONTROL, horizons_differ, matched_budget
from nanochat.lab.verdict import looks as looks_module
from nanochat.lab.verdict.evidence import Evidence, Refusal, gather, time_by_steps
from nanochat.lab.verdict.stats import (
    ALPHA,
    MIN_PAIRS_WITHOUT_BANK,
    Comparison,
    compare,
    seeds_needed,
    sign_flip,
    smallest_gain,
)

# Plan, section 7.1. M: a floor passes when the bound of d lies above -M; a primary gate when it lies above -M too,
# so M = -log 1.03 asks for three percent.
PRIMARY = {"time_to_target": 0.0, "wall_time": -math.log(1.03), "val_bpb": 0.0}
FLOORS = {"final_train_loss": math.log(1.01), "val_bpb": 0.005, "tok_per_sec": -math.log(0.90)}
SECTION = {"time_to_target": "7.1 gate 1", "wall_time": "7.1 gate 2", "final_train_loss": "7.1 gate 5", "val_bpb": "7.1 gate 6",
           "tok_per_sec": "7.1 throughput"}
UNIT = {"val_bpb": "bpb"}  # the others are logs
LOOSE_FLOOR = 5  # sd: a margin above it passes nearly anything
BANK_SEEDS = 8
NO_NOISE = f"no noise banked: run `make noise SEEDS={BANK_SEEDS}`"
NO_BANK_OF_TREES = f"the control is another tree, of which there is no bank: {MIN_PAIRS_WITHOUT_BANK} seeds decide by their own spread"


# -----------------------------------------------------------------------------
# Before the first run

def declare(label, profile, arms, seeds, changes, declared_at, *, primary="val_bpb", fallback=None, min_gain=None,
            until_decided=False, source="bank", noise=None, target=None) -> dict:
    """What decides, fixed before the first run. changes: {arm: profile options it changes}. seeds: all that may be run.
    noise: facts of the bank, lab.ledger.experiments.bank per metric. Raises ValueError for a plan that could decide nothing."""
    if primary not in PRIMARY or fallback not in (None, "wall_time"):
        raise ValueError(f"--primary={primary}: expected one of {', '.join(PRIMARY)}; the only fallback is wall_time")
    if primary == "time_to_target" and not target:
        raise ValueError("--primary=time_to_target: no target; give --target-bpb, or bank control runs with `make noise` first")
    s_b, nu = bank_of(noise, primary)
    banked = nu > 0 and source == "bank"
    if until_decided and len(seeds) > looks_module.MAX_SEEDS:
        raise ValueError(f"--max-seeds={len(seeds)}: expected at most {looks_module.MAX_SEEDS}")
    looks = looks_module.declared_looks(nu if banked else 0, len(seeds)) if until_decided else [len(seeds)]
    noise_source = "bank" if banked else "own" if looks[-1] >= MIN_PAIRS_WITHOUT_BANK else "none"
    matched = matched_budget(arms[0].config)
    horizons = primary == "time_to_target" and horizons_differ(arms)
    if horizons and fallback:
        raise ValueError(f"--fallback={fallback}: arms of different lengths have different wall times by design; leave it out")
    # A larger model does fewer tokens a second by design; runs of different lengths end at different losses by design.
    by_design = {"tok_per_sec"} if matched else {"final_train_loss", "val_bpb"} if horizons else set()
    floors = [{"metric": metric, "margin": margin} for metric, margin in FLOORS.items() if metric != primary and metric not in by_design]
    if min_gain is None and primary == "wall_time":
        min_gain = math.log(1.03)
    return {
        "declared_at": declared_at, "label": label, "profile": profile, "primary": primary, "margin": PRIMARY[primary],
        "fallback": fallback,
        "floors": floors, "target": target,
        "alpha": ALPHA, "min_gain": s_b if min_gain is None and banked else min_gain, "seeds": list(seeds), "looks": looks,
        "max_seeds": len(seeds), "matched_budget": matched, "horizons_differ": horizons, "K": len(arms) - 1, "noise_source": noise_source,
        "noise": noise if banked else None,
        "arms": [{"name": arm.name, "flags": arm.flags, "profile_changes": changes.get(arm.name, [])} for arm in arms],
    }


def bank_of(noise: dict | None, metric: str) -> tuple[float | None, int]:
    """(s_B, nu) of a metric; (None, 0) where nothing is banked."""
    entry = ((noise or {}).get("metrics") or {}).get(metric)
    return (entry["s_b"], entry["nu"]) if entry else (None, 0)


def declaration_changes(old: dict, new: dict) -> list[str]:
    """What differs from an earlier declaration of the same label, beside its date and the bank, which may have grown."""
    same = ("declared_at", "noise", "min_gain" if new.get("noise") and old.get("noise") else "noise")
    return [f"{key}: {old.get(key)} -> {new[key]}" for key in new
            if key not in same and (old.get(key) or None) != (new[key] or None)]  # an older version had fewer keys


# -----------------------------------------------------------------------------
# The looks, replayed

@dataclass
class State:
    """Where a candidate stands after the looks so far."""
    name: str
    evidence: Evidence
    n: int  # pairs at the last look it was part of, or that it has
    level: float  # it passed at, or was last judged at
    promoted: bool
    futile: bool
    chance: float | None  # to pass at the last look; None where there is one look


def compare_gate(declaration, gate, n: int, level: float) -> Comparison:
    """One gate on the first n pairs. A gate that was missed or not measured cannot pass."""
    if gate.missed:
        return Comparison(n, math.nan, None, 0, 1.0, -math.inf, math.inf, level, gate.margin, "missed")
    s_b, nu = bank_of(declaration["noise"], gate.metric)
    return compare(gate.d[:n], s_b, nu, gate.margin, level, censored=gate.censored)


def p_values(declaration, e: Evidence, n: int) -> tuple[float, float]:
    """(largest p of all gates, p of the primary gate) on the first n pairs; nan where the candidate is not judged.

    All gates must pass, so nothing is corrected for their number.
    """
    if n > e.n or e.refusal or e.diverged:
        return math.nan, math.nan
    p = [compare_gate(declaration, gate, n, declaration["alpha"]).p for gate in e.gates]
    return max(p), p[0]


def replay(declaration, evidence: dict[str, Evidence]) -> list[State]:
    """Holm over candidates at each declared look; a promoted candidate stays promoted, a futile one gets no more seeds."""
    if not evidence:
        return []
    looks, nu = declaration["looks"], bank_of(declaration["noise"], declaration["primary"])[1]
    p = np.array([[p_values(declaration, e, n) for e in evidence.values()] for n in looks])
    result = looks_module.replay(p[..., 0], looks, nu, declaration["alpha"], primary=p[..., 1], stop_futile=True)
    states = []
    for k, (name, e) in enumerate(evidence.items()):
        stop = int(result.promoted_at[k] or result.futile_at[k])
        judged = [n for n, row in zip(looks, p) if not math.isnan(row[k, 0])]
        level = float(result.level[k])
        states.append(State(name, e, stop or max(judged, default=e.n), declaration["alpha"] if math.isnan(level) else level,
                            result.promoted_at[k] > 0, result.futile_at[k] > 0, float(result.chance[k]) if len(looks) > 1 else None))
    return states


def weigh(declaration, runs) -> dict[str, Evidence]:
    """The evidence, with a refusal where the numbers of a gate can never give a verdict."""
    evidence = gather(declaration, runs)
    for e in evidence.values():
        try:
            for gate in e.gates:
                compare_gate(declaration, gate, e.n, declaration["alpha"])
        except ValueError as error:
            e.refusal = str(error)
    return evidence


def is_decided(declaration, runs) -> dict[str, bool]:
    """{candidate: no further seed is of use}. What UNTIL=decided asks after each look."""
    return {s.name: bool(s.promoted or s.futile or s.evidence.stopped or s.n == declaration["looks"][-1])
            for s in replay(declaration, weigh(declaration, runs))}


# -----------------------------------------------------------------------------
# Verdicts

def judge(declaration: dict, runs: list[dict]) -> list[dict]:
    """One verdict per declared candidate, in the order declared."""
    try:
        evidence = weigh(declaration, runs)
    except Refusal as e:
        names = [arm["name"] for arm in declaration["arms"] if arm["name"] != CONTROL]
        return [_entry(declaration, name) | {"text": "no verdict", "reason": str(e)} for name in names]
    return [_verdict(declaration, state) for state in replay(declaration, evidence)]


def _entry(declaration, name) -> dict:
    return {"candidate": name, "verdict": None, "text": None, "reason": None, "metric": declaration["primary"], "K": declaration["K"],
            "n": 0, "gates": [], "noise_source": declaration["noise_source"]}


def _verdict(declaration, state) -> dict:
    e, entry = state.evidence, _entry(declaration, state.name)
    first = declaration["looks"][0]
    if e.refusal or (not e.stopped and e.n < first):
        return entry | {"text": "no verdict", "reason": e.refusal or f"{e.n} pairs; the first declared look is at {first}"}
    if e.diverged:
        verdict, reason = _diverged(e.diverged)
        return entry | {"verdict": verdict, "text": verdict, "reason": reason, "n": e.n, "gates": [stability_row(e)]}
    n = state.n
    tests = [(gate, *(compare_gate(declaration, gate, n, level) for level in (state.level, declaration["alpha"]))) for gate in e.gates]
    verdict, reason = decide(declaration, state, tests)
    primary, plain = tests[0][1:]
    entry |= {"verdict": verdict, "text": verdict, "reason": reason, "n": n, "level": state.level, "chance_at_max": state.chance,
              "gates": [gate_row(declaration, *test) for test in tests] + [stability_row(e)]}
    if primary.source == "missed":
        return entry
    if primary.source == "none":
        entry["text"] = f"{verdict} ({n} seeds, no noise bank)"
    s = _sd_of_run(declaration, tests[0][0], n)
    nu = bank_of(declaration["noise"], e.gates[0].metric)[1]
    numbers = {"mean_gain": primary.mean, "se": primary.se, "df": primary.df, "p": primary.p, "lo": primary.lo, "hi": primary.hi,
               "hi_at_alpha": plain.hi, "smallest_gain": smallest_gain(n, s, nu, state.level), "min_gain": declaration["min_gain"],
               "seeds_needed": seeds_needed(declaration["min_gain"], s, nu, state.level) if declaration["min_gain"] and s else None,
               "sign_flip_p": sign_flip(e.gates[0].d[:n], e.gates[0].margin) if n >= MIN_PAIRS_WITHOUT_BANK else None}
    return entry | {"noise_source": primary.source, "by_steps": time_by_steps(e, n)} | {k: _finite(v) for k, v in numbers.items()}


def decide(declaration, state, tests) -> tuple[str, str]:
    """(verdict, reason): the first line of the table that applies. tests: (gate, at the look's level, at plain alpha), primary first."""
    gate, primary, plain = tests[0]
    unit, floors = UNIT.get(gate.metric, ""), tests[1:]
    if primary.source == "missed":
        return "inconclusive", gate.missed
    if primary.source == "identical":
        return "reject", "identical to the control on every seed: nothing to promote"
    if primary.source == "none":
        return "inconclusive", NO_BANK_OF_TREES if declaration["arms"][0]["flags"] else NO_NOISE
    better = f"better by {_value(primary.mean, unit)} (at least {primary.lo:.4g})"
    if state.promoted:
        price = [g.metric for g, test, _ in floors if test.hi < 0]
        if price:
            return "optional", f"{better}, at a price in {', '.join(price)} inside its floor"
        return "promote", f"{better}; every floor holds" if floors else better
    lies = f"the gain lies in [{primary.lo:.4g}, {_value(primary.hi, '')}] {unit}".rstrip()
    if state.n < declaration["looks"][-1] and not state.futile:
        return "inconclusive", f"{lies}: add seeds"
    for g, _, test in floors:
        if test.hi < -g.margin:
            return "reject", f"{g.metric} is worse than its floor allows"
    if plain.hi < 0:
        return "reject", f"worse by {_value(-primary.mean, unit)} (at least {-plain.hi:.4g})"
    min_gain = declaration["min_gain"]
    if min_gain is not None and plain.hi < min_gain:
        return "reject", f"a gain of {_value(min_gain, unit)} is excluded: at most {plain.hi:.4g}"
    if primary.lo > -gate.margin:
        unsure = [g.metric for g, test, _ in floors if not test.p <= state.level]
        if unsure:
            return "inconclusive", f"better, but {', '.join(unsure)} is not shown to be within its floor"
    wanted = min_gain or abs(primary.mean)
    s, nu = _sd_of_run(declaration, gate, state.n), bank_of(declaration["noise"], gate.metric)[1]
    n = seeds_needed(wanted, s, nu, state.level)
    seeds = f"about {max(n, state.n + 1)}" if n else "more than 64"
    return "inconclusive", f"{lies}; {seeds} seeds would settle a gain of {_value(wanted, unit)}"


def _diverged(arms) -> tuple[str, str]:
    if CONTROL in arms:
        return "inconclusive", "the control itself failed: fix the baseline first"
    return "reject", "a candidate run diverged where the control did not"


# -----------------------------------------------------------------------------
# Rows of the table

def gate_row(declaration, gate, test, plain) -> dict:
    """One gate in its unit and in sd of one run."""
    s_b, _ = bank_of(declaration["noise"], gate.metric)
    row = {"gate": gate.metric, "role": gate.role, "metric": gate.metric, "unit": UNIT.get(gate.metric, "log"), "threshold": gate.margin,
           "threshold_in_sd": gate.margin / s_b if s_b else None, "section": SECTION[gate.metric], "note": gate.note}
    if test.source == "missed":
        return row | {"n": test.n, "result": "fail" if gate.metric == "time_to_target" else "cannot tell", "note": gate.missed,
                      **dict.fromkeys(("mean", "mean_in_sd", "lo", "hi", "level", "p", "noise_source"))}
    numbers = {"mean": test.mean, "mean_in_sd": test.mean / s_b if s_b else None, "lo": test.lo, "hi": test.hi, "level": test.level,
               "p": test.p}
    if gate.role == "floor" and s_b and gate.margin / s_b > LOOSE_FLOOR:
        row["note"] = f"loose: its margin is {gate.margin / s_b:.1f} sd" + (f"; {gate.note}" if gate.note else "")
    passes = "pass" if test.p <= test.level else "fail" if plain.hi < -gate.margin else "cannot tell"
    return row | {"n": test.n, "noise_source": _source(declaration, gate, test), "result": passes,
                  **{k: _finite(v) for k, v in numbers.items()}}


def _source(declaration, gate, test) -> str:
    nu = bank_of(declaration["noise"], gate.metric)[1]
    return {"bank": f"bank nu={nu}", "own": "own: spreads more than the bank" if nu else "own",
            "bank-only": "bank-only: missed targets"}.get(test.source, test.source)


def stability_row(e) -> dict:
    empty = dict.fromkeys(("mean", "mean_in_sd", "lo", "hi", "level", "p", "threshold", "threshold_in_sd", "noise_source"))
    result = "pass" if not e.diverged else "cannot tell" if CONTROL in e.diverged else "fail"
    return {"gate": "no instability", "role": "count", "metric": "run_status", "unit": "", "n": e.n, "result": result,
            "section": "7.1 gate 3", "note": f"diverged: {', '.join(sorted(e.diverged))}" if e.diverged else None, **empty}


def _sd_of_run(declaration, gate, n) -> float:
    """Of one run, as the bank has it, or as the differences say it: their correlation is then in it."""
    s_b, nu = bank_of(declaration["noise"], gate.metric)
    if nu:
        return s_b
    d, mean = gate.d[:n], sum(gate.d[:n]) / n
    return math.sqrt(sum((x - mean) ** 2 for x in d) / (n - 1) / 2)


def _value(x, unit) -> str:
    return f"{x:.4g} {unit}".rstrip()


def _finite(value):
    """JSON has no infinity: a bound that is not there is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
