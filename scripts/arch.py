"""
Find shapes of a model for a budget of parameters and a vocabulary, each with the flags to paste:

    python -m scripts.arch --budget 38e6 --vocab-size 24576 --head-dim 64    # every shape near the budget
    python -m scripts.arch --ratio 1:1:1 --vocab-size 24576 --depths 2,4,8   # wte : matrices : lm_head in proportion
    python -m scripts.arch --vocab-size 24576                                # what --depth alone gives

Parameters are counted on the real modules, on the meta device. The budget covers the parameters of a plain GPT: wte +
matrices + lm_head, where a layer of width C has 12 C^2 (4 attention, 8 MLP). Value embeddings, gates and scalars are
not in the budget; they are listed in columns of their own. A row marked * has the three parts in the ratio of --ratio
(1:1:1 if it is not given).
"""

import argparse
import dataclasses
import sys
from bisect import bisect_left, bisect_right
from functools import cache

from nanochat.checks import MOST_CHANNELS, MOST_LAYERS, cut
from nanochat.command_line import Defaults, Parser, say_error
from nanochat.common import paste_command
from nanochat.config import TrainConfig, validate
from nanochat.options import flag, hyphenate, parse_options, to_argv

DEPTHS = "2,3,4,5,6,8,10,12,14,16,18,20,24,28,32"
MOST_BUDGET = 10 ** 15  # parameters: a thousand times the largest models
MOST_SHAPES = 1000  # in one table: each is counted on the real modules
EXACT = 0.01  # a ratio is met when no part is further off than this share


def build_parser() -> argparse.ArgumentParser:
    from nanochat.gpt import GPTConfig
    parser = Parser(prog="arch", allow_abbrev=False,
                    description="Find shapes of a model for a budget of parameters. Flags of "
                                "scripts.base_train that affect the model are flags here too, like "
                                "--head-dim.",
                    formatter_class=Defaults)
    search = parser.add_mutually_exclusive_group()
    search.add_argument("--budget", type=float, help="parameters in wte, matrices and lm_head together")
    search.add_argument("--ratio", metavar="A:B:A",
                        help="sizes of wte : matrices : lm_head; for each depth the widths on both sides of it "
                             "are listed")
    parser.add_argument("--tolerance", type=float, default=0.1,
                        help="how far from the budget a shape may be, as a share of the budget")
    parser.add_argument("--vocab-size", type=int, default=GPTConfig.vocab_size,
                        help="number of tokens in the vocabulary")
    parser.add_argument("--depths", default=DEPTHS, help="numbers of layers to try, with commas between")
    return parser


def parse_args(argv):
    """The search, with the training configuration that is searched around as `base`. ValueError for bad input."""
    args, rest = build_parser().parse_known_args(hyphenate(argv))
    args.base = parse_options(TrainConfig, rest)
    return args


def parse_ratio(text: str) -> float:
    """"1:2:1" -> 2.0, matrices over wte. Untied wte and lm_head have one size, so the first and the last number must be
    equal."""
    try:
        a, b, c = map(float, text.split(":"))
    except ValueError:
        a = b = c = 0.0
    if not (a == c and 0 < a < float("inf") and 0 < b < float("inf")):
        raise ValueError(f"--ratio={cut(text)}: expected A:B:A, like 1:1:1; wte and lm_head have one size")
    return b / a


def check(args) -> list[int]:
    """The depths. Raises ValueError for options that are out of range."""
    try:
        depths = sorted({int(word) for word in args.depths.split(",")})
    except ValueError:
        depths = [0]
    if not 1 <= depths[0] <= depths[-1] <= MOST_LAYERS:
        raise ValueError(f"--depths={cut(args.depths)}: expected numbers of layers, 1 to {MOST_LAYERS:,}, with commas "
                         "between, like 4,8,12")
    for name, ok, expected in (("budget", args.budget is None or 0 < args.budget <= MOST_BUDGET,
                                f"a positive number, at most {MOST_BUDGET:g}"),
                               ("tolerance", 0 <= args.tolerance <= 1, "a share of the budget, 0 to 1"),
                               ("vocab_size", 0 < args.vocab_size <= MOST_CHANNELS,
                                f"a positive number, at most {MOST_CHANNELS:,}")):
        if not ok:
            raise ValueError(f"{flag(name)}={cut(getattr(args, name))}: expected {expected}")
    return depths


class Shape:
    """A depth and a width, counted on the real modules. width None: the width that the depth alone gives."""

    def __init__(self, args, depth: int, width: int | None):
        from nanochat.cost import count_plain, flops_per_token, gpt_config, meta_model
        self.config = dataclasses.replace(args.base, depth=depth, model_dim=width or -1)
        validate(self.config)
        self.model = gpt_config(self.config, args.vocab_size)
        model = meta_model(self.model)
        self.counts, self.flops = count_plain(model), flops_per_token(model)
        self.matrices_over_wte = self.counts["matrices"] / self.counts["wte"]

    def row(self, ratio: float) -> list[str]:
        c, m = self.counts, self.model
        off = self.matrices_over_wte / ratio  # goes with the width, so that width / off has the ratio exactly
        numbers = (m.n_layer, m.n_embd, m.n_head,
                   *(c[k] for k in ("wte", "matrices", "lm_head", "plain", "value_embeds")),
                   c["gates"] + c["scalars"], c["all"])
        return ["*" if abs(off - 1) <= EXACT else "", *(f"{n:,}" for n in numbers),
                f"{(c['wte'] + c['lm_head']) / c['plain']:.0%}",
                f"{self.flops:.2e}", f"{m.n_embd / m.n_layer:.0f}", f"{m.n_embd / off:.1f}",
                " ".join([f"--depth={m.n_layer}", *(f for f in to_argv(self.config) if not f.startswith("--depth="))])]


def near_budget(args, depths) -> list[Shape]:
    """Every multiple of head_dim whose plain count is within the tolerance. The count grows with the width: bisect."""
    low, high = args.budget * (1 - args.tolerance), args.budget * (1 + args.tolerance)
    found, nearest = [], []
    for depth in depths:
        shape_of = cache(lambda heads, depth=depth: Shape(args, depth, heads * args.base.head_dim))
        heads = head_counts(args, high)
        first = bisect_left(heads, low, key=lambda n: shape_of(n).counts["plain"])
        past = bisect_right(heads, high, key=lambda n: shape_of(n).counts["plain"])
        if len(found) + past - first > MOST_SHAPES:
            raise ValueError(f"more than {MOST_SHAPES:,} shapes are within {args.tolerance:.0%} of "
                             f"{args.budget:,.0f} parameters: lower --tolerance, or raise --head-dim")
        found += map(shape_of, heads[first:past])
        nearest += map(shape_of, heads[max(0, first - 1):first + 1])
    if not found:
        best = min(nearest, key=lambda s: abs(s.counts["plain"] - args.budget))
        raise ValueError(f"no shape within {args.tolerance:.0%} of {args.budget:,.0f} parameters; "
                         f"nearest: {best.model.n_layer} layers x {best.model.n_embd} wide = {best.counts['plain']:,}: "
                         "raise --tolerance, or lower --head-dim or --vocab-size")
    return sorted(found, key=lambda s: abs(s.counts["plain"] - args.budget))


def head_counts(args, budget: float) -> range:
    """Numbers of heads from the narrowest model on to one whose embeddings alone are over the budget, or to the widest
    that there may be."""
    from nanochat.gpt import SMEAR_CHANNELS
    narrowest = -(-SMEAR_CHANNELS // args.base.head_dim)
    widest = max(narrowest, int(budget / (2 * args.vocab_size * args.base.head_dim))) + 1
    return range(narrowest, max(narrowest, min(widest, MOST_CHANNELS // args.base.head_dim)) + 1)


def near_ratio(args, depths, ratio: float) -> list[Shape]:
    """For each depth the width that has the ratio; if no width has it, the two widths next to it."""
    found = []
    for depth in depths:
        shape_of = cache(lambda heads, depth=depth: Shape(args, depth, heads * args.base.head_dim))
        heads = head_counts(args, 2 * args.vocab_size * args.base.head_dim)
        while shape_of(heads[-1]).matrices_over_wte < ratio:
            if 2 * heads[-1] * args.base.head_dim > MOST_CHANNELS:
                raise ValueError(f"--ratio={cut(args.ratio)}: no width up to {MOST_CHANNELS:,} has it at depth "
                                 f"{depth}; lower the second number, or name other --depths")
            heads = range(heads[0], 2 * heads[-1] + 1)
        first = bisect_left(heads, ratio, key=lambda n: shape_of(n).matrices_over_wte)
        exact = shape_of(heads[first]).matrices_over_wte == ratio
        found += map(shape_of, heads[first if exact else max(0, first - 1):first + 1])
    return found


def format_table(shapes, ratio: float, ratio_text: str) -> str:
    header = ["", "depth", "width", "heads", "wte", "matrices", "lm_head", "plain", "value embeds", "gates, scalars",
              "all", "embeddings", "FLOPs/token", "aspect", f"width for {ratio_text}", "flags"]
    rows = [header, *(shape.row(ratio) for shape in shapes)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join([*(cell.rjust(w) for cell, w in zip(row[:-1], widths)), row[-1]]) for row in rows)


def main(argv=None):
    try:
        args = parse_args(sys.argv[1:] if argv is None else argv)
        ratio_text = args.ratio or "1:1:1"
        depths, ratio = check(args), parse_ratio(ratio_text)
        if args.budget:
            shapes = near_budget(args, depths)
        elif args.ratio:
            shapes = near_ratio(args, depths, ratio)
        else:
            shapes = [Shape(args, depth, None) for depth in depths]
    except ValueError as e:
        say_error(e, "arch")
        sys.exit(2)
    print(format_table(shapes, ratio, ratio_text))
    print(f"\n* wte : matrices : lm_head = {ratio_text}. plain = wte + matrices + lm_head; "
          "embeddings = share of wte and lm_head in it.")
    print("Flags are for scripts.base_train; the tokenizer: "
          + paste_command(["python", "-m", "scripts.tok_train", f"--vocab-size={args.vocab_size}"]))


if __name__ == "__main__":
    main()
