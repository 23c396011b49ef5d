"""Sampling against probabilities worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slmkit.infer.sampling import Sampling, pick, truncate

LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()


def test_greedy_takes_the_most_probable() -> None:
    assert pick(torch.tensor([[0.0, 3.0, 1.0], [2.0, -math.inf, 1.0]]), Sampling()).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, 4),
        (1, 1.0, 1),
        (2, 1.0, 2),
        (9, 1.0, 4),
        (0, 0.4, 1),
        (0, 0.5, 1),
        (0, 0.51, 2),
        (0, 0.9, 3),
        (2, 0.9, 2),
    ],
)
def test_what_is_kept(top_k: int, top_p: float, kept: int) -> None:
    shuffled = LOGITS[[2, 0, 3, 1]]
    finite = truncate(shuffled, top_k, top_p).isfinite()
    assert finite.tolist() == [rank < kept for rank in (2, 0, 3, 1)]


def test_frequencies_follow_the_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(pick(LOGITS.repeat(20_000, 1), Sampling(temperature=2.0), generator), minlength=4)
    expected = torch.tensor([0.5, 0.25, 0.15, 0.1]).sqrt()
    assert torch.allclose(counts / 20_000, expected / expected.sum(), atol=0.02)


@given(st.integers(0, 1000), st.floats(0.1, 3), st.integers(0, 5), st.floats(0.05, 1))
def test_a_seed_repeats_and_the_forbidden_is_never_chosen(seed: int, heat: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))
    logits[:, seed % 6] = -math.inf
    sampling = Sampling(temperature=heat, top_k=top_k, top_p=top_p)
    first, second = (pick(logits, sampling, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(first, second)
    assert not (first == seed % 6).any()


BAD = (
    {"temperature": -1},
    {"temperature": math.nan},
    {"top_k": -1},
    {"top_p": 0},
    {"repetition_penalty": 0},
    {"repetition_penalty": math.inf},
    {"repetition_window": 0},
)


@pytest.mark.parametrize("field", BAD)
def test_settings_out_of_range_are_refused(field: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(field))}: got"):
        Sampling(**field)


def test_a_penalty_needs_to_know_the_past() -> None:
    with pytest.raises(ValueError, match="pick knows nothing of earlier choices"):
        pick(LOGITS, Sampling(repetition_penalty=1.2))
