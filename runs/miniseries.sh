#!/bin/bash
# Miniseries: does a candidate hold at other depths? Control and candidate at each depth, one label a depth, then one verdict.
#
# Hardware: as the profile says: one NVIDIA card of 16 GB for DEPTHS="8 12 16"; on a CPU PROFILE=smoke-cpu DEPTHS="2 4".
# Time:     two arms a depth and seed; stop it any time, the same command goes on and repeats nothing.
# Expect:   results/<label>_d<depth>_latest.json, one table, and promote only where every depth says promote or not worse.
#
#   LABEL=mix005 CANDIDATE="--symplectic-gate --symplectic-gate-mix=0.05" bash runs/miniseries.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

PROFILE="${PROFILE:-}"
SEEDS="${SEEDS:-}"
MAX_SEEDS="${MAX_SEEDS:-}"
NUM_ITERATIONS="${NUM_ITERATIONS:-}"
CANDIDATE="${CANDIDATE:---symplectic-gate --symplectic-gate-mix=0.15}"

python -m scripts.miniseries \
    --label="${LABEL:-gate}" \
    --depths="${DEPTHS:-8 12 16}" \
    ${PROFILE:+--profile="$PROFILE"} \
    ${SEEDS:+--seeds="$SEEDS"} \
    ${MAX_SEEDS:+--max-seeds="$MAX_SEEDS"} \
    ${NUM_ITERATIONS:+--num-iterations="$NUM_ITERATIONS"} \
    --noise="${NOISE:-bank}" \
    --noise-seeds="${NOISE_SEEDS:-8}" \
    --flags="${FLAGS:-}" \
    --candidate="$CANDIDATE"
