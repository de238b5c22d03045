#!/bin/bash
# Template B, warmdown: the share of the run over which the learning rate falls, times the shape of the fall.
#
# Hardware: what the profile asks for: one NVIDIA card of 16 GB (protocol-16gb), or any CPU with PROFILE=smoke-cpu.
# Time:     9 runs a seed, each as long as the profile says; FLAGS="--num-iterations=2000" shortens them.
# Expect:   8 verdicts against the profile's own warmdown. Each of 8 needs a larger gain than one alone (Holm).
#
#   bash runs/warmdown.sh                       FLAGS="--lr-multiplier=1.1" bash runs/warmdown.sh   (around a winner)
set -euo pipefail
source "$(dirname "$0")/common.sh"

compare "${LABEL:-warmdown}" "" \
    "linear20: --warmdown-ratio=0.2 --warmdown-shape=linear" \
    "linear30: --warmdown-ratio=0.3 --warmdown-shape=linear" \
    "linear40: --warmdown-ratio=0.4 --warmdown-shape=linear" \
    "linear50: --warmdown-ratio=0.5 --warmdown-shape=linear" \
    "cosine20: --warmdown-ratio=0.2 --warmdown-shape=cosine" \
    "cosine30: --warmdown-ratio=0.3 --warmdown-shape=cosine" \
    "cosine40: --warmdown-ratio=0.4 --warmdown-shape=cosine" \
    "cosine50: --warmdown-ratio=0.5 --warmdown-shape=cosine"
