"""The server without HTTP: checks the body of a request and hands the work to the worker.

Example:
    service = Service(synthesizer, {"anna": vector}, ServeSettings(model="mtp3"))
    service.worker.start()
    call = service.ask(SpeechBody(input="Hello.", voice="anna"), sounds.put)
"""

import base64
import contextlib
import dataclasses
import io
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from slmkit.audio.encode import FORMATS
from slmkit.audio.io import read_audio
from slmkit.errors import BadSample, UserError
from slmkit.infer.passage import MAX_TEXT_CHARS, SHOWN_SENTENCES, Passage
from slmkit.infer.request import MOST_SEC, Output, SpeakingSettings
from slmkit.infer.sampling import LEAST_FACTOR
from slmkit.infer.synthesizer import MAX_PROMPT_CHARS, Synthesizer, voice_not_taken, voice_of
from slmkit.serve.schema import (
    ApiError,
    OwnVoice,
    QuestionBody,
    Speaker,
    SpeechBody,
    SpokenBody,
    from_user_error,
    overloaded,
    refused,
)
from slmkit.serve.worker import Call, Queued, ServeMetrics, Sound, Wave, Worker
from slmkit.texts import excerpt, is_blank

DEFAULT_CHARS = 20_000  # some 3000 words
MAX_UNSPOKEN_BYTES = 4096  # of the sentences without speech that an answer names
SHOWN_VOICES = 20  # in a message
DEFAULT_VOICE = "default"  # of a server that takes no voice
UNSUPPORTED = "unsupported_value"
RECORDING_BYTES = 8 * 2**20  # of a file; 20 s of two channels of 32 bits at 48 kHz are 7.3 MiB
MAX_RECORDINGS = 4  # at a time
RECORDING_SEC = (1.0, 20.0)  # at least and at most; the answers of others wait while it is measured


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Name and limits of a server. Raises UserError for those out of range."""

    model: str  # its name in requests
    aliases: tuple[str, ...] = ()  # further names of it, such as clients have built in
    format: str = "wav"  # of sounds, where a request names none
    max_chars: int = DEFAULT_CHARS  # of a text
    max_sec: float = 30.0  # of an answer; of a text, of each sentence
    max_waiting: int = 32  # requests beside those in the slots

    def __post_init__(self) -> None:
        if not 1 <= self.max_chars <= MAX_TEXT_CHARS:
            raise UserError(
                "max_chars is out of range", got=self.max_chars, expected=f"1 to {MAX_TEXT_CHARS} characters"
            )
        if not 0 < self.max_sec <= MOST_SEC:
            raise UserError("max_sec is out of range", got=self.max_sec, expected=f"above 0, at most {MOST_SEC:g} s")
        if self.format not in FORMATS:
            raise UserError("no such format of sounds", got=self.format, expected=f"one of {', '.join(FORMATS)}")
        if not all(self.names):
            raise UserError("a name of the model is empty", got=self.names, next_step="give --name and --alias words")
        if self.max_waiting < 0:
            raise UserError("max_waiting is out of range", got=self.max_waiting, expected="0 or more")

    @property
    def max_question_chars(self) -> int:
        """Of a question, which is not split into sentences."""
        return min(self.max_chars, MAX_PROMPT_CHARS)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the model, in requests."""
        return tuple(dict.fromkeys([self.model, *self.aliases]))


class Service:
    """What the routes need: the worker, and what the server has to give."""

    def __init__(self, synthesizer: Synthesizer, voices: Mapping[str, Wave], settings: ServeSettings) -> None:
        """`voices`: speaker vectors float32 [D] by name; none where neither the model nor the codec takes a voice, and
        then the server has the voice `DEFAULT_VOICE` alone.

        Raises UserError for no voices where they are taken, for any where they are not, and for one of another codec.
        """
        if not synthesizer.takes_voice:
            if voices:
                raise voice_not_taken(synthesizer.codec, next(iter(voices)))
            voices = {DEFAULT_VOICE: synthesizer.no_voice}
        if not voices:
            raise UserError("the server has no voices", next_step="name at least one with --voices")
        spec = synthesizer.codec.spec
        for name, vector in voices.items():
            if vector.shape != (spec.speaker_dim,):
                raise UserError(
                    f"the voice {name} is not of this codec", got=vector.shape, expected=(spec.speaker_dim,)
                )
        self.synthesizer, self.voices, self.settings = synthesizer, dict(voices), settings
        self.sample_rate = spec.sample_rate
        self._num_recordings = 0
        self.metrics = ServeMetrics()
        self.worker = Worker(synthesizer, self.metrics, max_waiting=settings.max_waiting)
        about = {"object": "model", "created": int(time.time()), "owned_by": "slmkit"}
        recording = {"max_bytes": RECORDING_BYTES, "min_sec": RECORDING_SEC[0], "max_sec": RECORDING_SEC[1]}
        limits = {
            "max_chars": settings.max_chars,
            "max_question_chars": settings.max_question_chars,
            "max_sec": settings.max_sec,
            "recording": recording if synthesizer.takes_voice else None,
        }
        self.models = {name: {"id": name, **about, **limits} for name in settings.names}

    def check(self, body: SpokenBody) -> None:
        """Raise ApiError for what this server cannot give. (Types and ranges were pydantic's to check.)"""
        settings, field = self.settings, body.text_field
        if body.model is not None and body.model not in self.models:
            names = ", ".join(self.models)
            raise refused("model", "no such model", got=body.model, expected=names, code="model_not_found", status=404)
        if is_blank(body.text):
            raise refused(field, "there is no text", code="empty_text")
        most = settings.max_question_chars if isinstance(body, QuestionBody) else settings.max_chars
        if len(body.text) > most:
            what = f"the text has {len(body.text)} characters; split it into parts"
            raise refused(field, what, expected=f"at most {most}", code="string_above_max_length")
        if isinstance(body.voice, str) and body.voice not in self.voices:
            expected = f"one of {', '.join([*self.voices][:SHOWN_VOICES])}"
            expected += f" and {len(self.voices) - SHOWN_VOICES} more" if len(self.voices) > SHOWN_VOICES else ""
            raise refused("voice", "no such voice", got=body.voice, expected=expected, code="voice_not_found")
        if body.stream is False and body.stream_format is not None:
            raise refused("stream_format", '"stream": false contradicts it')
        if body.progress and body.streaming != "sse":
            raise refused("progress", 'only events tell it: ask for "stream_format": "sse"', code=UNSUPPORTED)
        if body.speed != 1.0:
            raise refused("speed", "only 1.0 is served", got=body.speed, code=UNSUPPORTED)
        if body.instructions.strip():
            raise refused("instructions", "this model follows no instructions", code=UNSUPPORTED)
        if 0 < body.temperature < LEAST_FACTOR:
            raise refused("temperature", "too small", got=body.temperature, expected=f"0, or {LEAST_FACTOR:g} to 100")
        if body.max_sec is not None and body.max_sec > settings.max_sec:
            raise refused("max_sec", "too long", got=body.max_sec, expected=f"at most {settings.max_sec:g}")

    def format_of(self, body: SpokenBody) -> str:
        """Of the sound that answers a request, one of `FORMATS`."""
        return body.response_format or self.settings.format

    def speaker_of(self, voice: str | OwnVoice) -> Wave:
        """Speaker vector float32 [D] of a voice of this server, by its name, or of a client. Raises ApiError for what
        is no vector."""
        if isinstance(voice, str):
            return self.voices[voice]
        self.check_recordings_taken("voice")
        width = self.synthesizer.codec.spec.speaker_dim
        try:
            vector = np.frombuffer(base64.b64decode(voice.speaker, validate=True), "<f4").astype(np.float32)
        except ValueError:  # no base64, or no whole numbers; also for characters beyond ASCII
            vector = np.zeros(0, np.float32)
        if vector.shape != (width,) or not np.isfinite(vector).all():
            expected = f"{width} finite float32 numbers in base64, as /v1/audio/speaker gives them"
            raise refused("voice", "not a speaker vector of this server", expected=expected)
        return vector

    def check_recordings_taken(self, field: str) -> None:
        """Raise ApiError where a voice would change nothing."""
        if not self.synthesizer.takes_voice:
            what = "this server takes no voice: neither the model nor the codec would heed it"
            raise refused(field, what, code=UNSUPPORTED)

    @contextlib.contextmanager
    def room_for_recording(self) -> Iterator[None]:
        """While one is received and read, which takes memory. To be used in one thread, the event loop's. Raises
        ApiError 503 when there are too many."""
        if self._num_recordings >= MAX_RECORDINGS:
            raise overloaded(1.0)
        self._num_recordings += 1
        try:
            yield
        finally:
            self._num_recordings -= 1

    def read_recording(self, data: bytes) -> Wave:
        """The sound file as a wave float32 [samples] at the codec's rate; takes long. Raises ApiError."""
        least_sec, most_sec = RECORDING_SEC
        try:
            wave = read_audio(io.BytesIO(data), self.sample_rate, min_sec=least_sec, max_sec=most_sec)
        except BadSample as error:
            expected = f"a sound file of {least_sec:g} to {most_sec:g} s"
            raise refused("recording", f"{error.reason}: {error.what}", expected=expected) from error
        return wave

    def measure(self, wave: Wave) -> "Future[Speaker]":
        """The voice of a wave float32 [samples], from the worker. Raises ApiError as `Worker.between_turns`."""

        def work() -> Speaker:
            vector = voice_of(self.synthesizer.codec, wave)
            if not np.isfinite(vector).all():
                raise UserError("the recording gives no voice: its speaker vector is not finite")
            data = base64.b64encode(vector.astype("<f4").tobytes()).decode()
            return Speaker(speaker=data, seconds=round(len(wave) / self.sample_rate, 2))

        return self.worker.between_turns(work)

    def ask(self, body: SpokenBody, deliver: Callable[[Sound | Queued | ApiError], None]) -> Call:
        """Queue a request; its events go to `deliver`, in the worker's thread. Raises ApiError when it is refused."""
        self.check(body)
        speaker = self.speaker_of(body.voice)
        names = {field.name for field in dataclasses.fields(SpeakingSettings)} & type(body).model_fields.keys()
        options = {name: getattr(body, name) for name in names} | {"max_sec": body.max_sec or self.settings.max_sec}
        try:
            if isinstance(body, SpeechBody):
                passage = self.synthesizer.passage(body.text, speaker, normalize=body.normalize, **options)
            else:
                passage = Passage.of(body.text, self.synthesizer.answering(body.text, speaker, **options))
                self.synthesizer.engine.check(passage.requests[0])
        except UserError as error:
            raise from_user_error(error) from error
        call = Call(
            passage,
            speaker,
            is_streamed=body.streaming is not None,
            deliver=deliver,
            wants_place=bool(body.progress),
        )
        self.worker.submit(call)
        return call

    def facts(self, body: SpokenBody, call: Call, output: Output) -> dict[str, Any]:
        """How an answer came out; of a question its words, too; of a text the first sentences without speech."""
        spec, spoken = self.synthesizer.codec.spec, call.passage.told(call.outputs)
        pauses_sec = sum(sentence.pause_sec for sentence in spoken)
        seconds = round(output.codes.shape[1] * spec.hop_samples / spec.sample_rate + pauses_sec, 4)
        facts: dict[str, Any] = {"seconds": seconds, "reason": output.reason, "limit": output.limit}
        facts |= {"warning": output.warning, "attempts": output.attempts}
        if silent := [excerpt(sentence.text) for sentence in spoken if not sentence.frames]:
            shown = silent[:SHOWN_SENTENCES]
            while len(quote(str(shown))) > MAX_UNSPOKEN_BYTES:  # it may become a header
                del shown[-1]
            left = len(silent) - len(shown)
            facts["unspoken"] = shown + [f"and {left} more"] * (left > 0)
        return facts | {"text": self.synthesizer.words_of(output).text} if isinstance(body, QuestionBody) else facts
