# Sourced by every script in runs/: repository root, Python, defaults, the skip check. Not run by itself.
#
# Bash 3.2 runs it, as macOS has it: no mapfile, no declare -A, no ${x,,}; an array that may be empty is expanded as
# ${x[@]+"${x[@]}"}. tests/test_shell.py looks for what it lacks, and for options of GNU tools.
#
#   NANOCHAT_BASE_DIR   where data, tokenizer, checkpoints and records live; nanochat/common.py reads it the same way
#   PYTHON              the Python that makes .venv on the first run
#   SKIP_SETUP=1        use the `python` that is on the path as it is, and no .venv

refuse() {
    echo "error: $*" >&2
    exit 2
}

# with_home PATH: the path with the home folder for a leading ~, which quotes or a .env file keep from the shell.
with_home() {
    case "$1" in
        "~" | "~/"*)
            local home="${HOME:-}"
            [ -n "$home" ] || { home=~; [ "$home" != / ] || home=; }  # HOME is not set: bash asks the list of users
            [ -n "$home" ] || refuse "this user has no home folder (HOME is not set);" \
                "set NANOCHAT_BASE_DIR to a folder that you may write to"
            printf '%s\n' "${home%/}${1:1}" ;;
        "~"*) refuse "NANOCHAT_BASE_DIR=$1: expected ~/folder or a path without ~, because the home of another user" \
            "is not looked up; write its path" ;;
        *) printf '%s\n' "$1" ;;
    esac
}

NANOCHAT_BASE_DIR="$(with_home "${NANOCHAT_BASE_DIR:-~/.cache/nanochat}")"
mkdir -p -- "$NANOCHAT_BASE_DIR" || refuse "set NANOCHAT_BASE_DIR to a folder that you may write to"
NANOCHAT_BASE_DIR="$(CDPATH='' cd -- "$NANOCHAT_BASE_DIR" && pwd)"
export NANOCHAT_BASE_DIR
CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${SKIP_SETUP:-}" ]; then
    "${PYTHON:-python3}" -m scripts.setup
    export PATH="$PWD/.venv/bin:$PWD/.venv/Scripts:$PATH"
fi

# done_already FLAGS... : true where the record of this run says that it ended ok, with these same options.
done_already() {
    python - "$@" <<'PY'
import sys
from nanochat.common import get_base_dir
from nanochat.config import config_of_record, hashed_options, parse
from nanochat.record import read_record

wanted = parse(sys.argv[1:])
record = read_record(get_base_dir(), wanted.model_tag) or {}
same = hashed_options(config_of_record(record.get("config", {}))) == hashed_options(wanted)
sys.exit(0 if same and record.get("status") == "ok" else 1)
PY
}

# train FLAGS... : one run, skipped where it is done, resumed where it was stopped.
train() {
    if done_already "$@"; then
        echo "skipped, done already: $*"
    else
        python -m scripts.base_train "$@" --resume
    fi
}

# compare LABEL FLAGS CANDIDATE... : a protocol. FLAGS are those of the control and of every candidate. Each CANDIDATE
# is "NAME: FLAGS". The caller may set:
#   PROFILE DATA   FLAGS, before the template's own   PRIMARY TARGET_BPB   NOISE=bank|own   NEW_HYPOTHESIS="why"
#   SEEDS="1 2 3 4 5": these and no more; without, seeds are added until it is decided, MAX_SEEDS at most
compare() {
    local candidate options=(--grid --label="$1" --flags="${FLAGS:-} $2" --noise="${NOISE:-bank}")
    if [ -n "${SEEDS:-}" ]; then
        options+=(--seeds="$SEEDS")
    else
        options+=(--until=decided --max-seeds="${MAX_SEEDS:-12}")
    fi
    [ -z "${PROFILE:-}" ] || options+=(--profile="$PROFILE")
    [ -z "${DATA:-}" ] || options+=(--data="$DATA")
    [ -z "${PRIMARY:-}" ] || options+=(--primary="$PRIMARY")
    [ -z "${TARGET_BPB:-}" ] || options+=(--target-bpb="$TARGET_BPB")
    [ -z "${NEW_HYPOTHESIS:-}" ] || options+=(--new-hypothesis="$NEW_HYPOTHESIS")
    for candidate in "${@:3}"; do
        options+=(--candidate="$candidate")
    done
    python -m scripts.protocol "${options[@]}"
}

# product A B : their product, for settings that are made of settings.
product() {
    local number
    for number in "$1" "$2"; do
        case "$number" in
            "" | *[!0-9.eE+-]*) refuse "$1 x $2: expected two numbers" ;;
        esac
    done
    awk -v a="$1" -v b="$2" 'BEGIN { printf "%g", a * b }'
}

# require_flags NAME... : stop where the trainer does not have these options yet.
require_flags() {
    python - "$@" <<'PY'
import sys
from nanochat.config import FIELDS
from nanochat.options import flag

missing = [flag(name) for name in sys.argv[1:] if name not in FIELDS]
sys.exit(f"error: the trainer has no {' and no '.join(missing)} yet, so nothing was run" if missing else 0)
PY
}

# home_of NAME: the base dir of the runs of a profile, or on a corpus; built-in profiles and corpora have their own.
home_of() {
    local beside
    beside="$(dirname "$NANOCHAT_BASE_DIR")"  # where the base dir is a corpus itself, the others lie beside it
    if [ -d "$NANOCHAT_BASE_DIR/lab/$1" ]; then
        echo "$NANOCHAT_BASE_DIR/lab/$1"
    elif [ "$(basename "$beside")" = lab ] && [ -d "$beside/$1" ]; then
        echo "$beside/$1"
    else
        echo "$NANOCHAT_BASE_DIR"
    fi
}

# builtin_target BPB: the target on the built-in corpus. On other text it means nothing, so its user has to declare one.
builtin_target() {
    if [ -n "${DATA:-}" ]; then
        echo "error: DATA=$DATA needs a TARGET_BPB of its own, because $1 is that of the built-in corpus;" \
             "make noise PROFILE=$PROFILE DATA=$DATA prints one that the control reaches" >&2
        return 2
    fi
    echo "$1"
}

# inferred_arms FILE: "NAME: FLAGS" for each candidate that scripts.lane_b_infer_ratio recommends; a fallback has none.
inferred_arms() {
    python - "$1" <<'PY'
import json, os, sys
facts = json.load(open(sys.argv[1], encoding="utf-8")) if os.path.exists(sys.argv[1]) else {"arms": {}}
print(*(f"{name}: {arm['flags']}\n" for name, arm in facts["arms"].items() if name != "control"), sep="", end="")
PY
}
