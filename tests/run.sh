#!/usr/bin/env bash
# Runs the tests; on a new machine it first makes .venv (unless a virtual environment is active) and installs slmkit
# with its development tools.
#
#   bash tests/run.sh             the tests that hold every guarantee, in minutes (tests/README.md lists them)
#   bash tests/run.sh --all       all of them: Slurm, ssh, a browser, every DeepSpeed file, long runs
#   bash tests/run.sh -k plan     other arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -d .venv ] || python3 -m venv .venv
    . .venv/bin/activate
fi
command -v slmkit >/dev/null && python -c 'import deepspeed, fastapi, hypothesis, jiwer, mypy, openai, pesq, pystoi, pytest, xdist' 2>/dev/null ||
    pip install --quiet --editable ".[dev]"

WHICH=(-m "not full")
if [ "${1:-}" = "--all" ]; then
    WHICH=()
    shift
fi
# DeepSpeed's compiled operators belong to one environment: another one's would be rebuilt in place.
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$VIRTUAL_ENV/torch_extensions}"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec python -m pytest --numprocesses "${TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "${WHICH[@]}" "$@"
