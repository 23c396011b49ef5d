"""Alignment of two sets of states: values by hand, a naive twin, the laws; and where the states come from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from memorising import BASE, one_batch, small_model
from synthetic import codec_spec

from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer
from slmkit.errors import BadSample
from slmkit.evaluate.metrics.alignment import SHRINKAGE, alignment, hidden_pair, spd_distance
from slmkit.model.attention import Packing

TEXT = "  THE cat, it sat on Read this sentence. "
CROSS = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])


def states(seed, num, width=5):
    return np.random.default_rng(seed).standard_normal((num, width)) @ np.diag(np.arange(1.0, width + 1))


def spd(seed, width=4):
    factor = np.random.default_rng(seed).standard_normal((width, width))
    return factor @ factor.T + 0.1 * np.eye(width)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([[1, 0], [0, 1]], [[np.e, 0], [0, np.e**2]], np.sqrt(5)),
        ([[1, 0], [0, 1]], [[2, 1], [1, 2]], np.log(3)),  # eigenvalues 1 and 3
        # The roots of x^2 - 1.5 x + 0.375.
        ([[2, 0], [0, 1]], [[1, 0.5], [0.5, 1]], np.hypot(np.log(0.75 + 0.1875**0.5), np.log(0.75 - 0.1875**0.5))),
    ],
)
def test_distances_by_hand(a, b, expected):
    assert spd_distance(np.array(a, float), np.array(b, float)) == pytest.approx(expected, abs=1e-6)


@given(seed=st.integers(0, 999))
def test_laws_of_the_distance(seed):
    """A metric, and blind to one and the same change of coordinates on both sides."""
    a, b, c = spd(seed), spd(seed + 1), spd(seed + 2)
    change = np.random.default_rng(seed).standard_normal((4, 4)) + 3 * np.eye(4)
    assert spd_distance(a, a) == pytest.approx(0, abs=1e-7)
    assert spd_distance(a, b) == pytest.approx(spd_distance(b, a), rel=1e-6)
    assert spd_distance(a, b) == pytest.approx(spd_distance(change @ a @ change.T, change @ b @ change.T), rel=1e-6)
    assert spd_distance(a, b) == pytest.approx(spd_distance(np.linalg.inv(a), np.linalg.inv(b)), rel=1e-5)
    assert spd_distance(a, c) <= spd_distance(a, b) + spd_distance(b, c) + 1e-9


def test_not_positive_definite():
    with pytest.raises(ValueError, match="not positive definite"):
        spd_distance(np.diag([1.0, -1.0]), np.eye(2))


def test_values_by_hand():
    """Means (3, 4) and (4, 3); spreads of I / 2 and 2 I, which shrinkage leaves: every eigenvalue is 4."""
    found = alignment(CROSS + np.array([3, 4]), 2 * CROSS + np.array([4, 3]))
    assert found.cosine == pytest.approx(24 / 25)
    assert found.euclidean == pytest.approx(np.sqrt(2))
    assert found.riemannian == pytest.approx(np.sqrt(2) * np.log(4))


def test_shrinkage_by_hand():
    """Spread along one axis only: 0.9 * diag(1, 0) + 0.1 * 0.5 * I against diag(0, 1) likewise."""
    found = alignment(np.array([[1.0, 0], [-1, 0]]), np.array([[0, 1.0], [0, -1]]))
    assert found.riemannian == pytest.approx(np.sqrt(2) * np.log(0.95 / 0.05))
    assert found.cosine == 0


@pytest.mark.parametrize(("n", "m", "width"), [(3, 4, 40), (40, 60, 5), (10, 30, 24), (2, 2, 6)])
def test_naive_twin(n, m, width):
    """Full covariance matrices and general eigenvalues, however few positions there are."""
    x, y = states(1, n, width), states(2, m, width) + 1
    shrunk = []
    for rows in (x, y):
        covariance = np.cov(rows.T, bias=True)
        shrunk.append((1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / width * np.eye(width))
    ratios = np.linalg.eigvals(np.linalg.inv(shrunk[0]) @ shrunk[1]).real
    found = alignment(x, y)
    assert found.riemannian == pytest.approx(np.sqrt(np.sum(np.log(ratios) ** 2)), rel=1e-6)
    assert found.euclidean == pytest.approx(np.sqrt(np.sum((x.mean(0) - y.mean(0)) ** 2)))


@given(seed=st.integers(0, 999), num=st.integers(2, 12), scale=st.floats(0.01, 100))
def test_laws(seed, num, scale):
    x, y = states(seed, num), states(seed + 1, 7) + 0.5
    same, there, back = alignment(x, x), alignment(x, y), alignment(y, x)
    assert same == pytest.approx((1, 0, 0), abs=1e-7)
    assert there == pytest.approx(back, rel=1e-6)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((5, 5)))
    turned = alignment(scale * x @ rotation, scale * y @ rotation)
    expected = (there.cosine, scale * there.euclidean, there.riemannian)
    assert turned == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("few", [np.ones((1, 5)), np.ones((3, 5))])
def test_without_spread_there_is_no_riemannian_distance(few):
    found = alignment(few, states(0, 9))
    assert found.riemannian is None
    assert np.isfinite(found.cosine + found.euclidean)


@pytest.mark.parametrize("other", [np.ones((0, 5)), np.ones((3, 4)), np.ones(5)])
def test_shapes_that_do_not_fit(other):
    for pair in ((states(0, 3), other), (other, states(0, 3))):
        with pytest.raises(ValueError, match=r"expected \[n, D\] and \[m, D\]"):
            alignment(*pair)


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer.load(BASE)


def sample_of(frames=7, text=TEXT, streams=3):
    rng = np.random.default_rng(frames)
    codes = rng.integers(0, 16, (streams, frames)).astype(np.uint16)
    return Sample("a", codes, rng.standard_normal(8).astype(np.float32), {"text": text})


@pytest.mark.parametrize("speaker_dim", [0, 8])
@pytest.mark.parametrize(("group", "num_speech"), [(0, 21), (3, 7), (6, 4)])
def test_pairs(tokenizer, group, num_speech, speaker_dim):
    """States of the words and codes alone, found again in the batch that training would make of the sample."""
    model = small_model(tokenizer, codec_spec(), group, speaker_dim=speaker_dim).eval()
    text, speech = hidden_pair(model, tokenizer, sample_of())
    batch = one_batch(model, tokenizer, [sample_of()])
    with torch.no_grad():
        embedded = model.embed(batch.tokens, batch.speech_mask, batch.speaker, batch.speaker_positions)[None]
        packing = Packing(batch.cu_seqlens, batch.num_tokens)
        last = model.hidden(embedded, batch.position_ids[None], packing=packing)[0].numpy()
    ids = batch.tokens[:, 0].tolist()
    eosp = ids.index(model.layout.id_of("<eosp>"))
    assert speech.shape == (num_speech, 64)
    assert speech == pytest.approx(last[eosp - num_speech : eosp], abs=1e-5)
    start = next(i for i in range(len(ids)) if text[0] == pytest.approx(last[i], abs=1e-5))
    inside = slice(start, start + len(text))
    assert text == pytest.approx(last[inside], abs=1e-5)
    words = "The cat, it sat on read this sentence."
    assert tokenizer.decode(ids[inside]).strip(" .\n") == words.lower().capitalize().strip(".")


def test_detail_streams_are_left_out(tokenizer):
    model = small_model(tokenizer, codec_spec(), 3).eval()
    more = sample_of(streams=5)
    fewer = replace(more, codes=more.codes[:3])
    assert np.array_equal(hidden_pair(model, tokenizer, more)[1], hidden_pair(model, tokenizer, fewer)[1])


def test_samples_without_text_or_speech(tokenizer):
    model = small_model(tokenizer, codec_spec(), 3, speaker_dim=8).eval()
    with pytest.raises(BadSample, match="a has no frames"):
        hidden_pair(model, tokenizer, sample_of(frames=0))
    with pytest.raises(BadSample, match="a has no speaker vector, and the model needs one"):
        hidden_pair(model, tokenizer, replace(sample_of(), speaker=None))
    with pytest.raises(BadSample, match="the sample has no text"):
        hidden_pair(model, tokenizer, sample_of(text=" "))
