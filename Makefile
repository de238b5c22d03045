# One line a target; `make help` lists them. Everything here is `python -m scripts.<name>`, so it runs without make too.
# PYTHON makes .venv on the first run; SKIP_SETUP=1 uses PYTHON itself, as it is.
PYTHON ?= python3
PY = $(if $(SKIP_SETUP),$(PYTHON),$(if $(filter Windows_NT,$(OS)),.venv/Scripts/python.exe,.venv/bin/python))
SETUP = $(if $(SKIP_SETUP),@true,@$(PYTHON) -m scripts.setup)
quote = '$(subst ','\'',$(1))'
# $(call option,flag,VARIABLE): the flag with the variable's value as one word, where the variable is given
option = $(if $($(2)),$(1)=$(call quote,$($(2))))

.PHONY: help setup setup-dev smoke protocol gates noise miniseries cycle lane-b ledger leaderboard simulate-gates upstream patch-check patch-apply patch-revert dataset tok arch vram test test-slow lint clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile
setup: ## make .venv with the pinned packages
	$(SETUP)
setup-dev: ## the same, with pytest and ruff
	$(SETUP) --dev
smoke: setup ## control against candidate on the built-in corpus, in minutes; FRESH=1 reuses nothing
	$(PY) -m scripts.smoke $(if $(filter-out 0,$(FRESH)),--fresh)
protocol: setup ## compare: SEEDS="1337 2026" NUM_ITERATIONS=64 LABEL=mix005 CANDIDATE="--flag ..." [PROFILE=] [FLAGS="for both arms"] [UNTIL=decided MAX_SEEDS=12] [AA=1] [PRIMARY=] [TARGET=] [JOBS=1] [FRESH=1]
	$(PY) -m scripts.protocol $(call option,--profile,PROFILE) $(call option,--label,LABEL) $(call option,--seeds,SEEDS) $(call option,--num-iterations,NUM_ITERATIONS) $(call option,--flags,FLAGS) $(call option,--candidate,CANDIDATE) $(call option,--until,UNTIL) $(call option,--max-seeds,MAX_SEEDS) $(call option,--primary,PRIMARY) $(call option,--target-bpb,TARGET) $(call option,--noise,NOISE) $(call option,--jobs,JOBS) $(if $(filter-out 0,$(AA)),--aa) $(if $(filter-out 0,$(FRESH)),--fresh)
gates: setup ## the verdict of LABEL=mix005, gate by gate, from its result file
	$(PY) -m scripts.gates $(call option,--label,LABEL)
noise: setup ## bank SEEDS=8 runs of the control alone and print sigma and the smallest gains: [PROFILE=] [FLAGS=] [JOBS=2] [FRESH=1]
	$(PY) -m scripts.noise --run $(call option,--seeds,SEEDS) $(call option,--profile,PROFILE) $(call option,--flags,FLAGS) $(call option,--jobs,JOBS) $(if $(filter-out 0,$(FRESH)),--fresh)
miniseries: setup ## a candidate across depths, then one verdict: DEPTHS="2 4" LABEL=mix005 CANDIDATE="--flag ..." [PROFILE=] [SEEDS=] [MAX_SEEDS=] [NUM_ITERATIONS=] [FLAGS=] [NOISE=own] [NOISE_SEEDS=8]
	$(PY) -m scripts.miniseries $(call option,--label,LABEL) $(call option,--depths,DEPTHS) $(call option,--profile,PROFILE) $(call option,--seeds,SEEDS) $(call option,--max-seeds,MAX_SEEDS) $(call option,--num-iterations,NUM_ITERATIONS) $(call option,--flags,FLAGS) $(call option,--noise,NOISE) $(call option,--noise-seeds,NOISE_SEEDS) $(call option,--candidate,CANDIDATE)
cycle: setup ## walk phases 0 to 5 of the plan as far as the gates allow: LABEL=cycle1 [PROFILE=] [FLAGS=] [DEPTHS="2 4"] [NOISE_SEEDS=8] [DRY_RUN=1]
	$(PY) -m scripts.cycle $(call option,--label,LABEL) $(call option,--profile,PROFILE) $(call option,--flags,FLAGS) $(call option,--depths,DEPTHS) $(call option,--noise-seeds,NOISE_SEEDS) $(if $(filter-out 0,$(DRY_RUN)),--dry-run)
lane-b: ## the training horizon inferred from the data, end to end: [LABEL=lane_b] [PROFILE=] [RATIO=2] [TARGET_BPB=] [SEEDS="1 2"]
	bash runs/lane_b.sh
ledger: setup ## the newest rows: [LAST=20] [WHERE="label=noise"]; python -m scripts.ledger --help for import and rerun
	$(PY) -m scripts.ledger --last=$(or $(LAST),20) $(call option,--where,WHERE)
leaderboard: setup ## rewrite dev/LEADERBOARD.md and its picture from the ledger [LEDGER=path]
	$(PY) -m scripts.leaderboard $(call option,--ledger,LEDGER)
simulate-gates: setup ## how often a verdict is wrong, and how often it sees a gain, on made-up runs, beside the targets
	$(PY) -m scripts.simulate_gates
upstream: setup ## clone or update a nanochat checkout outside this tree and pin it: [REMOTE=url or path] [COMMIT=] [FOLDER=]
	$(PY) -m scripts.patch upstream $(call option,--remote,REMOTE) $(call option,--commit,COMMIT) $(call option,--folder,FOLDER)
patch-check: setup ## does PATCH=patches/x.patch apply to TREE=../nanochat? Changes nothing
	$(PY) -m scripts.patch check $(call option,--patch,PATCH) $(call option,--tree,TREE)
patch-apply: setup ## apply it, and note its hash and the base commit
	$(PY) -m scripts.patch apply $(call option,--patch,PATCH) $(call option,--tree,TREE)
patch-revert: setup ## take back what patch-apply changed, and nothing else
	$(PY) -m scripts.patch revert $(call option,--patch,PATCH) $(call option,--tree,TREE)
dataset: setup ## download N ClimbMix shards of 100 MB each (N=8), or FROM=path NAME=name for text of your own
	$(PY) -m nanochat.dataset $(if $(FROM),$(call option,--from,FROM) $(call option,--name,NAME),--num-files=$(or $(N),8))
tok: setup ## train the tokenizer (VOCAB=32768) and compare it with GPT-2's and GPT-4's
	$(PY) -m scripts.tok_train $(call option,--vocab-size,VOCAB)
	$(PY) -m scripts.tok_eval
arch: setup ## shapes for a budget of parameters, with the flags to paste: BUDGET=37748736 VOCAB=24576
	$(PY) -m scripts.arch $(call option,--budget,BUDGET) $(call option,--vocab-size,VOCAB)
vram: setup ## memory that a run needs: FLAGS="--depth=12 --device-batch-size=16"
	$(PY) -m scripts.vram $(FLAGS)
test: setup-dev ## the tests that take minutes in all on a CPU
	$(PY) -m pytest -q -m "not slow and not gpu"
test-slow: setup-dev ## the long ones
	$(PY) -m pytest -q -m "slow and not gpu"
lint: setup-dev ## ruff, and bash -n of every script
	$(PY) -m ruff check .
	set -e; for script in runs/*.sh .ci/run; do bash -n "$$script"; done
clean: ## remove caches; .venv, results and artifacts stay
	rm -rf .pytest_cache .ruff_cache && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
