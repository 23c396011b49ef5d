"""Packed attention against one utterance at a time, and cached attention against the whole sequence."""

import inspect
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.model import backbone
from slmkit.model.backbone import ATTENTION, Packing, new_causal_lm, packed_attention

HEADS, SHARED, WIDTH = 4, 2, 8
VARLEN = "torch.nn.attention.varlen"  # torch 2.10 and later
SCALE = 0.3


def qkv(positions: int, batch: int = 1, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, positions, WIDTH) for heads in (HEADS, SHARED, SHARED)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def packing_of(lengths: list[int]) -> Packing:
    borders = torch.tensor([0, *lengths]).cumsum(0)
    return Packing(borders.int(), int(borders[-1]))


def naive(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Softmax over all positions with everything but the utterance's own past masked; [1, N, H, E]."""
    number = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    visible = (number[:, None] == number[None]).tril()
    key, value = (x.repeat_interleave(HEADS // SHARED, dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * SCALE).masked_fill(~visible, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_packed_equals_the_masked_twin(lengths: list[int]) -> None:
    inputs = qkv(sum(lengths))
    got, weights = packed_attention(torch.nn.Module(), *inputs, None, scaling=SCALE, packing=packing_of(lengths))
    expected = naive(*inputs, lengths)
    assert weights is None
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)
    upstream = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def masked_kernel(query, key, value, borders, scale):
    """What a variable-length kernel computes, [N, H, E]."""
    rows = (x.transpose(0, 1)[None] for x in (query, key, value))
    return naive(*rows, torch.diff(borders).tolist())[0] if scale == SCALE else None


def test_torch_kernel_is_called_by_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for the GPU, where tests/gpu runs the kernel itself: every argument must have its place and meaning."""
    varlen = pytest.importorskip(VARLEN)
    real = inspect.signature(varlen.varlen_attn)

    def kernel(*args, **kwargs):
        given = real.bind(*args, **kwargs).arguments
        assert given["window_size"] == (-1, 0), "causal"
        assert given["enable_gqa"]
        assert given["max_q"] == given["max_k"] >= 4
        assert torch.equal(given["cu_seq_q"], given["cu_seq_k"])
        assert given["cu_seq_q"].dtype == torch.int32
        return masked_kernel(given["query"], given["key"], given["value"], given["cu_seq_q"], given["scale"])

    kernel.__signature__ = real
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    check_kernel(backbone._torch_varlen())


def test_flash_attn_is_preferred_and_called_by_its_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
    ):
        assert causal
        assert max_seqlen_q == max_seqlen_k >= 4
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        return masked_kernel(q, k, v, cu_seqlens_q, softmax_scale)

    module = types.ModuleType("flash_attn")
    module.flash_attn_varlen_func = kernel
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    check_kernel(backbone._varlen_kernel.__wrapped__())


def check_kernel(kernel) -> None:
    lengths = [4, 1, 3]
    inputs = qkv(8)
    rows = (x[0].transpose(0, 1) for x in inputs)
    torch.testing.assert_close(kernel(*rows, packing_of(lengths), SCALE)[None], naive(*inputs, lengths))


def test_old_torch_kernels_that_know_no_scale_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytest.importorskip(VARLEN), "varlen_attn", lambda query, key, value, is_causal=False: None)
    assert backbone._torch_varlen() is None


def test_an_utterance_does_not_see_its_neighbours() -> None:
    inputs = qkv(9)
    changed = [x.detach().clone() for x in inputs]
    for x in changed:
        x[:, :, :4] += 1
    outputs = [
        packed_attention(torch.nn.Module(), *x, None, scaling=SCALE, packing=packing_of([4, 5]))[0]
        for x in (inputs, changed)
    ]
    assert torch.equal(outputs[0][:, 4:], outputs[1][:, 4:])
    assert not torch.equal(outputs[0][:, :4], outputs[1][:, :4])


@pytest.mark.parametrize("num_queries", [1, 3, 7])
def test_cached_queries_are_the_last_of_the_keys(num_queries: int) -> None:
    query, key, value = qkv(7, batch=2)
    whole = torch.cat([naive(*(x[i : i + 1] for x in (query, key, value)), [7]) for i in range(2)])
    got, _ = packed_attention(torch.nn.Module(), query[:, :, -num_queries:], key, value, None, scaling=SCALE)
    torch.testing.assert_close(got, whole[:, -num_queries:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_queries", [1, 3])
def test_a_mask_hides_keys(num_queries: int) -> None:
    query, key, value = qkv(6)
    mask = torch.ones(1, 1, num_queries, 6, dtype=torch.bool).tril(6 - num_queries)
    mask[..., :2] = False
    got, _ = packed_attention(torch.nn.Module(), query[:, :, -num_queries:], key, value, mask, scaling=SCALE)
    expected, _ = packed_attention(
        torch.nn.Module(), query[:, :, -num_queries:], key[:, :, 2:], value[:, :, 2:], None, scaling=SCALE
    )
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


def test_dropout_reaches_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: seen.append(k["dropout_p"]) or real(*a, **k))
    packed_attention(torch.nn.Module(), *qkv(5), None, scaling=SCALE, dropout=0.25, packing=packing_of([2, 3]))
    assert seen == [0.25, 0.25]


def test_transformers_builds_no_mask_for_it() -> None:
    """The backbone's own forward must give this function no mask either: an export may be run by transformers."""
    from transformers import Qwen2Config
    from transformers.masking_utils import create_causal_mask

    config = Qwen2Config(
        vocab_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, attn_implementation=ATTENTION
    )
    new_causal_lm(config)
    mask = create_causal_mask(
        config=config, inputs_embeds=torch.zeros(1, 5, 32), attention_mask=None, past_key_values=None
    )
    assert mask is None
