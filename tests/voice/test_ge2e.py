"""The GE2E voice encoder: the package's own numbers, a vector of its own samples alone, and files that are refused."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seeded_voice import seeded_voice, seeded_voice_state, write_published_voice
from seeded_weights import wave

from slmkit.errors import BadSample, UserError
from slmkit.voice import ge2e
from slmkit.voice.base import is_long_enough
from slmkit.voice.ge2e import GE2EVoice
from slmkit.voice.open import open_voice

RATE = 16000
WAVES = {0: (0.3, 1.0), 1: (1.6, 1.0), 2: (2.5, 0.05), 3: (9.0, 1.0)}  # as in golden/voice/regenerate.py
# The package computes mel powers with librosa, in another order of float32 additions. Measured: 1.4e-7.
GOLDEN_BOUND = 2e-6
VOICE = seeded_voice()


@pytest.fixture
def voice() -> GE2EVoice:
    return VOICE


def golden_wave(seed: int) -> np.ndarray:
    seconds, loudness = WAVES[seed]
    return wave(seconds, seed).astype(np.float32) / 2**15 * np.float32(loudness)


def published_weights() -> Path:
    """The weights in the package, which need not be installed: RESEMBLYZER may name the directory."""
    found = importlib.util.find_spec("resemblyzer")
    places = [os.environ.get("RESEMBLYZER"), *(found.submodule_search_locations or () if found else ())]
    for place in filter(None, places):
        if (Path(place) / ge2e.PUBLISHED_FILE).is_file():
            return Path(place)
    pytest.skip("needs the weights in PyPI's package resemblyzer: install it, or name its directory in RESEMBLYZER")


@pytest.mark.parametrize("seed", WAVES)
def test_it_agrees_with_the_package(voice: GE2EVoice, golden_dir: Path, seed: int) -> None:
    golden = np.load(golden_dir / "voice" / "golden.npz")[f"seeded_{seed}"]
    assert np.abs(voice.vector(golden_wave(seed), RATE) - golden).max() < GOLDEN_BOUND


def test_it_agrees_with_the_package_and_its_weights(golden_dir: Path) -> None:
    published = open_voice(published_weights())
    golden = np.load(golden_dir / "voice" / "golden.npz")
    for seed in WAVES:
        assert np.abs(published.vector(golden_wave(seed), RATE) - golden[f"published_{seed}"]).max() < GOLDEN_BOUND


@settings(max_examples=6)
@given(
    num_samples=st.integers(400, 40_000),
    block=st.sampled_from([ge2e.BLOCK_SAMPLES, 1000]),
    batch=st.sampled_from([1, 2, 64]),
)
def test_a_naive_twin_windows_one_by_one(num_samples: int, block: int, batch: int) -> None:
    """Mel powers of the whole wave at once, and one window after the other through the layers."""
    samples = np.random.default_rng(num_samples).normal(0, 0.01, num_samples).astype(np.float32)
    gain = max(1.0, 10**-1.5 / np.sqrt(np.mean(samples.astype(np.float64) ** 2)))
    padded = torch.zeros(200 + num_samples + 26_000)
    padded[200 : 200 + num_samples] = torch.from_numpy(samples) * gain
    powers = torch.stft(padded, 400, 160, window=torch.hann_window(400), center=False, return_complex=True).abs() ** 2
    mels = (VOICE._bank @ powers).T
    starts = [start for start in range(0, 10_000, 77) if start == 0 or start * 160 + 19_200 <= num_samples]
    with torch.no_grad():
        vectors = torch.cat([VOICE._network(mels[None, start : start + 160]) for start in starts])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ge2e, "BLOCK_SAMPLES", block)
        patch.setattr(ge2e, "BATCH_WINDOWS", batch)
        found = VOICE.vector(samples, RATE)
    assert found == pytest.approx(torch.nn.functional.normalize(vectors.mean(0), dim=0).numpy(), abs=1e-5)


def test_a_vector_has_length_one_and_is_the_same_again(voice: GE2EVoice) -> None:
    samples = golden_wave(2)
    first = voice.vector(samples, RATE)
    assert (first.dtype, first.shape) == (np.float32, (256,))
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-6)
    voice.vector(golden_wave(3), RATE)
    assert np.array_equal(voice.vector(samples, RATE), first)
    assert np.array_equal(seeded_voice().vector(samples, RATE), first)


def test_surrounding_autocast_changes_nothing(voice: GE2EVoice) -> None:
    wave = np.random.default_rng(1).normal(0, 0.1, 30_000).astype(np.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = voice.vector(wave, 16_000)
    np.testing.assert_array_equal(found, voice.vector(wave, 16_000))


def test_other_rates_are_resampled(voice: GE2EVoice) -> None:
    seconds = np.arange(48_000) / 24_000
    fast = (0.2 * np.sin(2 * np.pi * 300 * seconds)).astype(np.float32)
    assert voice.vector(fast, 24_000) == pytest.approx(voice.vector(fast[::3], 8_000), abs=0.02)


@pytest.mark.parametrize("samples", [np.zeros(800), np.full(800, 1e-30), np.full(800, 60.0)])
def test_silence_and_noise_give_finite_vectors(voice: GE2EVoice, samples: np.ndarray) -> None:
    assert np.isfinite(voice.vector(samples.astype(np.float32), RATE)).all()


def test_the_shortest_wave(voice: GE2EVoice) -> None:
    assert np.isfinite(voice.vector(golden_wave(0)[:400], RATE)).all()
    with pytest.raises(BadSample, match=r"(?s)too short for a speaker vector.*0\.025 s") as caught:
        voice.vector(golden_wave(0)[:399], RATE)
    assert caught.value.reason == "too_short"


@given(num_samples=st.integers(1, 3000), rate=st.sampled_from([8000, 16000, 22050, 24000, 44100, 48000]))
def test_what_is_long_enough_has_a_vector(num_samples: int, rate: int) -> None:
    if is_long_enough(VOICE, num_samples, rate):
        assert np.isfinite(VOICE.vector(np.full(num_samples, 0.1, np.float32), rate)).all()


def test_published_saved_and_opened_again_it_is_the_same(voice: GE2EVoice, tmp_path: Path) -> None:
    published = write_published_voice(tmp_path / "published")
    opened = open_voice(published)
    (tmp_path / "copy").mkdir()
    opened.save(tmp_path / "copy")
    assert sorted(file.name for file in (tmp_path / "copy").iterdir()) == ["config.json", "model.safetensors"]
    for place in (published, published / "pretrained.pt", tmp_path / "copy"):
        assert open_voice(place).sha256 == voice.sha256
        assert np.array_equal(open_voice(place).vector(golden_wave(1), RATE), voice.vector(golden_wave(1), RATE))
    other = {name: weight.clone() for name, weight in seeded_voice_state().items()}
    other["linear.bias"][0] += 1
    assert GE2EVoice(other).sha256 != voice.sha256


def test_opening_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    seeded_voice()
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_no_voice_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)holds no voice encoder.*no such file or directory.*resemblyzer"):
        open_voice(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"a directory without config\.json"):
        open_voice(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(UserError, match="is not a WavLM model with an x-vector head"):
        open_voice(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "pretrained.pt"
    file.write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=r"cannot read .*pretrained\.pt"):
        open_voice(file)
    torch.save({"model_state": Path("a")}, file)  # an object that only running code could make
    with pytest.raises(UserError, match=r"without lstm\.weight_ih_l0"):
        open_voice(file)
    torch.save([1], file)
    with pytest.raises(UserError, match="does not hold weights by name"):
        open_voice(file)
    for changed, said in (
        ({"linear.bias": torch.zeros(255)}, r"without linear\.bias of the right shape"),
        ({"lstm.bias_ih_l0": torch.full((1024,), torch.nan)}, "weights that are not finite"),
        ({"linear.weight": 7}, r"without linear\.weight"),
    ):
        torch.save({"model_state": {**seeded_voice_state(), **changed}}, file)
        with pytest.raises(UserError, match=rf"(?s)is not a GE2E voice encoder: .*{said}.*resemblyzer"):
            open_voice(file)
    torch.save({"model_state": 7}, file)
    with pytest.raises(UserError, match="is not a GE2E voice encoder"):
        open_voice(file)
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="is not a GE2E voice encoder"):
        open_voice(tmp_path / "a.safetensors")


def test_long_audio_takes_bounded_memory(voice: GE2EVoice, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the wave is, no more than BATCH_WINDOWS windows are with the network, all of them in the end."""
    given = []

    def watching(mels: torch.Tensor) -> torch.Tensor:
        given.append(len(mels))
        return torch.ones(len(mels), 256)

    monkeypatch.setattr(voice, "_network", watching)
    voice.vector(np.full(600 * RATE, 0.1, np.float32), RATE)
    assert max(given) == 64
    assert sum(given) == 1 + (600 * RATE - 19_200) // 12_320
