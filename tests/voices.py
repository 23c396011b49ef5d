"""Short espeak-ng utterances of the same words in several voices, as codes of a codec that is fitted to them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import soxr
import torch
from raw_corpora import speak

from slmkit.codec.base import to_codes
from slmkit.codec.melvq import SAMPLE_RATE, MelVQ
from slmkit.data.shards import Sample

VOICES = ("en-gb+m7", "en-gb-scotland+f4", "en-us+whisper", "en-029+f5")  # far apart for the codec's speaker vector
NUM_ENTRIES = 128  # of a codebook; few, so that a model has little to learn
QUIET = 0.01  # what is below at the ends is cut off


class Spoken(NamedTuple):
    """`samples` by (voice, text)."""

    codec: MelVQ
    samples: dict[tuple[str, str], Sample]

    def vector(self, voice: str, text: str) -> np.ndarray:
        """Speaker vector float32 [D] of an utterance."""
        vector = self.samples[voice, text].speaker
        assert vector is not None
        return vector


def wave_of(voice: str, text: str) -> np.ndarray:
    """float32 [samples] at 16 kHz, without the silence around the words."""
    said, rate = speak(voice, text)
    wave = soxr.resample(said.astype(np.float32) / 2**15, rate, SAMPLE_RATE).astype(np.float32)
    loud = np.flatnonzero(np.abs(wave) > QUIET)
    return wave[loud[0] : loud[-1] + 1]


def spoken(texts: Sequence[str], facts: Mapping[str, str] | None = None) -> Spoken:
    """Every text, and the answer of every question of `facts`, in every voice."""
    questions = {answer: question for question, answer in (facts or {}).items()}
    waves = {(voice, text): wave_of(voice, text) for text in [*texts, *questions] for voice in VOICES}
    codec = MelVQ.fit(waves.values(), seed=0, num_entries=NUM_ENTRIES)
    samples = {}
    for (voice, text), wave in waves.items():
        encoded = codec.encode(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
        meta = {"text": text, "speaker": voice, "language": "en", "seconds": len(wave) / SAMPLE_RATE, "source": ""}
        if text in questions:
            meta["question"] = questions[text]
        key = f"{voice}-{len(samples):03d}"
        samples[voice, text] = Sample(key, to_codes(encoded.codes[0]), encoded.speaker[0].numpy(), meta)
    return Spoken(codec, samples)
