#!/bin/bash
# Template D, learning rate x weight decay. They act together (tau = B / (eta lambda D)), so they are swept together.
#
# Hardware: what the profile asks for: one NVIDIA card of 16 GB (protocol-16gb), or any CPU with PROFILE=smoke-cpu.
# Time:     9 runs a seed, each as long as the profile says; FLAGS="--num-iterations=2000" shortens them.
# Expect:   8 verdicts around the control, LR x WD. Multipliers act on every group's rate, and on the scaled decay.
#
#   bash runs/lr_wd.sh                          LR=1.1 WD=0.91 NOISE=own SEEDS="1 2 3 4 5" bash runs/lr_wd.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

LR="${LR:-1}"
WD="${WD:-1}"

candidates=()
for lr in 0.9 1.0 1.1; do
    for wd in 0.7 1.0 1.4; do
        if [ "$lr $wd" != "1.0 1.0" ]; then
            candidates+=("lr${lr}_wd${wd}: --lr-multiplier=$(product "$lr" "$LR") --wd-multiplier=$(product "$wd" "$WD")")
        fi
    done
done

compare "${LABEL:-lr_wd}" "--lr-multiplier=$LR --wd-multiplier=$WD" ${candidates[@]+"${candidates[@]}"}
