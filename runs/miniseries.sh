#!/bin/bash
# Miniseries: does a candidate hold at other depths? Control and candidate run at each depth, under a label of its own.
# Then there is one verdict.
#
# Hardware: what the profile asks for: one NVIDIA card of 16 GB for DEPTHS="8 12 16".
#           On a CPU: PROFILE=smoke-cpu DEPTHS="2 4".
# Time:     two runs a depth and seed. Stop it any time: the same command goes on and repeats nothing.
# Expect:   results/<label>_d<depth>_latest.json and one table. Promote needs every depth to say promote or not worse.
#
#   LABEL=mix005 CANDIDATE="--symplectic-gate --symplectic-gate-mix=0.05" bash runs/miniseries.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

PROFILE="${PROFILE:-}"
DATA="${DATA:-}"
SEEDS="${SEEDS:-}"
MAX_SEEDS="${MAX_SEEDS:-}"
NUM_ITERATIONS="${NUM_ITERATIONS:-}"
CANDIDATE="${CANDIDATE:---symplectic-gate --symplectic-gate-mix=0.15}"

python -m scripts.miniseries \
    --label="${LABEL:-gate}" \
    --depths="${DEPTHS:-8 12 16}" \
    ${PROFILE:+--profile="$PROFILE"} \
    ${DATA:+--data="$DATA"} \
    ${SEEDS:+--seeds="$SEEDS"} \
    ${MAX_SEEDS:+--max-seeds="$MAX_SEEDS"} \
    ${NUM_ITERATIONS:+--num-iterations="$NUM_ITERATIONS"} \
    --noise="${NOISE:-bank}" \
    --noise-seeds="${NOISE_SEEDS:-8}" \
    --flags="${FLAGS:-}" \
    --candidate="$CANDIDATE"
