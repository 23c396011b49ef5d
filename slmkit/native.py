"""Small kernels in C for CPUs, compiled at first use.

A kernel is a C file beside the module that calls it. It is compiled in a second or two, with the C compiler that
DeepSpeed needs too, and kept beside DeepSpeed's own operators. It shares torch's OpenMP library, and so its threads:
two sets of them would wait for each other. Where there is no compiler, the caller does without it.

Invariant: the name of a library tells what it was made from (source, flags, processor, torch), and a library is there
whole or not at all, however many processes compile it at once.

Example:
    library = load_library(Path(__file__).with_suffix(".c"), "-O3", otherwise="generation is slower")
    if library is not None:
        library.multiply(...)
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path

import torch

from slmkit.log import get_logger

log = get_logger(__name__)

COMPILE = ("-fopenmp", "-fPIC", "-ffp-contract=fast", "-c")
AVX2 = ("-mavx2", "-mfma")
CAPABILITIES = {"AVX2": AVX2, "AVX512": (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")}  # flags of each
COMPILE_SEC = 60  # longer is no compiler at work


def load_library(source: Path, *flags: str, otherwise: str) -> ctypes.CDLL | None:
    """The library of a C file, compiled with `flags` and those for this CPU.

    None where it cannot be compiled, with a warning that says what follows (`otherwise`).
    """
    try:
        return ctypes.CDLL(str(compile_library(source, *flags)))
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("%s on this machine: cannot compile %s: %s", otherwise, source.name, error)
        return None


def compile_library(source: Path, *flags: str) -> Path:
    """The library of a C file, compiled unless it is there. Raises OSError or subprocess.SubprocessError."""
    directory = _directory()
    every = [*COMPILE, *flags, *CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), ())]
    facts = [source.read_text(), *every, platform.machine(), torch.__version__, torch.__file__]
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    library = directory / f"slmkit_{source.stem}_{digest}.so"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        openmp = sorted(str(path) for path in (Path(torch.__file__).parent / "lib").glob("libgomp*"))
        with tempfile.TemporaryDirectory(dir=directory) as place:
            compiled, linked = f"{place}/compiled.o", f"{place}/linked.so"
            for command in (
                ["cc", *every, str(source), "-o", compiled],
                ["cc", "-shared", compiled, *openmp, "-o", linked],
            ):
                subprocess.run(command, check=True, capture_output=True, timeout=COMPILE_SEC)
            os.replace(linked, library)
    return library


def _directory() -> Path:
    """Where DeepSpeed keeps its operators."""
    if named := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(named)
    from torch.utils import cpp_extension  # it imports setuptools, which takes long

    return Path(cpp_extension.get_default_build_root())
