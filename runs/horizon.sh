#!/bin/bash
# Template E, horizon: at each of a few training lengths, how low the learning rate ends, with the warmdown for it.
# Each length is a workload with its own label, control and noise. Runs are compared within a length, never across.
#
# Hardware: one NVIDIA card of 16 GB (protocol-16gb), or any CPU with PROFILE=smoke-cpu RATIOS="0.02 0.03".
# Time:     4 runs a seed and length. Ratio 8 at d12 is 880 M tokens a run: six hours at 30 TFLOP/s
#           (computed, not measured).
# Expect:   results/horizon_r<ratio>_latest.json. A setting is worth keeping where it holds at every length.
#
#   bash runs/horizon.sh                        RATIOS="0.18 0.22 0.27" bash runs/horizon.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

for ratio in ${RATIOS:-8 10 12}; do
    compare "${LABEL:-horizon}_r$ratio" "--num-iterations=-1 --target-param-data-ratio=$ratio" \
        "end00: --final-lr-frac=0.0 --warmdown-ratio=0.5" \
        "end10: --final-lr-frac=0.1 --warmdown-ratio=0.75" \
        "end20: --final-lr-frac=0.2 --warmdown-ratio=0.85"
done
