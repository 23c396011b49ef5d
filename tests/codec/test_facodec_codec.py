"""FACodec as a `Codec`: frame counts, the plain twin, refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from seeded_facodec import make_codec, make_plain
from seeded_weights import wave

from slmkit.codec.base import CodecSpec
from slmkit.codec.facodec.dimensions import ENCODER_STRIDES
from slmkit.codec.snake import padding_of
from slmkit.codec.snake.activation import Ends
from slmkit.precision import exact_float32

SHORTEST = 413


@pytest.fixture(scope="module")
def codec():
    return make_codec(detail=False)


def test_spec_lists_the_streams_in_the_language_models_order(codec):
    names = [stream.name for stream in codec.spec.streams]
    assert names == ["content_1", "content_2", "prosody"]
    assert codec.spec.lm_streams == codec.spec.streams
    assert (codec.spec.name, codec.spec.frame_rate, codec.spec.speaker_dim) == ("facodec", 80, 256)
    assert CodecSpec.from_dict(codec.spec.to_dict()) == codec.spec
    detailed = make_codec().spec
    assert [stream.name for stream in detailed.streams] == [*names, "detail_1", "detail_2", "detail_3"]
    assert detailed.lm_streams == codec.spec.streams


def test_num_frames_is_what_a_ladder_of_convolutions_gives(codec):
    kernels = [torch.ones(1, 1, 2 * stride) for stride in ENCODER_STRIDES]
    for length in range(SHORTEST, 4500):
        x = torch.zeros(1, 1, length)
        for stride, kernel in zip(ENCODER_STRIDES, kernels, strict=True):
            x = F.conv1d(x, kernel, stride=stride, padding=padding_of(stride))
        assert codec.num_frames(length) == x.shape[2], length


@pytest.mark.parametrize("length", [413, 999, 1000, 1001, 1592, 1799, 1800, 2345])
def test_num_frames_is_what_the_encoder_gives(codec, length):
    with torch.inference_mode():
        latents, ends = codec._encoder(torch.zeros(1, length), Ends([length], codec.device))
    assert ends.counts == [latents.shape[2]] == [codec.num_frames(length)]


@pytest.mark.parametrize("length", [-1, 0, 1, 200, SHORTEST - 1])
def test_too_few_samples_give_no_frame_and_a_refusal(codec, length):
    assert codec.num_frames(length) == 0
    with pytest.raises(ValueError, match=f"utterance 1 of {length} samples is too short"):
        codec.encode(torch.zeros(2, 800), torch.tensor([800, length]))


@pytest.mark.parametrize(
    ("waves", "num_samples", "message"),
    [
        (torch.zeros(800), [800], r"waves \[800\] are not \[B, N\] with B = 1 lengths"),
        (torch.zeros(2, 800), [800], r"waves \[2, 800\] are not \[B, N\] with B = 1 lengths"),
        (torch.zeros(1, 800), [801], "utterance 0 has 801 samples in a row of 800"),
    ],
)
def test_encode_refuses_lengths_that_do_not_fit(codec, waves, num_samples, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(waves, torch.tensor(num_samples))


def changed(value: int, stream: int, streams: int = 3) -> torch.Tensor:
    codes = torch.zeros(2, streams, 4, dtype=torch.int32)
    codes[1, stream, 2] = value
    return codes


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (changed(1024, 0), "stream content_1 are 0 to 1024, not 0 to 1023"),
        (changed(-1, 2), "stream prosody are -1 to 0, not 0 to 1023"),
        (changed(5000, 5, streams=6), "stream detail_3 are 0 to 5000"),
        (torch.zeros(2, 4, 4, dtype=torch.int32), r"codes \[2, 4, 4\] are not \[B, 3 or 6, T\]"),
        (torch.zeros(3, 4, dtype=torch.int32), r"codes \[3, 4\] are not"),
        (torch.zeros(2, 3, 4), "codes are torch.float32, not integers"),
        (torch.zeros(1, 3, 4, dtype=torch.int32), r"speaker \[2, 256\] is not \[1, 256\]"),
    ],
)
def test_decode_refuses_what_is_no_code(codec, codes, message):
    with pytest.raises(ValueError, match=message):
        codec.decode(codes, torch.zeros(2, 256))


def test_nothing_gives_nothing(codec):
    encoded = codec.encode(torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64))
    assert [list(part.shape) for part in encoded] == [[0, 3, 0], [0], [0, 256]]
    assert list(codec.decode(torch.zeros(2, 3, 0, dtype=torch.int32), torch.zeros(2, 256)).shape) == [2, 0]


def test_plain_twin_gives_the_same_codes_and_waves():
    fast, plain = make_codec(), make_plain()
    x = torch.from_numpy(wave(0.4, seed=5).astype(np.float32) / 32768)
    codes, _, speaker = fast.encode(x[None], torch.tensor([len(x)]))
    plain_codes, plain_speaker = plain.encode(x)
    assert torch.equal(codes[0, [2, 0, 1, 3, 4, 5]].long(), plain_codes)
    torch.testing.assert_close(speaker[0], plain_speaker, atol=1e-5, rtol=0)
    for streams in (3, 6):
        waves = fast.decode(codes[:, :streams], speaker)
        torch.testing.assert_close(waves[0], plain.decode(plain_codes[:streams], speaker[0]), atol=1e-4, rtol=0)


def test_surrounding_autocast_changes_nothing(codec):
    x = torch.from_numpy(wave(0.1, seed=6).astype(np.float32) / 32768)[None]
    expected = codec.encode(x, torch.tensor([x.shape[1]]))
    with torch.autocast("cpu", torch.bfloat16):
        found = codec.encode(x, torch.tensor([x.shape[1]]))
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.speaker, expected.speaker)


@pytest.fixture
def precisions():
    """Gets and sets the float32 precisions of matrix products, convolutions and LSTMs; puts them back."""
    kinds = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn

    def access(*wanted: str) -> list[str]:
        for kind, value in zip(kinds, wanted, strict=False):
            kind.fp32_precision = value
        return [kind.fp32_precision for kind in kinds]

    before = access()
    yield access
    access(*before)


@pytest.mark.parametrize("given", [["none", "tf32", "tf32"], ["tf32", "none", "none"], ["ieee", "ieee", "ieee"]])
def test_tf32_is_off_inside_and_as_before_afterwards(precisions, given):
    before = precisions(*given)  # "none" may read as what it inherits
    with pytest.raises(KeyError), exact_float32(torch.device("cpu")):
        assert precisions() == ["ieee", "ieee", "ieee"]
        raise KeyError
    assert precisions() == before
