"""
What can be concluded from two runs, and what cannot, in sentences.

Example: "One seed each: the difference 0.0120 is 1.4 times what two runs of one recipe differ by (8 banked control
runs: sd 0.0060), and one such pair in twenty is further apart than 2.4 times: not shown." Two runs never give a
verdict, however far apart they are: a run differs from the next one of the same recipe, and these two were chosen after
both had ended.
"""

import math
import shlex

from nanochat.common import to_paste
from nanochat.config import FIELDS, TrainConfig, read_config
from nanochat.lab.arms import CONTROL
from nanochat.lab.ledger.any_run import AnyRun, differences
from nanochat.lab.ledger.banked import FIRST_SEED, bank
from nanochat.lab.ledger.experiments import NOISE
from nanochat.lab.profiles import PROFILES
from nanochat.lab.report.gains import digits_of
from nanochat.lab.verdict.stats import t_above
from nanochat.options import flag, tagged, with_role

WORKLOAD = with_role(FIELDS, "workload")
LABEL, OTHER = "a-or-b", "../other"  # of the command that would answer: a label of its own, a folder for B's code
LUCK = 0.05  # share of the pairs of runs of one recipe that are called worth asking about


def conclusions(a: AnyRun, b: AnyRun, bank_rows: list[dict]) -> list[str]:
    """The sentences, in the order of their weight."""
    lines = loss_obstacles(a, b) or difference_lines(a, b, bank_rows)
    return [*lines, *length_lines(a, b), *speed_lines(a, b), *scope_lines(a, b)]


# -----------------------------------------------------------------------------
# Losses

def loss_obstacles(a: AnyRun, b: AnyRun) -> list[str]:
    """Why the losses of the two do not compare; [] where they may."""
    lines = []
    for letter, run in (("A", a), ("B", b)):
        if run.row["status"] == "running":
            lines.append(f"{letter} is still going on, or was killed: it has no result to compare.")
        elif run.row["status"] not in ("ok", None):
            lines.append(f"{letter} ended {run.row['status']}: it has no result to compare.")
        elif run.row["val_bpb"] is None:
            lines.append(f"{letter} has no val_bpb of the control's evaluator: nothing to compare.")
    for name, what, why in (("dataset_id", "data", "their losses do not compare"),
                            ("tokenizer_id", "tokenizers", "the same number of tokens is another text, so their losses "
                             "do not compare")):
        x, y = a.row[name], b.row[name]
        if x and y and x != y:
            lines.append(f"The two were trained with other {what} ({x[:8]} and {y[:8]}): {why}.")
    for letter, run in (("A", a), ("B", b)):
        silent = [what for name, what in (("dataset_id", "data"), ("tokenizer_id", "tokenizer")) if not run.row[name]]
        if silent:
            lines.append(f"{letter} does not say its {' and '.join(silent)}: only with the same do the losses compare.")
    for name, what in (("eval_tokens", "validated on"), ("max_seq_len", "validated with a context of")):
        x, y = a.options.get(name), b.options.get(name)
        if x is not None and y is not None and x != y:
            lines.append(f"A was {what} {x:,} tokens, B {y:,}: their losses are of other tokens and do not compare.")
    if a.has_record != b.has_record:
        who = "A" if b.has_record else "B"
        lines.append(f"The val_bpb of {who} is by the evaluator of its own trainer; `--arm=\"name: tree=PATH\"` of "
                     "scripts.protocol scores such a tree by this repository's.")
    return lines


def difference_lines(a: AnyRun, b: AnyRun, bank_rows: list[dict]) -> list[str]:
    gain = a.row["val_bpb"] - b.row["val_bpb"]
    if gain == 0:
        return ["Both ended at the same val_bpb to the last bit: they are one run twice, or the difference changes "
                "nothing."]
    how = "lower, so better" if gain > 0 else "higher, so worse"
    size = f"{abs(gain):.5f}" if abs(gain) >= 1e-5 else f"{abs(gain):.0e}"
    line = f"B ends {size} bits per byte {how}."
    found, why = fitting_bank(a, b, bank_rows)
    if not found:
        return [f"{line} One seed each, and no banked noise fits ({why}): whether that is luck is not known."]
    typical = math.sqrt(2) * found.s_b
    times, clear = abs(gain) / typical, t_above(LUCK / 2, found.nu)  # a spread of few runs may be far too small
    shown = "not shown" if times <= clear else "worth asking, and not shown by one seed each"
    digits = next((n for n in range(1, 9) if round(times, n) != round(clear, n)), 1)
    return [f"{line} One seed each: the difference {size} is {times:.{digits}f} times what two runs of one recipe "
            f"differ by ({len(found.values)} banked control runs: sd {found.s_b:.{digits_of(found.s_b)}f}), and one "
            f"such pair in twenty is further apart than {clear:.{digits}f} times: {shown}."]


def fitting_bank(a: AnyRun, b: AnyRun, rows: list[dict]):
    """(the bank of val_bpb that lends to one of the two by the ledger's own rules, or None; why not)."""
    hashes = [run.row["profile_hash"] for run in (a, b)]
    if hashes[0] is None or hashes[0] != hashes[1]:
        return None, "they are of two workloads" if None not in hashes else "the workload is not known"
    if a.row["device"] != b.row["device"]:
        return None, "they ran on two devices, which round differently"
    seeds, reasons = {a.row["seed"], b.row["seed"]}, []
    if not any((row["profile_hash"], row["label"]) == (hashes[0], NOISE) for row in rows):
        return None, "none is banked for this workload"
    for run in (a, b):  # a bank is of the control: it lends to the run whose options are the control's
        try:
            found = bank(rows, hashes[0], "val_bpb", seeds, run.row)
        except ValueError as e:
            reasons.append(str(e))
            continue
        if found.s_b:
            return found, None
        reasons += found.left_out
    return None, min(reasons, key=len) if reasons else "fewer than two runs lend"


def length_lines(a: AnyRun, b: AnyRun) -> list[str]:
    x, y = a.row["trained_tokens"], b.row["trained_tokens"]
    if x and y and x != y:
        return [f"They have other lengths ({x:,} and {y:,} tokens). A run in its middle has not lowered its learning "
                "rate yet, so a point of the longer one beside the end of the shorter one says little."]
    return []


# -----------------------------------------------------------------------------
# Speeds

def speed_lines(a: AnyRun, b: AnyRun) -> list[str]:
    x, y = a.row["tok_per_sec_median"], b.row["tok_per_sec_median"]
    device = a.row["device"], b.row["device"]
    if None in (x, y):
        return []
    if None in device or device[0] != device[1]:
        return [f"Other devices ({device[0] or 'not known'} and {device[1] or 'not known'}): speeds do not compare."]
    if a.row["threads"] != b.row["threads"]:
        return [f"Other numbers of threads ({a.row['threads']} and {b.row['threads']}): speeds do not compare."]
    label = a.row["label"]
    line = f"B does {y:,.0f} tokens a second, A {x:,.0f} ({y / x - 1:+.1%}; + is better). "
    if label and label == b.row["label"]:
        return [line + f"Both are of {label}, where arms take turns: `make gates LABEL={label}` judges the speed."]
    return [line + "They ran at other times, and a machine drifts: speeds compare only within one protocol."]


# -----------------------------------------------------------------------------
# What would answer

def scope_lines(a: AnyRun, b: AnyRun) -> list[str]:
    """What a comparison of the two recipes could judge."""
    workload = [flag(name) for name in changed_options(a, b) if name in WORKLOAD]
    if not workload:
        return []
    return [f"{', '.join(workload)} belong{'s' * (len(workload) == 1)} to the workload: a protocol runs and shows such "
            "a candidate, and gives no verdict on it."]


def next_lines(a: AnyRun, b: AnyRun, bank_rows: list[dict]) -> list[str]:
    """The commands that would answer which recipe is better, ready to paste; comments begin with #."""
    changed, label = changed_options(a, b), a.row["label"]
    if not changed and same_code(a, b):
        return ["# options and code are the same, so there is no change to judge; how far such runs lie apart:",
                "make noise SEEDS=8"]
    if label and label == b.row["label"] and {a.row["arm"], b.row["arm"]} >= {CONTROL}:
        return [f"make gates LABEL={label}  # it has been made: the verdict over all its seeds"]
    tree = [] if same_code(a, b) else [_tree_of(b)]
    return [*tree, to_paste(protocol_command(a, b, changed, bank_rows))]


def changed_options(a: AnyRun, b: AnyRun) -> list[str]:
    return [name for name, _, _ in differences(a, b)[0] if name in FIELDS and name != "seed"]


def same_code(a: AnyRun, b: AnyRun) -> bool:
    return a.version == b.version and a.row["patch_hash"] == b.row["patch_hash"]


def _tree_of(run: AnyRun) -> str:
    commit = run.row["git_commit"]
    if run.has_record and commit and not run.row["patch_hash"]:
        return f"git worktree add {OTHER} {commit[:12]}  # the code of B"
    return f"# first put the checkout that B was trained with into {OTHER} (patches/README.md)"


def protocol_command(a: AnyRun, b: AnyRun, changed: list[str], rows: list[dict]) -> str:
    """The protocol with A as the control and B as the candidate, on seeds that no row of the ledger has.

    Another tree's arm is trained on the workload of A, whatever its own run had."""
    profile = PROFILES.get(a.row["profile"] or "")
    common = " ".join(flags_of(a.asked, read_config(profile.flags) if profile else TrainConfig()))
    seed, same = first_new_seed(rows), same_code(a, b)
    names = [name for name in changed if b.asked.get(name) is not None and (same or name not in WORKLOAD)]
    flags = " ".join(flags_of({name: b.asked[name] for name in names}, None))
    if same:
        words = {"LABEL": LABEL, "PROFILE": profile and profile.name, "FLAGS": common, "CANDIDATE": flags,
                 "SEEDS": seed, "UNTIL": "decided"}
        return " ".join(["make protocol", *(f"{name}={_quoted(value)}" for name, value in words.items() if value)])
    arm = f"b: tree={OTHER}" + (f" flags={shlex.quote(flags)}" if flags else "")
    words = {"label": LABEL, "profile": profile and profile.name, "flags": common, "arm": arm, "seeds": seed,
             "until": "decided"}
    return " ".join(["python -m scripts.protocol", *(f"--{name}={_quoted(value)}" for name, value in words.items()
                                                     if value)])


def _quoted(value) -> str:
    """
    >>> print(_quoted("a-or-b"), _quoted("--flag --other"), _quoted("b: flags='--x'"), _quoted('say "$x"'))
    a-or-b "--flag --other" "b: flags='--x'" 'say "$x"'
    """
    text = str(value)
    return shlex.quote(text) if set(text) & set('"$`\\!') or shlex.quote(text) == text else f'"{text}"'


def flags_of(options: dict, control: TrainConfig | None) -> list[str]:
    """The flags that say `options`; those that a config has already are left out. control: None for all of them."""
    set_by_lab = {*tagged(FIELDS, "cell", "machine", "name"), *with_role(FIELDS, "run")} - {"device_batch_size"}
    words = []
    for name, value in options.items():
        if name in set_by_lab or name not in FIELDS or value is None or (control and getattr(control, name) == value):
            continue
        words.append(flag(name if value else f"no_{name}") if FIELDS[name].type is bool else
                     f"{flag(name)}={shlex.quote(str(value))}")
    return words


def first_new_seed(rows: list[dict]) -> int:
    """A seed above those of all rows that are no bank's."""
    seen = [row["seed"] for row in rows if row["seed"] is not None and row["seed"] < FIRST_SEED]
    return max(seen, default=0) + 1
