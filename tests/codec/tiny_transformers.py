"""Tiny random models of transformers' codecs, for `families`."""

from pathlib import Path
from typing import Any

import torch
from codec.families import audio, draw, family, fit_residual
from torch import nn


def loud(model: nn.Module, gain: float = 1.0) -> None:
    """Draw all kernels anew, so that signals neither die out nor explode on their way."""
    for name, weight in model.named_parameters():
        if "original0" in name:
            continue
        if weight.ndim > 1:
            weight.normal_(std=gain * weight[0].numel() ** -0.5)
        elif "bias" in name:
            weight.normal_(std=0.02)
    for name, weight in model.named_parameters():
        if "original0" in name:  # weight norm: the norm of each kernel
            kernel = dict(model.named_parameters())[name.replace("original0", "original1")]
            dims = [dim for dim in range(kernel.ndim) if weight.shape[dim] == 1]
            norm = kernel.pow(2).sum(dims, keepdim=True).sqrt()
            weight.copy_(norm * (1 + 0.1 * torch.randn_like(weight)))


def turn_down(decoder: Any, latents: torch.Tensor) -> None:
    """Scale the last convolution: clipped waves would hide differences."""
    captured: list[torch.Tensor] = []
    hook = decoder.conv2.register_forward_hook(lambda _, __, found: captured.append(found))
    decoder(latents)
    hook.remove()
    decoder.conv2.weight.mul_(0.25 / captured[0].std())
    decoder.conv2.bias.copy_(-0.25 * captured[0].mean() / captured[0].std())


def saved(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def make_encodec() -> Any:
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=64, codebook_dim=16, target_bandwidths=[1.8], num_lstm_layers=1
    )
    model = EncodecModel(config).eval()
    with torch.no_grad():
        loud(model, 1.3)
        latents = model.encoder(audio(24000)[None, None])[0].T
        fit_residual(latents, [layer.codebook.embed for layer in model.quantizer.layers])
    return model


@family("encodec")
def encodec(directory: Path) -> Path:
    return saved(make_encodec(), directory)


def make_dac(rate: int = 16000, strides: tuple[int, ...] = (2, 4, 5, 8)) -> Any:
    from transformers import DacConfig, DacModel

    config = DacConfig(
        encoder_hidden_size=4,
        decoder_hidden_size=32,
        downsampling_ratios=list(strides),
        n_codebooks=4,
        codebook_size=64,
        sampling_rate=rate,
    )
    model = DacModel(config).eval()
    with torch.no_grad():
        loud(model)
        loud(model.decoder, 0.6)
        wave = audio(rate)
        residual = model.encoder(nn.functional.pad(wave, (0, -len(wave) % config.hop_length))[None, None])
        for layer in model.quantizer.quantizers:
            layer.codebook.weight.copy_(draw(layer.in_proj(residual)[0].T, 64))
            residual = residual - layer(residual)[0]
        turn_down(model.decoder, model.encoder(audio(rate)[None, None]))
    return model


@family("dac")
def dac(directory: Path) -> Path:
    return saved(make_dac(), directory)


@family("dac_44khz")
def dac_44khz(directory: Path) -> Path:
    return saved(make_dac(44100, (2, 4, 8, 8)), directory)


def make_mimi() -> Any:
    from transformers import MimiConfig, MimiModel

    config = MimiConfig(
        num_filters=4,
        hidden_size=16,
        codebook_size=32,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=32,
        sliding_window=20,
        upsample_groups=16,
    )
    model = MimiModel(config).eval()
    with torch.no_grad():
        loud(model, 1.3)
        captured: list[torch.Tensor] = []
        hook = model.quantizer.semantic_residual_vector_quantizer.input_proj.register_forward_hook(
            lambda _, inputs, __: captured.append(inputs[0])
        )
        model.encode(audio(24000)[None, None])
        hook.remove()
        halves = (
            model.quantizer.semantic_residual_vector_quantizer,
            model.quantizer.acoustic_residual_vector_quantizer,
        )
        for half in halves:
            latents = half.input_proj(captured[0])[0].T
            fit_residual(latents, [layer.codebook.embed_sum for layer in half.layers])
            for layer in half.layers:
                layer.codebook._embed = None
    return model


@family("mimi")
def mimi(directory: Path) -> Path:
    return saved(make_mimi(), directory)


def make_xcodec(kind: str = "hubert") -> Any:
    from transformers import XcodecConfig, XcodecModel

    semantic = {
        "model_type": kind,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
    }
    acoustic = {
        "model_type": "dac",
        "encoder_hidden_size": 4,
        "decoder_hidden_size": 32,
        "downsampling_ratios": [8, 5, 4, 2],
        "upsampling_ratios": [8, 5, 4, 2],
        "hidden_size": 16,
    }
    config = XcodecConfig(
        codebook_size=64, target_bandwidths=[1.2], acoustic_model_config=acoustic, semantic_model_config=semantic
    )
    model = XcodecModel(config).eval()
    with torch.no_grad():
        loud(model)
        loud(model.acoustic_decoder, 0.6)
        wave = audio(16000)
        captured: list[torch.Tensor] = []
        hook = model.fc.register_forward_hook(lambda _, __, found: captured.append(found))
        model.encode(nn.functional.pad(wave, (0, -len(wave) % 320))[None, None])
        hook.remove()
        fit_residual(captured[0][0], [layer.codebook.embed for layer in model.quantizer.quantizers])
        turn_down(model.acoustic_decoder, torch.randn(1, 16, 100))
    return model


@family("xcodec")
def xcodec(directory: Path) -> Path:
    return saved(make_xcodec(), directory)


def make_xcodec2() -> Any:
    from transformers import SeamlessM4TFeatureExtractor, Xcodec2Config, Xcodec2Model

    semantic = {
        "model_type": "wav2vec2-bert",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_depthwise_kernel_size": 5,
    }
    config = Xcodec2Config(
        hidden_size=64,  # 32 groups of its normalization
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        encoder_hidden_size=2,
        quantization_dim=80,
        semantic_model_config=semantic,
    )
    model = Xcodec2Model(config).eval()
    with torch.no_grad():
        loud(model)
        captured: list[torch.Tensor] = []
        project = model.quantizer.project_in
        hook = project.register_forward_hook(lambda _, __, found: captured.append(found[0]))
        wave = nn.functional.pad(audio(16000), (0, 320 - len(audio(16000)) % 320))
        mel = SeamlessM4TFeatureExtractor()(wave.numpy(), sampling_rate=16000, return_tensors="pt")
        num_frames = len(wave) // 320
        features = nn.functional.pad(mel["input_features"], (0, 0, 0, num_frames - mel["input_features"].shape[1]))
        model.encode(wave[None, None], features)
        hook.remove()
        spread = captured[0].std(dim=0)  # all levels are used
        project.weight.div_(spread[:, None])
        project.bias.sub_(captured[0].mean(dim=0)).div_(spread)
    return model


@family("xcodec2")
def xcodec2(directory: Path) -> Path:
    return saved(make_xcodec2(), directory)


def make_wavtokenizer() -> Any:
    from transformers import WavTokenizerConfig, WavTokenizerModel

    config = WavTokenizerConfig(
        num_filters=4,
        upsampling_ratios=[8, 5, 4, 2],
        hidden_size=16,
        codebook_size=256,
        codebook_dim=16,
        num_lstm_layers=1,
        decoder_hidden_size=64,  # 32 groups of its normalization
        decoder_intermediate_size=64,
        decoder_num_layers=2,
    )
    model = WavTokenizerModel(config).eval()
    with torch.no_grad():
        loud(model, 1.3)
        latents = model.encoder_model.encoder(audio(24000)[None, None])[0].T
        model.encoder_model.quantizer.codebook.embed.copy_(draw(latents, 256))
    return model


@family("wavtokenizer")
def wavtokenizer(directory: Path) -> Path:
    return saved(make_wavtokenizer(), directory)
