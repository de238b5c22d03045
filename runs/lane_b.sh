#!/bin/bash
# Lane B infers how long to train: three calibration runs (the control among them), corpus statistics, then a ratio
# and a conservative neighbour. Both are compared with the control, and the outcome goes into dev/ledger/lane_b.csv.
#
# Hardware: any CPU; or PROFILE=protocol-16gb DEPTH=12 CONTEXT=1024 RATIO=12 with a TARGET_BPB of its own.
# Time:     lane-b-small: 1 M tokens for the control's 256 steps, a half and a quarter of that for the other two.
# Expect:   results/<label>_stats and _infer (.json, .png), then a protocol's files. Or a fallback: its reason, exit 3.
#
#   bash runs/lane_b.sh                         LABEL=mine DATA=mine TARGET_BPB=2.2 bash runs/lane_b.sh
set -euo pipefail
source "$(dirname "$0")/common.sh"

LABEL="${LABEL:-lane_b}"
PROFILE="${PROFILE:-lane-b-small}"
RATIO="${RATIO:-2}"                     # of the control, and where the laws of batch and decay are pinned
TARGET="${TARGET_BPB:-$(builtin_target 2.1)}"  # declared here, before anything is run
SEEDS="${SEEDS:-1 2}"
STATS="results/${LABEL}_stats" INFER="results/${LABEL}_infer"
HORIZON="--num-iterations=-1 --target-param-data-ratio=$RATIO --ratio-ref=$RATIO"
MODEL="nc_${LABEL}_calibration_d${DEPTH:-2}_control_s${SEEDS%% *}"

PRIMARY="" TARGET_BPB="" SEEDS="${SEEDS%% *}" compare "${LABEL}_calibration" "$HORIZON" \
    "half: --target-param-data-ratio=$(product 0.5 "$RATIO")" \
    "quarter: --target-param-data-ratio=$(product 0.25 "$RATIO")"
HOME_DIR="$(home_of "${DATA:-$PROFILE}")"  # measured anew, in a minute: seed, context or code may differ from the last time
POSITIONS="$HOME_DIR/lane_b/${MODEL}_positions.json"  # the control's losses by position: gamma is read off them
NANOCHAT_BASE_DIR="$HOME_DIR" python -m scripts.base_loss \
    --model-tag="$MODEL" \
    --split=val \
    --split-tokens="${POSITION_TOKENS:-524288}" \
    --per-position="$POSITIONS"
rm -f "$STATS.json"
NANOCHAT_BASE_DIR="$HOME_DIR" python -m scripts.lane_b_stats \
    --model-tag="$MODEL" \
    --max-seq-len="${CONTEXT:-256}" \
    --output-json="$STATS.json" \
    --plot="$STATS.png" || { code=$?; [ -s "$STATS.json" ] || exit "$code"; }  # a refusal is written: a fallback
python -m scripts.lane_b_infer_ratio \
    --stats="$STATS.json" \
    --label="${LABEL}_calibration" \
    --target-threshold="$TARGET" \
    --default-ratio="$RATIO" \
    --ratio-ref="$RATIO" \
    --output-json="$INFER.json" \
    --plot="$INFER.png" || { code=$?; [ "$code" = 3 ] || exit "$code"; }  # 3 is the fallback
arms="$(inferred_arms "$INFER.json")"
[ -n "$arms" ] || { echo "no recommendation, nothing to compare: the ratio stays $RATIO"; exit 3; }
ARMS=(); while IFS= read -r arm; do ARMS+=("$arm"); done <<< "$arms"
PRIMARY=time_to_target TARGET_BPB="$TARGET" compare "$LABEL" "$HORIZON" ${ARMS[@]+"${ARMS[@]}"}
python -m scripts.lane_b_log_run --inference="$INFER.json" --label="$LABEL"
