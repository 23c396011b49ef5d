"""Voices: the cosine by hand, and the codec's vector."""

import numpy as np
import pytest
from tiny_codec import TinyCodec

from slmkit.errors import BadSample
from slmkit.evaluate.metrics.voices import cosine
from slmkit.infer.synthesizer import voice_of

RATE = 16000


def noise(seconds=0.5, seed=0, rate=RATE):
    return np.random.default_rng(seed).normal(0, 0.2, round(seconds * rate)).astype(np.float32)


def test_cosine_by_hand():
    assert cosine(np.array([3.0, 4.0]), np.array([4.0, 3.0])) == pytest.approx(0.96)
    assert cosine(np.array([1, 0]), np.array([0, 2])) == 0
    assert cosine(np.array([1.0, 2.0]), np.array([-2.0, -4.0])) == pytest.approx(-1)
    assert cosine(np.zeros(2), np.ones(2)) == 0


@pytest.mark.parametrize("other", [np.ones(3), np.ones((2, 1))])
def test_vectors_of_two_widths(other):
    with pytest.raises(ValueError, match="cannot be compared"):
        cosine(np.ones(2), other)


def test_the_codecs_vector():
    """The tiny codec's is mean and peak."""
    wave = np.array([0.5, -0.25] * 400, np.float32)
    assert voice_of(TinyCodec(), wave) == pytest.approx([0.125, 0.5])


def test_too_short_for_the_codec():
    with pytest.raises(BadSample, match="too short for a speaker vector"):
        voice_of(TinyCodec(), noise()[:199])
