#!/bin/bash
# Template F, shape: depth, aspect ratio and head size at one budget: FLOPs, or training seconds with WALL_BUDGET_SEC.
# Only the budget is matched: a larger model sees fewer tokens. Device, data, context and validation are the same.
#
# Hardware: one NVIDIA card of 16 GB (protocol-16gb), or any CPU with PROFILE=smoke-cpu DEPTH=4 TARGET_FLOPS=4e12.
# Time:     4 runs a seed. 1.8e16 FLOPs (baseline_d12) are ten minutes a run at 30 TFLOP/s (computed, not measured).
# Expect:   verdicts at one budget. Equal FLOPs are not equal seconds, so try the winner with WALL_BUDGET_SEC too.
#
#   bash runs/shape.sh                          LABEL=shape_wall WALL_BUDGET_SEC=600 bash runs/shape.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

DEPTH="${DEPTH:-12}"            # of the control
if [ -n "${WALL_BUDGET_SEC:-}" ]; then
    BUDGET="--num-iterations=1000000 --wall-budget-sec=$WALL_BUDGET_SEC"  # the steps never end it
else
    BUDGET="--num-iterations=-1 --target-flops=${TARGET_FLOPS:-1.8e16}"
fi

compare "${LABEL:-shape}" "$BUDGET --depth=$DEPTH" \
    "deeper: --depth=$((DEPTH * 3 / 2)) --aspect-ratio=42" \
    "wider: --aspect-ratio=96" \
    "head64: --head-dim=64"
