"""What the server has to give, without HTTP: from a checked request to an answer under way, and figures.

Example:
    service = Service(synthesizer, voices, Settings(model="mtp3"))
    service.start()
    answer = service.ask(asked(body, service.offer, text_field="input"), is_question=False)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slmkit.audio import encode
from slmkit.errors import UserError
from slmkit.infer.request import Output
from slmkit.infer.synthesizer import MAX_TEXT_CHARS, Synthesizer
from slmkit.serve.counts import Counts
from slmkit.serve.fields import Asked, Offer
from slmkit.serve.problem import invalid
from slmkit.serve.worker import Answer, Job, Worker


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of a server. Raises UserError for those out of range."""

    model: str  # its name in requests
    max_chars: int = MAX_TEXT_CHARS  # of a text
    max_sec: float = 30.0  # of an answer
    max_waiting: int = 32  # requests beside those in the slots

    def __post_init__(self) -> None:
        if not 1 <= self.max_chars <= MAX_TEXT_CHARS:
            raise UserError("texts cannot be so long", got=self.max_chars, expected=f"1 to {MAX_TEXT_CHARS}")
        if not 0 < self.max_sec < float("inf"):
            raise UserError("answers cannot be so long", got=self.max_sec, expected="a number of seconds above 0")
        if self.max_waiting < 0:
            raise UserError("so many requests cannot wait", got=self.max_waiting, expected="0 or more")


class Service:
    """See the module."""

    def __init__(
        self, synthesizer: Synthesizer, voices: Mapping[str, npt.NDArray[np.float32]], settings: Settings
    ) -> None:
        """`voices`: speaker vectors float32 [D] by name.

        Raises UserError for no voices, and for a voice of another codec.
        """
        if not voices:
            raise UserError("the server has no voices", next_step="name at least one")
        width = synthesizer.codec.spec.speaker_dim
        for name, vector in voices.items():
            if vector.shape != (width,):
                raise UserError(f"the voice {name} is not of this codec", got=vector.shape, expected=(width,))
        self.synthesizer, self._voices, self.settings = synthesizer, dict(voices), settings
        self.sample_rate = synthesizer.codec.spec.sample_rate
        self.offer = Offer(
            model=settings.model,
            voices=tuple(voices),
            formats=encode.formats(self.sample_rate),
            max_chars=settings.max_chars,
            max_sec=settings.max_sec,
        )
        self.counts = Counts()
        self.worker = Worker(synthesizer, self.counts, max_waiting=settings.max_waiting)

    @property
    def most_at_once(self) -> int:
        """Requests in slots and waiting; known when it has started."""
        return self.synthesizer.engine.num_slots + self.settings.max_waiting

    def start(self) -> None:
        """Begin to answer. Raises UserError as `Worker.start`."""
        self.worker.start()

    def close(self, grace_sec: float) -> None:
        """As `Worker.close`."""
        self.worker.close(grace_sec)

    def ask(self, asked: Asked, *, is_question: bool) -> Answer:
        """Queue a text to read, or a question to answer. Raises Problem when it does not fit or there is no room."""
        make = self.synthesizer.answering if is_question else self.synthesizer.reading
        speaker = self._voices[asked.voice]
        self.counts.add("asked")
        try:
            request = make(asked.text, speaker, sampling=asked.sampling, max_sec=asked.max_sec, seed=asked.seed)
            self.synthesizer.engine.check(request)
        except UserError as error:
            self.counts.add("failed")
            raise invalid(error.what, got=error.got, expected=error.expected) from error
        return self.worker.submit(Job(request=request, speaker=speaker, is_streamed=asked.streaming is not None))

    def words(self, output: Output) -> str:
        """What the model wrote in answer to a question."""
        return self.synthesizer.words_of(output).text

    def metrics(self) -> dict[str, Any]:
        """How much the server does and how fast."""
        active, waiting = self.worker.load()
        places = {"active": active, "slots": self.synthesizer.engine.num_slots}
        places |= {"waiting": waiting, "max_waiting": self.settings.max_waiting}
        return places | self.counts.values()
