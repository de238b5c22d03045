#!/bin/bash
# Template G, fusion: the same arithmetic in fewer kernels, to save seconds. One day at most, then it is decided.
# The trainer does not have these flags yet. Until it has them, this script says so and stops before anything is run.
#
# Hardware: one NVIDIA card of 16 GB. Kernels are fused for a card; a CPU says little about them.
# Time:     4 runs a seed, each as long as the profile says; FLAGS="--num-iterations=2000" shortens them.
# Expect:   wall time at matched quality: a gain of 3 % is asked for, and val_bpb must not move.
#
#   bash runs/fusion.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

require_flags fused_rmsnorm chunked_ce
PRIMARY="${PRIMARY:-wall_time}"

compare "${LABEL:-fusion}" "" \
    "norm: --fused-rmsnorm" \
    "ce: --chunked-ce" \
    "both: --fused-rmsnorm --chunked-ce"
