"""Losses of groups of any size against those counted token by token; what the published format makes of them."""

import pytest
import torch
from tiny_models import tiny_batch, tiny_config, tiny_layout, tiny_model
from twins.groups import head_sums

from slmkit.errors import UserError
from slmkit.model.losses import head_candidates
from slmkit.model.published import lookup_buffers, to_published

EIGHT, MIXED = (8,) * 8, (16, 5, 9)
SHAPES = [
    *((EIGHT, 3), (EIGHT, 6), (EIGHT, 12), ((8,) * 3, 2), ((8,) * 3, 4), ((16,), 12), ((8,) * 3, 6)),
    *((MIXED, 2), (MIXED, 4), (MIXED, 3), ((16, 4, 4, 4, 4, 4, 4, 4), 3), ((5, 9, 16, 7, 3, 3, 2, 1), 6)),
]
FRAMES = (9, 0, 4, 1, 16)


@pytest.mark.parametrize(("sizes", "group"), SHAPES)
def test_losses_and_gradients_are_those_of_the_definition(sizes: tuple[int, ...], group: int) -> None:
    model = tiny_model(group, sizes=sizes, backbone={"tie_word_embeddings": False})
    batch = tiny_batch(model.config, FRAMES)
    output = model(batch)
    output.loss.backward()
    found = [head.output.weight.grad.clone() for head in model.heads]
    model.zero_grad()
    sums, right = head_sums(model, batch)
    shares = 0.8 / group / batch.global_counts[1:]
    (sums * shares).sum().backward()
    torch.testing.assert_close(output.sums[1:], sums.detach(), atol=1e-4, rtol=1e-5)
    assert torch.equal(output.correct[1:], right)
    for head, gradient in zip(model.heads, found, strict=True):
        torch.testing.assert_close(gradient, head.output.weight.grad.float(), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(("sizes", "group"), SHAPES)
def test_only_unequal_codebooks_split_the_targets_of_a_head(sizes: tuple[int, ...], group: int) -> None:
    """One set of candidates is one product with the weight; a step that fills its stream's codebook needs no more."""
    sets = [set(by_phase.values()) for by_phase in head_candidates(tiny_layout(group, sizes), group)]
    if len(set(sizes)) == 1 or group % len(sizes) == 0:
        assert all(len(found) == 1 for found in sets)
    else:
        assert max(len(found) for found in sets) > 1


def test_a_code_competes_with_those_of_its_stream_alone() -> None:
    (first, second) = head_candidates(tiny_layout(2, MIXED), 2)
    assert first == {0: ((0, 17),), 1: ((0, 5), (16, 17)), 2: ((0, 9), (16, 17))}
    assert second == {0: ((0, 5), (16, 18)), 1: ((0, 9), (16, 18)), 2: ((0, 18),)}


@pytest.mark.parametrize("group", [2, 4])
def test_the_published_format_has_heads_of_one_stream_only(group: int) -> None:
    message = rf"heads of one stream only\n  got:      group {group} of 3 streams\n  expected: 0 or a multiple of 3"
    with pytest.raises(UserError, match=message):
        to_published(tiny_model(group))
    with pytest.raises(UserError, match=message):
        lookup_buffers(tiny_config(group).vocab_layout, group)
