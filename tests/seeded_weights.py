"""Weights and waves that every implementation of a network can rebuild bit for bit.

The golden files were made with weights that are a pure function of each tensor's state-dict key and shape. A network
filled by `seed_state` with the same salt therefore holds the numbers the golden files were made with.

Example:
    network.load_state_dict(seed_state(network.state_dict()))
"""

import zlib

import numpy as np
import torch

COMPUTED = {"filter", "mel_basis", "hann_window", "pe"}  # buffers that are formulas, not weights: kept as they are
NUM_HARMONICS = 11


def seeded_tensor(key: str, shape: tuple[int, ...], salt: int = 0) -> np.ndarray:
    """Normal numbers, float32 of `shape`, from PCG64 seeded with crc32(key) + salt, scaled by what the key is."""
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()) + salt))
    normal = draw.standard_normal(shape).astype(np.float32)
    leaf = key.split(".")[-1]
    if leaf in {"alpha", "beta"}:
        return np.float32(0.1) * normal
    if leaf in {"bias", "in_proj_bias"}:
        return np.float32(0.02) * normal
    if "_codebook" in key:
        return normal
    if leaf == "weight" and len(shape) == 1:  # of a layer norm
        return np.float32(1) + np.float32(0.1) * normal
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    gain = 0.75 if leaf == "weight_v" and key.startswith("model.") else 1.0
    return (gain * normal / np.sqrt(fan_in)).astype(np.float32)


def seed_state(state: dict[str, torch.Tensor], salt: int = 0) -> dict[str, torch.Tensor]:
    """A state dict with the keys, shapes and computed buffers of `state` and seeded numbers everywhere else.

    Each `weight_g` is the norm of its `weight_v`, so that the weight-normalised layer's weight is `weight_v`.
    """

    def seeded(key: str, value: torch.Tensor) -> torch.Tensor:
        if key.split(".")[-1] in COMPUTED:
            return value
        if key.endswith("weight_g"):
            v = seeded(key[:-1] + "v", state[key[:-1] + "v"])
            return v.reshape(v.shape[0], -1).norm(dim=1).reshape(value.shape)
        return torch.from_numpy(np.ascontiguousarray(seeded_tensor(key, tuple(value.shape), salt)))

    return {key: seeded(key, value) for key, value in state.items()}


def wave(seconds: float, seed: int, sample_rate: int = 16000, extra_samples: int = 37) -> np.ndarray:
    """A voiced signal with a wandering pitch and a beating loudness, int16 [samples].

    `extra_samples` keeps its length off any hop grid.
    """
    num_samples = int(seconds * sample_rate) + extra_samples
    draw = np.random.Generator(np.random.PCG64(seed))
    t = np.arange(num_samples) / sample_rate
    pitch = 110 + 60 * np.sin(2 * np.pi * 1.3 * t + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    voice = sum(np.sin(k * phase) / k for k in range(1, NUM_HARMONICS + 1))
    loudness = 0.55 + 0.45 * np.sin(2 * np.pi * 3.1 * t)
    x = 0.12 * (voice * loudness) + 0.01 * draw.standard_normal(num_samples)
    return np.round(np.clip(x, -1, 1) * 32767).astype(np.int16)
