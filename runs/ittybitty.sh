#!/bin/bash
# The tiny model: 4 layers, 512 wide, 8 heads of 64, vocabulary 24576. wte, matrices and lm_head have 12,582,912
# parameters each, 37,748,736 in all by plain counting. Value embeddings and scalars come on top.
#
# Hardware: one NVIDIA card of 24 GB. Smaller cards: DEVICE_BATCH_SIZE=16, 8 or 4 (the same batch, accumulated).
# Time:     954 x 524,288 = 500 M tokens, 1.0e17 FLOPs: an hour at 30 TFLOP/s (computed, not measured).
# Expect:   a model that completes English text. Its vocabulary needs a base dir of its own, which shares the shards.
#
#   bash runs/ittybitty.sh                   then:   NANOCHAT_BASE_DIR=... python -m scripts.base_complete -g ittybitty
set -euo pipefail
source "$(dirname "$0")/common.sh"

MODEL_TAG="${MODEL_TAG:-ittybitty}"

python -m nanochat.dataset --num-files="${NUM_FILES:-16}"
mkdir -p "$NANOCHAT_BASE_DIR/lab/ittybitty"
ln -sfn "$NANOCHAT_BASE_DIR/base_data_climbmix" "$NANOCHAT_BASE_DIR/lab/ittybitty/base_data_climbmix"
export NANOCHAT_BASE_DIR="$NANOCHAT_BASE_DIR/lab/ittybitty"
if [ ! -f "$NANOCHAT_BASE_DIR/tokenizer/tokenizer.json" ]; then
    python -m scripts.tok_train --vocab-size=24576
fi

train \
    --depth=4 \
    --model-dim=512 \
    --head-dim=64 \
    --max-seq-len=2048 \
    --window-pattern=L \
    --device-batch-size="${DEVICE_BATCH_SIZE:-32}" \
    --total-batch-size=524288 \
    --quiet-start \
    --num-iterations="${NUM_ITERATIONS:-954}" \
    --save-minutes=10 \
    --keep-last=2 \
    --seed="${SEED:-1337}" \
    --model-tag="$MODEL_TAG" \
    --run="${WANDB_RUN:-dummy}"
python -m scripts.base_eval --eval=bpb,sample --model-tag="$MODEL_TAG"
