"""Tiny SNAC models as published files: one without attention, one with it, with seeded weights.

The codebooks are drawn from the model's own latents of a voice, so that the codes vary.

Example:
    write_published(directory, "windows")
    add_codec(directory, out)
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from codec.families import draw, family
from seeded_weights import seeded_tensor, wave

from slmkit.codec.snac.codec import SnacConfig
from slmkit.codec.snac.network import Network
from slmkit.config.load import from_dict

COMMON = {"codebook_size": 32, "codebook_dim": 4, "noise": True, "latent_dim": None}
CONFIGS: dict[str, dict[str, Any]] = {
    "convolutions": {
        **COMMON,
        "sampling_rate": 24000,
        "encoder_dim": 6,
        "encoder_rates": [2, 3, 5],
        "decoder_dim": 48,
        "decoder_rates": [5, 3, 2],
        "attn_window_size": None,
        "vq_strides": [4, 2, 1],
        "depthwise": True,
    },
    "windows": {
        **COMMON,
        "sampling_rate": 44100,
        "encoder_dim": 8,
        "encoder_rates": [2, 3, 5],
        "decoder_dim": 64,
        "decoder_rates": [5, 3, 2],
        "attn_window_size": 16,
        "vq_strides": [8, 4, 2, 1],
        "depthwise": False,
    },
}


def published_state(values: dict[str, Any]) -> dict[str, torch.Tensor]:
    """State dict in the published form: weight norm apart. The codebooks are drawn from the latents of a voice."""
    config = from_dict(SnacConfig, values)
    heard = wave(1.0, seed=1, sample_rate=config.sampling_rate).astype(np.float32) / 32768
    network = config.network(len(config.vq_strides)).eval()
    layout = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    plain = {name: torch.from_numpy(seeded(name, shape)) for name, shape in layout.items()}
    network.load_state_dict(plain, assign=True)
    padding = -len(heard) % (config.hop_samples * config.block_frames)
    draw_codebooks(network, torch.nn.functional.pad(torch.from_numpy(heard), (0, padding)))
    plain = network.state_dict()
    halves = {}
    for name, tensor in plain.items():
        if tensor.dim() < 3 or name.endswith("alpha"):
            halves[name] = tensor
        else:  # the first half holds the norms, the second what is scaled to them
            stem = f"{name.removesuffix('weight')}parametrizations.weight.original"
            halves[stem + "0"] = tensor.flatten(1).norm(dim=1)[:, None, None]
            halves[stem + "1"] = 1.5 * tensor
    for part, place in (("encoder.block", 4), ("decoder.model", 1)):
        if config.attn_window_size:
            halves[f"{part}.{place}.rel_pos.inv_freq"] = 1 / 10000 ** (torch.arange(0, 64, 2).float() / 64)
    return halves


def seeded(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight `name`.

    The decoder is quiet, with little noise and without biases, so that it is as loud as the codes say: speech
    decodes to what is more like itself than other speech is.
    """
    x = seeded_tensor(name, shape)
    if name.endswith("alpha"):
        return (1 + 2 * x).astype(np.float32)
    gain = 1.0
    if name.endswith("bias"):
        gain = 2.0 if name.startswith("encoder") or ".in_proj." in name else 0.0
    elif name.startswith("decoder") and len(shape) == 3:
        gain = 0.08 if name.endswith("linear.weight") else 0.4
    return np.float32(gain) * x


@torch.inference_mode()
def draw_codebooks(network: Network, heard: torch.Tensor) -> None:
    """Entries are what is compared with them, at places spread over `heard` [N]."""
    latents = network.encoder.block(heard[None, None])
    for level in network.quantizer.levels:
        points = level.projected(latents)[0].T
        entries = len(level.codebook.weight)
        spread = points[torch.linspace(0, len(points) - 1, entries).long()]
        level.codebook.weight.copy_(spread if len(points) >= entries else draw(points, entries))
        latents = latents - level.latents_of(level.nearest(latents))


def write_published(directory: Path, kind: str | dict[str, Any]) -> Path:
    """config.json and pytorch_model.bin, of a kind of `CONFIGS` or of another config."""
    directory.mkdir(parents=True, exist_ok=True)
    config = CONFIGS[kind] if isinstance(kind, str) else kind
    (directory / "config.json").write_text(json.dumps(config))
    torch.save(published_state(config), directory / "pytorch_model.bin")
    return directory


@family("snac_24khz")
def convolutions(directory: Path) -> Path:
    return write_published(directory, "convolutions")


@family("snac_44khz")
def windows(directory: Path) -> Path:
    return write_published(directory, "windows")
