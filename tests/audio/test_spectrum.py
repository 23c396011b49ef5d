"""Mel bands, spectra on a grid, and the way back to a wave."""

import numpy as np
import pytest
import torch

from slmkit.audio.mel import hertz_to_mel, mel_filterbank, mel_to_hertz
from slmkit.audio.spectrum import Grid, griffin_lim, invert_mel, istft, stft

RATE = 16000
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
