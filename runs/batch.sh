#!/bin/bash
# Template C, batch: 0.7 and 1.4 times the predicted optimal batch against the prediction itself, at equal tokens.
# The trainer rescales learning rate (LR) and weight decay (WD) with the batch. It refuses a multiplier that rounds to
# the same batch.
#
# Hardware: what the profile asks for: one NVIDIA card of 16 GB (protocol-16gb), or any CPU with PROFILE=smoke-cpu.
# Time:     3 runs a seed, each as long as the profile says; FLAGS="--num-iterations=2000" shortens them.
# Expect:   a flat optimum. 0.7 and 1.4 cost little, so most verdicts are not promote.
#
#   bash runs/batch.sh                          BATCH=2 PROFILE=smoke-16gb bash runs/batch.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

BATCH="${BATCH:-8}"           # predicted B_opt over the profile's batch: B_REF (D / D_ref)^0.383, nanochat/schedule.py

compare "${LABEL:-batch}" "--batch-multiplier=$BATCH" \
    "batch07: --batch-multiplier=$(product 0.7 "$BATCH")" \
    "batch14: --batch-multiplier=$(product 1.4 "$BATCH")"
