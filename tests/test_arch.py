"""
scripts.arch: its counts against arithmetic, and its flags in the trainer's parser. Run:

    python -m pytest tests/test_arch.py
"""

import shlex

import pytest

from nanochat.config import parse
from nanochat.cost import count_params, count_plain, gpt_config, meta_model
from nanochat.gpt import GPTConfig
from scripts import arch

TARGET = 37_748_736  # 4 layers x 512 wide, vocabulary 24,576: three times 12,582,912


def table(argv, capsys):
    """Rows as dicts by column."""
    arch.main(argv)
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    starts = [lines[0].index(name) + len(name)
              for name in ("depth", "width", "heads", "wte", "matrices", "lm_head", "plain")]
    names = ("depth", "width", "heads", "wte", "matrices", "lm_head", "plain")
    rows = []
    for line in lines[1:]:
        row = {name: int(line[:end].split()[-1].replace(",", "")) for name, end in zip(names, starts)}
        rows.append({**row, "mark": line.startswith("*"), "flags": line[line.index("--depth"):], "line": line})
    return rows


def test_plain_count_of_the_plans():
    for n_head in (4, 8):
        counts = count_plain(meta_model(GPTConfig(vocab_size=24576, n_layer=4, n_head=n_head, n_kv_head=n_head,
                                                  n_embd=512)))
        assert counts["wte"] == counts["matrices"] == counts["lm_head"] == 12_582_912
        assert counts["plain"] == TARGET
        assert counts["value_embeds"] == 2 * 24576 * 512 and counts["gates"] == 2 * 12 * n_head
        assert counts["scalars"] == 4 + 4 + 24 + 1 + 1  # lambdas of x and x0, smear gate and strength, backout


@pytest.mark.parametrize("config", [GPTConfig(vocab_size=1000, n_layer=5, n_head=6, n_kv_head=2, n_embd=192),
                                    GPTConfig(vocab_size=512, n_layer=2, value_embeds=False, smear=False, lambdas=False,
                                              backout=False)])
def test_parts_add_up_to_all(config):
    model = meta_model(config)
    counts = count_plain(model)
    assert counts["all"] == count_params(model)["total"] == sum(p.numel() for p in model.parameters())
    assert counts["all"] == counts["plain"] + counts["value_embeds"] + counts["gates"] + counts["scalars"]
    C, kv = config.n_embd, config.n_embd * config.n_kv_head // config.n_head
    assert counts["matrices"] == config.n_layer * (2 * C * C + 2 * C * kv + 8 * C * C)


def test_budget_finds_and_marks_the_1_1_1_shape(capsys):
    rows = table(["--budget", "38e6", "--vocab-size", "24576", "--head-dim", "64", "--depths", "3,4,6,18"], capsys)
    assert all(abs(row["plain"] / 38e6 - 1) <= 0.1 for row in rows)
    distances = [abs(row["plain"] - 38e6) for row in rows]
    assert distances == sorted(distances)
    marked = [row for row in rows if row["mark"]]
    assert [(row["depth"], row["width"], row["heads"], row["plain"]) for row in marked] == [(4, 512, 8, TARGET)]
    assert marked[0]["flags"] == "--depth=4 --model-dim=512 --head-dim=64"


def test_budget_lists_every_width_within_the_tolerance(capsys):
    rows = table(["--budget=30e6", "--vocab_size=8192", "--head-dim=32", "--depths=4,7", "--tolerance=0.2"], capsys)
    expected = {(depth, C) for depth in (4, 7) for C in range(32, 4000, 32)
                if abs((2 * 8192 * C + 12 * C * C * depth) / 30e6 - 1) <= 0.2}
    assert {(row["depth"], row["width"]) for row in rows} == expected and len(rows) == len(expected) > 4


def test_ratio_lists_the_widths_on_both_sides_of_v_over_12_l(capsys):
    rows = table(["--ratio=1:1:1", "--vocab-size=24576", "--head-dim=64", "--depths=1,2,3,4,5,8"], capsys)
    for depth in (1, 2, 3, 4, 5, 8):
        widths = [row["width"] for row in rows if row["depth"] == depth]
        exact = 24576 / (12 * depth)
        assert widths == ([exact] if exact % 64 == 0 else [exact // 64 * 64, exact // 64 * 64 + 64])
        assert f" {exact:.1f}  --depth={depth} " in next(row["line"] for row in rows if row["depth"] == depth)
    assert [row["plain"] for row in rows if row["depth"] == 4] == [TARGET]
    assert {row["depth"] for row in rows if row["mark"]} == {1, 2, 4, 8}
    twice = table(["--ratio=1:2:1", "--vocab-size=24576", "--head-dim=64", "--depths=8"], capsys)
    assert [(row["width"], row["matrices"] / row["wte"], row["mark"]) for row in twice] == [(512, 2, True)]


def test_what_depth_alone_gives(capsys):
    row, = table(["--vocab-size=24576", "--depths=4"], capsys)
    assert (row["width"], row["heads"], row["plain"], row["flags"]) == (256, 2, 15_728_640, "--depth=4")


@pytest.mark.parametrize("argv",
                         [["--budget=38e6", "--vocab-size=24576", "--depths=4,6", "--head-dim=64", "--max-seq-len=512",
                           "--window-pattern=L"],
                          ["--ratio=1:1:1", "--vocab-size=4096", "--depths=2,20"],
                          ["--vocab-size=4096", "--depths=3,20"]])
def test_flags_give_the_shape_of_their_row(argv, capsys):
    vocab_size = next(int(word.split("=")[1]) for word in argv if word.startswith("--vocab-size"))
    for row in table(argv, capsys):
        model = gpt_config(parse(shlex.split(row["flags"])), vocab_size)
        assert (model.n_layer, model.n_embd, model.n_head) == (row["depth"], row["width"], row["heads"])
        assert count_plain(meta_model(model))["plain"] == row["plain"]


@pytest.mark.parametrize("argv, message", [
    (["--budget=1e4", "--depths=2,3"],
     "no shape within 10% of 10,000 parameters; nearest: 2 layers x 128 wide = 8,781,824"),
    (["--budget=-5"], "--budget=-5.0"), (["--budget=nan"], "--budget=nan"),
    (["--ratio=1:2:3"], "wte and lm_head have one size"),
    (["--ratio=1:x:1"], "--ratio=1:x:1"), (["--depths=4,x"], "--depths=4,x"),
    (["--head-dim=7"], "--head-dim=7: expected an even number"),
    (["--vocab-size=0"], "--vocab-size=0"), (["--window-pattern=XY"], "--window-pattern=XY")])
def test_bad_input_is_one_line_and_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        arch.main(argv)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("arch: error: ") and message in err and err.count("\n") == 1
