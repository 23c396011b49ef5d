"""BigCodec: the plain twin, frame counts, how far it looks, and which files are refused."""

import pytest
import torch
from codec.families import audio, family_directory, open_family
from codec.tiny_own import make_bigcodec
from twins.bigcodec import PlainBigCodec

from slmkit.codec.added import add_codec
from slmkit.codec.open import open_codec
from slmkit.errors import UserError


@pytest.fixture(scope="module")
def codec():
    return open_family("bigcodec")


@pytest.fixture(scope="module")
def plain():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # as in families
        return make_bigcodec()


def test_the_plain_twin_is_read_from_what_was_added(codec):
    plain, wave = PlainBigCodec.from_directory(family_directory("bigcodec")), audio(16000)[:5000]
    codes = codec.encode(wave[None], torch.tensor([5000])).codes[0].long()
    assert torch.equal(plain.encode(wave), codes)
    expected = codec.decode(codes[None], torch.zeros(1, 0))[0]
    torch.testing.assert_close(plain.decode(codes).clamp(-1, 1), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 99, 100, 101, 1000, 16000, 20037])
def test_codes_and_waves_are_those_of_the_plain_twin(codec, plain, count):
    wave = audio(16000)[:count]
    codes = codec.encode(wave[None], torch.tensor([count])).codes
    assert torch.equal(codes[0].long(), plain.encode(wave))
    assert codes.shape[2] == count // 100 + 1 == codec.num_frames(count)
    decoded = codec.decode(codes, torch.zeros(1, 0))[0]
    torch.testing.assert_close(decoded, plain.decode(codes[0].long()), atol=1e-5, rtol=0)


def test_no_weights_look_further_than_the_reach(codec, plain):
    """What is not a number spreads as far as there is an arrow, in the network as published."""
    first, _, grow = codec.decoding_stages()
    frames, at = 90, 45
    with torch.inference_mode():
        latents = torch.randn(1, 12, frames)
        latents[:, :, at] = torch.nan
        reached = plain.generator.model(latents)[0, 0].isnan().view(-1, 100).any(dim=1).nonzero()
        assert at - int(reached.min()) == codec.reach_frames.after == first.reach.after + grow.reach.after
        wide = torch.randn(1, 16, frames)
        wide[:, :, at] = torch.nan
        reached = plain.generator.model[2:](wide)[0, 0].isnan().view(-1, 100).any(dim=1).nonzero()
        assert (int(reached.max()) - at, at - int(reached.min())) == grow.reach

        front, _, narrow = codec.encoding_stages()
        wave = torch.randn(1, 1, frames * 100)
        wave[..., 100 * at : 100 * (at + 1)] = torch.nan
        reached = plain.CodecEnc.block[:4](wave)[0, 0].isnan().nonzero()
        assert (int(reached.max()) - at, at - int(reached.min())) == front.reach
        reached = plain.CodecEnc.block[5:](wide)[0, 0].isnan().nonzero()
        assert (int(reached.max()) - at, at - int(reached.min())) == narrow.reach


def saved(plain, path, change=None, lightning=False):
    parts = {part: dict(getattr(plain, part).state_dict()) for part in ("CodecEnc", "generator")}
    if change:
        change(parts)
    if lightning:
        state = {f"model.{part}.{key}": value for part in parts for key, value in parts[part].items()}
        torch.save({"state_dict": {**state, "model.discriminator.a": torch.ones(1)}, "epoch": 3}, path)
    else:
        torch.save({**parts, "discriminator": {"a": torch.ones(1)}}, path)
    return path


def test_the_trainers_checkpoint_is_the_same_codec(codec, plain, tmp_path):
    path = saved(plain, tmp_path / "epoch.ckpt", lightning=True)
    assert add_codec(path, tmp_path / "codec") == codec.spec
    assert open_codec(tmp_path / "codec").spec == codec.spec


def without_a_bias(parts):
    del parts["generator"]["model.0.bias"]


def with_another_key(parts):
    parts["CodecEnc"]["block.9.bias"] = torch.ones(1)


def with_another_filter(parts):
    parts["CodecEnc"]["block.5.upsample.filter"] = parts["CodecEnc"]["block.5.upsample.filter"] + 0.01


def without_length(parts):
    del parts["CodecEnc"]["block.0.weight_g"]


def with_wrong_shape(parts):
    parts["generator"]["model.1.lstm.bias_ih_l1"] = torch.ones(3)


def without_codebook(parts):
    del parts["generator"]["quantizer.layers.0._codebook.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_bias, r"does not hold BigCodec:\n  - missing: generator\.model\.0\.bias"),
        (with_another_key, r"unknown: CodecEnc\.block\.9\.bias"),
        (with_another_filter, r"anti-aliasing filters are others\n.*block\.5\.upsample\.filter"),
        (without_length, r"missing: CodecEnc\.block\.0\.weight_g"),
        (with_wrong_shape, r"wrong shape: generator\.model\.1\.lstm\.bias_ih_l1 is \[3\], expected \[64\]"),
        (without_codebook, r"_codebook\.weight is missing, or no tensor of 2 axes"),
    ],
)
def test_a_damaged_file_is_refused_by_name(plain, tmp_path, change, message):
    path = saved(plain, tmp_path / "bigcodec.pt", change)
    with pytest.raises(UserError, match=message):
        add_codec(path, tmp_path / "codec")
    assert not (tmp_path / "codec").exists()


def test_there_is_one_stream(plain, tmp_path):
    path = saved(plain, tmp_path / "bigcodec.pt")
    with pytest.raises(UserError, match=r"does not have so many streams.*\n.*--streams 2"):
        add_codec(path, tmp_path / "codec", num_streams=2)
