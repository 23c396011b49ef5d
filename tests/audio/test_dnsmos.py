"""DNSMOS: the numbers of the published script, and speech above noise."""

import importlib.util
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from slmkit.audio.dnsmos import DNSMOS_RATE, Dnsmos
from slmkit.audio.io import read_audio
from slmkit.errors import BadSample

HUMAN = Path("/usr/share/sounds/alsa/Front_Center.wav")
is_installed = all(importlib.util.find_spec(name) for name in ("speechmos", "onnxruntime"))
needs_package = pytest.mark.skipif(not is_installed, reason="needs the packages speechmos and onnxruntime")


class Counting:
    """In place of the network: the mean of the window as all three numbers."""

    def __init__(self) -> None:
        self.windows: list[np.ndarray] = []

    def run(self, _: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        (wave,) = inputs["input_1"]
        assert (wave.dtype, wave.shape) == (np.float32, (144_160,))
        self.windows.append(wave)
        return [np.full((1, 3), wave.mean(), np.float32)]


def test_windows_and_polynomials() -> None:
    short, long = Counting(), Counting()
    found = Dnsmos(short).scores(np.full(16_000, 2.0), 16_000)  # clipped to 1, and doubled to 16 s
    assert len(short.windows) == 7
    assert found.signal == pytest.approx(-0.08397278 + 1.22083953 + 0.0052439)
    assert found.background == pytest.approx(-0.13166888 + 1.60915514 - 0.39604546)
    assert found.overall == pytest.approx(-0.06766283 + 1.11546468 + 0.04602535)
    Dnsmos(long).scores(np.arange(int(12.5 * 16_000)) / 1e6, 16_000)
    starts = [round(float(window[0]) * 1e6) for window in long.windows]
    assert starts == [0, 16_000, 32_000]  # of whole seconds, as published


def test_too_little_sound() -> None:
    with pytest.raises(BadSample, match="too short for DNSMOS"):
        Dnsmos(Counting()).score(np.zeros(1599), 16_000)


@pytest.mark.full
@needs_package
@pytest.mark.skipif(not HUMAN.is_file(), reason="needs the recordings of Debian's alsa-utils")
def test_it_is_the_published_measure_and_puts_speech_above_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    # The published script needs librosa for a second network, of another measure, which is left out here.
    monkeypatch.setitem(sys.modules, "librosa", types.ModuleType("librosa"))
    monkeypatch.setitem(sys.modules, "requests", types.SimpleNamespace(session=None))
    from speechmos import dnsmos as published

    monkeypatch.setattr(published.DNSMOS, "audio_melspec", lambda self, audio: np.zeros((900, 120)))
    ours, generator = Dnsmos.load(), np.random.default_rng(0)
    human = read_audio(HUMAN, DNSMOS_RATE)
    noise = generator.uniform(-0.3, 0.3, 11 * DNSMOS_RATE).astype(np.float32)
    scores = []
    for wave in (human, noise):
        found, theirs = ours.scores(wave, DNSMOS_RATE), published.run(np.clip(wave, -1, 1), DNSMOS_RATE)
        expected = [theirs[name] for name in ("sig_mos", "bak_mos", "ovrl_mos")]
        assert list(found) == pytest.approx(expected, abs=1e-4)
        scores.append(found.overall)
    assert scores[0] > 2.5 > 1.5 > scores[1]
