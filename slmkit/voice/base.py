"""What a voice encoder is: a network that turns a wave into one vector that says who speaks.

Codecs without speaker vectors take theirs from one (`slmkit.codec.voiced`), and evaluation compares voices with one.

Shapes: N samples, D width of a vector.

Invariant (law): the vector of an utterance depends on its own samples only.

Example:
    voice = open_voice("wavlm-base-plus-sv", "cuda")
    vector = voice.vector(wave, 24000)      # float32 [voice.dim]
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from slmkit.audio.io import resampled
from slmkit.errors import BadSample

if TYPE_CHECKING:
    import torch

Vector = npt.NDArray[np.float32]


class VoiceEncoder(Protocol):
    """A voice encoder ready to run on one device, in float32."""

    @property
    def dim(self) -> int:
        """Width D of a vector."""
        ...

    @property
    def sample_rate(self) -> int:
        """Hz, of the waves that the network itself hears."""
        ...

    @property
    def min_samples(self) -> int:
        """At `sample_rate`; what is shorter has no vector."""
        ...

    @property
    def sha256(self) -> str:
        """Hash of the weights: vectors of encoders with another hash cannot be compared."""
        ...

    def vector(self, wave: npt.NDArray[Any], sample_rate: int) -> Vector:
        """The vector float32 [D], finite, of `wave`, float [N] in [-1, 1] at `sample_rate` Hz.

        In full float32, and in bounded memory beside the wave. Raises BadSample "too_short" when there are fewer than
        `min_samples`.
        """
        ...

    def save(self, directory: Path) -> None:
        """Write the files from which `open_voice` opens the same encoder, into an empty directory."""
        ...


def is_long_enough(voice: VoiceEncoder, num_samples: int, sample_rate: int) -> bool:
    """Whether a wave of `num_samples` at `sample_rate` Hz has a vector for certain."""
    return num_samples * voice.sample_rate // sample_rate >= voice.min_samples


def heard(voice: VoiceEncoder, wave: npt.NDArray[Any], sample_rate: int) -> npt.NDArray[np.float32]:
    """`wave`, float [N] at `sample_rate` Hz, as the network hears it: float32 at its own rate.

    Raises BadSample "too_short" when there are fewer than `min_samples`.
    """
    samples = resampled(wave, sample_rate, voice.sample_rate)
    if len(samples) < voice.min_samples:
        raise too_short(wave, sample_rate)
    return samples


def too_short(wave: npt.NDArray[Any], sample_rate: int) -> BadSample:
    """The error for `wave`, float [N] at `sample_rate` Hz, which has no speaker vector."""
    return BadSample("too_short", "the wave is too short for a speaker vector", got=f"{len(wave) / sample_rate:.3f} s")


def weights_sha256(kind: str, weights: "Mapping[str, torch.Tensor]") -> str:
    """Hash of the kind of encoder, and of names, shapes and values of its weights."""
    found = hashlib.sha256(kind.encode())
    for name in sorted(weights):
        values = weights[name].detach().cpu().contiguous().numpy()
        found.update(f"{name} {values.dtype} {values.shape}".encode())
        found.update(values.tobytes())
    return found.hexdigest()
