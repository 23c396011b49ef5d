"""Opinion scores of networks from packages: windows as published, a person above a synthesizer above noise."""

import importlib.util
import io
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from slmkit.audio.io import read_audio
from slmkit.errors import BadSample, UserError
from slmkit.evaluate.metrics.opinion import DISTILLMOS_RATE, DistillMos

HUMAN = Path("/usr/share/sounds/alsa/Front_Center.wav")
is_installed = all(importlib.util.find_spec(name) for name in ("distillmos", "xls_r_sqa"))


class Counting(torch.nn.Module):
    """In place of the network: the first sample of the window."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[torch.Tensor] = []

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        self.windows.append(windows)
        return windows[:, 0]


def test_long_waves_are_heard_in_windows() -> None:
    network = Counting()
    wave = np.arange(122_880 + 20_000, dtype=np.float32)
    assert DistillMos(network).score(wave, DISTILLMOS_RATE) == 10_000  # of windows from 0, 10 000 and 20 000 on
    assert [tuple(window.shape) for window in network.windows] == [(1, 122_880)] * 3
    assert DistillMos(network).score(wave[5:2000], DISTILLMOS_RATE) == 5
    with pytest.raises(BadSample, match="too short for DistillMOS"):
        DistillMos(network).score(wave[:1599], DISTILLMOS_RATE)


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distillmos", None)
    with pytest.raises(UserError, match=r"(?s)DistillMOS scores need the package distillmos.*--no-deps distillmos"):
        DistillMos.load()


def test_nothing_is_left_in_place_of_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    monkeypatch.setitem(sys.modules, "distillmos", SimpleNamespace(ConvTransformerSQAModel=Counting))
    assert isinstance(DistillMos.load().network, Counting)
    assert "torchaudio" not in sys.modules


@pytest.mark.full
@pytest.mark.skipif(not is_installed, reason="needs the package distillmos")
@pytest.mark.skipif(not HUMAN.is_file(), reason="needs the recordings of Debian's alsa-utils")
@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_a_person_is_above_a_synthesizer_and_both_above_noise() -> None:
    judge = DistillMos.load()
    command = ["espeak-ng", "--stdout", "Front center."]
    synthetic = io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 9 * DISTILLMOS_RATE).astype(np.float32)
    waves = read_audio(HUMAN, DISTILLMOS_RATE), read_audio(synthetic, DISTILLMOS_RATE), noise
    person, synthesizer, hiss = (judge.score(wave, DISTILLMOS_RATE) for wave in waves)
    assert person > synthesizer + 0.5
    assert synthesizer > hiss + 0.5
    with torch.inference_mode():  # the package itself, which hears all windows at once
        assert hiss == pytest.approx(float(judge.network(torch.from_numpy(noise)[None])), abs=1e-4)
