"""The fused activation without a GPU: in triton's interpreter against its twin, and built for GPUs.

triton is large and torch for CPUs does without it, so it may lie in a directory of its own, TRITON_SITE.
tests/gpu/test_facodec_gpu.py runs it where it is used.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slmkit.codec.snake import fused_cpu
from slmkit.codec.snake.activation import fused_on

WORKER = Path(__file__).with_name("fused_worker.py")
ROOT = Path(__file__).resolve().parents[2]
TRITON_SITE = os.environ.get("TRITON_SITE", "")
needs_triton = pytest.mark.skipif(
    not TRITON_SITE and importlib.util.find_spec("triton") is None, reason="needs triton, installed or in TRITON_SITE"
)

pytestmark = pytest.mark.full


def run_worker(what: str, **env: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), TRITON_SITE, os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **env}
    done = subprocess.run([sys.executable, str(WORKER), what], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@needs_triton
def test_the_kernel_equals_its_twin_at_every_end() -> None:
    run_worker("interpret", TRITON_INTERPRET="1")


@needs_triton
def test_the_kernel_is_built_for_gpus(tmp_path: Path) -> None:
    run_worker("compile", TRITON_CACHE_DIR=str(tmp_path))


@needs_triton
def test_a_kernel_that_does_not_run_is_left_out_with_a_warning() -> None:
    done = run_worker("refuse", CUDA_VISIBLE_DEVICES="")
    assert "the fused activation of codecs does not run" in done.stderr


def test_a_cpu_has_a_kernel_of_its_own_and_without_a_compiler_the_plain_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused_on(torch.device("cpu")) is fused_cpu
    assert fused_on(torch.device("meta")) is None
    monkeypatch.setattr(fused_cpu, "_kernel", lambda: None)
    assert fused_on.__wrapped__(torch.device("cpu")) is None
