"""The log-mel distance: its laws, and where speech lies on its scale."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.audio.io import read_audio
from slmkit.audio.log_mel import FLOOR_DB, log_mel_distance
from slmkit.audio.mel import mel_filterbank

CORPUS = Path(__file__).parents[2] / "tokenize_jobs" / "sample_corpus"
RATE = 16000


def noise(seconds=0.5, seed=0, rate=RATE):
    return np.random.default_rng(seed).normal(0, 0.2, round(seconds * rate)).astype(np.float32)


@settings(max_examples=10, deadline=None)
@given(gain_db=st.floats(-20, 20), seed=st.integers(0, 99))
def test_a_gain_is_its_distance(gain_db, seed):
    wave = noise(seed=seed)
    louder = wave * 10 ** (gain_db / 20)
    assert log_mel_distance(wave, wave, RATE) == 0
    assert log_mel_distance(wave, louder, RATE) == pytest.approx(abs(gain_db), abs=0.05)
    assert log_mel_distance(wave, louder, RATE) == log_mel_distance(louder, wave, RATE)


def test_naive_twin():
    """Frame by frame with numpy's transform and the definition in words."""
    a, b = noise(0.2, 1), noise(0.2, 2) * np.linspace(0, 1, 3200)
    bank, window = mel_filterbank(RATE, 2048, 80), np.hanning(401)[:400]
    total = 0.0
    for start in range(0, 3200, 160):
        levels = []
        for wave in (a, b):
            centred = np.pad(wave, 400)[start + 400 + 80 - 200 : start + 400 + 80 + 200].astype(float)
            mel = np.abs(np.fft.rfft(centred * window, 2048)) @ bank.T / (window.sum() / 2)
            levels.append(np.maximum(20 * np.log10(np.maximum(mel, 1e-9)), FLOOR_DB))
        total += np.sqrt(np.mean((levels[0] - levels[1]) ** 2))
    assert log_mel_distance(a, b, RATE) == pytest.approx(total / 20, rel=1e-6)


def test_below_the_floor_all_is_silence():
    assert log_mel_distance(np.zeros(8000), noise() * 1e-5, RATE) == 0


def test_missing_length_costs():
    wave = noise(1.0)
    assert log_mel_distance(wave, wave[: RATE // 2], RATE) > 10


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100, 48000])
def test_any_rate(rate):
    assert log_mel_distance(noise(rate=rate), noise(rate=rate) / 2, rate) == pytest.approx(6.02, abs=0.05)


def test_too_short():
    with pytest.raises(ValueError, match="waves of 79 and 10 samples are too short"):
        log_mel_distance(np.zeros(79), np.zeros(10), RATE)


def test_speech_on_the_scale():
    """The scale in the docstring: other words in another voice lie beyond 12 dB, a little noise does not."""
    one, other = (read_audio(next((CORPUS / speaker).rglob("*.flac")), RATE) for speaker in ("11", "16"))
    assert log_mel_distance(one, other, RATE) > 12
    assert log_mel_distance(one, one + 0.01 * noise(len(one) / RATE), RATE) < 8
