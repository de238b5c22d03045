# `make help` lists the targets; README.md, section "Make targets", has the variables of each.
# Everything here is `python -m scripts.<name>`, so it runs without make too.
# PYTHON makes .venv on the first run; SKIP_SETUP=1 uses PYTHON itself, as it is.
# Values are text, never make: in LABEL='a$(shell ...)' nothing runs, and cost$5 stays cost$5. Make would expand a value
# where it is used, and a second time where it is handed on to a command. So each is replaced by its own literal text.
TAKEN = PYTHON SKIP_SETUP OS FRESH AA DRY_RUN N FROM NAME VOCAB BUDGET FLAGS LABEL PROFILE DATA SEEDS NUM_ITERATIONS CANDIDATE \
	UNTIL MAX_SEEDS PRIMARY TARGET NOISE MIN_GAIN NEW_HYPOTHESIS JOBS DEPTHS NOISE_SEEDS DTYPE LAST WHERE LEDGER REMOTE \
	COMMIT FOLDER PATCH TREE TEST_WORKERS
origin_of = $(firstword $(origin $(1)))
given := $(foreach v,$(filter-out SHELL MAKE%,$(.VARIABLES)),$(if $(filter command,$(call origin_of,$(v))),$(v)))
given += $(foreach v,$(TAKEN),$(if $(filter environment,$(call origin_of,$(v))),$(v)))
$(foreach v,$(given),$(eval override $(v) := $$(value $(v)))$(eval export $(v)))

define newline


endef
# $(call quote,text): one word for the shell. A line break would end the recipe's line, so it becomes a blank.
quote = '$(subst $(newline), ,$(subst ','\'',$(1)))'
# The same for a program; many shells leave the ~ of PYTHON=~/bin/python to us.
quote_path = $(subst !',',$(subst !'~/,"$$HOME"/',!$(call quote,$(1))))
quote_each = $(foreach word,$(1),$(call quote,$(word)))
# $(call option,flag,VARIABLE): the flag with the variable's value as one word, where the variable is given
option = $(if $($(2)),$(1)=$(call quote,$($(2))))
PYTHON ?= python3
VENV_PYTHON = $(if $(filter Windows_NT,$(OS)),.venv/Scripts/python.exe,.venv/bin/python)
PY = $(if $(SKIP_SETUP),$(call quote_path,$(PYTHON)),$(VENV_PYTHON))
SETUP = $(if $(SKIP_SETUP),@true,@$(call quote_path,$(PYTHON)) -m scripts.setup)

.DEFAULT_GOAL := help

##@ Start
.PHONY: help setup smoke
help: ## this list
	@awk -F ':.*## ' '/^##@ / {print substr($$0, 5)} /^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile
	@echo 'Variables of each: README.md, "Make targets". Options: each command has --help.'
setup: ## make .venv with the pinned packages
	$(SETUP)
smoke: setup ## control against candidate on the built-in corpus, in minutes
	$(PY) -m scripts.smoke $(if $(filter-out 0,$(FRESH)),--fresh)

##@ Train
.PHONY: dataset tok arch vram
dataset: setup ## download N=8 shards of 100 MB, or FROM=path NAME=name for text of your own
	$(PY) -m nanochat.dataset $(if $(FROM),$(call option,--from,FROM) $(call option,--name,NAME),--num-files=$(call quote,$(or $(N),8)))
tok: setup ## train the tokenizer, and compare it with GPT-2's and GPT-4's
	$(PY) -m scripts.tok_train $(call option,--vocab-size,VOCAB)
	$(PY) -m scripts.tok_eval
arch: setup ## shapes for a budget of parameters, with the flags to paste
	$(PY) -m scripts.arch $(call option,--budget,BUDGET) $(call option,--vocab-size,VOCAB)
vram: setup ## memory that a run needs: FLAGS="--depth=12"
	$(PY) -m scripts.vram $(call quote_each,$(FLAGS))

##@ Compare
.PHONY: protocol miniseries cycle lane-b
protocol: setup ## a candidate against the control: LABEL=name CANDIDATE="--flag ..."
	$(PY) -m scripts.protocol $(call option,--profile,PROFILE) $(call option,--data,DATA) $(call option,--label,LABEL) $(call option,--seeds,SEEDS) $(call option,--num-iterations,NUM_ITERATIONS) $(call option,--flags,FLAGS) $(call option,--candidate,CANDIDATE) $(call option,--until,UNTIL) $(call option,--max-seeds,MAX_SEEDS) $(call option,--primary,PRIMARY) $(call option,--target-bpb,TARGET) $(call option,--noise,NOISE) $(call option,--min-gain,MIN_GAIN) $(call option,--new-hypothesis,NEW_HYPOTHESIS) $(call option,--jobs,JOBS) $(if $(filter-out 0,$(AA)),--aa) $(if $(filter-out 0,$(FRESH)),--fresh)
miniseries: setup ## the same at several depths, then one verdict: DEPTHS="2 4"
	$(PY) -m scripts.miniseries $(call option,--label,LABEL) $(call option,--depths,DEPTHS) $(call option,--profile,PROFILE) $(call option,--data,DATA) $(call option,--seeds,SEEDS) $(call option,--max-seeds,MAX_SEEDS) $(call option,--num-iterations,NUM_ITERATIONS) $(call option,--flags,FLAGS) $(call option,--noise,NOISE) $(call option,--noise-seeds,NOISE_SEEDS) $(call option,--candidate,CANDIDATE)
cycle: setup ## the whole plan of sweeps, as far as the verdicts allow: DRY_RUN=1 prints it
	$(PY) -m scripts.cycle $(call option,--label,LABEL) $(call option,--profile,PROFILE) $(call option,--data,DATA) $(call option,--flags,FLAGS) $(call option,--depths,DEPTHS) $(call option,--noise-seeds,NOISE_SEEDS) $(if $(filter-out 0,$(DRY_RUN)),--dry-run)
lane-b: ## the length of training inferred from the data, and tested
	bash runs/lane_b.sh

##@ Decide
.PHONY: noise gates machines simulate-gates
noise: setup ## train the control on SEEDS=8 seeds, to know how much it varies by itself
	$(PY) -m scripts.noise --run $(call option,--seeds,SEEDS) $(call option,--profile,PROFILE) $(call option,--data,DATA) $(call option,--flags,FLAGS) $(call option,--jobs,JOBS) $(if $(filter-out 0,$(FRESH)),--fresh)
gates: setup ## the verdict of LABEL=name, point by point, from its result file
	$(PY) -m scripts.gates $(call option,--label,LABEL)
machines: setup ## one training run, compared with those of other machines
	$(PY) -m scripts.machines $(call option,--dtype,DTYPE)
simulate-gates: setup ## how often a verdict is wrong, measured on made-up runs
	$(PY) -m scripts.simulate_gates

##@ Look
.PHONY: ledger leaderboard
ledger: setup ## the newest rows of the table of all runs
	$(PY) -m scripts.ledger --last=$(call quote,$(or $(LAST),20)) $(call option,--where,WHERE)
leaderboard: setup ## write results/leaderboard.md and its picture from that table
	$(PY) -m scripts.leaderboard $(call option,--ledger,LEDGER)

##@ Other trees
.PHONY: upstream patch-check patch-apply patch-revert
upstream: setup ## clone nanochat at the pinned commit, or update that checkout
	$(PY) -m scripts.patch upstream $(call option,--remote,REMOTE) $(call option,--commit,COMMIT) $(call option,--folder,FOLDER)
patch-check: setup ## does PATCH=patches/x.patch apply to TREE=../nanochat? Changes nothing
	$(PY) -m scripts.patch check $(call option,--patch,PATCH) $(call option,--tree,TREE)
patch-apply: setup ## apply it, and note its hash and the base commit
	$(PY) -m scripts.patch apply $(call option,--patch,PATCH) $(call option,--tree,TREE)
patch-revert: setup ## take back what patch-apply changed, and nothing else
	$(PY) -m scripts.patch revert $(call option,--patch,PATCH) $(call option,--tree,TREE)

##@ Check
.PHONY: setup-dev test test-slow lint clean
setup-dev: ## make setup, with pytest, pytest-xdist and ruff
	$(SETUP) --dev
test: setup-dev ## the tests that take minutes in all on a CPU
	$(PY) -m pytest -q -n $(call quote,$(or $(TEST_WORKERS),2)) --dist loadfile -m "not slow and not gpu"
test-slow: setup-dev ## the long ones
	$(PY) -m pytest -q -n $(call quote,$(or $(TEST_WORKERS),2)) --dist loadfile -m "slow and not gpu"
lint: setup-dev ## ruff, and bash -n of every script
	$(PY) -m ruff check .
	set -e; for script in runs/*.sh .ci/run; do bash -n "$$script"; done
clean: ## remove caches; .venv, results and artifacts stay
	rm -rf .pytest_cache .ruff_cache && find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	@echo 'Weights of finished runs take the most disk: python -m scripts.runs prune says what can go, and deletes nothing.'
