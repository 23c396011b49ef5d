"""The HTTP API: OpenAI's `/v1/audio/speech`, a few addresses of ours, and the pages.

Everything here runs in the event loop and computes nothing: requests go to the worker, whose sounds come back through
a queue per request. Sound is sent as it comes when the request asks for a stream.

Invariant: whatever happens to a connection, its request is answered or given up. What a client sends is kept no longer
than its request takes.

Not done: passwords, TLS, limits on the number and speed of connections (a proxy in front has them).

Example:
    curl http://127.0.0.1:8000/v1/audio/speech -d '{"input": "Hello.", "voice": "anna", "stream": true}' | aplay
"""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sse_starlette import EventSourceResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from slmkit import __version__, log
from slmkit.audio.encode import FORMATS, PieceEncoder, encoded
from slmkit.serve.schema import (
    ApiError,
    QuestionAnswer,
    QuestionBody,
    Speaker,
    SpeechBody,
    SpokenBody,
    from_pydantic,
    internal,
    refused,
    shortened,
    shutting_down,
)
from slmkit.serve.service import RECORDING_BYTES, Service
from slmkit.serve.worker import Call, Queued, Sound

STATIC = Path(__file__).with_name("static")
BODY_SEC = 10.0  # for a client to send the body of a request
ESCAPED_BYTES = 12  # of one character in JSON at most: two \uXXXX
OTHER_FIELDS_BYTES = 4096
VECTOR_BYTES = 12  # of a number of a speaker vector in base64, its slashes escaped
RECORDING_BODY_SEC = 30.0  # as BODY_SEC, for a recording
CLIENT_GONE = 499  # nginx's number for it; nobody sees it but the log
CODES = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "body_too_large"}
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


class CutShort(Exception):
    """A stream of sound ends before its time. Its connection is closed without the mark of a whole answer."""


def _service(request: Request) -> Service:
    return request.app.state.service


def _from_own_page(request: Request) -> None:
    """Keep out requests from pages of other sites that a browser on this machine has open."""
    origin = request.headers.get("origin")
    if origin is not None:
        with contextlib.suppress(ValueError):  # an address that cannot be read
            if urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower():
                return
        raise ApiError(403, "requests from pages of other sites are refused", code="wrong_origin")


async def _cleaning_up() -> AsyncIterator[contextlib.ExitStack]:
    """What is pushed on it runs when the answer is sent, or its client gone."""
    with contextlib.ExitStack() as stack:
        yield stack


Event = Sound | Queued | ApiError
Events = asyncio.Queue[Event]
Asked = Annotated[Service, Depends(_service)]
CleaningUp = Annotated[contextlib.ExitStack, Depends(_cleaning_up)]
SOUND = {form.content_type: {"schema": {"type": "string", "format": "binary"}} for form in FORMATS.values()}
EVENTS: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
SPEAKER_PATH = "/v1/audio/speaker"
RECORDING = {"audio/*": {"schema": {"type": "string", "format": "binary"}}}
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"description": "An error, in the form of OpenAI's"}}
router = APIRouter()
speaking = APIRouter(dependencies=[Depends(_from_own_page)])


@speaking.post("/v1/audio/speech", response_class=Response, responses={200: {"content": {**SOUND, **EVENTS}}, **ERRORS})
async def speech(body: SpeechBody, request: Request, service: Asked, cleaning_up: CleaningUp) -> Response:
    """Read a text aloud, as in OpenAI's API. The answer is a sound file. With "stream_format": "sse" it is a series of
    events: speech.audio.delta with sound in base64, and at the end speech.audio.done."""
    return await _respond(body, request, service, cleaning_up)


@speaking.post("/v1/answer", response_model=QuestionAnswer, responses={200: {"content": {**SOUND, **EVENTS}}, **ERRORS})
async def answer(body: QuestionBody, request: Request, service: Asked, cleaning_up: CleaningUp) -> Response:
    """Answer a question in words and in speech. With "stream_format": "sse" the last event has the words; with "audio"
    the words are left out."""
    return await _respond(body, request, service, cleaning_up)


@speaking.post(SPEAKER_PATH, responses=ERRORS, openapi_extra={"requestBody": {"required": True, "content": RECORDING}})
async def speaker(request: Request, service: Asked) -> Speaker:
    """Measure the voice of a recording: the body is a sound file of any usual kind, its length in /v1/models. The
    answer may be sent as the voice of requests. The server keeps neither."""
    service.check_recordings_taken("recording")
    with service.room_for_recording():
        wave = await run_in_threadpool(service.read_recording, await request.body())
        return await asyncio.wrap_future(service.measure(wave))


async def _respond(body: SpokenBody, request: Request, service: Service, cleaning_up: contextlib.ExitStack) -> Response:
    sounds: Events = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def deliver(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            loop.call_soon_threadsafe(sounds.put_nowait, event)

    call = await run_in_threadpool(service.ask, body, deliver)  # a long text takes a moment to split
    cleaning_up.callback(call.give_up)
    form, rate = service.format_of(body), {"X-Slmkit-Sample-Rate": str(service.sample_rate)}
    if body.progress:  # events from now on; an error is one of them
        return EventSourceResponse(_events(body, service, call, await sounds.get(), sounds), headers=rate, sep="\n")
    first = await _first(request, sounds)
    if isinstance(first, ApiError):
        raise first
    assert isinstance(first, Sound), "others do not ask for their place"
    if body.streaming == "audio":
        pieces = _sound_pieces(PieceEncoder(service.sample_rate, form), first, sounds)
        return StreamingResponse(pieces, headers=rate, media_type=FORMATS[form].content_type)
    if body.streaming == "sse":
        return EventSourceResponse(_events(body, service, call, first, sounds), headers=rate, sep="\n")
    assert first.output is not None, "a whole answer comes at once"
    data = await run_in_threadpool(encoded, first.wave, service.sample_rate, form)
    facts = service.facts(body, call, first.output)
    if isinstance(body, QuestionBody):
        whole = QuestionAnswer(
            audio=base64.b64encode(data).decode(),
            response_format=form,
            sample_rate=service.sample_rate,
            **facts,
        )
        return JSONResponse(whole.model_dump())
    told = {f"X-Slmkit-{name.title()}": quote(str(value)) for name, value in facts.items() if value is not None}
    return Response(data, headers=rate | told, media_type=FORMATS[form].content_type)


async def _first(request: Request, sounds: Events) -> Event:
    """The first event, for which a client may wait long. Raises ApiError when it has left."""

    async def client_leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    event, leaving = asyncio.ensure_future(sounds.get()), asyncio.ensure_future(client_leaves())
    try:
        await asyncio.wait([event, leaving], return_when=asyncio.FIRST_COMPLETED)
        if event.done():
            return event.result()
        raise ApiError(CLIENT_GONE, "the client has left", code="client_gone")
    finally:
        event.cancel(), leaving.cancel()


async def _sound_pieces(encoder: PieceEncoder, event: Event, sounds: Events) -> AsyncIterator[bytes]:
    """The file, piece by piece."""
    while True:
        if not isinstance(event, Sound):
            raise CutShort
        if piece := await _encoded_piece(encoder, event):
            yield piece
        if event.output is not None:
            return
        event = await sounds.get()


async def _encoded_piece(encoder: PieceEncoder, sound: Sound) -> bytes:
    piece = await run_in_threadpool(encoder.push, sound.wave)
    return piece if sound.output is None else piece + await run_in_threadpool(encoder.finish)


async def _events(body: SpokenBody, service: Service, call: Call, event: Event, sounds: Events) -> AsyncIterator[str]:
    """Server-sent events as OpenAI's; the last has what is known at the end."""
    encoder = PieceEncoder(service.sample_rate, service.format_of(body))
    while True:
        if isinstance(event, ApiError):
            yield json.dumps({"type": "error", **event.body()})
            return
        if isinstance(event, Queued):
            yield json.dumps({"type": "speech.queue", "place": event.place})
            event = await sounds.get()
            continue
        if piece := await _encoded_piece(encoder, event):
            yield json.dumps({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
        if (output := event.output) is not None:
            prompts = [request.prompt for request in call.passage.requests]
            num_in = sum(len(getattr(prompt, "tokens", prompt)) for prompt in prompts)
            num_out = output.num_steps
            usage = {"input_tokens": num_in, "output_tokens": num_out, "total_tokens": num_in + num_out}
            yield json.dumps({"type": "speech.audio.done", "usage": usage, **service.facts(body, call, output)})
            return
        event = await sounds.get()


@router.get("/v1/models")
async def models(service: Asked) -> dict[str, Any]:
    """The one model under each of its names, as OpenAI's list; with the limits of texts and speech."""
    return {"object": "list", "data": [*service.models.values()]}


@router.get("/v1/models/{name:path}")
async def model(name: str, service: Asked) -> dict[str, Any]:
    """The model, by its name."""
    if name not in service.models:
        raise refused("model", f"no such model; got {shortened(name)}", code="model_not_found", status=404)
    return service.models[name]


@router.get("/v1/audio/voices")
async def voices(service: Asked) -> dict[str, Any]:
    """The voices that requests may name."""
    return {"voices": [{"id": name, "name": name} for name in service.voices]}


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(service: Asked) -> dict[str, str]:
    """Whether requests are answered."""
    if not service.worker.is_open:
        raise shutting_down()
    return {"status": "ok"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: Asked) -> Response:
    """How much the server does and how fast, in Prometheus' format."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def page() -> FileResponse:
    return FileResponse(STATIC / "index.html")


@router.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
async def docs() -> FileResponse:
    return FileResponse(STATIC / "docs.html")  # FastAPI's own page loads its scripts from the internet


class Guard:
    """The outermost layer: limits on bodies, headers of security, one line of log per request without its texts."""

    def __init__(self, app: ASGIApp, limits: Mapping[str, tuple[int, float]], default: tuple[int, float]) -> None:
        """Bytes of a body and seconds to send it in, by path, and of all other paths."""
        self.app, self._limits, self._default = app, limits, default

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, note = time.monotonic(), 500, ""  # 500: what a defect gives
        num_bytes, is_read = 0, False
        max_body_bytes, body_sec = self._limits.get(scope["path"], self._default)

        async def receive_within_limits() -> Message:
            nonlocal num_bytes, is_read
            try:
                async with asyncio.timeout_at(None if is_read else began_in_loop + body_sec):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, "the body came too slowly") from error
            num_bytes += len(message.get("body", b""))
            is_read = is_read or not message.get("more_body", False)
            if num_bytes > max_body_bytes:
                raise HTTPException(413, f"the body is larger than {max_body_bytes} bytes")
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(SECURITY_HEADERS)
            await send(message)

        began_in_loop = asyncio.get_running_loop().time()
        # `curl -d` sends JSON under the content type of a form, and any body here is JSON.
        other = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        scope = {**scope, "headers": [*other, (b"content-type", b"application/json")]}
        try:
            await self.app(scope, receive_within_limits, send_with_headers)
        except (CutShort, asyncio.CancelledError):  # uvicorn cancels what has not ended in time when it stops
            note = "cut"
        finally:
            line = (scope["method"], scope["path"][:200], status, 1000 * (time.monotonic() - began), note)
            log.get_logger(__name__).info("%s %r %d in %.0f ms %s", *line)


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    """Every error in OpenAI's form. What a defect was stands in the log alone."""
    if isinstance(error, RequestValidationError):
        error = from_pydantic(error.errors()[0])
    elif isinstance(error, StarletteHTTPException):  # an address that is not there, or a limit of `Guard`
        code = CODES.get(error.status_code, "invalid_value")
        error = ApiError(error.status_code, str(error.detail), code=code, headers=error.headers)
    elif not isinstance(error, ApiError):
        error = internal()
    return JSONResponse(error.body(), error.status, error.headers)


def make_app(service: Service, hosts: Sequence[str]) -> "Guard":
    """The application in its guard; `hosts` are the names that it may be called by, `["*"]` for any."""
    app = FastAPI(title="slmkit", version=__version__, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(speaking)
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC))
    for kind in (StarletteHTTPException, RequestValidationError, ApiError, Exception):
        app.add_exception_handler(kind, _on_error)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    vector_bytes = VECTOR_BYTES * service.synthesizer.codec.spec.speaker_dim
    text_bytes = ESCAPED_BYTES * service.settings.max_chars + vector_bytes + OTHER_FIELDS_BYTES
    limits = {SPEAKER_PATH: (RECORDING_BYTES, RECORDING_BODY_SEC)}
    return Guard(app, limits, (text_bytes, BODY_SEC))
