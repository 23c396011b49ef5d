"""Tiny random models of SpeechTokenizer and BigCodec, as their published files, for `families`."""

import json
from pathlib import Path

import torch
from codec.families import audio, draw, family, fit_residual
from torch import nn
from twins.bigcodec import PlainBigCodec
from twins.speechtokenizer import PlainSpeechTokenizer

SPEECHTOKENIZER_CONFIG = {
    "n_filters": 2,
    "strides": [4, 5, 4],
    "dimension": 12,
    "semantic_dimension": 768,
    "bidirectional": True,
    "dilation_base": 2,
    "residual_kernel_size": 3,
    "n_residual_layers": 1,
    "lstm_layers": 2,
    "activation": "ELU",
    "codebook_size": 64,
    "n_q": 4,
    "sample_rate": 16000,
}


def loud(model: nn.Module, gain: float) -> None:
    """Draw all kernels, so that signals neither die out nor explode on their way; the loudness of each is its own."""
    weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if weight.ndim > 1 and not name.endswith("weight_g"):
            weight.normal_(std=gain * weight[0].numel() ** -0.5)
        elif "bias" in name:
            weight.normal_(std=0.02)
        elif name.endswith(("alpha", "beta")):
            weight.normal_(std=0.1)
    for name, weight in weights.items():
        if name.endswith("weight_g"):
            kernel = weights[name[:-1] + "v"]
            norm = kernel.norm(dim=tuple(range(1, kernel.ndim)), keepdim=True)
            weight.copy_(norm * (1 + 0.1 * torch.randn_like(norm)))


def turn_down(last: nn.Module, latents: torch.Tensor, decoder: nn.Module) -> None:
    """Scale the last convolution of `decoder`: clipped waves would hide differences."""
    wave = decoder(latents)
    last.weight_g.mul_(0.2 / wave.std())
    last.bias.sub_(wave.mean()).mul_(0.2 / wave.std())


def make_speechtokenizer() -> PlainSpeechTokenizer:
    config = SPEECHTOKENIZER_CONFIG
    plain = PlainSpeechTokenizer(
        filters=config["n_filters"],
        strides=config["strides"],
        dimension=config["dimension"],
        entries=config["codebook_size"],
        codebooks=config["n_q"],
    ).eval()
    with torch.no_grad():
        loud(plain, 1.3)
        latents = plain.latents(audio(16000))
        fit_residual(latents, plain.books())
        decoder = plain.decoder.model
        turn_down(decoder[-1].conv.conv, latents.T[None], decoder)
    return plain


def make_bigcodec() -> PlainBigCodec:
    plain = PlainBigCodec(width=2, strides=(4, 5, 5), latent=12, entries=128, code_dim=4, layers=2).eval()
    with torch.no_grad():
        loud(plain, 0.9)
        book = plain.generator.quantizer.layers[0]
        latents = plain.latents(audio(16000))
        projected = book.in_proj(latents)
        book.in_proj.bias.sub_(projected.mean(dim=0))
        book._codebook.weight.copy_(draw(book.in_proj(latents), 128))
        decoder = plain.generator.model
        turn_down(decoder[-1], latents.T[None], decoder)
    return plain


@family("speechtokenizer")
def speechtokenizer(directory: Path) -> Path:
    state = make_speechtokenizer().state_dict()
    trained = {f"quantizer.vq.layers.{i}._codebook.inited": torch.ones(1) for i in range(4)}
    torch.save({**state, **trained, "transform.weight": torch.ones(3, 2)}, directory / "SpeechTokenizer.pt")
    (directory / "config.json").write_text(json.dumps(SPEECHTOKENIZER_CONFIG))
    return directory


@family("bigcodec")
def bigcodec(directory: Path) -> Path:
    plain = make_bigcodec()
    torch.save(
        {"CodecEnc": plain.CodecEnc.state_dict(), "generator": plain.generator.state_dict()}, directory / "bigcodec.pt"
    )
    return directory
