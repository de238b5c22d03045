"""
Sentences over verdicts of all kinds, and beside the tables, pages and details that state the same numbers.

python -m pytest tests/test_sentences_agree.py -q
"""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from nanochat.lab.report import html
from nanochat.lab.report.gains import interval
from nanochat.lab.report.log_entry import log_entry
from nanochat.lab.report.sentence import sentence, title
from nanochat.lab.report.text import details_text, results_table
from nanochat.lab.verdict.facts import Declaration, MetricNoise, Noise
from nanochat.lab.verdict.gate_rows import hi_at_alpha
from nanochat.lab.verdict.gates import judge, weigh
from nanochat.lab.verdict.stats import compare
from tests.gates_case import BANK, BETTER, CONTROL, declared, make_runs
from tests.report_case import five_candidates, make_curves, peeking, unbanked
from tests.test_gates_bank import TARGET

LEADS = {"promote": ["Better"], "optional": ["Better, at a price"],
         "reject": ["Worse", "Too costly", "No gain worth having", "No difference", "Diverged"],
         "inconclusive": ["Not shown", "Not yet", "Cannot tell", "Better, and perhaps by too little",
                          "Better, at a cost that is not known well enough"], None: ["Not judged"]}


@pytest.mark.parametrize("seed", range(12))
def test_made_up_labels_of_all_kinds_get_plain_sentences(seed):
    rng, found = np.random.default_rng(seed), []
    for _ in range(8):
        n, primary = int(rng.choice([2, 3, 5])), str(rng.choice(["val_bpb", "time_to_target", "wall_time"]))
        declaration = declared(n, floors=True, noise=BANK if rng.random() < 0.7 else None, worth=rng.random() < 0.5,
                               primary=primary, target=TARGET if primary == "time_to_target" else None)
        gain, log_sec = 10 ** rng.uniform(-6, -1) * rng.normal(), {"control": 0.0, "candidate": rng.normal(0, 0.1)}
        runs = [replace(run, val_bpb=run.val_bpb + 0.3 * gain * rng.normal(),
                        tok_per_sec_median=math.exp(rng.normal(7 - log_sec[run.arm], 0.01)),
                        training_sec=math.exp(rng.normal(log_sec[run.arm], 0.01)),
                        time_to_target_sec=None if rng.random() < 0.1 else math.exp(rng.normal(log_sec[run.arm], 0.01)),
                        final_train_loss=3 * math.exp(0.001 * rng.normal()))
                for run in make_runs(control=[1.1] * n, candidate=[1.1 - gain] * n)]
        found += [(declaration, verdict) for verdict in judge(declaration, runs)]
    for declaration, verdict in found:
        text = sentence(verdict, declaration)
        assert text.split(":")[0] in LEADS[verdict.verdict] and title(verdict, declaration)
        assert not re.search(r"None|nan|inf\b|\de-\d|  |\.\.|\blog", text), text

@pytest.mark.parametrize("make", [five_candidates, unbanked, peeking])
def test_every_verdict_has_a_sentence_and_a_title(make):
    results = make()
    for verdict in results.verdicts:
        text = sentence(verdict, results.declaration, results.noise)
        short = title(verdict, results.declaration)
        assert text[0].isupper() and text.endswith((".", "?")) and "  " not in text and "None" not in text
        assert short.startswith(f"{verdict.verdict or 'no verdict'}. ") and short.split(". ", 1)[1] in text
        assert "log" not in text and "e-0" not in text and "nan" not in text


def test_terminal_report_and_log_say_the_same_sentence():
    results = five_candidates()
    page = re.sub("<[^>]*>", "", html.page(results, make_curves(results)))
    pages = [results_table(results), log_entry(results), page]
    for verdict in results.verdicts:
        text = sentence(verdict, results.declaration, results.noise)
        assert all(text in " ".join(page.split()) for page in pages), text


def test_details_say_that_bounds_are_one_sided():
    """By scipy: of 5 pairs each bound of 5 % is 2.132 standard errors away; two-sided it would be 2.776."""
    found, = judge(declared(5), make_runs(control=CONTROL, candidate=BETTER))
    assert found.gates[0].mean - found.gates[0].lo == pytest.approx(stats.t.isf(0.05, 4) * found.se)
    text = " ".join(details_text(found).split())
    assert "each bound of an interval is one-sided and misses the truth with a chance of 0.05" in text


def test_bound_that_rejects_is_that_of_the_whole_label():
    """Shown, by the row alone: what the test itself gives at that level. Here alpha is 4 % and the look has less."""
    declaration = replace(declared(12, noise=BANK, until_decided=True), alpha=0.04)
    runs = make_runs(control=[1.1, 1.1013, 1.0992], candidate=[1.1041, 1.1048, 1.1037])
    found, = judge(declaration, runs)
    gate = found.gates[0]
    assert found.verdict == "reject" and gate.level < 0.04
    d = weigh(declaration, runs)["candidate"].gates[0].d[:gate.n]
    expected = compare(d, 0.0013, 9, gate.threshold, 0.04)
    assert hi_at_alpha(gate, declaration) == pytest.approx(expected.hi) == pytest.approx(found.hi_at_alpha)
    assert interval(found, gate, declaration) == (gate.lo, pytest.approx(expected.hi))
    assert interval(replace(found, verdict="inconclusive"), replace(gate, result="cannot tell"), declaration) == (
        gate.lo, gate.hi)


@pytest.mark.parametrize("source, nu", [("bank nu=9", 9), ("own", 0), ("own: spreads more than the bank", 9),
                                        ("bank-only: missed targets", 9)])
def test_bound_of_a_row_follows_from_its_noise(source, nu):
    d, censored = [0.004, -0.001, 0.0022, 0.0031, 0.0004], source.startswith("bank-only")
    s_b = 0.0001 if "spreads" in source else 0.0013  # the guard fires where the bank is far too small
    at_look, at_alpha = (compare(d, s_b, nu, 0.0, level, censored=censored) for level in (0.007, 0.05))
    gate = replace(five_candidates().verdicts[0].gates[0], mean=at_look.mean, lo=at_look.lo, hi=at_look.hi,
                   level=0.007, n=5, noise_source=source)
    noise = Noise("bank", metrics={"val_bpb": MetricNoise(s_b, nu)}) if nu else None
    assert hi_at_alpha(gate, Declaration(alpha=0.05, noise=noise)) == pytest.approx(at_alpha.hi)
    assert hi_at_alpha(replace(gate, level=0.05), Declaration(alpha=0.05, noise=noise)) == gate.hi
    assert math.isfinite(at_alpha.hi)
