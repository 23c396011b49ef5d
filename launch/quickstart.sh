#!/usr/bin/env bash
# The whole chain on one machine, in minutes and without a GPU: audio files -> codec -> shards -> ZeRO-2 training with
# two processes -> safetensors -> a WAV file to listen to.
#
#   bash launch/quickstart.sh [--mtp NUMBER] [--codec DIR] [--arch NAME] [--out DIR]
#
# --mtp    speech tokens predicted per step; 0 is next-token prediction; default 3
# --codec  a codec of yours, in place of one that is fitted to the recordings
# --arch   architecture of the tiny base model: qwen2 (default), qwen3, llama, smollm3
# --out    new directory for everything this makes; default runs/quickstart-mtp3 (or the --mtp given)
#
# Without an active virtual environment it makes .venv and installs slmkit there.
set -euo pipefail

MTP=3 OUT="" CODEC="" ARCH=qwen2
while [ $# -gt 0 ]; do
    case "$1" in
        --mtp) MTP="${2:?--mtp needs a number}"; shift 2 ;;
        --codec) CODEC="${2:?--codec needs a directory}"; [ ! -e "$CODEC" ] || CODEC="$(realpath "$CODEC")"; shift 2 ;;
        --arch) ARCH="${2:?--arch needs a name}"; shift 2 ;;
        --out) OUT="$(realpath -m "${2:?--out needs a directory}")"; shift 2 ;;
        -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "unknown option $1; see --help" >&2; exit 2 ;;
    esac
done
case "$MTP" in '' | *[!0-9]*) echo "--mtp is a number such as 0, 3, 6 or 12, not $MTP" >&2; exit 2 ;; esac
cd "$(dirname "$0")/.."
OUT="${OUT:-runs/quickstart-mtp$MTP}"
if [ -e "$OUT" ]; then echo "$OUT exists; remove it or give another --out" >&2; exit 2; fi

if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -d .venv ] || python3 -m venv .venv
    . .venv/bin/activate
fi
command -v slmkit >/dev/null && python -c '
from importlib.util import find_spec
assert find_spec("deepspeed")
' 2>/dev/null || pip install --quiet --editable .

# DeepSpeed's compiled operators belong to one environment: another one's would be rebuilt in place.
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$VIRTUAL_ENV/torch_extensions}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # the tensors are too small to share between threads
AUDIO=tokenize_jobs/sample_corpus
KEY=11_101_000000_000000 # the sentence that is spoken at the end
step() { echo; echo "== $*"; }

GIVEN="$CODEC"
if [ -z "$CODEC" ]; then
    CODEC="$OUT/codec"
    step "fit the built-in codec to the sample recordings"
    slmkit codec fit "$AUDIO" "$CODEC"
fi
step "audio to shards of codes"
slmkit tokenize run "$AUDIO" "$CODEC" "$OUT/shards"
VOICE=(--speaker "$OUT/shards:$KEY") SPEAKER=true
if grep -q '"speaker_dim": 0' "$OUT/shards/manifest.json"; then VOICE=() SPEAKER=false; fi # the codec has no voices
step "a tiny base model with a tokenizer of the corpus text"
slmkit init-base "$OUT/base" --corpus "$OUT/shards" --hidden-size 128 --num-layers 4 --arch "$ARCH"
step "train with two processes"
# A row has to hold the longest recording, of 2.2 seconds, and its text. A step of 3 072 positions of NTP holds a third of
# the speech. The codes of a codec with large codebooks, such as FACodec, hardly repeat: they take twice the steps of the
# built-in one's, which are 240 a second; and more codes a second take more.
read -r ROW_TOKENS STEPS < <(python -c '
import json, sys
codec, group, given = json.load(open(sys.argv[1]))["codec"], int(sys.argv[2]), len(sys.argv) > 3
streams = sum(stream["role"] != "detail" for stream in codec["streams"])
codes_per_sec = streams * codec["sample_rate"] / codec["hop_samples"]
row_tokens = max(768, round(2.3 * codes_per_sec / max(1, group)) + 160)
print(row_tokens, round((120 if group else 200) * (2 if given else 1) * max(1, codes_per_sec / 240)))
' "$OUT/shards/manifest.json" "$MTP" ${GIVEN:+given})
CONFIG=launch/quickstart.yaml PROCESSES=2 bash launch/train.sh "run_dir=$OUT/run" "base=$OUT/base" \
    "data.corpus=$OUT/shards" "codec=$CODEC" "model.group=$MTP" "model.speaker=$SPEAKER" "steps=$STEPS" \
    "data.row_tokens=$ROW_TOKENS"
step "checkpoint to safetensors"
slmkit consolidate "$OUT/run" "$OUT/model"
step "speak a sentence it was trained on, and score it"
TEXT="$(cat "$AUDIO"/*/*/"$KEY.normalized.txt")"
slmkit synthesize "$OUT/model" "$TEXT" "${VOICE[@]}" --out "$OUT/speech.wav"
slmkit evaluate "$OUT/model" --trained --corpus "$OUT/shards" --out "$OUT/scores" --limit 8

echo
echo "The model says \"$TEXT\" in:  $OUT/speech.wav"
echo "The training curves:  tensorboard --logdir $OUT/run/tensorboard"
