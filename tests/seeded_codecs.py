"""Weights of published codecs that every implementation can rebuild, and the numbers they gave.

Each tensor is a function of its key, its shape and a salt. So that codes change from frame to frame, a few small
tensors lie in the golden files: the centre and radius of each codebook of SpeechTokenizer and WavTokenizer, and the
bias before BigCodec's codebook.

Example:
    golden = read_golden("bigcodec_golden_0")
    state = codec_state("bigcodec")  # every key of bigcodec_keys.json, float32
"""

import functools
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from seeded_weights import seeded_tensor

GOLDEN = Path(__file__).parent / "golden" / "codecs"
SALT = 3
GAINS = {  # by the start of the key; signals neither die out nor explode
    "speechtokenizer": {"encoder.": 1.3, "decoder.": 0.95},
    "bigcodec": {"CodecEnc.": 0.8, "generator.model.": 0.72},
    "wavtokenizer": {"feature_extractor.": 1.3, "head.out.": 1.5},
}

PUBLISHED_CONFIG = """{"resblock": "1", "batch_size": 6, "sampling_rate": 16000, "hop_size": 240, "n_filters": 64,
"strides": [8, 5, 4, 2], "dimension": 1024, "semantic_dimension": 768, "bidirectional": true, "dilation_base": 2,
"residual_kernel_size": 3, "n_residual_layers": 1, "lstm_layers": 2, "activation": "ELU", "codebook_size": 1024,
"n_q": 8, "sample_rate": 16000}"""


def read_golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def read_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shape by key of NAME.json."""
    return {key: tuple(shape) for key, shape in json.loads((GOLDEN / f"{name}.json").read_text()).items()}


def wave_of(golden: dict[str, np.ndarray]) -> torch.Tensor:
    """float32 [1, N]."""
    return torch.from_numpy(golden["wave_int16"].astype(np.float32) / 32768)[None]


@functools.cache
def codec_state(name: str, start: str = "") -> dict[str, torch.Tensor]:
    """The state dict that the golden files of `name` were made with, or its keys that begin with `start`.

    To be left unchanged.
    """
    stored, shapes = read_golden(f"{name}_golden_0"), read_shapes(f"{name}_keys")
    state = {}
    for key, shape in shapes.items():
        if not key.startswith(start):
            continue
        if key.endswith("weight_g"):
            v = _tensor(name, key[:-1] + "v", shapes[key[:-1] + "v"], stored).reshape(shape[0], -1)
            stretch = 1 + np.float32(0.1) * _normal(key, (shape[0],))
            value = (np.linalg.norm(v, axis=1).astype(np.float32) * stretch).reshape(shape)
        else:
            value = _tensor(name, key, shape, stored)
        state[key] = torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    return state


def _normal(key: str, shape: tuple[int, ...]) -> np.ndarray:
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + SALT))
    return draw.standard_normal(shape).astype(np.float32)


def _tensor(name: str, key: str, shape: tuple[int, ...], stored: dict[str, np.ndarray]) -> np.ndarray:
    leaf = key.split(".")[-1]
    if f"tensor/{key}" in stored:
        return stored[f"tensor/{key}"]
    if leaf == "filter":
        return stored["filter"].reshape(shape)
    if f"center/{key}" in stored:
        rows = _normal(key, shape)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return stored[f"center/{key}"] + stored[f"radius/{key}"] * rows / lengths
    if leaf.startswith("bias_"):  # of an LSTM
        return np.float32(0.02) * _normal(key, shape)
    if leaf == "window":
        return torch.hann_window(shape[0]).numpy()
    if leaf == "gamma":  # scale of a ConvNeXt layer
        return np.float32(0.25) + np.float32(0.05) * _normal(key, shape)
    if key.endswith((".scale.weight", ".shift.weight")):  # of an adaptive layer norm
        return np.float32(key.endswith(".scale.weight")) + np.float32(0.1) * _normal(key, shape)
    value = seeded_tensor(key, shape, SALT)
    if len(shape) > 1 and "_codebook" not in key and "lstm" not in key:
        gains = GAINS[name.split("_")[0]]
        value = value * np.float32(next((gain for start, gain in gains.items() if key.startswith(start)), 1.0))
    return value


def write_published(name: str, directory: Path) -> None:
    """The published files of SpeechTokenizer or BigCodec, with what has to be ignored in them."""
    state = codec_state(name)
    if name == "speechtokenizer":
        skipped = {key: torch.ones(shape) for key, shape in read_shapes("speechtokenizer_skipped_keys").items()}
        torch.save({**state, **skipped}, directory / "SpeechTokenizer.pt")
        (directory / "config.json").write_text(PUBLISHED_CONFIG)
    else:
        parts = {
            part: {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
            for part in ("CodecEnc", "generator")
        }
        torch.save({**parts, "discriminator": {"a.weight": torch.ones(2)}}, directory / "bigcodec.pt")
