"""
Infer the data:param ratio at which a target is reached, from the corpus' exponent and a few runs of different length:

    python -m scripts.lane_b_infer_ratio --stats=results/stats.json --records lane_s lane_m lane_l \\
        --target-threshold=2.1 --default-ratio=2 --ratio-ref=2 --output-json=results/infer.json
    python -m scripts.lane_b_infer_ratio --alpha=0.19 --alpha-ci 0.16 0.22 \\
        --point=1e6:2.31:1 --point=2e6:2.22:1 --point=4e6:2.14:1 --num-scaling-params=2000000 \\
        --ref-scaling-params=90000000 --distinct-tokens=2e7 --target-threshold=2.1 --default-ratio=2 \\
        --flags="--depth=2 --device-batch-size=8 --max-seq-len=256"

The end of each run is read from its run.json. A run that did not complete its schedule is refused. The control, which
is the run with the default ratio, has to be among the points. The decision is inferred, confirmation or fallback; the
rules are in nanochat/lab/horizon/infer.py. Exit code: 0 inferred or confirmation; 3 the fallback, which is the default
ratio, with the name of the reason; 2 bad input: no valid points, or points without a control; 130 interrupted. With 2
--output-json holds the fallback and the reason, too.
"""

import sys
from dataclasses import asdict
from pathlib import Path

from nanochat.checks import MOST_FLOPS, cut
from nanochat.command_line import Parser
from nanochat.common import get_base_dir, read_json, write_json
from nanochat.config import TrainConfig
from nanochat.lab.arms import parse_arm, split_flags
from nanochat.lab.commands import EXIT_BAD_INPUT, EXIT_FALLBACK, EXIT_OK, exit_code, require_writable
from nanochat.lab.horizon import calibration, infer
from nanochat.lab.horizon.calibration import Calibration
from nanochat.lab.horizon.source import BAD_INPUT
from nanochat.lab.horizon.stats import SCHEMA_VERSION as STATS_VERSION
from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.imports import find_run
from nanochat.lab.protocol.results import tags_of
from nanochat.lab.report.index import index_for
from nanochat.lab.table import number, table

SCHEMA_VERSION = 1
OF_STATS = ("alpha_d", "n_star_tokens", "bytes_per_token", "h_inf_nats",
            "repeated_share")  # read from --stats: numbers, or null
INTERVALS = ("alpha_d_ci95", "h_inf_ci95_nats")  # two numbers each, or null


def build_parser():
    parser = Parser(prog="python -m scripts.lane_b_infer_ratio", allow_abbrev=False,
                    description="Infer a data:param ratio from the corpus' exponent and a few runs of "
                                "different length.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--stats", type=Path, metavar="FILE.json", help="the file that scripts.lane_b_stats wrote")
    source.add_argument("--alpha", type=float, help="the exponent, in place of --stats; --alpha-ci goes with it")
    parser.add_argument("--alpha-ci", type=float, nargs=2, metavar=("LO", "HI"), help="95 %% interval of --alpha")
    parser.add_argument("--record", "--records", dest="records", nargs="+", action="extend", default=[], metavar="RUN",
                        help="the runs of different length: ids, or paths to their records")
    parser.add_argument("--label", help="in place of --records: the runs of results/<label>_latest.json")
    parser.add_argument("--point", action="append", default=[], metavar="TOKENS:LOSS[:SEED]",
                        help="the final loss of a complete run, by hand; repeat for more")
    parser.add_argument("--target-metric", default="val_bpb", metavar="NAME",
                        help="metric of the target: val_bpb; with --point also val_loss (nats per token) or any other, "
                             "in the unit of the points (default: %(default)s)")
    parser.add_argument("--target-threshold", type=float, required=True, metavar="VALUE",
                        help="value of the metric that is to be reached")
    parser.add_argument("--direction", choices=("lower", "higher"), default="lower",
                        help="which values of the metric are better (default: %(default)s)")
    parser.add_argument("--default-ratio", type=float, default=TrainConfig.target_param_data_ratio, metavar="RATIO",
                        help="ratio of the control, and of the fallback (default: %(default)s)")
    parser.add_argument("--ratio-ref", type=float, default=TrainConfig.target_param_data_ratio, metavar="RATIO",
                        help="ratio at which the laws of batch and decay are pinned (default: %(default)s)")
    parser.add_argument("--num-scaling-params", type=int, metavar="N",
                        help="with --point alone: parameters in the matrices of the blocks and in lm_head")
    parser.add_argument("--ref-scaling-params", type=int, metavar="N",
                        help="with --point alone: the same of the d12 with this vocabulary")
    parser.add_argument("--flags", default="", metavar="FLAGS", help="with --point alone: training flags of the runs")
    parser.add_argument("--distinct-tokens", type=float, metavar="TOKENS",
                        help="tokens of the training split (default: counted from the passes over the split that the "
                             "longest of --records made)")
    parser.add_argument("--allow-repeated-data", action="store_true",
                        help="infer also if a run would read tokens twice")
    parser.add_argument("--bytes-per-token", type=float, metavar="BYTES",
                        help="turns nats per token into bits per byte, where --stats does not say it")
    parser.add_argument("--seed", type=int, default=0, help="seed of the Monte Carlo (default: %(default)s)")
    parser.add_argument("--output-json", type=Path, metavar="FILE.json", help="also write the answer to this file")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw losses over tokens, the law and the target")
    return parser


def require(ok: bool, name: str, value, expected: str):
    if not ok:
        raise ValueError(f"--{name}={value}: expected {expected}")


def check(args):
    """Raise ValueError for options that are wrong whatever the runs are."""
    for name in ("default-ratio", "ratio-ref", "num-scaling-params", "ref-scaling-params", "distinct-tokens",
                 "bytes-per-token"):
        value = getattr(args, name.replace("-", "_"))
        require(value is None or 0 < value <= MOST_FLOPS, name, cut(value), f"a number above 0, at most {MOST_FLOPS:g}")
    require(abs(args.target_threshold) < float("inf"), "target-threshold", args.target_threshold, "a finite number")
    require((args.alpha is None) == (args.alpha_ci is None), "alpha-ci", args.alpha_ci,
            "an interval with --alpha, and none without")
    require(args.alpha is None or 0 < args.alpha < float("inf"), "alpha", args.alpha, "a number above 0")
    require(args.seed >= 0, "seed", args.seed, "0 or more")
    require(bool(args.records or args.point), "records", "", "calibration runs, or --point")
    require(not args.records or args.target_metric == "val_bpb", "target-metric", args.target_metric,
            "val_bpb, which is what records hold; give other metrics with --point")


def read_stats(path) -> dict:
    """Statistics, or the refusal that stands in their place. Raises ValueError for a file that holds neither."""
    try:
        stats = read_json(path)
    except ValueError as e:
        raise ValueError(f"--stats={path}: no statistics of schema version {STATS_VERSION} "
                         f"({str(e).removeprefix(f'{path} is ')}); run scripts.lane_b_stats again") from None
    if (stats.get("schema_version") != STATS_VERSION or "alpha_d" not in stats
            or not well_typed(stats)):
        raise ValueError(f"--stats={path}: no statistics of schema version {STATS_VERSION}; "
                         "run scripts.lane_b_stats again")
    if (stats.get("error") or {}).get("code") == BAD_INPUT:
        raise ValueError(f"--stats={path}: scripts.lane_b_stats measured nothing: {stats['error'].get('message')}")
    return stats


def well_typed(stats: dict) -> bool:
    intervals, warnings, error = [*map(stats.get, INTERVALS)], stats.get("warnings") or [], stats.get("error") or {}
    numbers = [*map(stats.get, OF_STATS), *(end for ci in intervals if isinstance(ci, list) for end in ci)]
    return (all(ci is None or isinstance(ci, list) and len(ci) == 2 for ci in intervals)
            and isinstance(warnings, list) and isinstance(error, dict)
            and all(stats.get(name) is None or isinstance(stats[name], str) for name in ("dataset_id", "tokenizer_id"))
            and all(value is None or type(value) in (int, float) for value in numbers))


def from_records(args) -> Calibration:
    """The runs of --records, checked against the options given beside them."""
    for name in ("num-scaling-params", "ref-scaling-params", "flags"):
        given = getattr(args, name.replace("-", "_"))
        require(not given, name, given, "nothing beside --records: they say it")
    runs = [find_run(run, get_base_dir())[:2] for run in args.records]
    found = calibration.read_runs(runs, experiments.read_all(experiments.LEDGER))
    pinned = found.config.ratio_ref
    require(pinned in (-1, args.ratio_ref), "ratio-ref", args.ratio_ref, f"{pinned:g}, as the runs were trained")
    return found


def by_hand(args) -> Calibration:
    for name in ("num-scaling-params", "ref-scaling-params"):
        require(getattr(args, name.replace("-", "_")) is not None, name, None,
                "a number, as there are no --records to read it from")
    require(args.distinct_tokens is not None or args.allow_repeated_data, "distinct-tokens", None,
            "the tokens of the training split, or --allow-repeated-data: the theory counts distinct ones")
    config = parse_arm("calibration", args.flags, split_flags("--flags", "")).config
    return Calibration([], config, args.num_scaling_params, args.ref_scaling_params)


def ask(args, stats: dict, runs: Calibration) -> infer.Question:
    if stats:
        calibration.refuse_other_corpus(stats, runs)
        exponent = calibration.exponent_of_stats(stats, runs.config.max_seq_len)
    else:
        exponent = infer.Exponent(args.alpha, tuple(args.alpha_ci))
    bytes_per_token = args.bytes_per_token or stats.get("bytes_per_token")
    points = [*runs.points, *map(calibration.parse_point, args.point)]
    distinct = None if args.allow_repeated_data else distinct_tokens(args, stats, runs)
    return infer.Question(points, args.target_threshold, exponent, runs.num_scaling_params, args.default_ratio,
                          distinct, runs.spread or calibration.assumed_spread(args.target_metric, bytes_per_token),
                          entropy_floor=calibration.entropy_floor(args.target_metric, stats, bytes_per_token),
                          higher_is_better=args.direction == "higher", seed=args.seed)


def distinct_tokens(args, stats: dict, runs: Calibration) -> float | None:
    """Of the training split: as given, or as the runs read them without the copies that the statistics found."""
    read = runs.distinct_tokens and runs.distinct_tokens * (1 - (stats.get("repeated_share") or 0.0))
    return args.distinct_tokens or read


def facts_of(args, stats: dict, runs: Calibration, asked: infer.Question, answer: dict) -> dict:
    """The JSON: the question, the answer, and the trainer's settings at each ratio."""
    exponent = asked.exponent
    return {
        "schema_version": SCHEMA_VERSION, "target_metric_name": args.target_metric,
        "target_metric_threshold": args.target_threshold,
        "target_metric_unit": calibration.UNITS.get(args.target_metric), "direction": args.direction,
        "dataset_id": runs.dataset_id or stats.get("dataset_id"),
        "tokenizer_id": runs.tokenizer_id or stats.get("tokenizer_id"),
        "num_scaling_params": runs.num_scaling_params, "ref_scaling_params": runs.ref_scaling_params,
        "default_ratio": args.default_ratio, "ratio_ref": args.ratio_ref,
        "distinct_tokens": distinct_tokens(args, stats, runs),
        "repeated_data_allowed": args.allow_repeated_data,
        "alpha_d": exponent.alpha, "alpha_d_ci95": exponent.ci95, "entropy_floor": asked.entropy_floor,
        "points": [asdict(point) for point in asked.points],
        **infer.with_arms(answer, args.default_ratio, config=runs.config, num_scaling_params=runs.num_scaling_params,
                          ref_scaling_params=runs.ref_scaling_params, ratio_ref=args.ratio_ref)}


# -----------------------------------------------------------------------------
# For people

def describe(facts: dict) -> str:
    points = [[f"{p['tokens']:,.0f}", f"{p['loss']:.5f}", number(p["seed"], "d"), p["run_id"] or ""] for p in
              sorted(facts["points"], key=lambda point: point["tokens"])]
    parts = [table(["tokens", facts["target_metric_name"], "seed", "run"], points), ""]
    if facts["target_tokens"] is not None:
        parts += [law_line(facts), tokens_line(facts), ""]
    parts += [arms_table(facts["arms"]), ""]
    parts += [f"warning: {warning}" for warning in facts["warnings"]]
    parts += [f"decision: {facts['decision']}, ratio {facts['chosen_ratio']:.4g}"]
    return "\n".join(parts + [f"  {reason}" for reason in facts["reasons"]])


def law_line(facts) -> str:
    low, high = facts["alpha_d_ci95"]
    line = (f"L = {facts['l_inf']:.4f} + {facts['a']:.4g} D^-{facts['alpha_d']:.4g} "
            f"(alpha_D in [{low:.3g}, {high:.3g}], sd of a loss {facts['loss_sd']:.2g}, {facts['loss_sd_source']})")
    if facts["alpha_disagreement_se"] is not None:
        alone = number(facts["alpha_free"], ".3g") or "not determined"
        line += f"\nalpha of the losses alone: {alone}, {facts['alpha_disagreement_se']:+.1f} standard errors away"
    return line


def tokens_line(facts) -> str:
    line = f"{facts['target_metric_name']} {facts['target_metric_threshold']:g} at {facts['target_tokens']:,.0f} tokens"
    if facts["fraction_unsolvable"] is not None:
        band = " / ".join(number(facts[f"target_tokens_q{q}"], ",.0f") or "unbounded" for q in (10, 50, 90))
        line += (f" (10/50/90 %: {band}; "
                 f"{facts['fraction_unsolvable']:.1%} of {facts['num_draws']} draws never reach it)")
    return f"{line}, {facts['extrapolation_factor']:.2f} x the longest run"


def arms_table(arms: dict) -> str:
    """Each arm pinned at ratio_ref, and below it the settings that changing only the ratio would give."""
    rows = []
    for name, arm in arms.items():
        for how in ("pinned", "unpinned"):
            s = arm[how]
            rows.append([name if how == "pinned" else "", how, f"{arm['target_param_data_ratio']:.4g}",
                         f"{s['total_tokens']:,}", f"{s['num_iterations']:,}", f"{s['total_batch_size']:,}",
                         f"{s['batch_lr_scale']:.4g}", f"{s['weight_decay']:.4g}", number(s["tau"], ".4g")])
    return table(["arm", "laws", "ratio", "tokens", "steps", "batch", "LR scale", "lambda", "tau"], rows, left=2)


def answer(args) -> dict:
    args.records += tags_of(args.label) if args.label else []
    check(args)
    stats = read_stats(args.stats) if args.stats else {}
    runs = from_records(args) if args.records else by_hand(args)
    asked = ask(args, stats, runs)
    return facts_of(args, stats, runs, asked, infer.infer(asked))


def run(args) -> int:
    require_writable(args.output_json, args.plot)
    try:
        facts = answer(args)
    except (ValueError, OSError) as e:
        if args.output_json:  # an older file would pass for the answer
            error = {"code": getattr(e, "code", BAD_INPUT), "message": str(e)}
            default = args.default_ratio if 0 < args.default_ratio < float("inf") else None
            write_json(args.output_json, {"schema_version": SCHEMA_VERSION, "decision": infer.FALLBACK,
                                          "chosen_ratio": default, "reasons": [str(e)], "error": error})
        raise
    if args.output_json:
        write_json(args.output_json, facts)
    if args.plot:
        from nanochat.lab.horizon.plot import draw_inference  # matplotlib takes a second
        draw_inference(args.plot, facts)
    index_for(args.output_json)
    print(describe(facts))
    if (facts["error"] or {}).get("code") == infer.NO_CONTROL:
        return EXIT_BAD_INPUT
    return EXIT_FALLBACK if facts["decision"] == infer.FALLBACK else EXIT_OK


def main(argv=None) -> int:
    args = build_parser().parse_args(argv)
    return exit_code(lambda: run(args), "stopped")


if __name__ == "__main__":
    sys.exit(main())
