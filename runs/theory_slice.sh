#!/bin/bash
# Template A, the theory slice: what the theory says about schedule, batch, learning rate and decay, one arm each and all at once.
#
# Hardware: as the profile says: one NVIDIA card of 16 GB (protocol-16gb), or any CPU with PROFILE=smoke-cpu.
# Time:     5 arms, cells of the profile; FLAGS="--num-iterations=2000" shortens them. Bank noise first (make noise).
# Expect:   verdicts at equal tokens; what is promoted is the base of the sweeps (warmdown, batch, lr_wd, horizon).
#
#   bash runs/theory_slice.sh                   PROFILE=smoke-cpu BATCH=2 SEEDS="1 2" bash runs/theory_slice.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

WARMDOWN="--warmdown-ratio=0.4 --warmdown-shape=cosine"
BATCH="--batch-multiplier=${BATCH:-8}"              # predicted B_opt over the profile's batch; steps fall, tokens stay
LR_WD="--lr-multiplier=1.1 --wd-multiplier=0.91"    # their product stays, and so tau

compare "${LABEL:-theory_slice}" "" \
    "warmdown: $WARMDOWN" \
    "batch: $BATCH" \
    "lr_wd: $LR_WD" \
    "bundle: $WARMDOWN $BATCH $LR_WD"
