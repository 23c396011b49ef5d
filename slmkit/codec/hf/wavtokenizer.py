"""WavTokenizer (Ji et al., arXiv 2408.16532): one codebook of 4096, 40 or 75 frames per second.

Two forms are read: transformers' (5.24 or newer has the network), and the published checkpoints of the trainer with
the yaml beside them. Of these, sizes are read from the weights; a yaml must agree with them.

The encoder is convolutions that look both ways and an LSTM. The decoder's normalization and attention look at the whole
utterance, so it decodes no stream. Attention of more than `WHOLE_FRAMES` frames is computed for some frames at a time,
in bounded memory, which changes rounding only.

Example:
    slmkit codec add WavTokenizer_small_320_24k_4096.ckpt codecs/wavtokenizer
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import nn

from slmkit.codec.added import Added, Source
from slmkit.codec.hf.pretrained import (
    Few,
    NetworkCodec,
    Ratios,
    Size,
    check_streams,
    checked,
    checked_hop,
    load_network,
    plain_weights,
    read_pretrained,
    spec_of,
)
from slmkit.codec.hf.seanet import SeanetFile, seanet_stages
from slmkit.codec.open import Preset, register_codec
from slmkit.codec.stages import Windowed
from slmkit.config.load import read_yaml
from slmkit.errors import UserError

NAME = "wavtokenizer"
CODEBOOK = r"encoder_model\.quantizer\.codebook\.embed"
WHOLE_FRAMES = 3000  # whose attention is computed at once
MOST_WEIGHTS = 2**26  # of attention, in one step

# Of a trainer's checkpoint.
ENCODER = "feature_extractor.encodec.encoder.model."
QUANTIZER = "feature_extractor.encodec.quantizer.vq.layers.0._codebook."
PREFIXES = (ENCODER, QUANTIZER, "backbone.", "head.")
COMPUTED = "head.istft.window"
STAGE = 3  # layers of the encoder from one stride to the next: residual, activation, convolution
N_FFT_HOPS = 4  # length of the spectrum's window, in hops


class _NetworkFile(SeanetFile):
    """The config.json of transformers, which leaves out its defaults."""

    upsampling_ratios: Ratios = Field(default=(6, 5, 5, 4), description="strides of the encoder, the last first")
    hidden_size: Size = Field(default=512, description="width of the latents")
    codebook_size: Size = Field(default=4096, description="entries of the codebook")
    codebook_dim: Size = Field(default=512, description="width of an entry")
    decoder_hidden_size: Size = Field(default=768, description="width of the decoder")
    decoder_intermediate_size: Size = Field(default=2304, description="its inner width")
    decoder_num_layers: Few = Field(default=12, description="its blocks")
    adanorm_num_embeddings: Few = Field(default=4, description="bandwidths it was trained for")
    decoder_attention_num_groups: Size = Field(default=32, description="groups of its normalization")


class WavTokenizer(NetworkCodec):
    """See the module."""

    def __init__(self, added: Added, device: torch.device) -> None:
        file: _NetworkFile = checked(_NetworkFile, added)
        hop = checked_hop(file.upsampling_ratios)
        check_streams(added, 1)
        self.network: Any = load_network("WavTokenizerModel", "WavTokenizerConfig", added, device)
        layers = self.network.backbone.pos_net
        for place, layer in enumerate(layers):
            if hasattr(layer, "proj_out"):
                layers[place] = _AttentionInSteps(layer)
        self._encoding = seanet_stages(self.network.encoder_model.encoder.layers)
        self._decoding = (Windowed(lambda codes: self.network.decode(codes).audio_values, None, outputs_per_frame=hop),)
        spec = spec_of(
            NAME,
            added,
            sample_rate=file.sampling_rate,
            hop_samples=hop,
            size=file.codebook_size,
        )
        super().__init__(spec, device)

    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        return self.network.encoder_model.quantizer.encode(latents)


class _AttentionInSteps(nn.Module):
    """The decoder's attention. Its weights are frames x frames, of hours more than a machine has."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, values: torch.Tensor) -> torch.Tensor:  # [1, C, T]
        whole, num_frames = self.whole, values.shape[2]
        if num_frames <= WHOLE_FRAMES:
            return whole(values)
        normed = whole.norm(values)
        query, key, value = whole.q(normed), whole.k(normed), whole.v(normed)
        step = max(1, MOST_WEIGHTS // num_frames)
        found = []
        for start in range(0, num_frames, step):
            scores = torch.bmm(query[..., start : start + step].transpose(1, 2), key) * query.shape[1] ** -0.5
            found.append(torch.bmm(value, scores.softmax(dim=2).transpose(1, 2)))
        return values + whole.proj_out(torch.cat(found, dim=2))


def _read(source: Source) -> Added | None:
    if "model_type" in source.config:
        return read_pretrained(source, NAME, CODEBOOK)
    state = source.weights.get("state_dict")
    if not isinstance(state, dict) or f"{QUANTIZER}embed" not in state:
        return None
    kept = {name: value for name, value in state.items() if name.startswith(PREFIXES) and name != COMPUTED}
    published = plain_weights(kept, source.weights_file)
    config = _config_of(published, source.weights_file)
    _check_yaml(source, config)
    return Added(
        streams=source.chosen_streams(1),
        config=config,
        weights={_renamed(name): value for name, value in published.items()},
        licence=source.licence,
    )


def _renamed(name: str) -> str:
    """The name that transformers has for a weight of a trainer's checkpoint."""
    name = name.replace(ENCODER, "encoder_model.encoder.layers.").replace(".conv.conv.", ".conv.")
    return name.replace(QUANTIZER, "encoder_model.quantizer.codebook.").replace("head.out.", "head.linear.")


def _config_of(weights: Mapping[str, torch.Tensor], where: Any) -> dict[str, Any]:
    """The settings that a checkpoint's shapes say. Raises UserError where they are none of WavTokenizer."""
    try:
        lstm = next(int(name.split(".")[4]) for name in weights if name.startswith(ENCODER) and ".lstm." in name)
        kernels = [weights[f"{ENCODER}{layer}.conv.conv.weight_v"].shape[2] for layer in range(STAGE, lstm, STAGE)]
        strides = [kernel // 2 for kernel in kernels]
        lstm_layers = sum(1 for name in weights if name.startswith(f"{ENCODER}{lstm}.lstm.weight_ih_l"))
        first, final = (weights[f"{ENCODER}{layer}.conv.conv.weight_v"] for layer in (0, lstm + 2))
        entries, width = weights[f"{QUANTIZER}embed"].shape
        blocks = [name for name in weights if name.startswith("backbone.convnext.") and name.endswith(".gamma")]
        return {
            "model_type": "wavtokenizer",
            "upsampling_ratios": strides[::-1],
            "num_filters": first.shape[0],
            "kernel_size": first.shape[2],
            "last_kernel_size": final.shape[2],
            "num_lstm_layers": lstm_layers,
            "hidden_size": final.shape[0],
            "codebook_size": entries,
            "codebook_dim": width,
            "decoder_hidden_size": weights["backbone.embed.weight"].shape[0],
            "decoder_intermediate_size": weights["backbone.convnext.0.pwconv1.weight"].shape[0],
            "decoder_num_layers": len(blocks),
            "adanorm_num_embeddings": weights["backbone.norm.scale.weight"].shape[0],
        }
    except (LookupError, ValueError, StopIteration) as error:
        raise UserError(f"{where} is not a whole checkpoint of WavTokenizer", got=f"without {error}") from error


def _check_yaml(source: Source, config: Mapping[str, Any]) -> None:
    """Raise UserError where there are settings beside a checkpoint, and those of none are its own."""
    strides = config["upsampling_ratios"]
    hop = math.prod(strides)
    wanted = {
        "feature_extractor": {"dowmsamples": strides, "vq_bins": config["codebook_size"], "num_quantizers": 1},
        "head": {"n_fft": N_FFT_HOPS * hop, "hop_length": hop, "padding": "same"},
    }
    problems = []
    for file in sorted(source.directory.glob("*.yaml")):
        settings = read_yaml(file)
        parts = {part: _nested(settings, "model", "init_args", part, "init_args") for part in wanted}
        if not any(parts.values()):
            continue  # not of this codec
        wrong = [
            f"{part}.{name} {parts[part].get(name)!r:.50}, not {value}"
            for part, values in wanted.items()
            for name, value in values.items()
            if parts[part].get(name, value) != value
        ]
        if not wrong:
            return
        problems.append(f"{file.name}: {', '.join(wrong)}")
    if problems:
        raise UserError(
            f"{source.weights_file} is not the checkpoint that the settings beside it describe",
            got="; ".join(problems),
            next_step="put the checkpoint beside its own yaml, or into a directory of its own",
        )


def _nested(values: Any, *names: str) -> dict[str, Any]:
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values if isinstance(values, dict) else {}


register_codec(
    NAME,
    read=_read,
    build=WavTokenizer,
    presets=[
        Preset("novateur/WavTokenizer (small, 320)", 24000, 320, "1 of 4096", False, "MIT"),
        Preset("novateur/WavTokenizer-large-unify-40token", 24000, 600, "1 of 4096", False, "MIT"),
        Preset("novateur/WavTokenizer-large-speech-75token", 24000, 320, "1 of 4096", False, "MIT"),
    ],
)
