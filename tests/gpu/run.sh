#!/usr/bin/env bash
# Measures on a GPU all that one is wanted for, in under nine minutes, the most valuable first.
#
#   bash tests/gpu/run.sh               on one GPU; rows go to tests/gpu/RESULTS.md, raw figures to tests/gpu/results/
#   bash tests/gpu/run.sh decode codec  some parts: tests steps decode codec tokenize checkpoint curve
#   bash tests/gpu/run.sh --rehearse    the same parts on the CPU in tiny shapes, in under five minutes on two cores
#
# --minutes M  ends the run after so long (8.5); --commit C names the code where it is no git checkout.
# $OUT         another directory than tests/gpu/results/ for page, raw figures and output.
#
# Where slmkit's requirements are missing, those that lie in .whl/ are installed into $SITE (/tmp/site): collect them
# before, on a machine with a network, with `python tests/gpu/wheels.py`.
set -euo pipefail
cd "$(dirname "$0")/../.."

SITE="${SITE:-/tmp/site}"
if [ -d "$SITE" ]; then export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}"; fi
if ! python3 -c '
from importlib.util import find_spec
import sys
sys.exit(not all(map(find_spec, "deepspeed pydantic soundfile soxr webdataset".split())))
' && compgen -G ".whl/*.whl" >/dev/null; then
    python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$SITE" .whl/*.whl
    export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}"
unset PYTHONDONTWRITEBYTECODE # or each process would compile DeepSpeed's sources again
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
case " $* " in *" --rehearse "*) export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" ;; esac # the tensors are tiny
exec python3 -m gpu.measure "$@"
