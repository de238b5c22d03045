#!/bin/bash
# Control against a candidate over paired seeds. Edit this file, run it, read results/$LABEL.png and the verdict.
#
# Hardware: one NVIDIA card of 16 GB (profile protocol-16gb). PROFILE=smoke-cpu runs anywhere, offline.
# Time:     runs of 2 G tokens, one after the other, each a day or so. Stop it any time: the same command goes on.
# Expect:   a verdict from 5 seeds on, with fewer only differences. Data and tokenizer are made where missing.
#
#   LABEL=mix015 NUM_ITERATIONS=64 bash runs/protocol.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

PROFILE="${PROFILE:-}"
DATA="${DATA:-}"
NUM_ITERATIONS="${NUM_ITERATIONS:-}"
NEW_HYPOTHESIS="${NEW_HYPOTHESIS:-}"  # what is new about a candidate that an earlier label tried
CANDIDATE="${CANDIDATE:---symplectic-gate --symplectic-gate-mix=0.15}"

python -m scripts.protocol \
    --label="${LABEL:-gate}" \
    --seeds="${SEEDS:-1337 2026}" \
    ${PROFILE:+--profile="$PROFILE"} \
    ${DATA:+--data="$DATA"} \
    ${NUM_ITERATIONS:+--num-iterations="$NUM_ITERATIONS"} \
    ${NEW_HYPOTHESIS:+--new-hypothesis="$NEW_HYPOTHESIS"} \
    --flags="${FLAGS:-}" \
    --candidate="$CANDIDATE"
