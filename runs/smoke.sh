#!/bin/bash
# The whole pipeline once, offline: corpus, tokenizer, control against the gate on two seeds, a verdict.
#
# Hardware: any CPU; with an NVIDIA card the larger profile, its batch fitted to the card (PROFILE=smoke-cpu: as without).
# Time:     minutes on 2 CPU cores, packages apart. A second call reuses what is done (FRESH=1: nothing).
# Expect:   results/smoke_latest.json, smoke_history.csv, smoke.png; the verdict is inconclusive, two seeds decide nothing.
#
#   bash runs/smoke.sh                          FRESH=1 PROFILE=smoke-cpu bash runs/smoke.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

PROFILE="${PROFILE:-}"
FRESH="${FRESH:-}"

python -m scripts.smoke \
    ${PROFILE:+--profile="$PROFILE"} \
    ${FRESH:+--fresh}
