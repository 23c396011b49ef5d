"""Every field of a request: what is right comes out as asked, what is wrong is named with its field."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.infer.request import MAX_SEED
from slmkit.infer.sampling import Sampling
from slmkit.serve.fields import Asked, Offer, asked
from slmkit.serve.problem import Problem

OFFER = Offer(model="mtp3", voices=("anna", "bert"), formats=("wav", "pcm", "flac", "mp3"), max_chars=100, max_sec=30.0)
LEAST = {"input": "Hello.", "voice": "anna"}


def read(**fields: object) -> Asked:
    return asked(json.dumps(LEAST | fields).encode(), OFFER, text_field="input")


def test_text_and_voice_are_enough() -> None:
    plain = Asked(
        text="Hello.", voice="anna", format="wav", streaming=None, sampling=Sampling(), seed=0, max_sec=OFFER.max_sec
    )
    assert read() == plain
    nothing = ("model", "response_format", "speed", "stream", "stream_format", "instructions", "seed", "temperature")
    assert read(**dict.fromkeys(nothing)) == plain


def test_everything_may_be_said() -> None:
    out = read(
        model="mtp3",
        voice="bert",
        response_format="pcm",
        speed=1,
        stream=True,
        instructions=" ",
        temperature=0.7,
        top_k=5,
        top_p=0.9,
        repetition_penalty=1.2,
        seed=MAX_SEED,
        max_sec=2,
    )
    assert out.sampling == Sampling(temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.2)
    assert (out.voice, out.format, out.streaming, out.seed, out.max_sec) == ("bert", "pcm", "audio", MAX_SEED, 2.0)


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
    assert read(**fields).streaming == kind


@pytest.mark.parametrize(
    ("fields", "status", "code", "message"),
    [
        ({"input": None}, 400, "missing_required_parameter", "input: missing"),
        ({"input": ""}, 400, "empty_text", "input: there is no text"),
        ({"input": " \n"}, 400, "empty_text", "input: there is no text"),
        ({"input": "x" * 101}, 400, "string_above_max_length", "got 101 characters, expected at most 100"),
        ({"input": ["a"]}, 400, "invalid_type", "input: not a string; got a list"),
        ({"voice": None}, 400, "missing_required_parameter", "voice: missing"),
        ({"voice": "nobody"}, 400, "voice_not_found", 'voice: not served; got "nobody"; expected one of anna, bert'),
        ({"voice": {"id": "anna"}}, 400, "invalid_type", "voice: not a string; got an object"),
        ({"model": "tts-1"}, 404, "model_not_found", 'model: no such model; got "tts-1"; expected "mtp3"'),
        ({"response_format": "opus"}, 400, "unsupported_value", "expected one of wav, pcm, flac, mp3"),
        ({"response_format": "flac", "stream": True}, 400, "unsupported_value", "cannot be streamed; .* wav or pcm"),
        ({"stream": False, "stream_format": "sse"}, 400, "invalid_value", "stream_format: .* contradicts it"),
        ({"stream_format": "smoke"}, 400, "unsupported_value", "expected one of audio, sse"),
        ({"stream": "absent"}, 400, "invalid_type", "stream: not true or false"),
        ({"speed": 1.5}, 400, "unsupported_value", "speed: only 1.0 is served"),
        ({"speed": 9}, 400, "invalid_value", "speed: out of range"),
        ({"instructions": "Whisper."}, 400, "unsupported_value", "instructions are not followed"),
        ({"temperature": -0.1}, 400, "invalid_value", "temperature: out of range; got -0.1; expected from 0 up to 100"),
        ({"temperature": True}, 400, "invalid_type", "temperature: not a number; got true"),
        ({"temperature": 10**400}, 400, "invalid_value", "temperature: out of range"),
        ({"top_p": 0}, 400, "invalid_value", "expected above 0 up to 1"),
        ({"top_k": 1.0}, 400, "invalid_type", "top_k: not a whole number"),
        ({"seed": -1}, 400, "invalid_value", "seed: out of range"),
        ({"seed": 2**64}, 400, "invalid_value", "seed: out of range"),
        ({"seed": True}, 400, "invalid_type", "seed: not a whole number"),
        ({"max_sec": 31}, 400, "invalid_value", "max_sec: out of range; got 31; expected above 0 up to 30"),
        ({"max_sec": 0}, 400, "invalid_value", "max_sec: out of range"),
        ({"temprature": 1}, 400, "unknown_parameter", "unknown field 'temprature'; expected input, instructions"),
    ],
)
def test_what_is_wrong_is_named(fields: dict, status: int, code: str, message: str) -> None:
    with pytest.raises(Problem, match=message) as caught:
        read(**fields)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert caught.value.param in (*fields, None)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 50_000, b'{"speed": NaN}', b'{"seed": ' + b"9" * 5000 + b"}", b"input=Hello", b"\x00"],
)
def test_what_is_no_json_is_named(body: bytes) -> None:
    with pytest.raises(Problem, match="the body is not JSON: ") as caught:
        asked(body, OFFER, text_field="input")
    assert caught.value.code == "invalid_json"
    assert len(caught.value.body()) < 500


@pytest.mark.parametrize("body", [b"[]", b"1", b'"input"', b"null"])
def test_what_is_no_object_is_named(body: bytes) -> None:
    with pytest.raises(Problem, match="the body is not a JSON object"):
        asked(body, OFFER, text_field="input")


def test_numbers_beyond_all_bounds_are_out_of_range() -> None:
    with pytest.raises(Problem, match="temperature: out of range"):
        asked(b'{"input": "a", "voice": "anna", "temperature": 1e999}', OFFER, text_field="input")


@given(st.text(max_size=100).filter(str.strip))
def test_any_text_fits_the_largest_body_and_comes_out_as_it_was(text: str) -> None:
    body = json.dumps(LEAST | {"input": text}).encode()
    assert len(body) <= OFFER.max_body_bytes
    assert asked(body, OFFER, text_field="input").text == text


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["input", "voice", "stream", "seed", "top_p", "x"]), plain_values))
def test_any_json_is_taken_or_named(values: dict) -> None:
    with contextlib.suppress(Problem):
        out = asked(json.dumps(values).encode(), OFFER, text_field="input")
        assert (out.text, out.voice) == (values["input"], values["voice"])
