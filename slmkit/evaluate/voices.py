"""How alike two voices are: the cosine of their speaker vectors.

Two measures give vectors: the codec's own (the timbre vector that the model is given, so it flatters a model that
obeys it), and WavLM with an x-vector head (WavLM-SV of arXiv 2110.13900, `WavLMForXVector` of transformers), which
knows nothing of the codec. Vectors of different measures, or of different codecs, cannot be compared.

Invariant: the vector of an utterance depends on its own samples only.

Example:
    voice = WavLMVoice.load("wavlm-base-plus-sv")
    cosine(voice.vector(prompt, 16000), voice.vector(spoken, 16000))    # its authors' threshold for one voice is 0.86
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from transformers import Wav2Vec2FeatureExtractor, WavLMForXVector

from slmkit.audio.io import resampled
from slmkit.codec.base import Codec
from slmkit.errors import BadSample
from slmkit.evaluate.local_model import load_model, load_part

Vector = npt.NDArray[np.float32]
FEWEST_FRAMES = 2  # over which a standard deviation can be taken


class Voice(Protocol):
    """What tells voices apart."""

    def vector(self, wave: npt.NDArray[Any], sample_rate: int) -> Vector:
        """Speaker vector float32 [D] of `wave`, float [samples] at `sample_rate` Hz.

        Raises BadSample "too_short" when it is too short to have one.
        """
        ...


def cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Cosine of the angle between vectors [D], -1 to 1; 0 where one of them is all zeros.

    Raises ValueError when they are not of one width.
    """
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"vectors of shapes {a.shape} and {b.shape} cannot be compared")
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / lengths, -1, 1)) if lengths else 0.0


class CodecVoice:
    """The speaker vector of a codec."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec

    @torch.inference_mode()
    def vector(self, wave: npt.NDArray[Any], sample_rate: int) -> Vector:
        """See `Voice`."""
        heard = resampled(wave, sample_rate, self.codec.spec.sample_rate)
        if self.codec.num_frames(len(heard)) == 0:
            raise _too_short(wave, sample_rate)
        device = self.codec.device
        waves, lengths = torch.from_numpy(heard)[None].to(device), torch.tensor([len(heard)], device=device)
        return self.codec.encode(waves, lengths).speaker[0].float().cpu().numpy()


class WavLMVoice:
    """The x-vector of a WavLM model."""

    def __init__(self, model: Any, extractor: Any) -> None:
        """Of a WavLMForXVector and its Wav2Vec2FeatureExtractor."""
        self.model, self.extractor = model, extractor

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> "WavLMVoice":
        """The model in directory `path`, float32 on `device`. Raises UserError when it holds none."""
        model = load_model(WavLMForXVector, path, "wavlm", device, what="a WavLM model with an x-vector head")
        return WavLMVoice(model, load_part(Wav2Vec2FeatureExtractor, path))

    @torch.inference_mode()
    def vector(self, wave: npt.NDArray[Any], sample_rate: int) -> Vector:
        """See `Voice`."""
        rate = self.extractor.sampling_rate
        heard = resampled(wave, sample_rate, rate)
        if self._num_frames(len(heard)) < FEWEST_FRAMES:
            raise _too_short(wave, sample_rate)
        values = self.extractor(heard, sampling_rate=rate, return_tensors="pt").input_values
        return self.model(values.to(self.model.device)).embeddings[0].cpu().numpy()

    def _num_frames(self, num_samples: int) -> int:
        """Frames whose statistics make the vector."""
        config, frames = self.model.config, num_samples
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            frames = (frames - kernel) // stride + 1
        spans = zip(config.tdnn_kernel, config.tdnn_dilation, strict=True)
        return frames - sum((kernel - 1) * dilation for kernel, dilation in spans)


def _too_short(wave: npt.NDArray[Any], sample_rate: int) -> BadSample:
    return BadSample("too_short", "the wave is too short to tell its voice", got=f"{len(wave) / sample_rate:.3f} s")
