"""
The sections of a leaderboard: which rows are one entry, how an entry is called, and what is within noise of the best.

python -m pytest tests/test_sections.py -v
"""

import math
import re

import numpy as np
import pytest
import scipy.stats

from nanochat.lab.report.entries import make_entries
from nanochat.lab.report.leaderboard import markdown
from nanochat.lab.report.sections import distances, sections
from tests.leaderboard_case import by_arm, flags_of, make_row, noise_rows, table

# -----------------------------------------------------------------------------
# Entries

@pytest.mark.parametrize("change", [{"flags": "--matrix-lr=0.03"}, {"patch_hash": "p"},
                                    {"versions": "torch=2.13.0 nanochat=92d63d4e8bb4"}])
def test_other_options_patch_or_tree_are_another_entry(change):
    assert len(make_entries([make_row(seed=1), make_row(seed=2)])) == 1
    assert len(make_entries([make_row(seed=1), make_row(**{"seed": 2, **change})])) == 2


def test_equal_options_are_one_entry_over_commits_and_names():
    """The rule was: each commit and each name has an entry of its own. One arm then stood in a table four times."""
    rows = [make_row("gate", 1, tree_hash="aa11", git_commit="1" * 9),
            make_row("gate", 2, tree_hash="bb22", git_commit="2" * 9, dirty=True),
            make_row("mix", 3, flags=flags_of("gate"), git_commit="3" * 9),
            make_row("aa", 4, flags=""), make_row("control", 5)]
    found = by_arm(rows)
    assert set(found) == {"mix", "control"}  # the newest name, but a control is called so
    assert found["mix"]["n"] == "3" and found["mix"]["commits"] == "2222222+, 3333333, 1 more"
    assert found["control"]["n"] == "2" and found["control"]["name"] == "control"
    assert "; also ran as gate\n" in markdown(rows) and "; also ran as aa\n" in markdown(rows)


def test_without_a_control_a_name_says_in_which_options_the_entries_differ():
    rows = [make_row(f"c{i}", flags=f"--lr-multiplier={i} --symplectic-gate") for i in (2, 3)]
    assert [row["name"] for row in table(markdown(rows))] == ["c2: lr-multiplier 2", "c3: lr-multiplier 3"]


def test_seed_that_ended_elsewhere_at_another_commit_is_told():
    rows = [make_row(seed=1, bpb=1.1), make_row(seed=1, bpb=1.2, timestamp="2026-03-05T00:00:00+00:00"),
            make_row(seed=2), make_row(seed=2, bpb=1.1 * (1 + 1e-8), timestamp="2026-03-05T00:00:00+00:00")]
    found, = table(markdown(rows))
    assert found["commits"] == "0123456, 1 seed ended elsewhere at another commit"
    assert "; ended elsewhere at another commit: seed 1\n" in markdown(rows)


def test_name_of_an_entry_says_how_it_differs_from_the_control():
    rows = [make_row(), make_row("gate", flags="--symplectic-gate --symplectic-gate-mix=0.05"),
            make_row("many", flags="--lr-multiplier=2 --wd-multiplier=3 --warmdown-ratio=0.4 --warmup-steps=7 "
                                   "--warmdown-shape=cosine --seed=9")]
    names = {row["name"] for row in table(markdown(rows))}
    assert {"control", "gate: symplectic-gate, symplectic-gate-mix 0.05"} < names
    name = (names - {"control", "gate: symplectic-gate, symplectic-gate-mix 0.05"}).pop()
    assert name.startswith("many: ") and name.endswith(", 1 more") and name.count(",") == 4


# -----------------------------------------------------------------------------
# Noise

def test_distance_from_the_best_is_the_textbooks_pooled_t_interval():
    arms = {"a": [1.10, 1.12, 1.14], "b": [1.11, 1.13, 1.18, 1.14], "c": [1.3, 1.32]}
    section, = sections(noise_rows(**arms))
    spread, found = distances(section)
    squares = sum(np.var(values) * len(values) for values in arms.values())
    assert (spread.df, spread.sd) == (6, pytest.approx(math.sqrt(squares / 6)))
    t = scipy.stats.t.ppf(1 - 0.05 / 2, 6)  # two comparisons
    assert found[1].mean == pytest.approx(0.02) and found[2].mean == pytest.approx(0.19)
    assert found[1].half == pytest.approx(t * spread.sd * math.sqrt(1 / 3 + 1 / 4))
    assert [found[1].within_noise, found[2].within_noise] == [True, False]
    found = by_arm(noise_rows(**arms))
    assert [found[arm]["rank"] for arm in "abc"] == ["1=", "1=", "3"]
    assert found["a"]["against the best"] == "best"
    assert found["b"]["against the best"].startswith("within noise: 0.0200 \u00b1 0.0")
    assert found["c"]["against the best"].startswith("0.1900 \u00b1 0.0")


def test_arm_that_is_truly_best_is_within_noise_of_the_first_in_19_of_20_tables():
    rng, kept, sims = np.random.default_rng(0), 0, 600
    for _ in range(sims):
        values = {arm: rng.normal(0.0 if arm == "a" else 0.3, 1.0, size=n) + 9
                  for arm, n in (("a", 3), ("b", 8), ("c", 4), ("d", 2))}
        section, = sections(noise_rows(**values))
        place = [entry.arm for entry in section.entries].index("a")
        kept += place == 0 or distances(section)[1][place].within_noise
    assert kept / sims >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / sims)


def test_without_a_second_run_nothing_is_said_of_noise():
    rows = noise_rows(a=[1.1], b=[1.2])
    assert "Noise: not known, because no arm here has two runs that differ." in markdown(rows)
    assert [row["rank"] for row in table(markdown(rows))] == ["1", "2"]
    assert by_arm(rows)["b"]["against the best"] == "0.1000 worse"


def test_times_are_compared_as_ratios_and_arms_that_missed_the_target_are_not():
    rows = [make_row(arm, seed, time=time * (1 + 0.01 * seed), bpb=1.11) for arm, time in (("a", 100), ("b", 101))
            for seed in (1, 2, 3)] + [make_row("slow", seed, time=200 + seed, bpb=1.1) for seed in (1, 2)]
    rows += [make_row("never", 1, bpb=1.05)]
    found = by_arm(rows)
    assert found["b"]["against the best"].startswith("within noise: 1% slower (")
    assert re.fullmatch(r"98% slower \(9\d% to 10\d%\)", found["slow"]["against the best"])
    assert [found[arm]["rank"] for arm in ("a", "b", "slow", "never")] == ["1=", "1=", "3", "4"]
    assert found["never"]["against the best"] == "" and "% of the time, pooled" in markdown(rows)
