"""SpeechTokenizer: the plain twin, frame counts, streams, and which files are refused."""

import json

import pytest
import torch
from codec.families import audio, family_directory, open_family
from codec.tiny_own import SPEECHTOKENIZER_CONFIG, make_speechtokenizer
from twins.speechtokenizer import PlainSpeechTokenizer

from slmkit.codec.added import add_codec
from slmkit.codec.open import open_codec
from slmkit.codec.speechtokenizer import network
from slmkit.errors import UserError

HOP = 80


@pytest.fixture(scope="module")
def codec():
    return open_family("speechtokenizer")


@pytest.fixture(scope="module")
def plain():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # as in families
        return make_speechtokenizer()


def test_the_plain_twin_is_read_from_what_was_added(codec):
    plain, wave = PlainSpeechTokenizer.from_directory(family_directory("speechtokenizer")), audio(16000)[:5000]
    codes = codec.encode(wave[None], torch.tensor([5000])).codes[0].long()
    assert torch.equal(plain.encode(wave), codes)
    expected = codec.decode(codes[None], torch.zeros(1, 0))[0]
    torch.testing.assert_close(plain.decode(codes).clamp(-1, 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 5, 79, 80, 81, 161, 239, 1000, 16000, 20037])
def test_codes_and_waves_are_those_of_the_plain_twin(codec, plain, count):
    wave = audio(16000)[:count]
    codes = codec.encode(wave[None], torch.tensor([count])).codes
    assert torch.equal(codes[0].long(), plain.encode(wave))
    assert codes.shape[2] == -(-count // HOP) == codec.num_frames(count)
    decoded = codec.decode(codes, torch.zeros(1, 0))[0]
    torch.testing.assert_close(decoded, plain.decode(codes[0].long()).clamp(-1, 1), atol=1e-5, rtol=0)


def test_the_lstm_that_goes_both_ways_goes_in_pieces(codec, monkeypatch):
    """Also where the audio ends within a frame, whose reflection reaches into the piece before."""
    for count in (40 * HOP, 40 * HOP + 1, 41 * HOP - 1):
        wave = audio(16000)[None, :count]
        whole = codec.encode(wave, torch.tensor([count])).codes
        with monkeypatch.context() as patch:
            patch.setattr(type(codec), "piece_frames", property(lambda _: 10))
            patch.setattr(network, "PIECE", 7)
            assert torch.equal(codec.encode(wave, torch.tensor([count])).codes, whole)


def saved(plain, directory, change=None, *, trainer=False, **settings):
    state = dict(plain.state_dict())
    for i in range(4):
        state[f"quantizer.vq.layers.{i}._codebook.inited"] = torch.ones(1)
        state[f"quantizer.vq.layers.{i}._codebook.embed_avg"] = torch.ones(64, 12)
    state["transform.weight"] = torch.ones(2, 2)
    if change:
        change(state)
    directory.mkdir(exist_ok=True)
    torch.save({"generator": state, "optim_g": {"lr": 1.0}} if trainer else state, directory / "SpeechTokenizer.pt")
    (directory / "config.json").write_text(json.dumps({**SPEECHTOKENIZER_CONFIG, **settings}))
    return directory


def test_the_trainers_checkpoint_is_the_same_codec(codec, plain, tmp_path):
    source = saved(plain, tmp_path / "published", trainer=True)
    assert add_codec(source / "SpeechTokenizer.pt", tmp_path / "codec") == codec.spec


def test_with_fewer_streams_the_first_entries_are_summed(codec, plain, tmp_path):
    spec = add_codec(saved(plain, tmp_path / "published"), tmp_path / "codec", num_streams=2)
    assert [(stream.name, stream.role) for stream in spec.streams] == [
        ("semantic", "semantic"),
        ("residual_1", "coupled"),
    ]
    assert spec.weights_sha256 != codec.spec.weights_sha256
    fewer, wave = open_codec(tmp_path / "codec"), audio(16000)[None, :8000]
    codes = fewer.encode(wave, torch.tensor([8000])).codes
    assert torch.equal(codes, codec.encode(wave, torch.tensor([8000])).codes[:, :2])
    expected = plain.decode(codes[0].long()).clamp(-1, 1)
    torch.testing.assert_close(fewer.decode(codes, torch.zeros(1, 0))[0], expected, atol=1e-5, rtol=0)
    assert (expected - codec.decode(codec.encode(wave, torch.tensor([8000])).codes, torch.zeros(1, 0))[0]).std() > 0.01


def never_trained(state):
    state["quantizer.vq.layers.2._codebook.inited"] = torch.zeros(1)


def without_a_weight(state):
    del state["decoder.model.0.conv.conv.weight_v"]


def with_another_key(state):
    state["encoder.model.2.alpha"] = torch.ones(1)


def with_nan(state):
    state["quantizer.vq.layers.3._codebook.embed"] = torch.full((64, 12), float("nan"))


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (never_trained, {}, "codebook 2 was never trained"),
        (without_a_weight, {}, r"missing: decoder\.model\.0\.conv\.conv\.weight_v"),
        (with_another_key, {}, r"unknown: encoder\.model\.2\.alpha"),
        (with_nan, {}, r"not finite: quantizer\.vq\.layers\.3\._codebook\.embed"),
        (None, {"activation": "Snake"}, "activation"),
        (None, {"n_q": 5}, r"missing: quantizer\.vq\.layers\.4\._codebook\.embed"),
        (None, {"n_filters": 4}, "wrong shape"),
        (None, {"n_q": 10**9}, "n_q"),
        (None, {"bidirectional": False}, "bidirectional"),
    ],
)
def test_a_damaged_or_other_codec_is_refused_by_name(plain, tmp_path, change, settings, message):
    source = saved(plain, tmp_path / "published", change, **settings)
    with pytest.raises(UserError, match=message):
        add_codec(source, tmp_path / "codec")
    assert not (tmp_path / "codec").exists()


@pytest.mark.parametrize("streams", [5, 33])
def test_more_streams_than_codebooks_are_refused(plain, tmp_path, streams):
    with pytest.raises(UserError, match=rf"does not have so many streams.*\n.*--streams {streams}\n.*1 to 4"):
        add_codec(saved(plain, tmp_path / "published"), tmp_path / "codec", num_streams=streams)
