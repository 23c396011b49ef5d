"""Packed attention against one utterance at a time, and cached attention against the whole sequence."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from twins.attention import SCALE, naive, packing_of, qkv

from slmkit.model.attention import Packing, packed_attention
from slmkit.model.backbone import ATTENTION, new_causal_lm


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


def test_a_kernel_is_told_how_long_an_utterance_can_be() -> None:
    """Without asking the device where the host knows it."""
    borders = torch.empty(4, dtype=torch.int32, device="meta")
    bounds = {(300, 17, 400): 512, (512, 1, 1): 512, (513, 1, 1): 515, (1, 1, 1): 1}
    for lengths, longest in bounds.items():
        assert Packing(borders, sum(lengths), lengths).longest == longest
        assert Packing(borders, sum(lengths), lengths).lengths == list(lengths)
    assert Packing(borders, 318).longest == 318
