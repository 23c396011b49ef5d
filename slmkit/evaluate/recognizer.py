"""Speech recognition: any Whisper model of a local directory, run by the recognition pipeline of transformers.

A wave is heard in windows as long as the model's own (30 s for the published ones). A longer one is cut in the quietest
20 ms of the last sixth of each window, and the texts are joined by a space. The language is English; the transcript is
the most likely one token by token, without sampling, beams or second tries, so equal waves give equal texts.

`spellings` is the table of British and American spelling that lies beside published models, for `words.normalized`.

Invariant: the text of a wave does not depend on what was heard before.

Example:
    recognizer = Recognizer.load("whisper-large-v3", "cuda")
    recognizer.text(wave, 16000)                                # "The birch canoe slid on the smooth planks."
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutomaticSpeechRecognitionPipeline, WhisperFeatureExtractor, WhisperTokenizer
from transformers import WhisperForConditionalGeneration as Whisper

from slmkit.audio import quality
from slmkit.audio.io import resampled
from slmkit.errors import UserError
from slmkit.files import read_json
from slmkit.weights import load_model, load_part

SPELLINGS_FILE = "normalizer.json"
SEARCHED_SHARE = 1 / 6  # of a window, at its end, where a quiet place to cut is looked for
ENGLISH, TASK = "<|en|>", "transcribe"
# Greedy, once, without time stamps, whatever the model's own settings and those of the pipeline (five beams) are.
MOST_LIKELY = {
    "do_sample": False,
    "num_beams": 1,
    "return_timestamps": False,
    "condition_on_prev_tokens": False,
    "temperature": None,
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}


class Recognizer:
    """See the module."""

    def __init__(self, pipeline: Any, spellings: dict[str, str]) -> None:
        """Of an AutomaticSpeechRecognitionPipeline."""
        self.pipeline, self.spellings = pipeline, spellings
        is_multilingual = pipeline.model.generation_config.is_multilingual
        self._options = MOST_LIKELY | ({"language": "en", "task": TASK} if is_multilingual else {})

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> "Recognizer":
        """The Whisper model in directory `path`, float32 on `device`. Raises UserError when it holds none."""
        path = Path(path)
        model = load_model(Whisper, path, "whisper", device, what="a Whisper recognizer")
        settings = model.generation_config
        # Old files of settings do not tell how the model is asked for a language.
        is_multilingual = getattr(settings, "is_multilingual", None)
        languages, tasks = (getattr(settings, name, None) or {} for name in ("lang_to_id", "task_to_id"))
        if is_multilingual is None or (is_multilingual and not (ENGLISH in languages and TASK in tasks)):
            raise UserError(
                f"{path / 'generation_config.json'} does not say how to select English",
                expected=f"is_multilingual, and where it is true {ENGLISH} in lang_to_id and {TASK} in task_to_id",
                next_step="copy the file from the Whisper model that this one was trained from",
            )
        for name, value in MOST_LIKELY.items():
            setattr(settings, name, value)
        tokenizer, extractor = (load_part(kind, path) for kind in (WhisperTokenizer, WhisperFeatureExtractor))
        pipeline = AutomaticSpeechRecognitionPipeline(
            model=model, tokenizer=tokenizer, feature_extractor=extractor, device=model.device
        )
        spellings = read_json(path / SPELLINGS_FILE) if (path / SPELLINGS_FILE).exists() else {}
        if not isinstance(spellings, dict) or not all(isinstance(word, str) for word in spellings.values()):
            raise UserError(f"{path / SPELLINGS_FILE} is not a table of spellings", expected='{"colour": "color", ...}')
        return Recognizer(pipeline, spellings)

    def text(self, wave: np.ndarray, sample_rate: int) -> str:
        """What is said in `wave`, float [samples] at `sample_rate` Hz; "" for nothing."""
        extractor = self.pipeline.feature_extractor
        rate = extractor.sampling_rate
        parts = windows(resampled(wave, sample_rate, rate), extractor.n_samples, rate)
        heard = (self.pipeline({"raw": part, "sampling_rate": rate}, generate_kwargs=self._options) for part in parts)
        return " ".join(filter(None, (found["text"].strip() for found in heard)))


def windows(wave: np.ndarray, num_samples: int, sample_rate: int) -> Iterator[np.ndarray]:
    """`wave` in parts of at most `num_samples`, cut where it is quiet; none of an empty wave."""
    searched = int(num_samples * SEARCHED_SHARE)
    while len(wave) > num_samples:
        width = quality.frame_samples(sample_rate)
        cut = quality.quietest(wave, width, low=num_samples - searched, high=num_samples, prefer_last=True)
        yield wave[:cut]
        wave = wave[cut:]
    if len(wave):
        yield wave
