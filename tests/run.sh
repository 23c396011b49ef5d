#!/usr/bin/env bash
# Runs the tests; on a new machine it first makes .venv (unless a virtual environment is active) and installs slmkit
# with its development tools. Arguments go to pytest:  bash tests/run.sh -k plan
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -d .venv ] || python3 -m venv .venv
    . .venv/bin/activate
fi
command -v slmkit >/dev/null && python -c 'import deepspeed, hypothesis, jiwer, mypy, pesq, pystoi, pytest, xdist' 2>/dev/null ||
    pip install --quiet --editable ".[dev]"

# DeepSpeed's compiled operators belong to one environment: another one's would be rebuilt in place.
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$VIRTUAL_ENV/torch_extensions}"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec python -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile "$@"
