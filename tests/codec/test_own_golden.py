"""SpeechTokenizer and BigCodec, added from files as published, against numbers of the public implementations.

The golden files were computed in float32 on a CPU, from the weights of `seeded_codecs`. Tolerances: codes equal in
99.5 % of frames (a near tie may fall either way), latents within 1e-4 and waves of the golden codes within 5e-5
(float32 sums in another order differ by 1e-5 and 4e-6).
"""

import numpy as np
import pytest
import torch
from seeded_codecs import codec_state, read_golden, read_shapes, wave_of, write_published
from twins.bigcodec import PlainBigCodec
from twins.speechtokenizer import PlainSpeechTokenizer

from slmkit.cli.main import main
from slmkit.codec.bigcodec.checkpoint import BigCodecConfig
from slmkit.codec.bigcodec.checkpoint import layout as bigcodec_layout
from slmkit.codec.open import open_codec
from slmkit.codec.quantizers import Codebook, EuclideanCodebook
from slmkit.codec.speechtokenizer.checkpoint import SpeechTokenizerConfig
from slmkit.codec.speechtokenizer.checkpoint import layout as speechtokenizer_layout
from slmkit.codec.stages import run_in_pieces
from slmkit.codec.weights import Weights, fold

EQUAL_FRAMES = 0.995
LATENTS = 1e-4
WAVES = 5e-5
NAMES = ("speechtokenizer", "bigcodec")


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """Adds a codec, as the command does, once for each number of streams; returns it opened."""
    opened = {}

    def get(name: str, streams: int | None = None):
        if (name, streams) not in opened:
            source, out = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("added") / "codec"
            write_published(name, source)
            assert main(["codec", "add", str(source), str(out), *(["--streams", str(streams)] if streams else [])]) == 0
            opened[name, streams] = open_codec(out)
            for file in (*source.iterdir(), out / "model.safetensors"):
                file.unlink()
        return opened[name, streams]

    return get


@pytest.mark.full
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_codes_latents_and_waves(added, name, number):
    codec, golden = added(name), read_golden(f"{name}_golden_{number}")
    waves = wave_of(golden)
    encoded = codec.encode(waves, torch.tensor([waves.shape[1]]))
    assert encoded.codes.shape[1:] == golden["codes"].shape
    assert encoded.num_frames.tolist() == [golden["codes"].shape[1]] == [codec.num_frames(waves.shape[1])]
    equal = (encoded.codes[0].numpy() == golden["codes"]).mean(axis=1)
    assert (equal >= EQUAL_FRAMES).all(), equal
    with torch.inference_mode():
        latents = run_in_pieces(codec.encoding_stages(), waves[None], piece_frames=codec.piece_frames)
    np.testing.assert_allclose(latents[0].numpy(), golden["latent"], atol=LATENTS)
    decoded = codec.decode(torch.from_numpy(golden["codes"])[None], torch.zeros(1, 0))
    np.testing.assert_allclose(decoded[0].numpy(), golden["decoded"].clip(-1, 1), atol=WAVES)


@pytest.mark.full
@pytest.mark.parametrize("number", [0, 1])
def test_with_one_stream_speechtokenizer_decodes_the_first_entries(added, number):
    codec, golden = added("speechtokenizer", 1), read_golden(f"speechtokenizer_golden_{number}")
    assert len(codec.spec.streams) == 1
    waves = wave_of(golden)
    codes = codec.encode(waves, torch.tensor([waves.shape[1]])).codes
    assert (codes[0, 0].numpy() == golden["codes"][0]).mean() >= EQUAL_FRAMES
    decoded = codec.decode(torch.from_numpy(golden["codes"][:1])[None], torch.zeros(1, 0))
    np.testing.assert_allclose(decoded[0].numpy(), golden["decoded_first"].clip(-1, 1), atol=WAVES)


@pytest.mark.full
def test_plain_twins_agree_too():
    golden = read_golden("speechtokenizer_golden_0")
    plain = PlainSpeechTokenizer()
    plain.load_state_dict(codec_state("speechtokenizer"))
    assert ((plain.encode(wave_of(golden)[0]).numpy() == golden["codes"]).mean(axis=1) >= EQUAL_FRAMES).all()
    np.testing.assert_allclose(plain.decode(torch.from_numpy(golden["codes"]).long()), golden["decoded"], atol=WAVES)
    golden = read_golden("bigcodec_golden_0")
    big = PlainBigCodec()
    big.load_state_dict(codec_state("bigcodec"))
    assert (big.encode(wave_of(golden)[0]).numpy() == golden["codes"]).mean() >= EQUAL_FRAMES
    np.testing.assert_allclose(big.decode(torch.from_numpy(golden["codes"]).long()), golden["decoded"], atol=WAVES)


def test_layouts_are_those_of_the_published_files():
    assert speechtokenizer_layout(SpeechTokenizerConfig(), 8) == read_shapes("speechtokenizer_keys")
    sizes = {"width": 48, "strides": (2, 2, 2, 5, 5), "lstm_layers": 2, "latent": 1024}
    found = bigcodec_layout(BigCodecConfig(**sizes, codebook_size=8192, code_dim=8))
    published = {key: shape for key, shape in read_shapes("bigcodec_keys").items() if not key.endswith(".filter")}
    assert found == published


@pytest.mark.parametrize("number", [0, 1])
def test_bigcodec_quantizes_the_golden_latents_to_the_golden_codes(number):
    golden, prefix = read_golden(f"bigcodec_golden_{number}"), "generator.quantizer.layers.0."
    state = codec_state("bigcodec", prefix)
    codebook = Codebook(Weights(fold(state), prefix))
    latents = torch.from_numpy(golden["latent"]).T
    assert (codebook.nearest(latents).numpy() == golden["codes"][0]).all()
    projected = torch.nn.functional.linear(latents, codebook.weight, codebook.bias)
    np.testing.assert_allclose(projected.numpy(), golden["projected"], atol=1e-4)


@pytest.mark.parametrize("number", [0, 1])
def test_speechtokenizer_quantizes_the_golden_latents_to_the_golden_codes(number):
    golden = read_golden(f"speechtokenizer_golden_{number}")
    left = torch.from_numpy(golden["latent"]).T
    total = torch.zeros_like(left)
    for table, codes in zip(codec_state("speechtokenizer", "quantizer.").values(), golden["codes"], strict=True):
        found = EuclideanCodebook(table).nearest(left - total)
        assert (found.numpy() == codes).all()
        total += table[found]
    np.testing.assert_allclose(total[:16].T.numpy(), golden["quantized"], atol=1e-5)
