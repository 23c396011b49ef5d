"""The JSON of the HTTP API: bodies of requests, bodies of answers, and errors in the form of OpenAI's.

Bodies are those of OpenAI's `/v1/audio/speech` with a few fields more. A field that is null counts as absent; one that
is not known is refused, and so is a known one that cannot be followed.

An error message names the field, what was found and what would be right. It never holds a traceback or a path.

Example:
    SpeechBody.model_validate({"input": "Hello.", "voice": "anna", "seed": 7}).streaming
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from slmkit.errors import UserError
from slmkit.infer.request import MAX_SEED, Reason, without_speech
from slmkit.infer.sampling import LEAST_FACTOR
from slmkit.infer.watch import MAX_RETRIES
from slmkit.texts import excerpt

MAX_RETRY_SEC = 60


class ApiError(Exception):
    """An answer that is an error. `code` is a short stable word, `param` the field of the request that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def refused(
    param: str, what: str, *, got: Any = None, expected: str = "", code: str = "invalid_value", status: int = 400
) -> ApiError:
    """A field that the client has to change."""
    message = f"{param}: {what}"
    if got is not None:
        message += f"; got {shortened(got)}"
    if expected:
        message += f"; expected {expected}"
    return ApiError(status, message, code=code, param=param)


def overloaded(retry_sec: float) -> ApiError:
    """The queue is full; the client may try again in `retry_sec` seconds."""
    seconds = str(min(MAX_RETRY_SEC, max(1, round(retry_sec))))
    message = f"the server is busy and its queue is full; try again in {seconds} s"
    return ApiError(503, message, code="overloaded", headers={"Retry-After": seconds})


def shutting_down() -> ApiError:
    """The server was told to stop and answers no more."""
    return ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})


def no_speech(limit: str | None) -> ApiError:
    """An answer that has no sound; `limit` is what stopped it, if anything did."""
    return ApiError(500, without_speech(limit), code="no_speech")


def internal() -> ApiError:
    """A defect of the server, described in its log alone."""
    return ApiError(500, "the server failed to answer this request; its log says why", code="internal_error")


def shortened(value: Any) -> str:
    """A client's value for a message; of lists and objects the kind alone."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return excerpt(json.dumps(value, default=str))


def from_user_error(error: UserError) -> ApiError:
    """What the engine says of a request, for the client."""
    parts = [error.what]
    if error.got is not None:
        parts.append(f"got {error.got}")
    if error.expected is not None:
        parts.append(f"expected {error.expected}")
    return ApiError(400, "; ".join(parts), code="invalid_value")


def from_pydantic(problem: Mapping[str, Any]) -> ApiError:
    """One of `ValidationError.errors()`, whose location begins with "body"."""
    kind, place = problem["type"], problem["loc"][1:]
    if kind == "json_invalid":
        return ApiError(400, f"the body is not JSON: {problem['ctx']['error']}", code="invalid_json")
    if not place:
        return ApiError(400, "the body is not a JSON object", code="invalid_json")
    param = excerpt(place[0])
    if kind == "missing":
        return refused(param, "missing", code="missing_required_parameter")
    if kind == "extra_forbidden":
        return refused(param, "unknown field; /docs lists the known ones", code="unknown_parameter")
    expected = problem["msg"].removeprefix("Input should be ")
    if kind.endswith("_type"):
        return refused(param, "wrong type", got=problem["input"], expected=expected, code="invalid_type")
    code = "unsupported_value" if kind == "literal_error" else "invalid_value"
    return refused(param, "wrong value", got=problem["input"], expected=expected, code=code)


def _voice_name(value: Any) -> Any:
    """OpenAI's clients send a voice as its name, or as an object with the name as its id."""
    return value["id"] if isinstance(value, dict) and set(value) == {"id"} else value


class OwnVoice(BaseModel):
    """The voice of a recording, which the client keeps and the server does not."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    speaker: str


VoiceName = Annotated[
    str | OwnVoice,
    BeforeValidator(_voice_name),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "properties": {"id": {"type": "string"}}}]}),
]


class SpokenBody(BaseModel):
    """What both requests have in common."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    text_field: ClassVar[str]

    voice: VoiceName = Field(
        description='name of a voice, or {"id": name}; /v1/audio/voices lists them. Or {"speaker": vector}, the voice '
        "of a recording, as /v1/audio/speaker gives it"
    )
    model: str | None = Field(None, description="name of the model or an alias, as /v1/models gives them")
    response_format: Literal["wav", "pcm", "flac", "mp3", "opus", "aac"] | None = Field(
        None, description="wav, flac and pcm have 16 bits; pcm has no header (default: that of the server, --format)"
    )
    stream: bool | None = Field(None, description='true: as "stream_format": "audio"')
    stream_format: Literal["audio", "sse"] | None = Field(
        None, description="send sound while it is made, as the file itself or as events"
    )
    progress: bool | None = Field(
        None, description='with "sse": events speech.queue tell the place in the queue; 0 when it is answered'
    )
    speed: float = Field(1.0, ge=0.25, le=4.0, description="only 1.0 is served")
    instructions: str = Field("", description="must be empty: the model follows none")
    temperature: float = Field(
        0.0, ge=0.0, le=100.0, description="0: take the most probable; 1: sample as the model says"
    )
    top_k: int = Field(0, ge=0, le=10**6, description="sample among the k most probable; 0: all")
    top_p: float = Field(
        1.0, ge=LEAST_FACTOR, le=1.0, description="sample among the fewest that hold this share of the probability"
    )
    repetition_penalty: float = Field(1.0, ge=LEAST_FACTOR, le=100.0, description="above 1: fewer repetitions")
    seed: int = Field(0, ge=0, le=MAX_SEED, description="equal seeds give equal speech")
    max_sec: float | None = Field(
        None, gt=0.0, description="longest speech in seconds, of each sentence (default: the limit of the server)"
    )
    watch: bool = Field(True, description="stop speech that will not end, and unless it is streamed try it again")
    max_retries: int = Field(2, ge=0, le=MAX_RETRIES, description="how often it is tried again at most")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values

    @property
    def text(self) -> str:
        return str(getattr(self, self.text_field))

    @property
    def streaming(self) -> Literal["audio", "sse"] | None:
        """How to stream; None: the whole answer at once."""
        return self.stream_format or ("audio" if self.stream else None)


class SpeechBody(SpokenBody):
    """A text to read aloud."""

    text_field = "input"
    input: str = Field(description="text to speak, sentence by sentence")
    normalize: Literal["", "english"] = Field(
        "", description="say numbers, dates and abbreviations in words of this language"
    )


class QuestionBody(SpokenBody):
    """A question to answer, in words and in speech."""

    text_field = "question"
    question: str = Field(description="question to answer")


class Speaker(BaseModel):
    """The voice of a recording."""

    object: Literal["speaker"] = "speaker"
    speaker: str = Field(description="the speaker vector: float32 numbers, little-endian, in base64")
    seconds: float = Field(description="length of the recording")


class QuestionAnswer(BaseModel):
    """The whole answer to a question."""

    object: Literal["answer"] = "answer"
    text: str = Field(description="words of the answer")
    audio: str = Field(description="the sound file, in base64")
    response_format: str
    sample_rate: int = Field(description="Hz")
    seconds: float = Field(description="length of the speech")
    reason: Reason = Field(description="whether the answer came to its end, to a limit, or would not have ended")
    limit: str | None = Field(description="which limit, or what showed that it would not end")
    warning: str | None = Field(description='"short": the speech is far shorter than its text')
    attempts: int = Field(description="how often it was tried")
