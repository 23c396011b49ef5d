#!/usr/bin/env bash
# Kills a training run at random moments, again and again, starts it twice at once, flips bits in its checkpoints, and
# starts it on random numbers of processes. At the end its samples, losses and weights must be those of a run that was
# left alone. Takes about 20 minutes; not part of run.sh.
#
#   bash tests/soak.sh [--kills 32] [--seed 0]
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -d .venv ] || python3 -m venv .venv
    . .venv/bin/activate
fi
command -v slmkit >/dev/null && python -c 'import deepspeed, pytest' 2>/dev/null || pip install --quiet --editable ".[dev]"
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$VIRTUAL_ENV/torch_extensions}"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONPATH="$PWD:$PWD/tests"
exec python tests/soak.py "$@"
