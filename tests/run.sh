#!/usr/bin/env bash
# Runs the tests; on a new machine it first makes .venv (unless a virtual environment is active) and installs slmkit
# with its development tools.
#
#   bash tests/run.sh             the tests that hold every guarantee, in minutes (tests/README.md lists them)
#   bash tests/run.sh --all       all of them: Slurm, ssh, a browser, every DeepSpeed file, the quickstart, long runs
#   bash tests/run.sh -k plan     other arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -d .venv ] || python3 -m venv .venv
    . .venv/bin/activate
fi
command -v slmkit >/dev/null && python -c '
from importlib.util import find_spec
assert all(map(find_spec, "deepspeed fastapi hypothesis jiwer mypy openai pesq pystoi pytest xdist".split()))
' 2>/dev/null || pip install --quiet --editable ".[dev]"

WHICH=(-m "not full")
PROCESSES=4 # more than the cores of a small machine: tests of processes that stop or hang wait a lot
if [ "${1:-}" = "--all" ]; then
    WHICH=(--hypothesis-profile all)
    PROCESSES=3 # with the daemons of Slurm and ssh beside them
    shift
fi
# DeepSpeed's compiled operators belong to one environment: another one's would be rebuilt in place.
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$VIRTUAL_ENV/torch_extensions}"
unset PYTHONDONTWRITEBYTECODE # or each process of each test would compile slmkit again
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
exec python -m pytest --numprocesses "${TEST_PROCESSES:-$PROCESSES}" --dist loadfile --no-loadscope-reorder "${WHICH[@]}" "$@"
