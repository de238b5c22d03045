"""
Calibration points: the FINAL values of complete runs of different length, read off their records.

A checkpoint in the middle of a run is no calibration point. Its learning rate has not come down, and a shorter run with
a complete schedule ends lower. In a trial, a ratio inferred from checkpoints took longer to the target than the
default. So only the end of each run is read.
"""

import math
from dataclasses import dataclass

from nanochat.config import FIELDS, TrainConfig, config_of_record
from nanochat.lab.horizon.gamma import FLOOR_SENSITIVE
from nanochat.lab.horizon.infer import Exponent
from nanochat.lab.horizon.loss_law import Point
from nanochat.lab.horizon.source import Refusal
from nanochat.lab.horizon.spread import Spread, banked_spread
from nanochat.options import flag, tagged, with_role

UNITS = {"val_bpb": "bits per byte", "val_loss": "nats per token"}
LOSS_SD_BPB = 0.002  # of one run's val_bpb over seeds, where it was measured nowhere
OF_A_RUN = (*tagged(FIELDS, "cell", "horizon"), *with_role(FIELDS, "run"))  # may differ between calibration runs
RESOLVED = {"total_batch_size", "ref_tokens", "tau"}
TAU_WITHIN = 0.05
HORIZON_SHARE = 4  # the theory holds for contexts that are at least this many times as long as n*


@dataclass(frozen=True)
class Calibration:
    """The points of the calibration runs and their common setup.

    config: of the runs, apart from seed and horizon; distinct_tokens: the tokens that one pass over their training
    split yields; spread: of their profile's bank.
    """
    points: list[Point]
    config: TrainConfig
    num_scaling_params: int
    ref_scaling_params: int
    dataset_id: str | None = None
    tokenizer_id: str | None = None
    distinct_tokens: float | None = None
    spread: Spread | None = None


def parse_point(text: str) -> Point:
    """
    >>> parse_point("2e6:1.25:7")
    Point(tokens=2000000.0, loss=1.25, seed=7, run_id=None, step_tokens=0)
    """
    parts = text.split(":")
    try:
        if len(parts) in (2, 3) and math.isfinite(float(parts[0])) and math.isfinite(float(parts[1])):
            return Point(float(parts[0]), float(parts[1]), *map(int, parts[2:]))
    except ValueError:
        pass
    raise ValueError(f"--point={text}: expected TOKENS:LOSS or TOKENS:LOSS:SEED, as in 2e6:1.25:1337")


# -----------------------------------------------------------------------------
# Runs

def read_runs(runs: list[tuple[dict, list[dict]]], ledger_rows=()) -> Calibration:
    """runs: (run.json, rows of metrics.jsonl) of each. ledger_rows: where their profile's bank is looked for.

    Raises Refusal: incomplete_run, one_run, mixed_workloads or tau_moves.
    """
    records = [record for record, _ in runs]
    ids = [record.get("run_id") for record in records]
    if twice := sorted({str(name) for name in ids if ids.count(name) > 1}):
        raise Refusal("one_run",
                      f"{', '.join(twice)} is given more than once: a run has one end, and its checkpoints are no "
                      "points")
    for record, rows in runs:
        _refuse_incomplete(record, rows)
    for record in records[1:]:
        _refuse_mixed(records[0], record)
    _refuse_moving_tau(records)
    first = records[0]
    config, done = config_of_record(first["config"]), first["resolved"]
    own_ratio = config.target_param_data_ratio if config.target_param_data_ratio > 0 else 1.0
    return Calibration([_point(record) for record in records], config, done["num_scaling_params"],
                       round(done["ref_tokens"] / (config.ratio_ref if config.ratio_ref > 0 else own_ratio)),
                       first["dataset_id"], first["tokenizer_id"], _distinct_tokens(records),
                       banked_spread(records, list(ledger_rows)))


def _point(record: dict) -> Point:
    done = record["resolved"]
    return Point(record["results"]["trained_tokens"], record["results"]["val_bpb"], record["config"]["seed"],
                 record["run_id"], done["total_batch_size"])


def _refuse_incomplete(record: dict, rows: list[dict]):
    """A point is the last validation of a run, at the end of a schedule whose rate came down."""
    results, done, config = (record.get(key) or {} for key in ("results", "resolved", "config"))
    validated = [row["step"] for row in rows if row.get("val/bpb") is not None]
    why = None
    if record.get("status") != "ok":
        why = f"its status is {record.get('status')}"
    elif not (done.get("num_scaling_params") and done.get("num_iterations")) or not RESOLVED <= done.keys():
        why = "its record does not say what it resolved to (an upstream checkpoint, or an older trainer?)"
    elif not results.get("epochs_used"):
        why = "its record does not say how much of its corpus it read"
    elif results.get("steps") != done["num_iterations"]:
        why = f"it took {results.get('steps')} of {done['num_iterations']} steps"
    elif not config["warmdown_ratio"] > 0 or config["final_lr_frac"] >= 1:
        why = "its learning rate never comes down (--warmdown-ratio, --final-lr-frac)"
    elif (results.get("val_bpb") is None or not math.isfinite(results["val_bpb"])
          or validated[-1:] != [results["steps"]]):
        why = "it was not validated at its end (--eval-every)"
    if why:
        raise Refusal("incomplete_run",
                      f"{record.get('run_id')}: {why}; a calibration point is the final loss of a complete schedule")


def _refuse_mixed(first: dict, other: dict):
    """Runs that differ in more than their length are not on one curve."""
    differ = [name for name in ("dataset_id", "tokenizer_id") if first[name] != other[name]]
    a, b = (vars(config_of_record(record["config"])) for record in (first, other))
    differ += [flag(name) for name in FIELDS if name not in OF_A_RUN and a[name] != b[name]]
    if first["resolved"]["num_scaling_params"] != other["resolved"]["num_scaling_params"]:
        differ.append("num_scaling_params")
    if differ:
        raise Refusal("mixed_workloads",
                      f"{first['run_id']} and {other['run_id']} differ in {', '.join(differ)}: calibration runs differ "
                      "in horizon and seed only")


def _refuse_moving_tau(records):
    """Where only the ratio was changed, batch and decay stay, and tau = B / (eta lambda D) goes as 1 / ratio.

    Example: the run of twice the ratio averages its weights over half as large a share of the run. Then the losses
    differ for two reasons, and a fit would read both as the effect of the data.
    """
    taus = [record["resolved"]["tau"] for record in records]
    if None not in taus and max(taus) > (1 + TAU_WITHIN) * min(taus):
        raise Refusal("tau_moves",
                      f"tau = B / (eta lambda D) goes from {min(taus):.4g} to {max(taus):.4g} over the calibration "
                      "runs, so their losses differ by more than the data; train them with --ratio-ref and "
                      "--target-param-data-ratio")


def _distinct_tokens(records) -> float:
    """Tokens that one pass of the loader yields, from the run that read most.

    A little low: a record counts the documents that wait in the packing buffer as read.
    """
    longest = max(records, key=lambda record: record["results"]["trained_tokens"])["results"]
    return longest["trained_tokens"] / longest["epochs_used"]


# -----------------------------------------------------------------------------
# The statistics of the corpus

def exponent_of_stats(stats: dict, context_tokens: int | None = None) -> Exponent:
    """alpha_D of a file that scripts.lane_b_stats wrote, or the error where the file holds one.

    context_tokens: the context length of the model.
    """
    if None in (stats.get("alpha_d"), stats.get("alpha_d_ci95")):
        error = stats.get("error") or {}
        message = error.get("message") or "the statistics hold no alpha_d with an interval"
        return Exponent(None, error=(error.get("code") or "alpha_unavailable", message))
    n_star, doubts = stats.get("n_star_tokens"), []
    warned = any(str(text).startswith("horizon_exceeds_context") for text in stats.get("warnings") or ())
    if warned or (context_tokens and n_star is not None and n_star > context_tokens / HORIZON_SHARE):
        doubts.append(f"horizon_exceeds_context: n* of {n_star} tokens is above a quarter of the context, where "
                      "alpha_D is only a prior")
    elif stats.get("n_star_censored"):
        doubts.append(f"horizon_censored: n* is {n_star} tokens or more, the largest lag that was measured, and not "
                      "known to be below a quarter of the context; above it alpha_D is only a prior")
    if "gamma_floor_sensitive" in (stats.get("warnings") or ()):
        doubts.append("gamma_floor_sensitive: the entropy of the text is not identified, and gamma differs by a factor "
                      f"of {FLOOR_SENSITIVE} or more between floors that fit alike, so alpha_D is only a prior")
    return Exponent(stats["alpha_d"], tuple(stats["alpha_d_ci95"]), tuple(doubts))


def refuse_other_corpus(stats: dict, calibration: Calibration):
    """Raise ValueError for statistics of another corpus or tokenizer: gamma and beta depend on both.

    A side without an id is accepted as it is: a text that is no dataset of the project, or a point given by hand.
    """
    for name in ("dataset_id", "tokenizer_id"):
        theirs, ours = stats.get(name), getattr(calibration, name)
        if None not in (theirs, ours) and theirs != ours:
            raise ValueError(f"the statistics are of {name} {theirs[:8]}, the runs of {ours[:8]}: alpha_D depends on "
                             "corpus and tokenizer; run scripts.lane_b_stats on the runs' own")


def in_unit(metric: str, nats_per_token: float, bytes_per_token: float | None) -> float:
    """An entropy in nats per token, converted to the unit of the metric.

    A token of 4 bytes with 2 nats has 2 / ln 2 / 4 bits per byte. Bits per token are no bound on bits per byte: they
    are as many times more as a token has bytes.

    >>> round(in_unit("val_bpb", 2.0, 4.0), 4), in_unit("val_loss", 2.0, None)
    (0.7213, 2.0)
    """
    if metric == "val_loss":
        return nats_per_token
    if metric != "val_bpb":
        raise ValueError(f"--target-metric={metric}: its unit is not known, only those of {', '.join(UNITS)}")
    if not (bytes_per_token and bytes_per_token > 0):
        raise ValueError(f"--bytes-per-token={bytes_per_token}: expected a number above 0, to turn nats per token into "
                         "bits per byte")
    return nats_per_token / math.log(2) / bytes_per_token


def entropy_floor(metric: str, stats: dict, bytes_per_token: float | None) -> float | None:
    """H_inf of the corpus in the unit of the metric; None where the statistics do not determine it.

    The floor of a model's own losses (gamma_source positional) is not used. It also holds the part of the text that
    this model cannot predict, so another model could go below it. Of an interval its lower end is the bound: a target
    between the two may well be reached.
    """
    if metric not in UNITS or stats.get("gamma_source") == "positional" or not stats.get("h_inf_identified"):
        return None
    lowest = (stats.get("h_inf_ci95_nats") or [stats["h_inf_nats"]])[0]
    return in_unit(metric, lowest, bytes_per_token)


def assumed_spread(metric: str, bytes_per_token: float | None) -> Spread | None:
    """The assumed noise of one run in the unit of the metric; None for a metric whose noise is not known."""
    if metric == "val_loss" and bytes_per_token:
        return Spread(LOSS_SD_BPB * math.log(2) * bytes_per_token)
    return Spread(LOSS_SD_BPB) if metric == "val_bpb" else None
