#!/bin/bash
# The finding of ideas/quiet_start.md, reproduced: upstream's start against --quiet-start, each run with a twin that
# differs from it by rounding.
#
# Hardware: any CPU.
# Time:     4 runs a seed (two starts, each with a twin) of 60 steps of a small model: half a minute a seed on 2 cores.
# Expect:   twins end about 0.02 bits per byte apart without --quiet-start, and within 1e-5 with it.
#
#   bash runs/quiet_start.sh                    DEPTHS="2 4 6" SEEDS="1 2 3" STEPS=240 bash runs/quiet_start.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

PROFILE="${PROFILE:-lane-b-small}"
SEEDS="${SEEDS:-1 2 3 4 5 6 7 8}"
STEPS="${STEPS:-60}"
SHAPE="--model-dim=64 --head-dim=32 --max-seq-len=64 --device-batch-size=32 --total-batch-size=2048"
LENGTH="--target-param-data-ratio=12 --ratio-ref=-1 --num-iterations=$STEPS --warmup-steps=5 --eval-every=$STEPS"
AMOUNT="${PERTURB:-1e-7}"               # 4e-3 with FLAGS=--dtype=bfloat16, which rounds off anything smaller
LABEL="${LABEL:-twins}"
export NANOCHAT_LEDGER="${NANOCHAT_LEDGER:-results/${LABEL}_experiments.csv}"  # a measurement: no row of the ledger's

labels=()
for depth in ${DEPTHS:-4}; do
    for start in no-quiet-start quiet-start; do
        label="${LABEL}_d${depth}_${STEPS}_${start}"
        compare "$label" "--depth=$depth $SHAPE $LENGTH --$start" "twin: --perturb=$AMOUNT"
        labels+=("$label")
    done
done
python -m scripts.twins ${labels[@]+"${labels[@]}"}
