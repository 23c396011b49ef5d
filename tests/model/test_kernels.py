"""The kernels for packed attention, behind stand-ins with their signatures: tests/gpu runs the real ones."""

import importlib
import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from twins.attention import SCALE, naive, packing_of, qkv

from slmkit.model import kernels
from slmkit.model.kernels import FLASH_2, FLASH_4, SDPA, TORCH_VARLEN, Kernel, attention_kernel, packed_kernel

VARLEN = "torch.nn.attention.varlen"


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    kernels.installed.cache_clear()
    yield
    kernels.installed.cache_clear()


def masked_kernel(query: Any, key: Any, value: Any, borders: Any, scale: float) -> torch.Tensor:
    """What a variable-length kernel computes, [N, H, E]."""
    assert scale == SCALE
    assert borders.dtype == torch.int32
    rows = [x.transpose(0, 1)[None] for x in (query, key, value)]
    return naive(*rows, torch.diff(borders).tolist())[0]


def check_kernel(kernel: Kernel | None) -> None:
    assert kernel is not None
    packing, inputs = packing_of([4, 1, 3]), qkv(8)
    rows = [x[0].transpose(0, 1) for x in inputs]
    got = kernel.attend(*rows, packing.cu_seqlens, packing.num_positions, SCALE)
    torch.testing.assert_close(got[None], naive(*inputs, packing.lengths))


def flash_2(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
):
    assert causal
    assert max_seqlen_q == max_seqlen_k >= 4
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    return masked_kernel(q, k, v, cu_seqlens_q, softmax_scale)


def flash_4(
    q,
    k,
    v,
    qv=None,
    cu_seqlens_q=None,
    cu_seqlens_k=None,
    max_seqlen_q=None,
    max_seqlen_k=None,
    softmax_scale=None,
    causal=False,
):
    return flash_2(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, 0.0, softmax_scale, causal)


def install(monkeypatch: pytest.MonkeyPatch, *, two: Any = None, four: Any = None) -> None:
    """A package flash_attn with the functions of version 2, of version 4, or of both."""
    package, cute = types.ModuleType("flash_attn"), types.ModuleType("flash_attn.cute")
    if two is not None:
        package.flash_attn_varlen_func = two
    if four is not None:
        cute.flash_attn_varlen_func = four
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)


def test_torch_kernel_is_called_by_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    varlen = importlib.import_module(VARLEN)
    real = inspect.signature(varlen.varlen_attn)

    def kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
        given = real.bind(*args, **kwargs).arguments
        assert given["window_size"] == (-1, 0), "causal"
        assert given["enable_gqa"]
        assert given["max_q"] == given["max_k"] >= 4
        assert torch.equal(given["cu_seq_q"], given["cu_seq_k"])
        return masked_kernel(given["query"], given["key"], given["value"], given["cu_seq_q"], given["scale"])

    kernel.__signature__ = real  # type: ignore[attr-defined]
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    check_kernel(kernels._torch_varlen())


def test_flash_attn_2_is_called_by_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, two=flash_2)
    check_kernel(packed_kernel(64))


@pytest.mark.parametrize("with_sums", [False, True])
def test_flash_attn_4_is_called_by_its_signature(monkeypatch: pytest.MonkeyPatch, with_sums: bool) -> None:
    """Early versions give two tensors."""
    install(
        monkeypatch,
        four=lambda *args, **options: (flash_4(*args, **options), None) if with_sums else flash_4(*args, **options),
    )
    check_kernel(packed_kernel(64))


def test_the_best_that_is_installed_and_fits_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn 4 has few head widths, needs a recent GPU, and torch.compile does not see through it."""

    def chosen(**options: Any) -> str:
        kernels.installed.cache_clear()
        return attention_kernel(**{"on_cuda": True, "head_width": 64, **options})

    install(monkeypatch)
    assert chosen() == TORCH_VARLEN
    install(monkeypatch, four=flash_4)
    assert chosen() == FLASH_4
    assert chosen(compiled=True) == TORCH_VARLEN
    assert [chosen(head_width=width) for width in (80, 81, 256, 264)] == [TORCH_VARLEN, SDPA, TORCH_VARLEN, SDPA]
    install(monkeypatch, two=flash_2, four=flash_4)
    assert [chosen(head_width=width) for width in (81, 264)] == [FLASH_2, SDPA]
    assert [chosen(head_width=width) for width in (64, 96, 128, 80)] == [FLASH_4, FLASH_4, FLASH_4, FLASH_2]
    assert chosen(compiled=True) == FLASH_2
    assert chosen(on_cuda=False) == SDPA
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert chosen() == SDPA
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert chosen() == FLASH_2
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert chosen() == FLASH_4
