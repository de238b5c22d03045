#!/bin/bash
# The whole pipeline once, offline: corpus, tokenizer, control against the gate on two seeds, a verdict.
#
# Hardware: any CPU. With an NVIDIA card: the larger profile, its batch fitted to it (PROFILE=smoke-cpu: as without).
# Time:     minutes on 2 CPU cores, without the packages. A second call reuses finished runs; FRESH=1 reuses nothing.
# Expect:   results/smoke_latest.json, smoke_history.csv, smoke.png. Verdict: inconclusive, two seeds decide nothing.
#
#   bash runs/smoke.sh                          FRESH=1 PROFILE=smoke-cpu bash runs/smoke.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

PROFILE="${PROFILE:-}"
FRESH="${FRESH:-}"

python -m scripts.smoke \
    ${PROFILE:+--profile="$PROFILE"} \
    ${FRESH:+--fresh}
