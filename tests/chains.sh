#!/usr/bin/env bash
# Tokenizes, verifies, trains, consolidates, evaluates, speaks and serves with a tiny codec of every kind, and with a base
# of every architecture, for next-token prediction and groups of 3 and 12. Prints the share of codes that a greedy answer
# has right, and how far the sounds of `slmkit synthesize` and of a server are from what the codec makes of these codes.
# Two minutes for each on a machine of two cores. Exit code 1 where a share is below 100 % or a sound is another.
#
#   bash tests/chains.sh [NAME ...] [--groups N ...]
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${VIRTUAL_ENV:-}" ]; then . .venv/bin/activate; fi
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$VIRTUAL_ENV/torch_extensions}"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONPATH="$PWD:$PWD/tests"
exec python tests/codec/chain.py "$@"
