#!/bin/bash
# Every step of the pipeline once, on a CPU or a Mac: a demonstration, not a good model.
#
# Hardware: any; a Mac uses its GPU (MPS).
# Time:     82 M tokens, 1.3e16 FLOPs. Upstream reports half an hour on an M3 Max; two CPU cores need more than a day,
#           so try NUM_ITERATIONS=200 first. 0.9 GB of text are downloaded (OFFLINE=1: the built-in corpus instead).
# Expect:   short, mostly grammatical English, then a prompt. Ctrl-D leaves the prompt.
set -euo pipefail
source "$(dirname "$0")/common.sh"

MODEL_TAG="${MODEL_TAG:-cpu_d6}"

if [ -n "${OFFLINE:-}" ]; then
    python -m nanochat.dataset --builtin --name=runcpu
    export NANOCHAT_BASE_DIR="$NANOCHAT_BASE_DIR/lab/runcpu"
else
    python -m nanochat.dataset --num-files="${NUM_FILES:-8}"
fi
if [ ! -f "$NANOCHAT_BASE_DIR/tokenizer/tokenizer.json" ]; then
    python -m scripts.tok_train --max-chars=2000000000
fi
python -m scripts.tok_eval

train \
    --depth=6 \
    --head-dim=64 \
    --window-pattern=L \
    --max-seq-len=512 \
    --device-batch-size="${DEVICE_BATCH_SIZE:-32}" \
    --total-batch-size=16384 \
    --quiet-start \
    --num-iterations="${NUM_ITERATIONS:-5000}" \
    --eval-every=100 \
    --eval-tokens=524288 \
    --sample-every=100 --save-minutes=10 \
    --keep-last=2 \
    --model-tag="$MODEL_TAG" \
    --run="${WANDB_RUN:-dummy}"
python -m scripts.base_eval --eval=bpb,sample --model-tag="$MODEL_TAG" --device-batch-size=1 --split-tokens=16384
python -m scripts.base_complete --model-tag="$MODEL_TAG"
