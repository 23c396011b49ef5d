"""The x-vector of a WavLM model (WavLM-SV of arXiv 2110.13900, `WavLMForXVector` of transformers).

A wave of more than 30 s is heard in equal parts of at most that length, and its vector is the mean of theirs: what the
network needs grows with the square of the length.

Invariant (law): the vector of an utterance depends on its own samples only.

Example:
    voice = WavLMVoice.load("wavlm-base-plus-sv")
    voice.vector(wave, 16000)       # float32 [512] for the published model
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMForXVector

from slmkit.precision import exact_float32
from slmkit.voice.base import Vector, heard, weights_sha256
from slmkit.weights import load_model, load_part

KIND = "wavlm"
FEWEST_FRAMES = 2  # over which a standard deviation can be taken
PART_SEC = 30


class WavLMVoice:
    """See the module and `VoiceEncoder`."""

    def __init__(self, model: Any, extractor: Any) -> None:
        """Of a WavLMForXVector and its Wav2Vec2FeatureExtractor."""
        self.model, self.extractor = model, extractor
        config = model.config
        self.dim: int = config.xvector_output_dim
        self.sample_rate: int = extractor.sampling_rate
        # Frames whose statistics make the vector, then back through the layers to the samples that give them.
        spans = zip(config.tdnn_kernel, config.tdnn_dilation, strict=True)
        shortest = FEWEST_FRAMES + sum((kernel - 1) * dilation for kernel, dilation in spans)
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            shortest = (shortest - 1) * stride + kernel
        self.min_samples: int = shortest

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> "WavLMVoice":
        """The model in directory `path`, float32 on `device`. Raises UserError when it holds none."""
        model = load_model(WavLMForXVector, path, KIND, device, what="a WavLM model with an x-vector head")
        return WavLMVoice(model, load_part(Wav2Vec2FeatureExtractor, path))

    def save(self, directory: Path) -> None:
        self.model.save_pretrained(directory)
        self.extractor.save_pretrained(directory)

    @functools.cached_property
    def sha256(self) -> str:
        return weights_sha256(KIND, self.model.state_dict())

    @torch.inference_mode()
    def vector(self, wave: npt.NDArray[Any], sample_rate: int) -> Vector:
        """As `VoiceEncoder.vector`."""
        samples = heard(self, wave, sample_rate)
        num_parts = -(-len(samples) // (PART_SEC * self.sample_rate))
        with exact_float32(self.model.device):
            vectors = [self._x_vector(part) for part in np.array_split(samples, num_parts)]
        return np.mean(vectors, axis=0, dtype=np.float32)

    def _x_vector(self, samples: npt.NDArray[np.float32]) -> Vector:
        """float32 [D] of a wave float32 [N] at the model's rate."""
        values = self.extractor(samples, sampling_rate=self.sample_rate, return_tensors="pt").input_values
        return self.model(values.to(self.model.device)).embeddings[0].cpu().numpy()
