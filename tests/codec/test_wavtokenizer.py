"""WavTokenizer's published checkpoints: read as they are, and held against the numbers of the published code."""

import argparse

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from codec.families import audio, family_directory, open_family
from seeded_codecs import codec_state, read_golden, read_shapes, wave_of

from slmkit.codec.added import WEIGHTS, add_codec
from slmkit.codec.hf.wavtokenizer import ENCODER, QUANTIZER, WHOLE_FRAMES
from slmkit.codec.open import open_codec
from slmkit.codec.stages import run_in_pieces
from slmkit.errors import UserError
from slmkit.precision import exact_float32

EQUAL_FRAMES, WAVE_BOUND, LATENT_BOUND = 0.995, 5e-5, 1e-4
VARIANTS = {"wavtokenizer_75": (320, [8, 5, 4, 2]), "wavtokenizer_40": (600, [6, 5, 5, 4])}


def checkpoint(name, **changes):
    """What the trainer writes: weights of all networks, and objects of its own."""
    state = dict(codec_state(name))
    for key, shape in read_shapes(f"{name}_skipped_keys").items():
        state[key] = torch.ones(shape)
    state["multiperioddisc.0.weight"] = torch.zeros(3)
    state.update(changes)
    options = argparse.Namespace(lr=2e-4)
    return {"state_dict": state, "epoch": 7, "optimizer_states": [{"state": {}}], "hyper_parameters": options}


def settings(hop, strides, **changes):
    """The yaml beside it."""
    extractor = {"dowmsamples": strides, "vq_bins": 4096, "num_quantizers": 1, "bandwidths": [6.6, 6.6, 6.6, 6.6]}
    head = {"dim": 768, "n_fft": 4 * hop, "hop_length": hop, "padding": "same"}
    parts = {"feature_extractor": extractor | changes, "head": head}
    return {"model": {"init_args": {part: {"init_args": values} for part, values in parts.items()}}}


@pytest.fixture(scope="module", params=VARIANTS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def published(name, tmp_path_factory):
    directory = tmp_path_factory.mktemp(name)
    torch.save(checkpoint(name), directory / "a.ckpt")
    (directory / "a.yaml").write_text(yaml.safe_dump(settings(*VARIANTS[name])))
    return directory


@pytest.fixture(scope="module")
def codec(published):
    add_codec(published / "a.ckpt", published / "codec")
    return open_codec(published / "codec")


@pytest.mark.full
@pytest.mark.parametrize("number", [0, 1])
def test_codes_and_waves_of_the_published_code(codec, name, number):
    golden = read_golden(f"{name}_golden_{number}")
    wave = wave_of(golden)
    assert codec.spec.hop_samples == VARIANTS[name][0]
    with exact_float32(codec.device), torch.inference_mode():
        latents = run_in_pieces(codec.encoding_stages(), wave[None], piece_frames=codec.piece_frames)
    np.testing.assert_allclose(latents[0].numpy(), golden["latent"], atol=LATENT_BOUND)
    codes = codec.encode(wave, torch.tensor([wave.shape[1]])).codes
    assert codes.shape[2] == golden["codes"].shape[1]
    assert (codes[0].numpy() == golden["codes"]).mean() >= EQUAL_FRAMES
    decoded = codec.decode(torch.from_numpy(golden["codes"].astype(np.int64))[None], torch.zeros(1, 0))
    np.testing.assert_allclose(decoded[0].numpy(), golden["decoded"].reshape(-1).clip(-1, 1), atol=WAVE_BOUND)


@pytest.mark.full
def test_frames_are_hops_rounded_up(codec, name):
    wave = wave_of(read_golden(f"{name}_golden_0"))
    for count in (1, codec.spec.hop_samples, codec.spec.hop_samples + 1):
        assert codec.encode(wave[:, :count], torch.tensor([count])).codes.shape[2] == codec.num_frames(count)


@pytest.mark.full  # each writes 300 MB
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone.embed.bias": None}, "missing: backbone.embed.bias"),
        ({"backbone.other": torch.zeros(3)}, "unknown: backbone.other"),
        ({"backbone.final_layer_norm.bias": torch.zeros(3)}, "final_layer_norm.bias"),
        ({"backbone.final_layer_norm.bias": torch.full((768,), torch.inf)}, "not finite"),
        ({"backbone.embed.weight": None}, "not a whole checkpoint of WavTokenizer"),
        ({"backbone.embed.bias": "text"}, "does not hold weights by name"),
        ({"feature_extractor.encodec.quantizer.vq.layers.0._codebook.inited": torch.zeros(1)}, "was never trained"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, changes, message):
    made = checkpoint("wavtokenizer_75", **changes)
    made["state_dict"] = {key: value for key, value in made["state_dict"].items() if value is not None}
    torch.save(made, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=message):
        add_codec(tmp_path / "a.ckpt", tmp_path / "codec")
    assert not (tmp_path / "codec").exists()


@pytest.mark.full
def test_settings_of_another_checkpoint_are_refused(tmp_path):
    torch.save(checkpoint("wavtokenizer_75"), tmp_path / "a.ckpt")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings(600, [6, 5, 5, 4])))
    with pytest.raises(UserError, match=r"is not the checkpoint .*\n.*a\.yaml: feature_extractor\.dowmsamples"):
        add_codec(tmp_path / "a.ckpt", tmp_path / "codec")
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(settings(320, [8, 5, 4, 2])))  # as published: many in one place
    assert add_codec(tmp_path, tmp_path / "codec").frame_rate == 75


def published_names(weights):
    """The weights of transformers' form under the names of a published checkpoint."""
    renamed = {}
    for key, value in weights.items():
        key = key.replace("head.linear.", "head.out.")
        if key.startswith("encoder_model.encoder."):
            key = key.replace(".conv.", ".conv.conv.").replace("encoder_model.encoder.layers.", ENCODER)
        renamed[key.replace("encoder_model.quantizer.codebook.", QUANTIZER)] = value
    return renamed


def test_both_forms_are_one_codec(tmp_path):
    weights = published_names(safetensors.torch.load_file(family_directory("wavtokenizer") / WEIGHTS))
    more = {f"{QUANTIZER}inited": torch.ones(1), "head.istft.window": torch.ones(4), "dac.a.weight": torch.ones(4)}
    made = {"state_dict": weights | more, "hyper_parameters": argparse.Namespace(lr=2e-4)}
    torch.save(made, tmp_path / "a.ckpt")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings(320, [8, 5, 4, 2], vq_bins=256)))
    (tmp_path / "config.json").write_text('{"epochs": 3}')  # of something else
    add_codec(tmp_path / "a.ckpt", tmp_path / "codec")
    read, known = open_codec(tmp_path / "codec"), open_family("wavtokenizer")
    wave = audio(24000)[None, :30000]
    codes = read.encode(wave, torch.tensor([30000])).codes
    assert torch.equal(codes, known.encode(wave, torch.tensor([30000])).codes)
    assert torch.equal(read.decode(codes, torch.zeros(1, 0)), known.decode(codes, torch.zeros(1, 0)))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(settings(600, [6, 5, 5, 4], vq_bins=256)))
    with pytest.raises(UserError, match=r"is not the checkpoint .*\n.*a\.yaml: feature_extractor\.dowmsamples"):
        add_codec(tmp_path / "a.ckpt", tmp_path / "other")
    made["state_dict"][f"{QUANTIZER}inited"] = torch.zeros(1)
    torch.save(made, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="holds a codebook that was never trained"):
        add_codec(tmp_path / "a.ckpt", tmp_path / "other")


def test_attention_in_steps_is_that_of_the_whole():
    attention = next(layer for layer in open_family("wavtokenizer").network.backbone.pos_net if hasattr(layer, "whole"))
    values = torch.randn(1, 64, WHOLE_FRAMES + 77, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, expected = attention(values), attention.whole(values)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
