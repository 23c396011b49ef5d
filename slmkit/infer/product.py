"""Products of a few rows with a large weight, on a CPU, at the speed at which memory gives the weight.

The libraries' own products of 2 to 16 rows take the weight apart and put it together again first, which takes several
times as long as reading it. `product.c` does not; without a compiler (`native`) the libraries' product serves. Measured
on a Xeon with AMX, one thread, shapes of Qwen2.5-0.5B, in float32: as fast as MKL with one row, 1.1 times with 2, 1.9
with 8, 1.3 with 64; in bfloat16 with one row 1.4 times the libraries' product.

Weights are float32; or, of up to `FEW` rows, bfloat16, half the bytes: of more rows the libraries' product is faster
where the processor multiplies such numbers. Sums are float32.

Which product serves depends on types and sizes, not on a trial: timed twice it might choose twice, and answers would
differ in roundings.

Shapes: M rows, K numbers of each, C rows of the weight.

Invariant: a row of the result depends on that row of the input alone, bit for bit: not on its place or the threads, nor
on M as long as it is up to `FEW`, or above.

Example:
    product = fastest_product(weight)
    product(rows, weight)
"""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from slmkit.native import load_library

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # rows [M, K], weight [C, K] -> [M, C]
SOURCE = Path(__file__).with_suffix(".c")
FEW, BLOCK, LANES = 4, 64, 16  # of product.c: rows whose sums go along a row; others: at once, and rounded up to


def fastest_product(weight: torch.Tensor) -> Product:
    """The product for weights of this type and on this device: ours where it can be, else `F.linear`."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return F.linear
    multiply = _compiled()
    return F.linear if multiply is None else functools.partial(_multiply_rows, multiply)


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers, and torch uses it."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.cpu._is_avx512_bf16_supported()


def _multiply_rows(multiply: Callable[..., None], rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    is_half, (count, width), classes = rows.dtype == torch.bfloat16, rows.shape, weight.shape[0]
    if is_half and count > FEW:
        return F.linear(rows, weight)
    exact, weight = rows.contiguous().float(), weight.contiguous()
    out = torch.empty(count, classes)
    packed = out if count <= FEW else torch.empty(-(-min(count, BLOCK) // LANES) * LANES, width)
    places = exact.data_ptr(), weight.data_ptr(), out.data_ptr(), packed.data_ptr()
    multiply(*places, count, classes, width, is_half, torch.get_num_threads())
    return out.to(rows.dtype) if is_half else out


@functools.cache
def _compiled() -> Callable[..., None] | None:
    """`multiply` of product.c; None where it cannot be compiled."""
    library = load_library(SOURCE, "-O2", otherwise="generation is slower")
    if library is None:
        return None
    library.multiply.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_long] * 3 + [ctypes.c_int] * 2
    library.multiply.restype = None
    return library.multiply
