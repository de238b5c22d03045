#!/bin/bash
# The d12 baseline: the 12-layer run that a change is measured against on one card. For benchmarking, not for quality.
#
# Hardware: one NVIDIA card of 16 GB. For 12 or 8 GB DEVICE_BATCH_SIZE=8 or 4 (the same batch, accumulated).
# Time:     24.6 M tokens, 1.8e16 FLOPs: ten minutes at 30 TFLOP/s (computed, not measured), without downloads.
# Expect:   0.22 tokens a parameter. The validation bpb of two seeds differs by about 0.0013 (sd of 3 runs elsewhere).
#
#   bash runs/baseline_d12.sh                   SEED=2026 bash runs/baseline_d12.sh
#   QUIET_START= bash runs/baseline_d12.sh      (upstream's first steps: ideas/quiet_start.md)
set -euo pipefail
source "$(dirname "$0")/common.sh"

DEPTH="${DEPTH:-12}"
SEED="${SEED:-1337}"

python -m nanochat.dataset --num-files="${NUM_FILES:-8}"
if [ ! -f "$NANOCHAT_BASE_DIR/tokenizer/tokenizer.json" ]; then
    python -m scripts.tok_train
fi

train \
    --depth="$DEPTH" \
    --head-dim=128 \
    --window-pattern=L \
    --max-seq-len=512 \
    --device-batch-size="${DEVICE_BATCH_SIZE:-16}" \
    --total-batch-size=16384 \
    ${QUIET_START---quiet-start} \
    --num-iterations="${NUM_ITERATIONS:-1500}" \
    --eval-every=100 \
    --eval-tokens=524288 \
    --core-metric-every=-1 \
    --sample-every=-1 \
    --save-every=-1 \
    --seed="$SEED" \
    --model-tag="${MODEL_TAG:-baseline_d${DEPTH}_s${SEED}}" \
    --run="${WANDB_RUN:-dummy}"
