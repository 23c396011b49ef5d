"""Mel bands, spectra on a grid, the way back to a wave; the log-mel distance: its laws, and where speech lies on it."""

import numpy as np
import pytest
import torch
from audio.encoding import CORPUS, RATE
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.audio.io import read_audio
from slmkit.audio.mel import (
    FLOOR_DB,
    NUM_BANDS,
    Grid,
    LogMel,
    griffin_lim,
    hertz_to_mel,
    invert_mel,
    istft,
    log_mel,
    log_mel_distance,
    mel_filterbank,
    mel_to_hertz,
    stft,
)

GRID = Grid(n_fft=1024, window=800, hop=200)


def chirp(num_samples=16000):
    seconds = torch.arange(num_samples, dtype=torch.float64) / RATE
    return 0.5 * torch.sin(2 * torch.pi * (300 + 1500 * seconds) * seconds)


def test_istft_inverts_stft():
    waves = torch.stack([chirp(), torch.randn(16000, generator=torch.Generator().manual_seed(0)).double()])
    assert torch.allclose(istft(stft(waves, 80, GRID), GRID), waves, atol=1e-9)


def test_frames_are_centred_on_their_hops():
    """The naive definition: the window around the middle of hop t, silence beyond the ends."""
    wave = chirp(1000).numpy()
    window = np.pad(torch.hann_window(800, dtype=torch.float64).numpy(), 112)
    spectra = stft(torch.from_numpy(wave), 5, GRID)
    padded = np.pad(wave, 512)
    for t in range(5):
        middle = 512 + t * 200 + 100
        assert np.allclose(spectra[t], np.fft.rfft(padded[middle - 512 : middle + 512] * window))


def test_wave_of_another_length_is_cut_or_extended():
    wave = chirp(16000)
    assert torch.equal(stft(wave[:15950], 80, GRID)[:75], stft(wave, 80, GRID)[:75])
    assert stft(wave, 60, GRID).shape == (60, 513)
    assert torch.equal(stft(wave, 60, GRID)[:55], stft(wave, 80, GRID)[:55])


def test_griffin_lim_comes_near_the_magnitudes():
    wanted = stft(chirp(), 80, GRID).abs()[None]

    def error(iterations):
        wave = griffin_lim(wanted, GRID, iterations=iterations)
        assert wave.shape == (1, 16000)
        return ((stft(wave, 80, GRID).abs() - wanted).norm() / wanted.norm()).item()

    assert error(24) < 0.15 < 0.5 * error(0)
    assert torch.equal(griffin_lim(wanted, GRID, iterations=3), griffin_lim(wanted, GRID, iterations=3))


def test_mel_inversion_is_non_negative_and_gives_the_bands_again():
    bank = torch.from_numpy(mel_filterbank(RATE, GRID.n_fft, 80))
    mel = stft(chirp(), 80, GRID).abs() @ bank.T
    magnitudes = invert_mel(mel, bank, iterations=30)
    assert magnitudes.min() >= 0
    assert ((magnitudes @ bank.T - mel).norm() / mel.norm()) < 0.02


def test_filterbank_sums_to_one_between_the_outer_centres():
    bank = mel_filterbank(RATE, 1024, 80)
    assert bank.shape == (80, 513)
    assert bank.min() == 0
    assert bank.max() <= 1
    first, last = bank[0].argmax() + 1, bank[-1].argmax()
    assert np.allclose(bank.sum(0)[first:last], 1)


def test_mel_scale():
    assert hertz_to_mel(1000.0) == pytest.approx(1000, abs=0.1)
    assert np.allclose(mel_to_hertz(hertz_to_mel(np.arange(0, 8000, 100.0))), np.arange(0, 8000, 100.0))


def test_too_many_bands():
    with pytest.raises(ValueError, match="400 mel bands are too many for n_fft 512 at 16000 Hz"):
        mel_filterbank(RATE, 512, 400)


def test_slaney_bands_have_equal_area_and_twice_the_width_above_a_factor_of_two():
    bank = mel_filterbank(RATE, 8192, 40, slaney=True)
    assert np.allclose(bank.sum(1) * RATE / 8192, 1, atol=0.02)
    edges = [bins[[0, -1]] * RATE / 8192 for bins in map(np.flatnonzero, bank)]
    assert edges[1][1] - edges[1][0] == pytest.approx(edges[3][1] - edges[3][0], rel=0.05)  # linear below 1 kHz
    widths = {round(low): high - low for low, high in edges}
    far, near = (min(widths, key=lambda low: abs(low - wanted)) for wanted in (4000, 2000))
    assert widths[far] / widths[near] == pytest.approx(far / near, rel=0.05)


def test_log_mel_is_that_of_the_spectra():
    wave, bank = chirp(), torch.from_numpy(mel_filterbank(RATE, GRID.n_fft, 80))
    made = {"grid": GRID, "window": GRID.weights(wave), "bank": bank, "floor": 1e-3}
    magnitudes = stft(wave, 80, GRID).abs()
    found = LogMel(**made, full_scale=2.0).of(wave, 80)
    assert torch.allclose(found, (magnitudes @ bank.T / 2).clamp(min=1e-3).log())
    found = LogMel(**made, power_epsilon=0.5).of(wave, 80)
    assert torch.allclose(found, ((magnitudes**2 + 0.5).sqrt() @ bank.T).clamp(min=1e-3).log())


def test_a_sound_is_a_bright_line_at_its_pitch():
    """1 kHz in the first half: one band far above all others, then silence at the floor."""
    wave = np.where(np.arange(RATE) < RATE / 2, np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE), 0)
    levels = log_mel(wave, RATE)
    assert levels.shape == (NUM_BANDS, 100)
    edges = mel_to_hertz(np.linspace(0, hertz_to_mel(RATE / 2), NUM_BANDS + 2))
    loudest = levels[:, 20].argmax()
    assert edges[loudest] < 1000 < edges[loudest + 2]
    assert levels[-1, 20] < levels[loudest, 20] - 60
    assert (levels[:, 75] < FLOOR_DB + 1e-9).all()


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
