"""Text in, a wave out: an exported model, its tokenizer and its codec together; and voices by the name
of their source.

A voice comes from an audio file, a `.npy` file with a speaker vector, CORPUS:KEY (a sample of a tokenized corpus), or
is one of those beside the model, by its name. Where neither the model nor the codec takes a voice (`takes_voice`),
there is one way to speak: pass `no_voice`.

A text to be read may have many sentences (`passage`); `speak` and `stream` read them in order.

Example:
    synthesizer = Synthesizer.load("exports/mtp3")
    speech = synthesizer.speak("A small boat crossed the lake.", synthesizer.read_speaker("voice.wav"))
    write_wav("out.wav", speech.wave, speech.sample_rate)
"""

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from slmkit.audio.io import read_audio
from slmkit.codec.base import Codec, Codes, decode_alone
from slmkit.codec.open import open_codec, usable_device
from slmkit.data import prompt
from slmkit.data.index import Corpus
from slmkit.data.rates import SpeechRates, num_text_tokens
from slmkit.data.sequence import build, text_size, tokenize
from slmkit.data.shards import ShardReader
from slmkit.data.text import TextTokenizer
from slmkit.errors import BadSample, UserError
from slmkit.files import read_npy
from slmkit.hub import local_path
from slmkit.infer.engine import DEFAULT_SEC, Engine, positions_for
from slmkit.infer.passage import MAX_TEXT_CHARS, Passage, SpokenSentence, joined, joined_wave
from slmkit.infer.product import multiplies_bfloat16
from slmkit.infer.request import Output, Request, SpeakingSettings, Words, answer_words
from slmkit.infer.sentences import rewritten, split
from slmkit.infer.spoken_form import spoken_form
from slmkit.infer.stream import Speaking, checked_wave
from slmkit.infer.watch import Watch, silent_tail_sec
from slmkit.model.companions import check_codec_beside, codec_beside, rates_beside, voices_beside
from slmkit.model.pretrained import load
from slmkit.model.slm import SpeechLM
from slmkit.texts import excerpt, is_blank
from slmkit.voice.base import too_short

MAX_PROMPT_CHARS = 2000  # of a text that is not cut into sentences
MAX_SPEAKER_SEC = 60.0
MAX_SPEAKER_DIM = 2**16  # of a speaker vector in a file
VOICE = "an audio file, a .npy vector, CORPUS:KEY, or the name of a voice of the model"

Vector = npt.NDArray[np.float32]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Speech:
    """One spoken answer."""

    wave: npt.NDArray[np.float32]  # [samples] in [-1, 1]
    sample_rate: int  # Hz
    output: Output
    words: Words  # what the model wrote around the speech
    sentences: tuple[SpokenSentence, ...] = ()  # of a text that was read, in order

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.sample_rate

    def line(self, took_sec: float) -> str:
        """For people."""
        several = f"{len(self.sentences)} sentences, " if len(self.sentences) > 1 else ""
        return f"{self.seconds:.2f} s of speech in {took_sec:.2f} s, {several}{self.output.line()}"


class Synthesizer:
    """See the module. Model and codec must have been made for each other; the model must keep its weights."""

    def __init__(
        self,
        model: SpeechLM,
        tokenizer: TextTokenizer,
        codec: Codec,
        *,
        num_slots: int = 1,
        max_sec: float = DEFAULT_SEC,
        voices: Mapping[str, str] | None = None,
        rates: SpeechRates | None = None,
    ) -> None:
        """`num_slots` answers at a time, with room for `max_sec` seconds of speech each; `voices` are files by name;
        `rates` those of the model's corpus, where they are known.

        Raises UserError naming the first difference between the model's codec and `codec`, or when the model needs
        speaker vectors and the codec has none.
        """
        model.config.codec_spec.check_compatible(codec.spec, this="the model", that="the given codec")
        if model.config.speaker_dim and not codec.spec.speaker_dim:
            raise UserError(
                "the model hears a speaker vector, and the given codec gives none",
                got=codec.spec.name,
                expected=f"vectors of width {model.config.speaker_dim}",
                next_step="give the codec directory that the model's corpus was tokenized with",
            )
        self.model, self.tokenizer, self.codec = model.eval(), tokenizer, codec
        self._num_slots, self._max_sec, self._named, self._rates = num_slots, max_sec, dict(voices or {}), rates

    @staticmethod
    def load(
        model: str | Path,
        codec: str | Path | Codec | None = None,
        device: str = "cpu",
        *,
        num_slots: int = 1,
        max_sec: float = DEFAULT_SEC,
        dtype: Dtype | None = None,
    ) -> "Synthesizer":
        """Open an export of `slmkit consolidate`, a directory or a hub id, with its codec.

        That is the one the export notes; or `codec`: a directory, a hub id, or a codec that is open already. `dtype`:
        of the model's weights; by default they stay as they were saved. Raises UserError when either cannot be read,
        they do not fit together, or the CPU does not multiply numbers of this type.
        """
        place, directory = usable_device(device), local_path(model, what="the model")
        if dtype == "bfloat16" and place.type == "cpu" and not multiplies_bfloat16():
            raise UserError(
                "this CPU does not multiply bfloat16 numbers, and is slower with them than with float32",
                got=f"instructions of {torch.backends.cpu.get_cpu_capability()}",
                expected="AVX512-BF16 (Intel from Cooper Lake on, AMD from Zen 4 on), or a GPU",
                next_step="take float32",
            )
        loaded = torch.nn.Module.to(load(directory), place, None if dtype is None else getattr(torch, dtype))
        if codec is None:
            path = codec_beside(directory)
            codec = open_codec(path, place)
            check_codec_beside(directory, codec.spec, path)
        elif isinstance(codec, str | Path):
            codec = open_codec(local_path(codec, what="the codec"), place)
        tokenizer, voices, rates = TextTokenizer.load(directory), voices_beside(directory), rates_beside(directory)
        return Synthesizer(loaded, tokenizer, codec, num_slots=num_slots, max_sec=max_sec, voices=voices, rates=rates)

    @functools.cached_property
    def engine(self) -> Engine:
        """Decodes; made when it is first asked for, which takes memory for all answers."""
        room = positions_for(self.model, self._max_sec)
        return Engine(self.model, num_slots=self._num_slots, num_positions=room)

    @property
    def is_speaker_aware(self) -> bool:
        """Whether the model itself hears the speaker vector."""
        return self.model.config.speaker_dim > 0

    @property
    def takes_voice(self) -> bool:
        """Whether a voice changes anything: the model hears the speaker vector, or the codec decodes with it."""
        return self.is_speaker_aware or self.codec.spec.decodes_voice

    @property
    def no_voice(self) -> Vector:
        """What stands for a voice where none is taken, float32 [D]."""
        return np.zeros(self.codec.spec.speaker_dim, np.float32)

    @property
    def voices(self) -> "Voices":
        """Reads voices for this model and codec."""
        return Voices(self.codec, self._named, is_taken=self.takes_voice)

    def reading(self, text: str, speaker: Vector, **options: Any) -> Request:
        """The request to read `text` in the voice of `speaker`, float32 [D], in one piece, whatever sentences it has.

        Options: those of `SpeakingSettings`, as in `temperature=0.7, seed=1`.

        Raises UserError for text that is empty or too long, a vector of another codec, or an option out of range.
        """
        _check_text(text, "text to speak")
        segments = prompt.tts(text, speaker=self.is_speaker_aware)
        return self._request(segments, speaker, num_tokens=self._num_tokens(text), **options)

    def passage(self, text: str, speaker: Vector, *, normalize: str = "", **options: Any) -> Passage:
        """What it takes to read `text`, of up to MAX_TEXT_CHARS characters, sentence by sentence, each as `reading` has
        it, `max_sec` and `seed` too. `normalize`: the language in which numbers and abbreviations become words
        (`spoken_form`).

        Raises UserError as `reading`, as `spoken_form`, and where a sentence leaves the engine no room for its answer.
        """
        _check_text(text, "text to speak", MAX_TEXT_CHARS)
        sentences = tuple(rewritten(split(text), lambda sentence: spoken_form(sentence, normalize)))
        requests = tuple(self.reading(sentence.text, speaker, **options) for sentence in sentences)
        for request in requests:
            self.engine.check(request)
        return Passage(sentences, requests)

    def answering(self, question: str, speaker: Vector, **options: Any) -> Request:
        """The request to answer `question`, in text and then in the voice of `speaker`. As `reading` in all else."""
        _check_text(question, "question to answer")
        return self._request(prompt.qa(question, "-", speaker=self.is_speaker_aware), speaker, **options)

    def _request(
        self,
        segments: Sequence[prompt.Segment],
        speaker: Vector,
        *,
        num_tokens: int | None = None,
        **options: Any,
    ) -> Request:
        width = self.codec.spec.speaker_dim
        if speaker.shape != (width,):
            raise UserError("the speaker vector is not of this codec", got=speaker.shape, expected=(width,))
        pieces = tokenize(prompt.prompt_only(segments), self.tokenizer.encode, self.model.layout)
        try:
            settings = SpeakingSettings(**options)
            return settings.request(
                build(pieces, None, self.model.layout, self.model.group),
                speaker=torch.from_numpy(speaker) if self.is_speaker_aware else None,
                watch=self._watch(speaker, num_tokens, settings.max_retries) if settings.watch else None,
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def _watch(self, speaker: Vector, num_tokens: int | None, max_retries: int) -> Watch:
        """`num_tokens` of the text that is read; None for an answer in words and speech."""

        def silent_sec(codes: Codes) -> float:
            with contextlib.suppress(RuntimeError, ValueError):  # whoever decodes the answer says what is wrong
                return silent_tail_sec(decode_alone(self.codec, codes, speaker), self.codec.spec.sample_rate)
            return 0.0

        return Watch(
            rate=None if self._rates is None else self._rates.widest,
            num_tokens=num_tokens,
            num_mark_tokens=self._num_mark_tokens,
            silent_sec=silent_sec,
            max_retries=max_retries,
        )

    def _num_tokens(self, text: str) -> int:
        return num_text_tokens(text, self.tokenizer.encode, self.model.layout)

    @functools.cached_property
    def _num_mark_tokens(self) -> int:
        """Text tokens of an answer without words before it speaks."""
        segments = prompt.qa("-", "")
        answer = segments[len(prompt.prompt_only(segments)) :]
        speech = next(i for i, segment in enumerate(answer) if segment.value == "<sosp>")
        return text_size(tokenize(answer[:speech], self.tokenizer.encode, self.model.layout))[0]

    def generate(self, text: str, speaker: Vector, **options: Any) -> Output:
        """The codes that read `text` in the voice of `speaker`; as `reading`."""
        return self.engine.generate([self.reading(text, speaker, **options)])[0]

    def speak(self, text: str, speaker: Vector, **options: Any) -> Speech:
        """Read `text` in the voice of `speaker`, float32 [D]; as `passage`. Raises UserError for no speech at all, too;
        `Speech.sentences` has those that gave none beside others."""
        return self._spoken(text, self.passage(text, speaker, **options), speaker)

    def answer(self, question: str, speaker: Vector, **options: Any) -> Speech:
        """Answer `question` in the voice of `speaker`, float32 [D]; as `answering`. Raises UserError for no speech."""
        passage = Passage.of(question, self.answering(question, speaker, **options))
        return self._spoken(question, passage, speaker)

    def _spoken(self, text: str, passage: Passage, speaker: Vector) -> Speech:
        outputs = self.engine.generate(passage.requests)
        for output in outputs:
            output.check_finite()
        whole, sentences = joined(outputs), passage.told(outputs)
        words = self.words_of(whole)
        whole.check_speech(text, words.text)
        wave = checked_wave(joined_wave(self.codec, whole.codes, speaker, sentences))
        rate = self.codec.spec.sample_rate
        return Speech(wave=wave, sample_rate=rate, output=whole, words=words, sentences=tuple(sentences))

    def stream(self, asked: Passage | Request, speaker: Vector) -> Speaking:
        """The wave of what is asked, tried once, in the voice of `speaker`, float32 [D], in pieces, sentence by
        sentence. Raises as `Speaking`."""
        passage = asked if isinstance(asked, Passage) else Passage.of("", asked)
        return Speaking(self.engine, self.codec, passage, speaker)

    def words_of(self, output: Output) -> Words:
        """The words of an answer, without the marks around them."""
        return answer_words(output.text_ids, self.model.layout, self.tokenizer.decode)

    def decode(self, codes: Codes, speaker: torch.Tensor) -> npt.NDArray[np.float32]:
        """Wave float32 [samples] of codes uint16 [K, T] and speaker float32 [D]. Raises UserError when the codec makes
        samples that are not finite of them."""
        return checked_wave(decode_alone(self.codec, codes, speaker.cpu().numpy()))

    def read_speaker(self, source: str | Path = "") -> Vector:
        """Speaker vector float32 [D] of one source; see `Voices`. By default the first voice beside the model.

        Raises UserError when the source gives none.
        """
        return self.voices.vector(str(source))


class Voices:
    """Speaker vectors by the name of their source. Each source is read once, and each corpus opened once.

    Equal names give equal vectors, or the same error.
    """

    def __init__(self, codec: Codec, named: Mapping[str, str] | None = None, *, is_taken: bool = True) -> None:
        """`codec` takes the voice of an audio file. `named` are files by name; a file that exists goes before them, and
        the source "" stands for the first. `is_taken`: whether a voice changes anything (`Synthesizer.takes_voice`); if
        not, the only source is "", which stands for no voice."""
        self._codec, self._named, self._is_taken = codec, dict(named or {}), is_taken
        self._known: dict[str, Vector | UserError] = {}
        self._corpora: dict[str, tuple[ShardReader, dict[str, int]]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Of the voices beside the model."""
        return tuple(self._named)

    def vector(self, source: str) -> Vector:
        """Speaker vector float32 [D]. Raises UserError when the source gives none."""
        if source not in self._known:
            try:
                self._known[source] = self._read(source)
            except UserError as error:
                self._known[source] = error
        found = self._known[source]
        if isinstance(found, UserError):
            raise found
        return found

    def _read(self, source: str) -> Vector:
        if not self._is_taken and not source:
            return np.zeros(self._codec.spec.speaker_dim, np.float32)
        if not self._is_taken:
            raise voice_not_taken(self._codec, source)
        if not source and not self._named:
            raise UserError("no voice was given", expected=VOICE)
        if not source or (source in self._named and not os.path.isfile(source)):
            source = self._named.get(source) or next(iter(self._named.values()))
        directory, colon, key = source.rpartition(":")
        # os.path and not Path, which takes some names from strangers for errors: too long ones, or none of UTF-8.
        if source.endswith(".npy"):
            vector = _read_vector(source)
        elif colon and os.path.isdir(directory):
            vector = self._corpus_vector(directory, key)
        else:
            vector = self._heard(source)
        if not np.isfinite(vector).all():
            what = f"{excerpt(source, 200)} is not a speaker vector"
            raise UserError(what, got="numbers that are not finite in float32", expected="finite numbers")
        return vector

    def _heard(self, source: str) -> Vector:
        """The voice of an audio file."""
        rate = self._codec.spec.sample_rate
        if not os.path.isfile(source):
            raise UserError(f"cannot use {excerpt(source, 200)} as a voice: there is no such file", expected=VOICE)
        try:
            return voice_of(self._codec, read_audio(source, rate, max_sec=MAX_SPEAKER_SEC))
        except BadSample as error:
            raise UserError(
                f"cannot use {source} as a voice: {error.what}",
                got=error.got,
                expected=f"an audio file of at most {MAX_SPEAKER_SEC:.0f} s, a .npy vector, or CORPUS:KEY",
            ) from error

    def _corpus_vector(self, directory: str, key: str) -> Vector:
        if directory not in self._corpora:
            corpus = Corpus.open(directory)
            self._corpora[directory] = ShardReader(corpus), {corpus.key(i): i for i in range(len(corpus))}
        reader, numbers = self._corpora[directory]
        if key not in numbers:
            raise UserError(
                f"{directory} has no sample {excerpt(key)!r}", next_step="look into its *.index.json for keys"
            )
        vector = reader.read(numbers[key]).speaker
        if vector is None:
            raise UserError("the corpus has no speaker vectors", got=directory)
        return vector


@torch.inference_mode()
def voice_of(codec: Codec, wave: npt.NDArray[np.float32]) -> Vector:
    """Speaker vector float32 [D] of a wave float32 [samples] at the rate of the codec. Raises BadSample "too_short"."""
    if codec.num_frames(len(wave)) == 0:
        raise too_short(wave, codec.spec.sample_rate)
    device = codec.device
    encoded = codec.encode(torch.from_numpy(wave)[None].to(device), torch.tensor([len(wave)], device=device))
    return encoded.speaker[0].float().cpu().numpy()


def voice_not_taken(codec: Codec, source: str) -> UserError:
    """The error for a voice that was given where none is taken."""
    return UserError(
        f"a voice would change nothing: the model has no speaker input, and the codec {codec.spec.name} decodes "
        "without a voice",
        got=excerpt(source, 200),
        next_step="leave the voice out; to choose voices, tokenize with a codec made by `slmkit codec add --speaker` "
        "and train with model.speaker",
    )


def _read_vector(path: str) -> Vector:
    vector = read_npy(path, what="a speaker vector", max_values=MAX_SPEAKER_DIM)
    if vector.ndim != 1 or not np.issubdtype(vector.dtype, np.floating):
        raise UserError(f"{path} is not a speaker vector", got=f"{vector.dtype} {vector.shape}", expected="float [D]")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite, and is refused
        return vector.astype(np.float32)


def _check_text(text: str, what: str, most: int = MAX_PROMPT_CHARS) -> None:
    if is_blank(text):
        raise UserError(f"there is no {what}", got=excerpt(ascii(text)))
    if len(text) > most:
        raise UserError(
            f"the {what} is too long",
            got=f"{len(text)} characters",
            expected=f"at most {most}",
            next_step="split it into parts",
        )
