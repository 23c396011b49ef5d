"""FACodec against numbers of the public implementation.

The golden files were computed with it in float32 on a CPU, from the weights of `seeded_weights` (salt 0). Tolerances:
codes equal in 99.5 % of frames (a near tie may fall either way), the rest as float32 sums in another order allow.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded_facodec import make_codec, make_plain

from slmkit.codec.facodec.checkpoint import LAYOUT, TRAINING_ONLY, published_layout
from slmkit.codec.snake.activation import Ends

GOLDEN = Path(__file__).parent.parent / "golden" / "facodec"
FILES = ("golden_0.npz", "golden_1.npz", "golden_2.npz")
ORDER = [1, 2, 0, 3, 4, 5]  # from prosody, content, detail to content, prosody, detail
EQUAL_FRAMES = 0.995


@pytest.fixture(scope="module")
def codec():
    return make_codec()


def read(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name, allow_pickle=False) as file:
        return dict(file)


def wave_of(golden: dict[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(golden["wave_int16"].astype(np.float32) / 32768)[None]


@pytest.mark.parametrize("name", FILES)
def test_codes_and_speaker(codec, name):
    golden = read(name)
    waves = wave_of(golden)
    codes, num_frames, speaker = codec.encode(waves, torch.tensor([waves.shape[1]]))
    assert codes.dtype == torch.int32
    assert num_frames.tolist() == [golden["codes"].shape[1]]
    equal = (codes[0].numpy() == golden["codes"][ORDER]).mean(axis=1)
    assert (equal >= EQUAL_FRAMES).all(), equal
    np.testing.assert_allclose(speaker[0].numpy(), golden["speaker"], atol=1e-3)


@pytest.mark.parametrize("name", FILES)
def test_latents_and_mel(codec, name):
    golden = read(name)
    waves = wave_of(golden)
    ends = Ends([waves.shape[1]], waves.device)
    with torch.inference_mode():
        latents, mel = codec._encoder(waves, ends)[0], codec._mel(waves, ends)
    np.testing.assert_allclose(latents[0, :, :16].numpy(), golden["encoder_out"], atol=1e-3)
    np.testing.assert_allclose(mel[0, :16].T.numpy(), golden["mel20"], atol=1e-3)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("field", "streams"), [("decoded_no_residual", 3), ("decoded_full", 6)])
def test_decoded_waves(codec, name, field, streams):
    golden = read(name)
    codes = torch.from_numpy(golden["codes"][ORDER[:streams]])[None]
    waves = codec.decode(codes, torch.from_numpy(golden["speaker"])[None])
    np.testing.assert_allclose(waves[0].numpy(), golden[field], atol=2e-3)


def test_plain_twin_agrees_too():
    golden, plain = read("golden_2.npz"), make_plain()
    codes, speaker = plain.encode(wave_of(golden)[0])
    assert ((codes.numpy() == golden["codes"]).mean(axis=1) >= EQUAL_FRAMES).all()
    np.testing.assert_allclose(speaker.numpy(), golden["speaker"], atol=1e-3)
    wave = plain.decode(codes[:3], speaker)
    np.testing.assert_allclose(wave.numpy(), golden["decoded_no_residual"], atol=2e-3)


def test_layout_is_that_of_the_published_files():
    """`layout.json` was written from the published files; the plain twin has their keys and shapes."""
    stored, layout, plain = json.loads(LAYOUT.read_text()), published_layout(), make_plain()
    for part, network in (("encoder", plain.encoder), ("decoder", plain.decoder)):
        assert layout[part] == {key: tuple(value.shape) for key, value in network.state_dict().items()}
        assert not any(TRAINING_ONLY.match(key) for key in stored[part])
    assert all(TRAINING_ONLY.match(key) for key in stored["training_only"])
