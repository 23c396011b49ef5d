"""The JSON of a request for speech, checked field by field.

Pure: bytes in, values out. The fields are those of OpenAI's `/v1/audio/speech` with a few of ours; a field that is null
counts as absent, one that is not known is refused, and so is one that is known and cannot be followed.

Invariant: what comes out is within the offer.

Example:
    offer = Offer(model="mtp3", voices=("anna",), formats=("wav", "pcm"), max_chars=2000, max_sec=30.0)
    asked(b'{"input": "Hello.", "voice": "anna"}', offer, text_field="input").text
"""

import json
from dataclasses import dataclass
from typing import Any, Literal

from slmkit.infer.request import MAX_SEED
from slmkit.infer.sampling import Sampling
from slmkit.serve.problem import Problem, invalid

STREAMED_FORMATS = ("wav", "pcm")  # those whose pieces are a file at every moment
Streaming = Literal["audio", "sse"]
ESCAPED_BYTES = 12  # of one character in JSON at most: two \uXXXX
OTHER_FIELDS_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What the server has to give."""

    model: str  # its name
    voices: tuple[str, ...]
    formats: tuple[str, ...]
    max_chars: int  # of a text
    max_sec: float  # of an answer

    @property
    def max_body_bytes(self) -> int:
        """Of a request that can be right."""
        return ESCAPED_BYTES * self.max_chars + OTHER_FIELDS_BYTES


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request for speech."""

    text: str
    voice: str
    format: str
    streaming: Streaming | None  # None: the whole at once
    sampling: Sampling
    seed: int
    max_sec: float


def asked(body: bytes, offer: Offer, *, text_field: str) -> Asked:
    """The request in `body`; its text stands in `text_field`. Raises Problem for anything not in the offer."""
    fields = _Fields(_json_object(body))
    model = fields.text("model", default=offer.model)
    if model != offer.model:
        raise invalid(
            "no such model", param="model", got=model, expected=f'"{offer.model}"', code="model_not_found", status=404
        )
    text = _checked_text(fields.text(text_field), text_field, offer.max_chars)
    voice = fields.one_of("voice", offer.voices, code="voice_not_found")
    form = fields.one_of("response_format", offer.formats, default="wav")
    streaming = _streaming(fields, form)
    if fields.number("speed", 1.0, low=0.25, high=4.0) != 1.0:
        raise invalid("only 1.0 is served", param="speed", code="unsupported_value")
    if fields.text("instructions", default="").strip():
        raise invalid("instructions are not followed by this model", param="instructions", code="unsupported_value")
    sampling = Sampling(
        temperature=fields.number("temperature", 0.0, low=0.0, high=100.0),
        top_k=fields.whole("top_k", 0, high=10**6),
        top_p=fields.number("top_p", 1.0, low=0.0, high=1.0, above=True),
        repetition_penalty=fields.number("repetition_penalty", 1.0, low=0.0, high=100.0, above=True),
    )
    seed = fields.whole("seed", 0, high=MAX_SEED)
    max_sec = fields.number("max_sec", offer.max_sec, low=0.0, high=offer.max_sec, above=True)
    fields.check_all_known()
    return Asked(
        text=text, voice=voice, format=form, streaming=streaming, sampling=sampling, seed=seed, max_sec=max_sec
    )


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise invalid(f"the body is not JSON: {reason}", code="invalid_json") from error
    if not isinstance(values, dict):
        raise invalid("the body is not a JSON object", code="invalid_json")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _checked_text(text: str, field: str, max_chars: int) -> str:
    if not text.strip():
        raise invalid("there is no text", param=field, code="empty_text")
    if len(text) > max_chars:
        got = f"{len(text)} characters"
        message = f"{field}: the text is too long; got {got}, expected at most {max_chars}; split it into sentences"
        raise Problem(400, message, code="string_above_max_length", param=field)
    return text


def _streaming(fields: "_Fields", form: str) -> Streaming | None:
    wanted = fields.flag("stream")
    kind = fields.one_of("stream_format", ("audio", "sse"), default="")
    if wanted is False and kind:
        raise invalid('"stream": false contradicts it', param="stream_format")
    if not wanted and not kind:
        return None
    if form not in STREAMED_FORMATS:
        raise invalid(
            "cannot be streamed",
            param="response_format",
            got=form,
            expected=" or ".join(STREAMED_FORMATS),
            code="unsupported_value",
        )
    return "sse" if kind == "sse" else "audio"


class _Fields:
    """The fields of a JSON object, each taken once and checked for its type."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._known: set[str] = set()

    def text(self, name: str, default: str | None = None) -> str:
        value = self._take(name, default)
        if not isinstance(value, str):
            raise invalid("not a string", param=name, got=value, code="invalid_type")
        return value

    def one_of(self, name: str, choices: tuple[str, ...], default: str | None = None, code: str = "") -> str:
        value = self.text(name, default)
        if value not in choices and value != default:
            expected = f"one of {', '.join(choices)}"
            raise invalid("not served", param=name, got=value, expected=expected, code=code or "unsupported_value")
        return value

    def flag(self, name: str) -> bool | None:
        self._known.add(name)
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise invalid("not true or false", param=name, got=value, code="invalid_type")
        return value

    def number(self, name: str, default: float, *, low: float, high: float, above: bool = False) -> float:
        """From `low` to `high`, or above `low`."""
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid("not a number", param=name, got=value, code="invalid_type")
        if not ((low < value if above else low <= value) and value <= high):
            expected = f"{'above' if above else 'from'} {low:g} up to {high:g}"
            raise invalid("out of range", param=name, got=value, expected=expected)
        return float(value)

    def whole(self, name: str, default: int, *, high: int) -> int:
        value = self._take(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid("not a whole number", param=name, got=value, code="invalid_type")
        if not 0 <= value <= high:
            raise invalid("out of range", param=name, got=value, expected=f"from 0 to {high}")
        return value

    def check_all_known(self) -> None:
        for name in self._values:
            if name not in self._known:
                known = ", ".join(sorted(self._known))
                raise invalid(f"unknown field {name[:60]!r}; expected {known}", code="unknown_parameter")

    def _take(self, name: str, default: Any) -> Any:
        self._known.add(name)
        value = self._values.get(name, default)
        if value is None:
            raise invalid("missing", param=name, code="missing_required_parameter")
        return value
