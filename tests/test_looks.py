"""
Levels, replay and futility: the unit cases of the specification, a naive loop, and simulated peeking.

python -m pytest tests/test_looks.py -v
"""

import math

import numpy as np
import pytest
from scipy import stats as reference

from nanochat.lab.verdict.looks import MAX_SEEDS, chance_to_pass, declared_looks, futile, level, levels, replay
from nanochat.lab.verdict.stats import holm, moderated_t

LOOKS, OWN_LOOKS = list(range(2, 13)), list(range(5, 13))


def near(value, within=0.02):
    """Simulated levels differ a little with the seed."""
    return pytest.approx(value, rel=within)


@pytest.mark.parametrize("n, looks, nu, alpha, expected", [  # case 7
    (2, LOOKS, 9, .05, near(0.00363)), (5, LOOKS, 9, .05, near(0.00909)), (12, LOOKS, 9, .05, near(0.0218)),
    (12, LOOKS, 9, .0125, near(0.00455)), (12, LOOKS, 9, .005, near(0.00163, 0.05)), (12, LOOKS, 4, .05, near(0.0209)),
    (12, LOOKS, 19, .05, near(0.0223)), (12, OWN_LOOKS, 0, .05, near(0.0227)), (5, [5], 0, .05, 0.05),
    (5, [5], 9, .0125, 0.0125)])
def test_level_of_a_look_has_the_published_value(n, looks, nu, alpha, expected):
    assert level(n, looks, nu, alpha) == expected


def test_undeclared_look_is_refused():
    with pytest.raises(ValueError, match="a look at n=13 was not declared"):
        level(13, LOOKS, 9)
    with pytest.raises(ValueError, match="a look at n=2 was not declared"):
        level(2, OWN_LOOKS, 0)
    for looks in ([3, 2], [2, 2, 3], [1, 2]):
        with pytest.raises(ValueError, match="rising numbers of pairs"):
            level(2, looks, 9)
    with pytest.raises(ValueError, match="between 0 and 1"):
        level(2, LOOKS, 9, alpha=0)


def test_levels_rise_with_n_and_fall_with_the_candidates():
    by_n = [level(n, LOOKS, 9) for n in LOOKS]
    assert by_n == sorted(by_n) and by_n[0] * 6 == pytest.approx(by_n[-1])
    by_m = levels(12, LOOKS, 9, 0.05, 10)
    assert (np.diff(by_m[1:]) < 0).all() and by_m[0] == by_m[1] == by_n[-1]


def test_peeking_at_every_declared_look_holds_five_percent():
    """Another seed than the levels, and the noise drawn run by run: two arms and a bank, not their distributions."""
    rng = np.random.default_rng(8)
    P = 20_000
    d = rng.normal(size=(12, P)).T - rng.normal(size=(12, P)).T
    s_b = rng.normal(size=(5, P)).std(axis=0, ddof=1)
    p = np.stack([moderated_t(d[:, :n], s_b, 4).p for n in LOOKS], axis=-1)[..., None]
    promoted = (replay(p, LOOKS, nu=4).promoted_at > 0).mean()
    assert abs(promoted - 0.05) < 0.006  # 4 standard errors
    assert (p <= 0.05).any(axis=1).mean() > 0.12  # what looking every time at 5 % would have cost


def test_intervals_of_all_looks_hold_together_nine_times_in_ten():
    """Repeated intervals: two bounds at each look, both at that look's level. The true gain is 0."""
    rng = np.random.default_rng(11)
    P = 10_000
    d, s_b = rng.normal(size=(12, P)).T, np.sqrt(rng.chisquare(9, P) / 9 / 2)
    held = np.ones(P, dtype=bool)
    for n in LOOKS:
        t = moderated_t(d[:, :n], s_b, 9)
        half = reference.t.isf(level(n, LOOKS, 9), t.df) * np.sqrt(t.v / n)
        held &= abs(t.mean) <= half
        # A candidate is promoted exactly where its lower bound clears the margin.
        assert ((t.p <= level(n, LOOKS, 9)) == (t.mean - half >= 0)).all()
    assert held.mean() == pytest.approx(0.904, abs=0.012)


def test_replay_of_two_candidates_promotes_the_published_one():  # case 8
    p = [[.004, .2], [.0031, .09], [.0008, .02], [.0006, .0121]]
    both = [levels(n, LOOKS, 9, 0.05, 2) for n in (2, 3, 4, 5)]
    assert [a[2] for a in both] == [near(.00165), near(.00247), near(.00330), near(.00412)]
    assert both[-1][1] == near(.00909)
    found = replay(p, LOOKS, nu=9)
    assert found.promoted_at.tolist() == [4, 0]
    assert found.level.tolist() == [both[2][2], both[3][1]]
    assert replay(p[:2], LOOKS, nu=9).promoted_at.tolist() == [0, 0]
    assert replay([*p[:3], [math.nan, .0121]], LOOKS, nu=9).promoted_at.tolist() == [4, 0]


def naive_replay(p, looks, nu, alpha):
    """One protocol, look by look, with a set of those that are left."""
    left, promoted = set(range(len(p[0]))), {}
    for n, row in zip(looks, p):
        for k in sorted(left, key=lambda k: row[k]):
            if not row[k] <= level(n, looks, nu, alpha / len(left)):
                break
            left.remove(k)
            promoted[k] = n
    return promoted


def test_replay_equals_a_naive_loop_one_at_a_time_and_all_at_once():
    rng = np.random.default_rng(9)
    for K, looks, nu in ((1, LOOKS, 4), (4, LOOKS, 9), (3, OWN_LOOKS, 0), (10, [3, 6, 12], 19), (4, [5], 9)):
        p = rng.random((200, len(looks), K)) ** 6
        together = replay(p, looks, nu)
        for i in range(200):
            expected = naive_replay(p[i], looks, nu, 0.05)
            assert together.promoted_at[i].tolist() == [expected.get(k, 0) for k in range(K)]
            assert replay(p[i], looks, nu).promoted_at.tolist() == together.promoted_at[i].tolist()
    assert 0 < (together.promoted_at > 0).mean() < 1


def test_one_look_is_holm():
    p = [.010, .0166, .024, .2]
    found = replay([p], [5], nu=9)
    assert list(zip((found.promoted_at > 0).tolist(), found.level.tolist())) == holm(p)


@pytest.mark.parametrize("p, n, chance, stop", [
    (.5, 4, 0.398002, False), (.95, 4, 8.92018e-05, True), (.6, 8, 0.0373977, True)])
def test_futility_has_the_published_chances(p, n, chance, stop):  # case 13
    assert chance_to_pass(p, n, 12, 0.026) == pytest.approx(chance, rel=1e-4)
    assert futile(p, n, 12, 0.026) is stop


def test_futility_never_stops_at_two_pairs_nor_at_the_last_look():
    assert not futile(.5, 2, 12, 0.026) and not futile(.9999, 2, 12, 0.026) and futile(.9999, 3, 12, 0.026)
    assert (chance_to_pass(.02, 12, 12, .026) == 1 and chance_to_pass(.03, 12, 12, .026) == 0
            and not futile(.9, 12, 12, .026))


def test_chance_to_pass_is_what_a_walk_does_that_is_one_standard_error_kinder():
    rng = np.random.default_rng(10)
    p, n, N, a = 0.5, 4, 12, 0.026
    kinder = reference.norm.isf(p) + 1
    # A sum of steps of unit variance: its value after n steps, and the mean of each step to come.
    seen, drift = kinder * math.sqrt(n), kinder / math.sqrt(n)
    ends = seen + rng.normal(drift, 1, size=(100_000, N - n)).sum(axis=1)
    assert chance_to_pass(p, n, N, a) == pytest.approx((ends / math.sqrt(N) > reference.norm.isf(a)).mean(), abs=0.006)


def test_futility_in_a_replay_stops_the_seeds_of_a_candidate_and_nothing_else():
    p = [[.5, .4], [.9, .3], [.95, .002], [1e-9, .001]]
    found = replay(p, LOOKS, nu=9, stop_futile=True)
    assert found.futile_at.tolist() == [3, 0] and found.promoted_at[0] == 0
    # The candidate that was stopped still counts in m.
    assert found.promoted_at[1] == 4 and found.level[1] == level(4, LOOKS, 9, 0.025)
    free = replay(p, LOOKS, nu=9)
    assert free.futile_at.tolist() == [3, 0] and free.promoted_at.tolist() == [5, 4]
    kinder = [[.5, .4], [.2, .3], [.2, .002], [.2, .001]]
    assert replay(p, LOOKS, nu=9, for_chance=kinder).futile_at.tolist() == [0, 0]
    unknown = replay(p, LOOKS, nu=9, for_chance=np.full((4, 2), math.nan), stop_futile=True)
    assert unknown.futile_at.tolist() == [0, 0] and np.isnan(unknown.chance).all() and unknown.promoted_at[1] == 4


def test_looks_whose_seeds_have_not_been_run_change_neither_the_level_nor_the_chance():
    so_far = replay([[.5], [.4], [.02]], LOOKS, nu=9)
    planned = replay([[.5], [.4], [.02], *[[math.nan]] * 8], LOOKS, nu=9)
    assert planned.level == so_far.level == level(4, LOOKS, 9) and planned.chance == so_far.chance > 0.5


def test_looks_of_a_protocol_until_decided_begin_where_the_noise_is_known():
    assert declared_looks(9) == LOOKS[1:] and declared_looks(0) == OWN_LOOKS and LOOKS[-1] == MAX_SEEDS
    with pytest.raises(ValueError, match="needs 5"):
        declared_looks(0, most=4)
    with pytest.raises(ValueError, match="needs 3"):  # two pairs say too little on whether the bank fits
        declared_looks(9, most=2)
