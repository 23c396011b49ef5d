"""What the server answers at which address: OpenAI's `/v1/audio/speech`, a few of ours, and the page.

Knows the service and one connection. Sound is sent as it comes when the request asks for a stream; whether an answer
ended by itself or at a limit stands in headers or, where it is known only at the end, in trailers and the last event.

Invariant: whatever happens to a connection, the answer it waits for is done or given up.

Example:
    curl http://127.0.0.1:8000/v1/audio/speech -d '{"input": "Hello.", "voice": "anna", "stream": true}' | aplay
"""

import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from slmkit.audio.encode import CONTENT_TYPES, encoded, pcm16, wav_header
from slmkit.infer.request import Output
from slmkit.serve import page
from slmkit.serve.connection import ClientGone, Connection
from slmkit.serve.fields import Asked, asked
from slmkit.serve.problem import Problem, invalid, stopping
from slmkit.serve.service import Service
from slmkit.serve.worker import Answer, Done, Event, Failed

POLL_SEC = 0.1  # how often a request that waits for sound looks whether its client is still there
PREFIX = "X-Slmkit-"
MODELS = "/v1/models/"


class Routes(Connection):
    """See the module. `server.service` does the work, `server.hosts` are the names it may be called by."""

    def answer(self) -> None:
        self._check_sender()
        if self.route.startswith(MODELS):
            handlers: dict[str, Callable[[Routes], None]] = {"GET": Routes._model}
        elif self.route in ROUTES:
            handlers = ROUTES[self.route]
        else:
            raise invalid("there is nothing at this address", code="not_found", status=404)
        handler = handlers.get("GET" if self.command == "HEAD" else self.command)
        if handler is None:
            allowed = ", ".join([*handlers, "HEAD"] if "GET" in handlers else handlers)
            message = f"this address takes {allowed} only"
            raise Problem(405, message, code="method_not_allowed", headers={"Allow": allowed})
        handler(self)

    @property
    def service(self) -> Service:
        return self.server.service

    def _check_sender(self) -> None:
        """Keep out pages of other sites that a browser on this machine has open."""
        host = self.headers.get("Host")  # no browser leaves it out
        if self.server.hosts is not None and host is not None and _without_port(host) not in self.server.hosts:
            raise invalid("the server does not go by this name", code="wrong_host", got=host, status=403)
        origin = self.headers.get("Origin")
        if origin is not None and self.command == "POST" and _netloc(origin) != (host or "").lower():
            raise invalid("requests from pages of other sites are refused", code="wrong_origin", status=403)

    def _page(self) -> None:
        content_type, text = page.FILES[self.route]
        self.reply(200, text.encode(), content_type, page.HEADERS)

    def _models(self) -> None:
        self.reply_json({"object": "list", "data": [self._model_values()]})

    def _model(self) -> None:
        name = unquote(self.route.removeprefix(MODELS))
        if name != self.service.offer.model:
            raise invalid("no such model", param="model", got=name, code="model_not_found", status=404)
        self.reply_json(self._model_values())

    def _model_values(self) -> dict[str, Any]:
        return {"id": self.service.offer.model, "object": "model", "created": self.server.created, "owned_by": "slmkit"}

    def _voices(self) -> None:
        self.reply_json({"voices": [{"id": name, "name": name} for name in self.service.offer.voices]})

    def _health(self) -> None:
        if self.server.is_closing or not self.service.worker.is_alive:
            raise stopping()
        self.reply_json({"status": "ok"})

    def _metrics(self) -> None:
        self.reply_json(self.service.metrics())

    def _speech(self) -> None:
        self._speak("input", is_question=False)

    def _answer_question(self) -> None:
        self._speak("question", is_question=True)

    def _speak(self, text_field: str, *, is_question: bool) -> None:
        offer = self.service.offer
        wanted = asked(self.body(offer.max_body_bytes), offer, text_field=text_field)
        answer = self.service.ask(wanted, is_question=is_question)
        try:
            first = self._next(answer)
            if isinstance(first, Failed):
                raise first.problem
            if isinstance(first, Done) and not len(first.wave) and not is_question:
                how = first.output.limit or "its end"
                raise Problem(500, f"the model gave no speech for this text (it came to: {how})", code="no_speech")
            if wanted.streaming is None:
                assert isinstance(first, Done), "a whole answer has one event"
                self._send_whole(wanted, first, is_question)
            elif wanted.streaming == "audio":
                self._send_audio(wanted, answer, first, is_question)
            else:
                self._send_events(wanted, answer, first, is_question)
        finally:
            answer.give_up()

    def _next(self, answer: Answer) -> Event:
        """The next event. Raises ClientGone when the client does not wait for it."""
        while (event := answer.next(POLL_SEC)) is None:
            if self.is_gone():
                raise ClientGone
        return event

    def _send_whole(self, wanted: Asked, done: Done, is_question: bool) -> None:
        facts = self._facts(done.output, is_question)
        data = encoded(done.wave, self.service.sample_rate, wanted.format) if len(done.wave) else b""
        if is_question:
            audio = {"audio": base64.b64encode(data).decode(), "response_format": wanted.format}
            self.reply_json({"object": "answer", **facts, "sample_rate": self.service.sample_rate, **audio})
        else:
            self.reply(200, data, CONTENT_TYPES[wanted.format], {**self._rate_header(), **_headers(facts)})

    def _send_audio(self, wanted: Asked, answer: Answer, event: Event, is_question: bool) -> None:
        """The sound itself, piece by piece; a WAV file begins with a header of unknown length."""
        names = [PREFIX + name for name in ("Seconds", "Reason", "Limit", *(["Text"] if is_question else []))]
        self.begin_stream(CONTENT_TYPES[wanted.format], self._rate_header(), names)
        head = self._wav_head(wanted)
        while not isinstance(event, Failed):
            self.send_piece(head + pcm16(event.wave).tobytes())
            head = b""
            if isinstance(event, Done):
                self.end_stream(_headers(self._facts(event.output, is_question)))
                return
            event = self._next(answer)
        self.cut_stream()

    def _send_events(self, wanted: Asked, answer: Answer, event: Event, is_question: bool) -> None:
        """Server-sent events as OpenAI's, the sound in base64; the last has what is known at the end."""
        self.begin_stream("text/event-stream", self._rate_header())
        head = self._wav_head(wanted)
        while True:
            values: dict[str, Any]
            if isinstance(event, Failed):
                self.send_piece(_event({"type": "error", **event.problem.values()}))
                break
            sound = head + pcm16(event.wave).tobytes()
            head = b""
            if sound:
                self.send_piece(_event({"type": "speech.audio.delta", "audio": base64.b64encode(sound).decode()}))
            if isinstance(event, Done):
                values = {"type": "speech.audio.done", "usage": self._usage(answer, event.output)}
                self.send_piece(_event({**values, **self._facts(event.output, is_question)}))
                break
            event = self._next(answer)
        self.end_stream({})

    def _wav_head(self, wanted: Asked) -> bytes:
        return wav_header(self.service.sample_rate, None) if wanted.format == "wav" else b""

    def _rate_header(self) -> dict[str, str]:
        return {PREFIX + "Sample-Rate": str(self.service.sample_rate)}

    def _facts(self, output: Output, is_question: bool) -> dict[str, Any]:
        """How an answer came out; of a question its words, too."""
        spec = self.service.synthesizer.codec.spec
        seconds = round(output.codes.shape[1] * spec.hop_samples / spec.sample_rate, 4)
        facts: dict[str, Any] = {"seconds": seconds, "reason": output.reason, "limit": output.limit}
        return {"text": self.service.words(output), **facts} if is_question else facts

    def _usage(self, answer: Answer, output: Output) -> dict[str, int]:
        num_in, num_out = answer.job.num_prompt_positions, output.num_steps
        return {"input_tokens": num_in, "output_tokens": num_out, "total_tokens": num_in + num_out}


def _headers(facts: dict[str, Any]) -> dict[str, str]:
    """Facts as header lines; words percent-encoded."""
    return {PREFIX + name.title(): quote(str(value), safe=" ") for name, value in facts.items() if value is not None}


def _event(values: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(values)}\n\n".encode()


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


ROUTES: dict[str, dict[str, Callable[[Routes], None]]] = {
    **{path: {"GET": Routes._page} for path in page.FILES},
    "/health": {"GET": Routes._health},
    "/metrics": {"GET": Routes._metrics},
    "/v1/models": {"GET": Routes._models},
    "/v1/audio/voices": {"GET": Routes._voices},
    "/v1/audio/speech": {"POST": Routes._speech},
    "/v1/answer": {"POST": Routes._answer_question},
}
