"""Bodies of requests and errors, without a server."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from slmkit.infer.request import MAX_SEED
from slmkit.serve.app import ESCAPED_BYTES
from slmkit.serve.schema import (
    ApiError,
    QuestionBody,
    SpeechBody,
    from_pydantic,
    internal,
    overloaded,
    refused,
    shortened,
    shutting_down,
)

LEAST = {"input": "Hello.", "voice": "anna"}


def test_fields_that_are_null_count_as_absent() -> None:
    plain = SpeechBody.model_validate(LEAST)
    assert SpeechBody.model_validate(LEAST | dict.fromkeys(set(SpeechBody.model_fields) - set(LEAST))) == plain
    assert (plain.text, plain.voice, plain.response_format, plain.streaming) == ("Hello.", "anna", None, None)


def test_a_voice_is_a_name_or_an_object_with_an_id() -> None:
    assert SpeechBody.model_validate(LEAST | {"voice": {"id": "anna"}}) == SpeechBody.model_validate(LEAST)
    for voice in ({"id": 1}, {"name": "anna"}, {"id": "anna", "x": 1}, ["anna"], {}):
        with pytest.raises(ValidationError, match="valid string"):
            SpeechBody.model_validate(LEAST | {"voice": voice})


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"stream": False}, None),
        ({"stream": True}, "audio"),
        ({"stream_format": "audio"}, "audio"),
        ({"stream_format": "sse"}, "sse"),
        ({"stream": True, "stream_format": "sse"}, "sse"),
    ],
)
def test_a_stream_is_asked_for_in_either_way(fields: dict, kind: str | None) -> None:
    assert SpeechBody.model_validate(LEAST | fields).streaming == kind


def test_whole_numbers_are_numbers_and_the_largest_seed_is_one() -> None:
    body = QuestionBody.model_validate({"question": "Who?", "voice": "a", "temperature": 1, "seed": MAX_SEED})
    assert (body.text, body.temperature, body.seed) == ("Who?", 1.0, MAX_SEED)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["input", "voice", "stream", "seed", "top_p", "x"]), plain_values))
def test_any_json_is_taken_or_named(values: dict) -> None:
    try:
        body = SpeechBody.model_validate(values)
    except ValidationError as error:
        for problem in error.errors():
            named = from_pydantic({**problem, "loc": ("body", *problem["loc"])})
            assert named.status == 400
            assert named.param in {*values, "input", "voice"}
            assert len(json.dumps(named.body())) < 500
    else:
        assert body.text == values["input"]


@given(st.text(max_size=100))
def test_any_text_fits_the_largest_body(text: str) -> None:
    assert len(json.dumps(text)) - 2 <= ESCAPED_BYTES * len(text)
    with contextlib.suppress(ValidationError):  # lone halves of surrogate pairs
        assert SpeechBody.model_validate({**LEAST, "input": text}).text == text


def test_an_error_names_field_value_and_what_would_be_right() -> None:
    assert refused("top_p", "out of range", got=7, expected="above 0 up to 1").body() == {
        "error": {
            "message": "top_p: out of range; got 7; expected above 0 up to 1",
            "type": "invalid_request_error",
            "param": "top_p",
            "code": "invalid_value",
        }
    }
    for error in (internal(), shutting_down(), overloaded(3)):
        assert error.body()["error"]["type"] == "server_error"
    assert isinstance(internal(), ApiError)


def test_the_time_to_try_again_is_a_whole_number_within_a_minute() -> None:
    assert [overloaded(seconds).headers["Retry-After"] for seconds in (0.0, 2.6, 1e9)] == ["1", "3", "60"]


def test_strange_values_are_shown_short_and_escaped() -> None:
    assert shortened("a\n\ud800") == '"a\\n\\ud800"'
    assert shortened([[1]]) == "a list"
    assert shortened({"a": 1}) == "an object"
    assert len(shortened("x" * 1000)) == 60
