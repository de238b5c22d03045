#!/bin/bash
# A cycle (ideas/plan.md, section 9), phase by phase as far as the verdicts allow: noise, theory slice, sweeps, shape,
# miniseries, promotion.
#
# Hardware: what the profile asks for: one NVIDIA card of 16 GB. On a CPU: PROFILE=smoke-cpu, DEPTHS="2 4" and what its
#           templates ask for.
# Time:     the sum of its templates: days on a card. Stop it any time: the same command goes on and repeats nothing.
# Expect:   where it stopped and why, and results/<label>_cycle.json. DRY_RUN=1 prints the plan and runs nothing.
#
#   DRY_RUN=1 bash runs/cycle.sh                LABEL=cycle1 bash runs/cycle.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

PROFILE="${PROFILE:-}"
DATA="${DATA:-}"
DRY_RUN="${DRY_RUN:-}"

python -m scripts.cycle \
    --label="${LABEL:-cycle1}" \
    --depths="${DEPTHS:-8 12 16}" \
    ${PROFILE:+--profile="$PROFILE"} \
    ${DATA:+--data="$DATA"} \
    --flags="${FLAGS:-}" \
    --ratios ${RATIOS:-8 10 12} \
    --noise-seeds="${NOISE_SEEDS:-8}" \
    ${DRY_RUN:+--dry-run}
