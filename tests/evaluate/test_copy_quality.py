"""STOI against its definition and PESQ against the formula of its scale; what has no score gives none."""

import sys
from pathlib import Path

import numpy as np
import pytest

from slmkit.audio.io import read_audio, resampled
from slmkit.errors import UserError
from slmkit.evaluate.metrics.copy_quality import PESQ_LONGEST_SEC, pesq, stoi

CORPUS = Path(__file__).parents[2] / "tokenize_jobs" / "sample_corpus"
RATE = 16000


def noise(num_samples, seed=0, level=0.1):
    return np.random.default_rng(seed).normal(0, level, num_samples).astype(np.float32)


@pytest.fixture(scope="module")
def speech():
    return read_audio(next((CORPUS / "11").rglob("*.flac")), RATE)


def noisy(speech, snr_db):
    level = np.sqrt(np.mean(speech**2)) * 10 ** (-snr_db / 20)
    return speech + noise(len(speech), 1, level)


def test_a_copy_that_is_its_source(speech):
    """P.862.2 maps the largest raw score, 4.5, to 0.999 + 4 / (1 + exp(-1.3669 * 4.5 + 3.8224)) = 4.6439."""
    assert stoi(speech, speech, RATE) == pytest.approx(1, abs=1e-6)
    assert pesq(speech, speech, RATE) == pytest.approx(0.999 + 4 / (1 + np.exp(-1.3669 * 4.5 + 3.8224)), abs=1e-4)


def test_scores_fall_with_noise(speech):
    """Down to noise alone, where PESQ is near its 1.04 and STOI only knows when there was silence."""
    stois, pesqs = ([measure(speech, noisy(speech, db), RATE) for db in (30, 15, 0)] for measure in (stoi, pesq))
    assert stois[0] > stois[1] > stois[2] > 0.3
    assert 4.6 > pesqs[0] > pesqs[1] > pesqs[2] > 1.0
    assert stoi(speech, noise(len(speech)), RATE) < stois[2] - 0.1
    assert pesq(speech, noise(len(speech)), RATE) < 1.3


def test_stoi_naive_twin():
    """Taal et al. 2011, equations 1 to 6, without a silent frame: 10 kHz, frames of 256, bands from 150 Hz, N = 30."""
    clean = noise(8000, 0) * (1 + 0.5 * np.sin(np.arange(8000) / 300))
    window = np.hanning(258)[1:-1]
    overlapped = [np.zeros(8000), np.zeros(8000)]
    for out, wave in zip(overlapped, (clean, clean + noise(8000, 5)), strict=True):
        for start in range(0, 8000 - 256, 128):
            out[start : start + 256] += window * wave[start : start + 256]
    end = 128 * len(range(0, 8000 - 256, 128)) + 128
    grid, levels = np.arange(257) * 10000 / 512, []
    for wave in overlapped:
        spectra = [np.abs(np.fft.rfft(window * wave[s : s + 256], 512)) ** 2 for s in range(0, end - 256, 128)]
        bands = []
        for j in range(15):
            low, high = (np.argmin(np.abs(grid - 150 * 2 ** ((2 * j + side) / 6))) for side in (-1, 1))
            bands.append([np.sqrt(spectrum[low:high].sum()) for spectrum in spectra])
        levels.append(np.array(bands))
    scores = []
    for m in range(30, levels[0].shape[1] + 1):
        for j in range(15):
            x, y = levels[0][j, m - 30 : m], levels[1][j, m - 30 : m]
            y = np.minimum(y * np.linalg.norm(x) / np.linalg.norm(y), x * (1 + 10 ** (15 / 20)))
            scores.append(np.corrcoef(x, y)[0, 1])
    assert stoi(clean, clean + noise(8000, 5), 10000) == pytest.approx(np.mean(scores), abs=1e-6)
    assert 0.3 < np.mean(scores) < 0.95


@pytest.mark.parametrize("rate", [8000, 24000, 44100])
def test_any_rate(speech, rate):
    """The rate of the file changes little; 8 kHz has lost half the band, which PESQ hears."""
    pair = [resampled(wave, RATE, rate) for wave in (speech, noisy(speech, 20))]
    assert stoi(*pair, rate) == pytest.approx(stoi(speech, noisy(speech, 20), RATE), abs=0.02)
    if rate > RATE:
        assert pesq(*pair, rate) == pytest.approx(pesq(speech, noisy(speech, 20), RATE), abs=0.2)


def test_waves_are_compared_as_far_as_both_go(speech):
    longer = np.concatenate([speech, noise(4000)])
    assert stoi(speech, longer, RATE) == stoi(speech, speech, RATE)
    assert pesq(longer, speech, RATE) == pesq(speech, speech, RATE)


@pytest.mark.parametrize("num_samples", [0, 1, 3000])
def test_too_short_to_have_a_score(speech, num_samples):
    for measure in (stoi, pesq):
        assert measure(speech, speech[:num_samples], RATE) is None
        assert measure(speech[:num_samples], speech, RATE) is None


def test_silence_has_no_score(speech):
    silence = np.zeros_like(speech)
    assert stoi(silence, speech, RATE) is None
    assert stoi(speech, silence, RATE) == pytest.approx(0, abs=1e-6)
    for pair in ((silence, speech), (speech, silence), (silence, silence)):
        assert pesq(*pair, RATE) is None


def test_a_click_has_no_stoi():
    click = np.zeros(RATE, np.float32)
    click[8000:8100] = noise(100)
    assert stoi(click, click, RATE) is None


def test_many_stretches_of_speech_do_not_bring_the_process_down():
    """A minute of bursts, 120 of them, kills the published code of PESQ."""
    wave = noise(60 * RATE) * (np.arange(60 * RATE) % 8000 < 4000)
    copy = wave + noise(len(wave), 2, 0.01)
    seen = round(PESQ_LONGEST_SEC * RATE)
    assert pesq(wave, copy, RATE) == pesq(wave[:seen], copy[:seen], RATE)


@pytest.mark.parametrize(("measure", "package"), [(stoi, "pystoi"), (pesq, "pesq")])
def test_without_the_package(monkeypatch, measure, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"(?s)scores need the package {package}.*slmkit\[eval\]"):
        measure(noise(8000), noise(8000), RATE)
