"""Codecs of transformers: equal, to the bit, to what transformers makes of one utterance alone."""

import functools
import json
import shutil
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import transformers
from codec.families import audio, open_family, published
from twins.plain_codecs import PlainTransformers

from slmkit.codec.added import Added, add_codec
from slmkit.codec.base import MAX_LM_STREAMS, Reach
from slmkit.codec.hf.pretrained import load_network
from slmkit.codec.open import open_codec
from slmkit.errors import UserError

CLASSES = {
    "encodec": "EncodecModel",
    "dac": "DacModel",
    "dac_44khz": "DacModel",
    "mimi": "MimiModel",
    "xcodec": "XcodecModel",
    "xcodec2": "Xcodec2Model",
    "wavtokenizer": "WavTokenizerModel",
}
FEW = ("encodec", "dac", "mimi")  # of the default run
VOICE = torch.zeros(1, 0)


@functools.cache
def alone(name: str) -> PlainTransformers:
    """The published form, opened by transformers alone."""
    network = getattr(transformers, CLASSES[name]).from_pretrained(published(name)).eval()
    return PlainTransformers(open_family(name).spec.name, network, MAX_LM_STREAMS)


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.full) for name in CLASSES]
)
@pytest.mark.parametrize(
    "seconds", [pytest.param(0.01, marks=pytest.mark.full), 1.7, pytest.param(6.0, marks=pytest.mark.full)]
)
def test_equal_to_transformers_alone(name, seconds):
    codec = open_family(name)
    wave = audio(codec.spec.sample_rate)[: round(seconds * codec.spec.sample_rate)]
    codes = alone(name).encode(wave)
    assert torch.equal(codec.encode(wave[None], torch.tensor([len(wave)])).codes[0], codes.int())
    plain, decoded = alone(name).decode(codes), codec.decode(codes[None], VOICE)[0]
    assert torch.equal(decoded[: len(plain)], plain.clamp(-1, 1))
    assert not decoded[len(plain) :].any()
    assert len(decoded) - len(plain) == (8 if name == "dac" else 0)  # what strides of 2, 4, 5 and 8 leave off


def test_dac_has_a_frame_for_samples_that_fill_none():
    """As in the published code: 21637 samples are 68 frames. transformers leaves the last out, which is not full."""
    wave = audio(16000)[:21637]
    codes = open_family("dac").encode(wave[None], torch.tensor([len(wave)])).codes
    with torch.inference_mode():
        assert alone("dac").network.encode(wave[None, None]).audio_codes.shape[2] == 67
    assert codes.shape[2] == 68


def test_fewer_streams_are_the_first(tmp_path):
    source = published("encodec")
    spec = add_codec(source, tmp_path / "codec", num_streams=2)
    fewer, all_streams = open_codec(tmp_path / "codec"), open_family("encodec")
    assert len(spec.streams) == 2
    assert spec.weights_sha256 != all_streams.spec.weights_sha256
    wave = audio(24000)[None, :24000]
    codes = fewer.encode(wave, torch.tensor([24000])).codes
    assert torch.equal(codes, all_streams.encode(wave, torch.tensor([24000])).codes[:, :2])
    assert torch.equal(fewer.decode(codes, VOICE)[0], alone("encodec").decode(codes[0].long()).clamp(-1, 1))
    with pytest.raises(UserError, match=r"does not have so many streams.*\n.*--streams 5\n.*1 to 4"):
        add_codec(source, tmp_path / "more", num_streams=5)


def test_roles_of_the_streams():
    assert [stream.role for stream in open_family("mimi").spec.streams] == ["semantic", *["coupled"] * 31]
    assert {stream.role for name in ("encodec", "dac", "xcodec") for stream in open_family(name).spec.streams} == {
        "coupled"
    }
    assert open_family("xcodec2").spec.streams[0].size == 65536


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Kernels of 7 at each level, and 2 strides of each transposed convolution; the first frames reflect.
        ("encodec", Reach(None, 6)),
        ("dac", Reach(10, 10)),
        ("mimi", Reach(None, 0)),
        ("xcodec", Reach(10, 10)),
        ("xcodec2", Reach(None, None)),
        ("wavtokenizer", Reach(None, None)),
    ],
)
def test_reach_of_published_sizes(name, expected):
    """Kernels, strides and dilations of the tiny models are the published ones."""
    assert open_family(name).reach_frames == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_channels": 2}, "audio_channels"),
        ({"normalize": True}, "normalize"),
        ({"chunk_length_s": 1.0, "overlap": 0.01}, "chunk_length_s: .*expected null"),
        ({"norm_type": "time_group_norm"}, "norm_type"),
        ({"hidden_size": 2**40}, "hidden_size"),
        ({"upsampling_ratios": [8] * 9}, "upsampling_ratios"),
        ({"upsampling_ratios": [64, 64, 64]}, "frames are too long"),
        ({"target_bandwidths": [10**9]}, "too large|does not describe|not those"),
        ({"codebook_size": 100}, "power of 2"),
        ({"num_filters": 5}, "wrong shape"),
    ],
)
def test_other_models_of_a_family_are_refused_by_name(tmp_path, changes, message):
    source = shutil.copytree(published("encodec"), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        add_codec(source, tmp_path / "codec")
    assert not (tmp_path / "codec").exists()


def test_weights_without_a_codebook_are_none_of_the_family(tmp_path):
    source = shutil.copytree(published("dac"), tmp_path / "source")
    safetensors.torch.save_file({"a": torch.zeros(3)}, source / "model.safetensors")
    with pytest.raises(UserError, match="holds no codebook of dac"):
        add_codec(source, tmp_path / "codec")


def test_without_its_class_a_codec_asks_for_a_newer_transformers():
    added = Added(streams=1, config={}, weights={})
    with pytest.raises(UserError, match=r"needs a newer transformers: it has no NextModel"):
        load_network("NextModel", "NextConfig", added, torch.device("cpu"))


@pytest.mark.full
def test_listing_the_families_does_not_import_transformers():
    check = "import sys, slmkit.codec.open as o; o.codec_families(); print('transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
