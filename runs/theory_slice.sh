#!/bin/bash
# Template A, the theory slice: what the theory says about schedule, batch, learning rate and decay. Each has its own
# candidate, and the bundle is all of them at once.
#
# Hardware: what the profile asks for: one NVIDIA card of 16 GB (protocol-16gb), or any CPU with PROFILE=smoke-cpu.
# Time:     5 runs a seed, each as long as the profile says; FLAGS="--num-iterations=2000" shortens them. Bank noise
#           first (make noise).
# Expect:   verdicts at equal tokens. A promoted candidate is the base of the sweeps (warmdown, batch, lr_wd, horizon).
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
