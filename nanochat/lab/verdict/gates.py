"""
The verdict on each candidate of a label, gate by gate. The file is meant to be read from top to bottom.

A candidate is compared with the control of the same seeds. One primary metric decides whether it is better. Floors
limit the price: each names a metric and the largest loss that is allowed in it. A difference is
d = control - candidate, with its sign turned where needed, so that positive is always better. Times, the train loss
and speeds enter as natural logs, so that their ratios become differences. The declaration holds everything that the
verdict depends on: metrics, margins, looks, noise. It is on disk before the first run. `judge` replays the declared
looks over the finished runs and holds no state.

Sources: one-sided moderated t (Smyth 2004), intersection-union over gates (Berger 1982), Holm over candidates (1979),
rising levels over looks (Pocock 1977, Kim & DeMets 1987). Gate 4 of ideas/plan.md, checkpoint and resume, is
`make test`'s.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from nanochat.lab.arms import CONTROL
from nanochat.lab.metrics import METRICS
from nanochat.lab.runs import RunSummary
from nanochat.lab.verdict import looks as looks_module
from nanochat.lab.verdict.evidence import Evidence, Gate, Refusal, gather, time_by_steps
from nanochat.lab.verdict.facts import Declaration, Verdict, bank_of
from nanochat.lab.verdict.gate_rows import finite, gate_row, largest_harm, stability_row
from nanochat.lab.verdict.lending import lent, own_spread_decides, unlent
from nanochat.lab.verdict.stats import (
    MIN_PAIRS_WITHOUT_BANK,
    Comparison,
    compare,
    seeds_needed,
    sign_flip,
    smallest_gain,
)

BANK_SEEDS = 8
NO_NOISE = f"no noise banked: run `make noise SEEDS={BANK_SEEDS}`"
NO_BANK_OF_TREES = (f"the control is another tree, of which there is no bank: {MIN_PAIRS_WITHOUT_BANK} seeds decide by "
                    "their own spread")


# -----------------------------------------------------------------------------
# The looks, replayed

@dataclass
class State:
    """The standing of a candidate after the looks so far."""
    name: str
    evidence: Evidence
    n: int  # pairs at the last look it was part of, or that it has
    level: float  # it passed at, or was last judged at
    promoted: bool
    futile: bool
    chance: float | None  # to pass every gate at the last look; None where there is one look, or nothing to tell


@dataclass(frozen=True)
class Tested:
    """A gate, compared at the level of the look and at the level of the whole label."""
    gate: Gate
    test: Comparison
    plain: Comparison


def compare_gate(declaration: Declaration, gate: Gate, n: int, level: float) -> Comparison:
    """Test a gate on the first n pairs. A gate that was missed or not measured cannot pass."""
    if gate.missed:
        return Comparison(n, math.nan, None, 0, 1.0, -math.inf, math.inf, level, gate.margin, "missed")
    s_b, nu = lent(declaration, gate, n)
    margin = _margin(declaration, gate, n)
    return compare(gate.d[:n], s_b, nu, margin, level, censored=gate.censored)


def _margin(declaration: Declaration, gate: Gate, n: int) -> float:
    """The margin of a gate. Where no bank is lent, a primary gate asks for a share of the spread that its pairs show.

    Such a margin can only raise p. So for a candidate that gains nothing the error rate holds whatever the spread is.
    """
    if gate.role != "primary" or not declaration.margin_in_own_sd or n < 2 or lent(declaration, gate, n)[1]:
        return gate.margin
    return min(gate.margin, 0.0 - declaration.margin_in_own_sd * _sd_of_run(declaration, gate, n))


def p_values(declaration: Declaration, e: Evidence, n: int) -> tuple[float, float]:
    """(largest p of all gates, p that futility reads) on the first n pairs; nan where the candidate is not judged.

    All gates must pass, so nothing is corrected for their number. Futility reads the largest p too. It is nan for a
    gate without a bank that has too few pairs to be told. Older declarations read futility from the primary gate alone.
    """
    if n > e.n or e.refusal or e.diverged:
        return math.nan, math.nan
    tests = [compare_gate(declaration, gate, n, declaration.alpha) for gate in e.gates]
    largest = max(test.p for test in tests)
    if declaration.spread_test is None:
        return largest, tests[0].p
    waits = any(test.source == "none" and not gate.censored for gate, test in zip(e.gates, tests))
    return largest, math.nan if waits else largest


def replay(declaration: Declaration, evidence: dict[str, Evidence]) -> list[State]:
    """Holm over candidates at each declared look.

    A promoted candidate stays promoted, a futile one gets no more seeds.
    """
    if not evidence:
        return []
    looks, nu = declaration.looks, bank_of(declaration.noise, declaration.primary)[1]
    p = np.array([[p_values(declaration, e, n) for e in evidence.values()] for n in looks])
    result = looks_module.replay(p[..., 0], looks, nu, declaration.alpha, for_chance=p[..., 1], stop_futile=True)
    states = []
    for k, (name, e) in enumerate(evidence.items()):
        stop = int(result.promoted_at[k] or result.futile_at[k])
        judged = [n for n, row in zip(looks, p) if not math.isnan(row[k, 0])]
        level, chance = float(result.level[k]), float(result.chance[k]) if len(looks) > 1 else math.nan
        states.append(State(
            name, e, stop or max(judged, default=e.n), declaration.alpha if math.isnan(level) else level,
            result.promoted_at[k] > 0, result.futile_at[k] > 0, finite(chance)))
    return states


def weigh(declaration: Declaration, runs: list[RunSummary]) -> dict[str, Evidence]:
    """{candidate: Evidence}, with a refusal where the numbers of a gate can never give a verdict."""
    evidence, refused = gather(declaration, runs), unlent(declaration, runs)
    for e in evidence.values():
        try:
            for gate in e.gates:
                gate.unlent = refused.get(gate.metric)
                compare_gate(declaration, gate, e.n, declaration.alpha)
        except ValueError as error:
            e.refusal = str(error)
    return evidence


def is_decided(declaration: Declaration, runs: list[RunSummary]) -> dict[str, bool]:
    """{candidate: True if no further seed is of use}. UNTIL=decided asks this after each look."""
    return {s.name: bool(s.promoted or s.futile or s.evidence.stopped or s.n == declaration.looks[-1])
            for s in replay(declaration, weigh(declaration, runs))}


# -----------------------------------------------------------------------------
# Verdicts

def judge(declaration: Declaration, runs: list[RunSummary]) -> list[Verdict]:
    """A verdict for each declared candidate, in the order declared."""
    try:
        evidence = weigh(declaration, runs)
    except Refusal as e:
        return [replace(_undecided(declaration, arm.name), text="no verdict", reason=str(e))
                for arm in declaration.candidates]
    return [_verdict(declaration, state) for state in replay(declaration, evidence)]


def _undecided(declaration: Declaration, name: str) -> Verdict:
    return Verdict(name, metric=declaration.primary, K=declaration.K, noise_source=declaration.noise_source)


def _verdict(declaration: Declaration, state: State) -> Verdict:
    e, found = state.evidence, _undecided(declaration, state.name)
    first = declaration.looks[0]
    if e.refusal or (not e.stopped and e.n < first):
        reason = e.refusal or f"{e.n} pairs; the first declared look is at {first}"
        return replace(found, text="no verdict", reason=reason)
    if e.diverged:
        verdict, reason = _diverged(e.diverged)
        return replace(found, verdict=verdict, text=verdict, reason=reason, n=e.n, gates=[stability_row(e)])
    tests = [Tested(gate, *(compare_gate(declaration, gate, state.n, level)
                            for level in (state.level, declaration.alpha))) for gate in e.gates]
    verdict, reason = decide(declaration, state, tests)
    rows = [gate_row(declaration, tested.gate, tested.test, tested.plain) for tested in tests]
    found = replace(found, verdict=verdict, text=verdict, reason=reason, n=state.n, level=state.level,
                    chance_at_max=state.chance, gates=[*rows, stability_row(e)])
    return found if tests[0].test.source == "missed" else _with_numbers(declaration, found, e, tests[0])


def _with_numbers(declaration: Declaration, found: Verdict, e: Evidence, primary: Tested) -> Verdict:
    """The verdict with the numbers that the test of its primary gate found."""
    n, test, gate = found.n, primary.test, primary.gate
    s, nu = _sd_of_run(declaration, gate, n), lent(declaration, gate, n)[1]
    wanted, asked = declaration.min_gain, max(0.0, -test.margin)
    above = (wanted or 0.0) - asked  # the part of the wanted gain that the test can show
    numbers = {
        "mean_gain": test.mean, "se": test.se, "df": test.df, "p": test.p, "lo": test.lo, "hi": test.hi,
        "hi_at_alpha": primary.plain.hi, "smallest_gain": asked + smallest_gain(n, s, nu, found.level),
        "min_gain": wanted,
        "seeds_needed": seeds_needed(above, s, nu, found.level) if above > 0 and s else None,
        "sign_flip_p": sign_flip(gate.d[:n], test.margin) if n >= MIN_PAIRS_WITHOUT_BANK else None}
    bank = "the bank is not lent" if gate.unlent else "no noise bank"
    text = f"{found.verdict} ({n} seeds, {bank})" if test.source == "none" else found.text
    return replace(found, text=text, noise_source=test.source, by_steps=time_by_steps(e, n),
                   **{name: finite(value) for name, value in numbers.items()})


def decide(declaration: Declaration, state: State, tests: list[Tested]) -> tuple[str, str]:
    """(verdict, reason): the first line of the table that applies. tests: the primary gate first, then the floors."""
    primary, floors = tests[0], tests[1:]
    gate, test = primary.gate, primary.test
    if test.source == "missed":
        return "inconclusive", gate.missed
    if test.source == "identical":
        return "reject", "identical to the control on every seed: nothing to promote"
    if test.source == "none":
        return "inconclusive", _why_no_noise(declaration, gate)
    if state.promoted:
        return _promoted(gate.metric, test, floors)
    lo, hi = (_bound(gate.metric, METRICS[gate.metric].change(x)) for x in (test.lo, test.hi))
    lies = f"the gain lies in [{lo}, {hi}]" + (" bpb" if gate.metric == "val_bpb" else "")
    if 0 < test.lo < -test.margin:
        lies = f"better, but not shown to be better by {_value(gate.metric, -test.margin)}: {lies}"
    if state.n < declaration.looks[-1] and not state.futile:
        return "inconclusive", f"{lies}: add seeds"
    if worse := _shown_worse(declaration, tests, state.n):
        return "reject", worse
    if test.lo > -test.margin:
        unsure = [floor.gate.metric for floor in floors if not floor.test.p <= state.level]
        if unsure:
            return "inconclusive", f"better, but {', '.join(unsure)} is not shown to be within its floor"
    wanted, asked = declaration.min_gain or abs(test.mean), max(0.0, -test.margin)
    wanted = wanted if wanted > asked else 2 * asked  # no number of seeds shows a gain that is the margin itself
    s, nu = _sd_of_run(declaration, gate, state.n), lent(declaration, gate, state.n)[1]
    n = seeds_needed(wanted - asked, s, nu, state.level)
    seeds = f"about {max(n, state.n + 1)}" if n else "more than 64"
    return "inconclusive", f"{lies}; {seeds} seeds would settle a gain of {_value(gate.metric, wanted)}"


def _why_no_noise(declaration: Declaration, gate: Gate) -> str:
    if gate.unlent:
        return f"the bank is not lent: {gate.unlent.why}; {own_spread_decides(declaration.looks)}"
    return NO_BANK_OF_TREES if declaration.arms[0].flags else NO_NOISE


def _promoted(metric: str, test: Comparison, floors: list[Tested]) -> tuple[str, str]:
    better = f"better by {_value(metric, test.mean)} (at least {_bound(metric, METRICS[metric].change(test.lo))})"
    price = [floor.gate.metric for floor in floors if floor.test.hi < 0]
    if price:
        return "optional", f"{better}, at a price in {', '.join(price)} inside its floor"
    return "promote", f"{better}; every floor holds" if floors else better


def _shown_worse(declaration: Declaration, tests: list[Tested], n: int) -> str | None:
    """Why a candidate is rejected, by bounds at the level of the whole label; None where nothing excludes it.

    Of several harms the largest is named. Example: 0.22 bpb worse where runs vary by 0.004, and 12 % slower where 10 %
    are allowed: the loss is the reason.
    """
    primary = tests[0]
    metric, plain, wanted = primary.gate.metric, primary.plain, declaration.min_gain
    at_most = METRICS[metric].change(plain.hi)
    rows = [(gate_row(declaration, one.gate, one.test, one.plain), one.plain.hi) for one in tests]
    harm = largest_harm(rows, _sd_of_run(declaration, primary.gate, n))
    if harm and harm.role == "floor":
        return f"{harm.metric} is worse than its floor allows"
    if harm:
        return f"worse by {_value(metric, primary.test.mean)} (at least {_bound(metric, -at_most)})"
    if wanted is not None and plain.hi < wanted:
        return f"a gain of {_value(metric, wanted)} is excluded: at most {_bound(metric, at_most)}"
    return None


def _diverged(arms) -> tuple[str, str]:
    if CONTROL in arms:
        return "inconclusive", "the control itself failed: fix the baseline first"
    return "reject", "a candidate run diverged where the control did not"


def _sd_of_run(declaration: Declaration, gate: Gate, n: int) -> float:
    """The sd of one run: the bank's, or else sd(d) / sqrt(2), which a correlation within pairs makes smaller."""
    s_b, nu = lent(declaration, gate, n)
    if nu:
        return s_b
    d, mean = gate.d[:n], sum(gate.d[:n]) / n
    return math.sqrt(sum((x - mean) ** 2 for x in d) / (n - 1) / 2)


def _value(metric: str, x: float) -> str:
    """The size of a change, whatever its sign, with its unit: bits per byte, or percent."""
    return _bound(metric, abs(METRICS[metric].change(x))) + (" bpb" if metric == "val_bpb" else "")


def _bound(metric: str, change: float) -> str:
    """A change as METRICS gives it. Beside a value with its unit, only percent is said again."""
    return f"{change:.4g}{METRICS[metric].unit}"
