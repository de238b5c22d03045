"""
The ledger's rows: columns in their order, effective values, and nothing acknowledged lost.

python -m pytest tests/test_experiments.py -v
"""

import math
import multiprocessing
import os
import random
import signal
import time

import pytest

from nanochat.lab.ledger import experiments
from nanochat.lab.ledger.experiments import append, parse_cell, read, row_of_record, schema
from nanochat.lab.ledger.workload import option_differences, options_of, why_other_profile, words_of
from tests.ledger_case import DATA, metrics, record, row

PLAN = ("timestamp,git_commit,experiment_name,seed,depth,max_seq_len,device_batch_size,total_batch_size,"
        "target_param_data_ratio,warmdown_ratio,warmdown_shape,target_metric_name,target_metric_threshold,"
        "time_to_target_sec_measured,"
        "time_to_target_sec_extrapolated,extrapolation_method,tok_per_sec_median,dt_median_ms,wall_time_sec,"
        "final_train_loss,min_val_bpb,peak_mem_mib,status").split(",")
PROFILE = record()["profile_hash"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "experiments.csv"


# -----------------------------------------------------------------------------
# Rows

def test_the_columns_of_the_plan_come_first_and_the_committed_ledger_has_them():
    assert schema()[:23] == PLAN and len(set(schema())) == len(schema())
    ledger = experiments.REFERENCE.read_text(encoding="utf-8")
    assert ledger.splitlines()[0] == ",".join(schema()) and ledger.endswith("\n")
    assert set(experiments.BOOLS + experiments.INTEGERS + experiments.FLOATS) <= set(schema())


def test_row_has_what_the_run_did():
    made = row_of_record(record(7), metrics(), label="t", arm="gate", recipe="smoke-cpu", declared_at="2026-01-01",
                         overloaded=False)
    assert list(made) == schema()
    assert made["total_batch_size"] == made["effective_total_batch_size"] == 4096  # 2048 asked for
    assert (made["num_iterations"], made["bound"], made["git_commit"]) == (60, "num_iterations", "c" * 40)
    assert (made["tau"], made["effective_ratio"]) == (36.3, 0.0293)
    assert made["target_param_data_ratio"] is None  # an option that did not decide
    assert (made["device"], made["versions"], made["load"]) == ("cpu: a processor", "python=3.11.7 torch=2.13.0", 1.25)
    assert (made["seed"], made["status"], made["val_bpb"]) == (7, "ok", 2.607)
    assert (made["training_sec"], made["compile_sec"]) == (57.0, None)
    assert made["command"].endswith("--seed=7 --depth=4 --max-seq-len=256 --num-iterations=60 --device-batch-size=8 "
                                    "--total-batch-size=2048 --eval-every=10")


def test_ratio_is_in_the_row_when_it_decided():
    made = record()
    made["resolved"]["horizon"] = "target_param_data_ratio"
    assert row_of_record(made, [], label="t", arm="a")["target_param_data_ratio"] == 12.0


def test_failed_runs_get_rows_and_no_final_value():
    made = row_of_record(record(status="diverged", final_train_loss=math.nan), metrics(), label="t", arm="a")
    assert (made["status"], made["val_bpb"], made["final_train_loss"], made["bound"]) == ("diverged", None, None, None)
    assert row_of_record(record(status="running"), [], label="t", arm="a")["status"] == "crash"
    known = {"run_tag": "x", "seed": 5, "run_status": "oom"}
    made = row_of_record({}, [], label="t", arm="a", **known)
    assert {name: value for name, value in made.items() if value is not None} == \
        {"run_id": "x", "seed": 5, "status": "oom", "label": "t", "arm": "a", "experiment_name": "t"}
    assert row_of_record(record(3), [], label="t", arm="a", **known)["seed"] == 3


def test_time_to_target_is_measured_or_guessed_never_both():
    def cells(values, threshold):
        target = {"metric": "val_bpb", "threshold": threshold}
        made = row_of_record(record(), metrics(values), label="t", arm="a", target=target)
        return [made[name] for name in PLAN[11:16]]
    assert cells((3.0, 2.8, 2.6), 2.7) == ["val_bpb", 2.7, pytest.approx(24.0), None, None]
    assert cells((3.0, 2.8, 2.6), 2.5) == ["val_bpb", 2.5, None, None, None]  # too few points for a guess
    assert cells((3.0, 2.9, 2.8, 2.7, 2.6), 2.5) == ["val_bpb", 2.5, None, pytest.approx(80.0), "last-4 linear"]
    with pytest.raises(ValueError, match="expected one of val_bpb"):
        row_of_record(record(), [], label="t", arm="a", target={"metric": "core", "threshold": 1})


# -----------------------------------------------------------------------------
# The file

def test_rows_come_back_as_they_were_with_their_number(path):
    rows = [row_of_record(record(seed, dirty_cell=1), metrics(), label='a "b", c', arm="control", overloaded=seed == 2)
            for seed in (1, 2)]
    for made in rows:
        append(path, made)
    assert read(path) == [made | {"row": number} for number, made in enumerate(rows, start=1)]


def test_line_break_does_not_make_two_rows_and_nan_is_an_empty_cell(path):
    append(path, row(1) | {"command": "python -m scripts.base_train --run='a\nb'", "load": math.inf})
    assert len(path.read_text().splitlines()) == 2
    assert [(r["command"], r["load"]) for r in read(path)] == [("python -m scripts.base_train --run='a b'", None)]


def test_filters_and_conditions(path):
    for seed in range(1, 7):
        append(path, row(seed, label="noise" if seed < 4 else "noisey", arm="control" if seed % 2 else "gate"))
    append(path, row(7) | {"label": None, "val_bpb": None})

    def seeds(*where, **filters):
        return [r["seed"] for r in read(path, where, **filters)]
    assert seeds(label="noise") == [1, 2, 3] and seeds(label="noise", arm="control") == [1, 3]
    assert seeds(label=None) == [7]
    assert seeds(("val_bpb", "<", 2.603)) == [1, 2] and seeds(("seed", ">", 5)) == [6, 7] and seeds(seed=4) == [4]
    assert seeds(dirty=True) == [] and len(seeds(dirty=False)) == 7
    assert read(path, label="noisey")[0]["row"] == 4 and [r["row"] for r in read(path, last=2)] == [6, 7]
    assert [r["seed"] for r in read(path, last=1, label="noise")] == [3]
    with pytest.raises(ValueError, match="colour is no column of"):
        read(path, colour="red")


def test_text_with_quotes_is_found(path):
    append(path, row(1) | {"command": 'say "x, y"'})
    assert len(read(path, command='say "x, y"')) == 1


def test_missing_ledger_has_no_rows_and_a_torn_line_is_none(path):
    assert read(path) == []
    append(path, row(1))
    with open(path, "a") as f:
        f.write("2026-01-01,abc")
    assert [r["seed"] for r in read(path)] == [1]
    append(path, row(2))
    assert [r["seed"] for r in read(path)] == [1, 2]


@pytest.mark.parametrize("spoil, message", [
    (lambda lines: ["a,b,c", *lines[1:]], "other columns"),
    (lambda lines: [*lines, lines[1] + ",1"], "row 2: 52 cells, expected 51"),
    (lambda lines: [*lines, ""], "row 2: 1 cells"),
    (lambda lines: [*lines, lines[1].replace(",1,4,256,", ",one,4,256,")], "row 2: seed=one"),
    (lambda lines: [*lines, lines[1].replace(",False,", ",perhaps,")], "row 2: dirty=perhaps")])
def test_foreign_or_broken_file_is_refused_by_name(path, spoil, message):
    append(path, row(1))
    path.write_text("\n".join(spoil(path.read_text().splitlines())) + "\n")
    with pytest.raises(ValueError, match=message):
        read(path)


def test_parse_cell_names_what_it_expected():
    cells = (("seed", "3"), ("tau", "3"), ("dirty", "False"), ("arm", "3"), ("seed", ""))
    assert [parse_cell(name, text) for name, text in cells] == [3, 3.0, False, "3", None]
    with pytest.raises(ValueError, match="seed=3.5: expected a whole number"):
        parse_cell("seed", "3.5")
    with pytest.raises(ValueError, match="tau=x: expected a number"):
        parse_cell("tau", "x")


# -----------------------------------------------------------------------------
# Many writers, random kills

def keep_appending(path, first, acknowledged):
    """Append rows first, first + 1, ... until killed; the number of each is written down after append has returned."""
    made, fd = row(1), os.open(acknowledged, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in range(first, first + 100_000):
        append(path, made | {"seed": number})
        os.write(fd, b"%d\n" % number)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_eight_writers_with_random_kills_lose_no_acknowledged_row(path, tmp_path):
    rng, fork, workers = random.Random(0), multiprocessing.get_context("fork"), []
    acknowledged, kills, deadline = tmp_path / "acknowledged", 0, time.monotonic() + 60

    def start():
        first = 1_000_000 * (kills + len(workers))
        worker = fork.Process(target=keep_appending, args=(path, first, acknowledged))
        worker.start()
        return worker
    while len(workers) < 8:
        workers.append(start())
    while kills < 40 and time.monotonic() < deadline:
        time.sleep(rng.uniform(0, 0.1))
        victim = rng.randrange(8)
        os.kill(workers[victim].pid, signal.SIGKILL)
        workers[victim].join()
        kills += 1
        workers[victim] = start()
    for worker in workers:
        worker.kill()
        worker.join()
    numbers = [r["seed"] for r in read(path)]
    promised = set(map(int, acknowledged.read_text().split()))
    assert kills == 40 and len(promised) > 40 and len(numbers) == len(set(numbers))
    assert promised <= set(numbers)
    assert len(numbers) - len(promised) <= kills + 8  # killed between writing and saying so
    append(path, row(1))  # the lock of a killed writer holds nobody up
    assert len(read(path)) == len(numbers) + 1


# -----------------------------------------------------------------------------
# Workloads

def test_what_makes_another_profile_is_named():
    assert why_other_profile(row(1), row(2)) == [] == why_other_profile(row(1), row(1, "--matrix-lr=0.03"))
    deeper, elsewhere = row(1, "--depth=6", "--eval-every=20"), row(1, kind="cuda", dataset_id="a" * 64)
    assert why_other_profile(row(1), deeper) == ["--depth 4 -> 6", "--eval-every 10 -> 20"]
    assert why_other_profile(row(1), elsewhere) == ["device cpu -> cuda", f"dataset {DATA[:8]} -> aaaaaaaa"]


def test_two_spellings_of_an_option_are_told_as_one_difference():
    plain, gate, residual = row(1), row(1, "--symplectic-gate"), row(1)
    residual["command"] = residual["command"] + " --residual=symplectic"
    assert option_differences(gate, residual) == []
    assert option_differences(plain, gate) == option_differences(plain, residual) == ["--symplectic-gate False -> True"]
    assert option_differences(plain, row(1, "--residual=other")) == ["--residual plain -> other"]


def test_rows_without_a_readable_command_still_say_what_they_can():
    foreign = row(1, "--depth=6") | {"command": None}
    assert options_of(foreign) == {} and words_of(foreign) == []
    assert why_other_profile(row(1), foreign) == ["--depth 4 -> 6"]
    assert options_of(row(1) | {"command": "python -m scripts.base_train --depth=many"}) == {}
    odd = row(1) | {"profile_hash": None, "command": None}
    assert why_other_profile(row(1), odd) == \
        ["the rows do not say: their profile hashes are of other versions of the options"]
