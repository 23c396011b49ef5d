"""Choices of many rows against one row alone, the plain rules, probabilities worked out by hand, published numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from twins.generate import truncate

from slmkit.infer import sampling as samplings
from slmkit.infer.sampling import LEAST_FACTOR, MOST_FACTOR, Choice, Sampling, packed, random_numbers

ROWS = st.lists(
    st.tuples(
        st.sampled_from([0, LEAST_FACTOR, 0.5, 1.0, 2.5, MOST_FACTOR]),
        st.one_of(st.integers(0, 9), st.just(2**70)),
        st.floats(LEAST_FACTOR, 1),
        st.sampled_from([1, 1.5, 0.7, LEAST_FACTOR, MOST_FACTOR]),
        st.integers(0, 2**64 - 1),
        st.integers(0, 10**6),
        st.lists(st.integers(0, 6), max_size=4),
    ),
    min_size=1,
    max_size=6,
)


def choose(logits: torch.Tensor, rows: list[Choice]) -> torch.Tensor:
    return samplings.choose(logits, rows, torch.from_numpy(packed(rows)))


def penalized(logits: torch.Tensor, rows: list[Choice]) -> torch.Tensor:
    return samplings.penalized(logits, rows, torch.from_numpy(packed(rows)))


def row(values: tuple) -> Choice:
    temperature, top_k, top_p, penalty, seed, draw, lately = values
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    return Choice(sampling, seed, draw, lately)


@given(st.integers(0, 1000), ROWS)
def test_a_row_chooses_in_company_what_it_chooses_alone(seed: int, values: list[tuple]) -> None:
    rows = [row(one) for one in values]
    logits = torch.randn(len(rows), 7, generator=torch.Generator().manual_seed(seed))
    logits[:, seed % 7] = -math.inf
    chosen = choose(logits, rows)
    assert [int(choose(one[None], [who])) for one, who in zip(logits, rows, strict=True)] == chosen.tolist()
    assert not (chosen == seed % 7).any()
    for one, who, pick in zip(penalized(logits, rows), rows, chosen.tolist(), strict=True):
        if who.sampling.temperature == 0:
            assert one[pick] == one.max()
        else:
            top_p = min(1, who.sampling.top_p + 1e-6)  # sums of the twin are float32
            kept = truncate(one / who.sampling.temperature, who.sampling.top_k, top_p)
            assert kept[pick] > -math.inf


def test_a_part_of_what_was_packed_together_chooses_what_it_chooses_alone() -> None:
    """Also with a wider history beside it, and with columns of another before its own."""
    settings = ((0, 1.5), (0.8, 1.5), (1.0, 1), (0, 1))
    rows = [
        Choice(Sampling(temperature=temperature, repetition_penalty=penalty, top_k=i), i, 3, [1, 2, 1][:i])
        for i, (temperature, penalty) in enumerate(settings)
    ]
    longer = Choice(Sampling(repetition_penalty=2.0), 9, 0, range(5))
    logits = torch.randn(len(rows), 7, generator=torch.Generator().manual_seed(0))
    numbers = torch.from_numpy(packed([longer, *rows]))
    for start in range(len(rows)):
        for stop in range(start + 1, len(rows) + 1):
            part = samplings.choose(logits[start:stop], rows[start:stop], numbers[1 + start : 1 + stop])
            assert part.tolist() == choose(logits, rows)[start:stop].tolist()


def test_frequencies_are_those_of_the_cut_distribution() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    sampling = Sampling(temperature=0.5, top_k=3)
    rows = [Choice(sampling, seed, draw, ()) for seed in range(100) for draw in range(200)]
    counts = torch.bincount(choose(logits.expand(len(rows), -1), rows), minlength=4)
    expected = truncate(logits / 0.5, 3, 1.0).softmax(-1)
    assert torch.allclose(counts / len(rows), expected, atol=0.012)
    assert counts[0] == 0


def test_numbers_are_even_and_never_the_same() -> None:
    seeds, draws = np.divmod(np.arange(40_000), 200)
    numbers = random_numbers(seeds, draws)
    assert len(set(numbers.tolist())) == len(numbers)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert np.abs(np.histogram(numbers, 20, (0, 1))[0] / 2000 - 1).max() < 0.1
    by_seed = numbers.reshape(200, 200)
    assert np.abs(np.corrcoef(by_seed) - np.eye(200)).max() < 0.4
    assert np.abs(np.corrcoef(by_seed.T) - np.eye(200)).max() < 0.4


def test_the_mixer_is_splitmix64() -> None:
    """The generator's first output for seed 0 is 0xE220A8397B1DCDAF; our key is that output for the request's seed."""
    key = 0xE220A8397B1DCDAF

    def mix(z: int) -> int:
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    assert mix(0x9E3779B97F4A7C15) == key
    expected = [mix((key + (draw + 1) * 0x9E3779B97F4A7C15) % 2**64) / 2**64 for draw in range(3)]
    assert np.allclose(random_numbers([0, 0, 0], [0, 1, 2]), expected, rtol=0, atol=2**-52)


def test_a_penalty_pulls_both_signs_down() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.0, -1.0]])
    rows = [Choice(Sampling(repetition_penalty=2.0), 0, 0, (0, 1, 1))]
    assert penalized(logits, rows).tolist() == [[1.0, -4.0, 1.0, -1.0]]
    assert logits.tolist() == [[2.0, -2.0, 1.0, -1.0]]


LOGITS = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, 4),
        (1, 1.0, 1),
        (2, 1.0, 2),
        (9, 1.0, 4),
        (10**30, 1.0, 4),
        (0, 0.4, 1),
        (0, 0.51, 2),
        (0, 0.9, 3),
        (2, 0.9, 2),
    ],
)
def test_what_is_kept(top_k: int, top_p: float, kept: int) -> None:
    shuffled = LOGITS[[2, 0, 3, 1]]
    sampling = Sampling(temperature=1.0, top_k=top_k, top_p=top_p)
    chosen = choose(shuffled.expand(400, -1), [Choice(sampling, 0, draw, ()) for draw in range(400)])
    assert set(chosen.tolist()) == {i for i, rank in enumerate((2, 0, 3, 1)) if rank < kept}


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": -1},
        {"temperature": math.nan},
        {"temperature": 1e-40},
        {"temperature": 1e39},
        {"temperature": 10**400},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1e-50},
        {"top_p": math.nan},
        {"repetition_penalty": 0},
        {"repetition_penalty": math.inf},
        {"repetition_penalty": math.nan},
        {"repetition_penalty": 1e-44},
        {"repetition_penalty": 1e39},
        {"repetition_window": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(field: dict) -> None:
    """Among them what becomes 0, infinite or not a number in float32, and would end the answers beside it."""
    with pytest.raises(ValueError, match=f"{next(iter(field))}: got"):
        Sampling(**field)


@pytest.mark.parametrize("wild", [3e38, 1e30, -3e38])
@pytest.mark.parametrize("temperature", [0, LEAST_FACTOR, 1.0])
@pytest.mark.parametrize("penalty", [1, LEAST_FACTOR, MOST_FACTOR])
def test_logits_of_wild_weights_choose_a_class_and_disturb_no_row(
    wild: float, temperature: float, penalty: float
) -> None:
    """Dividing by such settings makes them infinite, and a draw among infinities would be none of the classes."""
    sampling = Sampling(temperature=temperature, repetition_penalty=penalty)
    rows = [Choice(Sampling(temperature=1.0), 5, 0, ()), Choice(sampling, 5, 0, (0, 1))]
    logits = torch.tensor([[0.0, 1.0, 2.0, -math.inf], [wild, wild / 2, -wild, -math.inf]])
    alone = [int(choose(one[None], [who])) for one, who in zip(logits, rows, strict=True)]
    assert choose(logits, rows).tolist() == alone
    assert max(alone) < 3
