"""Text in, a wave out: an exported model, its tokenizer and its codec together.

Example:
    synthesizer = Synthesizer.load("exports/mtp3", codec="codecs/melvq")
    speech = synthesizer.speak("A small boat crossed the lake.", synthesizer.read_speaker("voice.wav"))
    write_wav("out.wav", speech.wave, speech.sample_rate)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slmkit.audio.io import read_audio
from slmkit.codec.base import Codec
from slmkit.codec.open import open_codec
from slmkit.data.index import Corpus
from slmkit.data.shards import ShardReader
from slmkit.data.text import TextTokenizer
from slmkit.errors import BadSample, UserError
from slmkit.infer.generate import GREEDY, Generation, Limits, generate, prompt_example
from slmkit.infer.sampling import Sampling
from slmkit.model.pretrained import load
from slmkit.model.slm import SpeechLM

MAX_TEXT_CHARS = 2000
MAX_SPEAKER_SEC = 60.0

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Speech:
    """One spoken answer."""

    wave: npt.NDArray[np.float32]  # [samples] in [-1, 1]
    sample_rate: int  # Hz
    generation: Generation

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.sample_rate


class Synthesizer:
    """See the module. Model and codec must have been made for each other."""

    def __init__(self, model: SpeechLM, tokenizer: TextTokenizer, codec: Codec) -> None:
        """Raises UserError naming the first difference between the model's codec and `codec`."""
        model.config.codec_spec.check_compatible(codec.spec, this="the model", that="the given codec")
        self.model, self.tokenizer, self.codec = model.eval(), tokenizer, codec

    @staticmethod
    def load(model: str | Path, codec: str | Path, device: str = "cpu") -> "Synthesizer":
        """Open an export of `slmkit consolidate` and a codec directory."""
        loaded = torch.nn.Module.to(load(model), device)
        return Synthesizer(loaded, TextTokenizer.load(model), open_codec(codec, device))

    def speak(self, text: str, speaker: Vector, **options: Any) -> Speech:
        """Read `text` in the voice of `speaker`, float32 [D]; options as in `generate`.

        Raises UserError as `generate` does, and for an answer without speech.
        """
        generation = self.generate(text, speaker, **options)
        if generation.codes.shape[1] == 0:
            raise UserError(
                f"the model gave no speech for {text!r} (it stopped by: {generation.stop})",
                next_step="train it longer, or check that the text is like that of the training data",
            )
        wave = self.decode(generation.codes, torch.from_numpy(speaker))
        return Speech(wave=wave, sample_rate=self.codec.spec.sample_rate, generation=generation)

    def generate(
        self,
        text: str,
        speaker: Vector,
        *,
        sampling: Sampling | None = None,
        max_sec: float = 30.0,
        seed: int = 0,
    ) -> Generation:
        """The codes that read `text` in the voice of `speaker`, float32 [D], at most `max_sec` seconds of them.

        Raises UserError for text that is empty or too long, or a vector of another codec.
        """
        _check_text(text)
        spec = self.codec.spec
        if speaker.shape != (spec.speaker_dim,):
            raise UserError("the speaker vector is not of this codec", got=speaker.shape, expected=(spec.speaker_dim,))
        aware = self.model.config.speaker_dim > 0
        start = prompt_example(self.tokenizer, self.model.layout, text, group=self.model.group, speaker=aware)
        return generate(
            self.model,
            start,
            speaker=torch.from_numpy(speaker) if aware else None,
            limits=Limits(max_frames=max(1, int(max_sec * spec.frame_rate))),
            text_sampling=sampling or GREEDY,
            speech_sampling=sampling or GREEDY,
            seed=seed,
        )

    def decode(self, codes: npt.NDArray[np.int16], speaker: torch.Tensor) -> npt.NDArray[np.float32]:
        """Wave float32 [samples] of codes int16 [K, T] and speaker float32 [D]."""
        device = self.codec.device
        wave = self.codec.decode(torch.from_numpy(codes)[None].to(device), speaker[None].to(device))
        return wave[0].float().cpu().numpy()

    def read_speaker(self, source: str | Path) -> Vector:
        """Speaker vector float32 [D] from a `.npy` file, `CORPUS:KEY` (a sample of a corpus), or an audio file.

        Raises UserError when the source gives none.
        """
        text = str(source)
        if text.endswith(".npy"):
            return _read_vector(Path(text))
        directory, colon, key = text.rpartition(":")
        if colon and Path(directory).is_dir():
            return corpus_speaker(Corpus.open(directory), key)
        try:
            wave = read_audio(text, self.codec.spec.sample_rate, max_sec=MAX_SPEAKER_SEC)
        except BadSample as error:
            raise UserError(
                f"cannot take the voice of {text}: {error.what}",
                expected=f"an audio file of at most {MAX_SPEAKER_SEC:.0f} s, a .npy file, or CORPUS:KEY",
            ) from error
        if self.codec.num_frames(len(wave)) == 0:
            raise UserError(f"cannot take the voice of {text}: it is too short", got=f"{len(wave)} samples")
        encoded = self.codec.encode(
            torch.from_numpy(wave)[None].to(self.codec.device), torch.tensor([len(wave)], device=self.codec.device)
        )
        return encoded.speaker[0].float().cpu().numpy()


def _check_text(text: str) -> None:
    if not text.strip():
        raise UserError("there is no text to speak", got=repr(text))
    if len(text) > MAX_TEXT_CHARS:
        raise UserError(
            "the text is too long to speak at once",
            got=f"{len(text)} characters",
            expected=f"at most {MAX_TEXT_CHARS}",
            next_step="split it into sentences",
        )


def corpus_speaker(corpus: Corpus, key: str) -> Vector:
    """Speaker vector of the sample `key`. Raises UserError when there is no such sample or it has no vector."""
    for number in range(len(corpus)):
        if corpus.key(number) == key:
            speaker = ShardReader(corpus).read(number).speaker
            if speaker is None:
                raise UserError("the corpus has no speaker vectors", got=corpus.directory)
            return speaker
    raise UserError(f"{corpus.directory} has no sample {key!r}", next_step="look into its *.index.json for keys")


def _read_vector(path: Path) -> Vector:
    try:
        vector = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} as a speaker vector: {error}", expected="a .npy file") from error
    if vector.ndim != 1 or not np.issubdtype(vector.dtype, np.floating) or not np.isfinite(vector).all():
        raise UserError(f"{path} is not a speaker vector", got=f"{vector.dtype} {vector.shape}", expected="float [D]")
    return vector.astype(np.float32)
