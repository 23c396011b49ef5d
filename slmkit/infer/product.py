"""Products of a few rows with a large weight, on a CPU in float32, at the speed at which memory gives the weight.

The libraries' own products of 2 to 16 rows take the weight apart and put it together again first, which takes several
times as long as reading it. `product.c` does not; it is compiled at first use, in a second, with the C compiler that
DeepSpeed needs too, and kept beside its operators. Without a compiler the libraries' product serves.

Shapes: M rows, K numbers of each, C rows of the weight.

Invariant: a row of the result depends on that row of the input alone, bit for bit: not on M, its place or the threads.

Example:
    product = fastest_product(weight)
    product(rows, weight)
"""

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from slmkit.log import get_logger

log = get_logger(__name__)

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # rows [M, K], weight [C, K] -> [M, C]
SOURCE = Path(__file__).with_suffix(".c")
COMPILE = ("-O3", "-fopenmp", "-fPIC", "-ffp-contract=fast", "-c")
CAPABILITIES = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mavx2", "-mfma")}  # flags that go with the CPU's


def fastest_product(weight: torch.Tensor) -> Product:
    """The product for weights of this type and on this device: ours where it can be, else `F.linear`."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return F.linear
    multiply = _compiled()
    return F.linear if multiply is None else functools.partial(_multiply_rows, multiply)


def _multiply_rows(multiply: Callable[..., None], rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    rows, weight = rows.contiguous(), weight.detach().contiguous()
    out = rows.new_empty(len(rows), len(weight))
    multiply(rows.data_ptr(), weight.data_ptr(), out.data_ptr(), *out.shape, rows.shape[1], torch.get_num_threads())
    return out


@functools.cache
def _compiled() -> Callable[..., None] | None:
    """`multiply` of product.c; None where it cannot be compiled."""
    try:
        multiply = ctypes.CDLL(str(compile_product())).multiply
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("generation is slower on this machine: cannot compile %s: %s", SOURCE.name, error)
        return None
    multiply.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_long] * 3 + [ctypes.c_int]
    multiply.restype = None
    return multiply


def compile_product() -> Path:
    """The compiled library, whose name tells what it was made from.

    It shares torch's OpenMP library, and so its threads: two sets of them would wait for each other.
    Raises OSError or subprocess.SubprocessError.
    """
    from torch.utils import cpp_extension  # it imports setuptools, which takes long

    directory = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    flags = [*COMPILE, *CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), ())]
    facts = [SOURCE.read_text(), *flags, platform.machine(), torch.__version__, torch.__file__]
    library = directory / f"slmkit_product_{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        directory.mkdir(parents=True, exist_ok=True)
        openmp = sorted(str(path) for path in (Path(torch.__file__).parent / "lib").glob("libgomp*"))
        with tempfile.TemporaryDirectory(dir=directory) as place:
            compiled, linked = f"{place}/product.o", f"{place}/product.so"
            for command in (
                ["cc", *flags, str(SOURCE), "-o", compiled],
                ["cc", "-shared", compiled, *openmp, "-o", linked],
            ):
                subprocess.run(command, check=True, capture_output=True, timeout=60)
            os.replace(linked, library)
    return library
