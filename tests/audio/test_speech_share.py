"""The share of speech: windows, blocks and the network of the package."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from slmkit.audio.io import read_audio, resampled
from slmkit.audio.speech_share import SPEECH_RATE, SpeechDetector
from slmkit.errors import BadSample

HUMAN = Path("/usr/share/sounds/alsa/Front_Center.wav")
is_installed = all(importlib.util.find_spec(name) for name in ("silero_vad", "onnxruntime"))
needs_package = pytest.mark.skipif(not is_installed, reason="needs the packages silero-vad and onnxruntime")


class Loud:
    """In place of the network: a window is speech where its first sample is positive. Looks at what comes before it,
    and counts the windows in its state."""

    def __init__(self) -> None:
        self.blocks: list[int] = []

    def run(self, names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        windows, h = inputs["input"], inputs["h"]
        assert windows.dtype == np.float32
        assert windows.shape[1] == 64 + 512
        assert h[0, 0, 0] == sum(self.blocks)
        self.blocks.append(len(windows))
        if len(self.blocks) == 1:
            assert not windows[0, :64].any()
        return [(windows[:, 64] > 0).astype(np.float32), h + len(windows), inputs["c"]]


def test_windows_count_by_their_samples_and_blocks_go_on_where_the_one_before_ended() -> None:
    wave = np.zeros(512 * 3 + 100, np.float32)
    wave[512:1024] = 2.0
    wave[1536:] = 0.5
    network = Loud()
    assert SpeechDetector(network).score(wave, SPEECH_RATE) == pytest.approx((512 + 100) / len(wave))
    assert network.blocks == [4]
    long, network = np.full(512 * 1025, 0.5, np.float32), Loud()
    assert SpeechDetector(network).score(long, SPEECH_RATE) == 1.0
    assert network.blocks == [512, 512, 1]


def test_a_wave_of_no_samples_has_no_share() -> None:
    with pytest.raises(BadSample, match="too short to look for speech"):
        SpeechDetector(Loud()).score(np.zeros(0, np.float32), SPEECH_RATE)


@pytest.mark.full
@needs_package
def test_it_is_the_packages_own_and_any_wave_has_a_share() -> None:
    detector, rng = SpeechDetector.load(), np.random.default_rng(0)
    wave = rng.normal(0, 0.1, 20 * SPEECH_RATE + 7).astype(np.float32)
    # The package's window by window, as its own code runs the network of the same weights for streams.
    folder = Path(str(importlib.util.find_spec("silero_vad").submodule_search_locations[0])) / "data"
    import onnxruntime

    stream = onnxruntime.InferenceSession(str(folder / "silero_vad.onnx"), providers=["CPUExecutionProvider"])
    state, padded = np.zeros((2, 1, 128), np.float32), np.pad(wave, (64, -len(wave) % 512))
    expected = []
    for start in range(0, len(wave), 512):
        window = padded[None, start : start + 576]
        value, state = stream.run(None, {"input": window, "state": state, "sr": np.array(SPEECH_RATE)})
        expected.append(float(value[0, 0]))
    np.testing.assert_allclose(detector.probabilities(wave), expected, atol=1e-5)
    short, silent, clipped = wave[:160], np.zeros(SPEECH_RATE, np.float32), np.sign(wave[:SPEECH_RATE]) * 30
    assert all(0 <= detector.score(each, SPEECH_RATE) <= 1 for each in (short, clipped))
    assert detector.score(silent, SPEECH_RATE) == 0.0


@pytest.mark.full
@needs_package
@pytest.mark.skipif(not HUMAN.is_file(), reason="needs the recordings of Debian's alsa-utils")
def test_half_silence_halves_the_share() -> None:
    detector = SpeechDetector.load()
    said = np.tile(read_audio(HUMAN, 48_000), 4)  # "Front Center", with little silence around and between
    share = detector.score(said, 48_000)
    assert share > 0.6
    both = np.concatenate([said, np.zeros_like(said)])
    assert detector.score(both, 48_000) == pytest.approx(share / 2, abs=0.02)
    assert detector.score(resampled(both, 48_000, 16_000), 16_000) == detector.score(both, 48_000)
