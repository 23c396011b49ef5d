#!/usr/bin/env bash
# Audio to shards of codes, alone or as a Slurm array whose tasks share the shards:
#
#   SOURCE=/data/LibriTTS CODEC=codecs/melvq OUT=shards/libritts tokenize_jobs/tokenize.sh
#   sbatch --array=0-7 --cpus-per-task=8 --gres=gpu:1 --export=ALL,SOURCE=...,CODEC=...,OUT=...,DEVICE=cuda tokenize_jobs/tokenize.sh
#
# Give the array every number from 0. An interrupted job or task goes on when it is started again.
#
#   SOURCE   folder of audio, or manifest                                  required
#   CODEC    directory of the codec                                        required
#   OUT      directory for the shards, seen by all tasks                   required
#   CONFIG   recipe                                                        tokenize_jobs/libritts.yaml
#   DEVICE   where the codec runs: cpu, cuda                               cpu
#   WORKERS  processes that decode audio                                   the task's CPUs
# Further arguments go to `slmkit tokenize` (for example --set shard_samples=500).
set -euo pipefail
: "${SOURCE:?folder of audio, or manifest}" "${CODEC:?directory of the codec}" "${OUT:?directory for the shards}"

exec slmkit tokenize run --config "${CONFIG:-tokenize_jobs/libritts.yaml}" "$SOURCE" "$CODEC" "$OUT" \
    --devices "${DEVICE:-cpu}" --num-workers "${WORKERS:-${SLURM_CPUS_PER_TASK:-2}}" \
    --task "${SLURM_ARRAY_TASK_ID:-0}" --num-tasks "${SLURM_ARRAY_TASK_COUNT:-1}" "$@"
