"""What stands at which address, in OpenAI's shapes, and who is not answered."""

import base64
import io
import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import httpx
import numpy as np
import pytest
import soundfile
import torch
from serve.serving import RATE, TEXT, Client, code_of, read_all, serving, speech_fields

from slmkit.audio.encode import FORMATS, encoded, wav_header
from slmkit.audio.io import read_audio
from slmkit.errors import UserError
from slmkit.infer.synthesizer import Synthesizer
from slmkit.serve import app as apps
from slmkit.serve.service import ServeSettings, Service


@pytest.fixture(scope="module")
def client(synthesizer: Synthesizer, chain: Path) -> Iterator[Client]:
    with serving(synthesizer, chain, max_chars=200, max_sec=8.0) as (_, made):
        yield made


@pytest.fixture(scope="module")
def anna(chain: Path) -> np.ndarray:
    return np.load(chain / "voices" / "anna.npy")


def samples_of(wav: bytes) -> np.ndarray:
    return np.frombuffer(wav[44:], "<i2").astype(int)


def events_of(response: httpx.Response) -> list[dict]:
    assert response.headers["Content-Type"].startswith("text/event-stream")
    parts = response.text.split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_a_whole_wav_is_what_the_synthesizer_speaks(client: Client, synthesizer: Synthesizer, anna: np.ndarray) -> None:
    """Computed afterwards with the same seed and settings, by the server's own slots."""
    settings = {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}
    response = client.speech(**settings, seed=11, max_sec=0.5)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "audio/wav")
    told = {name: response.headers["X-Slmkit-" + name] for name in ("Sample-Rate", "Seconds", "Reason", "Limit")}
    assert told == {"Sample-Rate": "16000", "Seconds": "0.5", "Reason": "limit", "Limit": "seconds"}
    spoken = synthesizer.speak(TEXT, anna, **settings, seed=11, max_sec=0.5)
    assert response.content == encoded(spoken.wave, RATE, "wav")
    assert client.speech(**settings, seed=12, max_sec=0.5).content != response.content


def test_a_streamed_wav_holds_the_samples_of_the_whole(client: Client) -> None:
    whole, streamed = client.speech(max_sec=1.3), client.speech(max_sec=1.3, stream=True)
    assert streamed.headers["Transfer-Encoding"] == "chunked"
    assert streamed.content[:44] == wav_header(RATE, None)
    assert np.abs(samples_of(streamed.content) - samples_of(whole.content)).max() <= 1
    read, rate = soundfile.read(io.BytesIO(whole.content), dtype="int16")
    assert (len(read), rate) == (1.3 * RATE, RATE)


PASSAGE = "It rained. Nobody came!\n\nWho saw Dr. Smith? No."


def test_a_text_of_several_sentences_is_read_in_order(
    client: Client, synthesizer: Synthesizer, chain: Path, anna: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole it is what the synthesizer speaks, streamed the same sound; what gives no speech is named."""
    fields = {"input": PASSAGE, "max_sec": 0.2, "temperature": 0.9, "seed": 4}
    whole, streamed = client.speech(**fields), client.speech(**fields, stream=True)
    spoken = synthesizer.speak(PASSAGE, anna, temperature=0.9, seed=4, max_sec=0.2)
    assert len(spoken.sentences) == 4
    assert whole.content == encoded(spoken.wave, RATE, "wav")
    assert float(whole.headers["X-Slmkit-Seconds"]) == pytest.approx(spoken.seconds)
    assert np.abs(samples_of(streamed.content) - samples_of(whole.content)).max() <= 1
    *_, done = events_of(client.speech(**fields, stream_format="sse", response_format="pcm"))
    assert (done["seconds"], done["reason"], "unspoken" in done) == (pytest.approx(spoken.seconds), "limit", False)

    reading = synthesizer.reading

    def mute(text: str, *args: Any, **options: Any) -> Any:
        return reading(text, *args, **{**options, "max_text_tokens": 1 if text.startswith("Nobody") else 256})

    monkeypatch.setattr(synthesizer, "reading", mute)
    *_, done = events_of(client.speech(**fields, stream_format="sse", response_format="pcm"))
    assert done["unspoken"] == ["Nobody came!"]
    assert done["seconds"] == pytest.approx(spoken.seconds - 0.2 - 0.6)
    assert "Nobody" in client.speech(**fields).headers["X-Slmkit-Unspoken"]
    assert code_of(client.speech(input="Nobody came. Nobody!")) == "no_speech"
    text = " ".join(
        [PASSAGE[:20], *(f"Nobody {'中文' * 40}." for _ in range(30))]
    )  # of characters that a header quotes
    with serving(synthesizer, chain, max_sec=0.2) as (_, other):
        header = other.speech(input=text, max_sec=0.1).headers["X-Slmkit-Unspoken"]
    assert len(header) < 4200
    assert re.search(r"'and \d+ more'\]$", unquote(header))


def test_numbers_are_said_in_words_where_a_request_asks_for_it(
    client: Client, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, reading = [], synthesizer.reading
    monkeypatch.setattr(
        synthesizer, "reading", lambda text, *args, **options: said.append(text) or reading(text, *args, **options)
    )
    assert client.speech(input="Dr. A. has 5.", normalize="english", max_sec=0.2).status_code == 200
    assert client.speech(input="Dr. A. has 5.", max_sec=0.2).status_code == 200
    assert said == ["Doctor A. has five.", "Dr. A. has 5."]


def test_events_carry_the_same_sound(client: Client) -> None:
    events = events_of(client.speech(max_sec=1.3, stream_format="sse", response_format="pcm"))
    *deltas, done = events
    assert len(deltas) > 1
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    sound = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    whole = samples_of(client.speech(max_sec=1.3).content)
    assert np.abs(np.frombuffer(sound, "<i2").astype(int) - whole).max() <= 1
    usage = done.pop("usage")
    how = {"seconds": 1.3, "reason": "limit", "limit": "seconds", "warning": None, "attempts": 1}
    assert done == {"type": "speech.audio.done", **how}
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 30


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        pytest.param(form, kind.content_type, marks=() if form in ("mp3", "flac") else pytest.mark.full)
        for form, kind in FORMATS.items()
        if form not in ("wav", "pcm")
    ],
)
def test_each_format_is_served_whole_and_streamed_as_file_and_as_events(form: str, kind: str, client: Client) -> None:
    """All hold the sound of the WAV file, as far as a lossy format keeps it."""
    expected = samples_of(client.speech(max_sec=1.3).content) / 32768
    whole = client.speech(response_format=form, max_sec=1.3)
    assert (whole.status_code, whole.headers["Content-Type"]) == (200, kind)
    streamed = client.speech(response_format=form, max_sec=1.3, stream_format="audio")
    assert (streamed.status_code, streamed.headers["Content-Type"]) == (200, kind)
    *deltas, done = events_of(client.speech(response_format=form, max_sec=1.3, stream_format="sse"))
    assert len(deltas) > 1
    assert (done["type"], done["seconds"]) == ("speech.audio.done", 1.3)
    for data in (whole.content, streamed.content, b"".join(base64.b64decode(event["audio"]) for event in deltas)):
        wave = read_audio(io.BytesIO(data), RATE)
        assert len(wave) == pytest.approx(len(expected), abs=2200)  # of the delays of encoders
        late = np.correlate(np.pad(wave, (0, 3000)), expected[:8000], "valid")[:3000].argmax()
        error = wave[late : late + len(expected)] - expected[: len(wave) - late]
        assert np.sqrt(np.mean(error**2)) < (0.3 if FORMATS[form].codec != "flac" else 1e-4) * expected.std()


def test_the_format_of_the_server_counts_where_a_request_names_none(synthesizer: Synthesizer, chain: Path) -> None:
    with serving(synthesizer, chain, format="mp3", aliases=("tts-1", "gpt-4o-mini-tts", "tiny")) as (_, client):
        for fields in ({}, {"stream": True}, {"model": "tts-1"}, {"model": "tiny"}):
            assert client.speech(**fields).headers["Content-Type"] == "audio/mpeg"
        assert client.speech("/v1/answer", model="gpt-4o-mini-tts").json()["response_format"] == "mp3"
        assert client.speech(response_format="wav").content[:4] == b"RIFF"
        models = client.get("/v1/models").json()["data"]
        assert [model["id"] for model in models] == ["tiny", "tts-1", "gpt-4o-mini-tts"]
        assert {(model["max_chars"], model["max_sec"]) for model in models} == {(20_000, 60.0)}
        assert {model["max_question_chars"] for model in models} == {2000}
        response = client.speech("/v1/answer", input="x" * 2001)
        assert (code_of(response), response.json()["error"]["param"]) == ("string_above_max_length", "question")
        assert client.get("/v1/models/tts-1").json() == models[1]
        response = client.speech(model="tts-2")
        assert (response.status_code, code_of(response)) == (404, "model_not_found")
        assert "expected tiny, tts-1, gpt-4o-mini-tts" in response.json()["error"]["message"]


def test_a_voice_is_that_of_its_file(client: Client, synthesizer: Synthesizer, chain: Path) -> None:
    bert = synthesizer.read_speaker(chain / "voices" / "bert.wav")
    spoken = encoded(synthesizer.speak(TEXT, bert, max_sec=0.2).wave, RATE, "wav")
    assert client.speech(voice="bert").content == client.speech(voice={"id": "bert"}).content == spoken
    assert client.speech(voice="anna").content != spoken


def test_questions_are_answered_in_words_and_speech(
    client: Client, synthesizer: Synthesizer, anna: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesizer, "words_of", lambda output: SimpleNamespace(text="Wörter"))
    output = synthesizer.engine.generate([synthesizer.answering(TEXT, anna, max_sec=0.2)])[0]
    wave = synthesizer.decode(output.codes, torch.from_numpy(anna))
    values = client.speech("/v1/answer", response_format="flac").json()
    assert base64.b64decode(values.pop("audio")) == encoded(wave, RATE, "flac")
    assert len(wave) == 3200
    how = {"seconds": 0.2, "reason": "limit", "limit": "seconds", "warning": None, "attempts": 1}
    how |= {"sample_rate": RATE, "response_format": "flac"}
    assert values == {"object": "answer", "text": "Wörter", **how}
    *_, done = events_of(client.speech("/v1/answer", stream_format="sse"))
    assert (done["type"], done["text"]) == ("speech.audio.done", "Wörter")
    streamed = client.speech("/v1/answer", stream=True)
    assert np.abs(samples_of(streamed.content) - np.rint(wave * 32768)).max() <= 1


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/answer"])
def test_an_answer_without_speech_is_an_error(path: str, client: Client, synthesizer: Synthesizer) -> None:
    weight = synthesizer.model.lm_model.lm_head.weight
    with torch.no_grad():
        weight.neg_()
        try:
            done, failed = (client.figure(f'requests_total{{outcome="{name}"}}') for name in ("done", "failed"))
            ways = [{}, {"stream": True}, {"stream_format": "audio"}, {"stream_format": "sse"}]
            for fields in [{**way, "response_format": form} for way in ways for form in FORMATS]:
                response = client.speech(path, **fields)
                assert (response.status_code, code_of(response)) == (500, "no_speech")
                failed += 1
            assert [client.figure(f'requests_total{{outcome="{name}"}}') for name in ("done", "failed")] == [
                done,
                failed,
            ]
        finally:
            weight.neg_()
    assert client.speech().status_code == 200


def test_lists_and_figures(client: Client) -> None:
    models = client.get("/v1/models").json()
    assert [model["id"] for model in models["data"]] == ["tiny"]
    assert client.get("/v1/models/tiny").json() == models["data"][0]
    for name in ("t%C3%AFny", "other", ""):
        response = client.get(f"/v1/models/{name}")
        assert (response.status_code, code_of(response)) == (404, "model_not_found")
    assert client.get("/v1/audio/voices").json() == {"voices": [{"id": n, "name": n} for n in ("anna", "bert")]}
    assert client.get("/health").json() == {"status": "ok"}
    names = (
        'requests_total{outcome="done"}',
        "audio_seconds_total",
        "first_audio_seconds_count",
        "answer_seconds_count",
    )
    before = [client.figure(name) for name in names]
    client.speech(max_sec=0.5)
    assert [client.figure(name) for name in names] == pytest.approx(list(np.add(before, [1, 0.5, 1, 1])))
    assert [client.figure(name) for name in ("slots", "running_requests", "waiting_requests")] == [2, 0, 0]
    assert client.get("/metrics").headers["Content-Type"].startswith("text/plain; version=")


@pytest.mark.parametrize(
    ("fields", "status", "code", "message"),
    [
        ({"input": None}, 400, "missing_required_parameter", "input: missing"),
        ({"input": ""}, 400, "empty_text", "input: there is no text"),
        ({"input": " \n"}, 400, "empty_text", "input: there is no text"),
        ({"input": "\u200b\ufeff\u00ad\x00\u202e\ufe0f"}, 400, "empty_text", "input: there is no text"),
        ({"input": "x" * 201}, 400, "string_above_max_length", "has 201 characters; .* expected at most 200"),
        ({"input": ["a"]}, 400, "invalid_type", "input: .*; got a list; expected a valid string"),
        ({"voice": None}, 400, "missing_required_parameter", "voice: missing"),
        ({"voice": "nobody"}, 400, "voice_not_found", 'no such voice; got "nobody"; expected one of anna, bert'),
        ({"voice": {"name": "a"}}, 400, "invalid_type", "voice: .*; got an object"),
        ({"model": "tts-1"}, 404, "model_not_found", 'model: no such model; got "tts-1"; expected tiny'),
        ({"response_format": "ogg"}, 400, "unsupported_value", "expected 'wav', 'pcm', 'flac', 'mp3', 'opus' or 'aac'"),
        ({"stream": False, "stream_format": "sse"}, 400, "invalid_value", "stream_format: .* contradicts it"),
        ({"stream_format": "smoke"}, 400, "unsupported_value", "expected 'audio' or 'sse'"),
        ({"stream": "absent"}, 400, "invalid_type", "stream: .* expected a valid boolean"),
        ({"speed": 1.5}, 400, "unsupported_value", "speed: only 1.0 is served"),
        ({"speed": 9}, 400, "invalid_value", "speed: .*; got 9; expected less than or equal to 4"),
        ({"instructions": "Whisper."}, 400, "unsupported_value", "follows no instructions"),
        ({"temperature": -0.1}, 400, "invalid_value", "temperature: .*; got -0.1; expected greater than or equal to 0"),
        ({"temperature": True}, 400, "invalid_type", "temperature: .*; got true; expected a valid number"),
        ({"temperature": 10**400}, 400, "invalid_", "temperature: "),
        (
            {"temperature": 1e-40},
            400,
            "invalid_value",
            "temperature: too small; got 1e-40; expected 0, or 1e-06 to 100",
        ),
        ({"repetition_penalty": 1e-44}, 400, "invalid_value", "repetition_penalty: .*; got 1e-44"),
        ({"repetition_penalty": 1e39}, 400, "invalid_value", "repetition_penalty: .*; got 1e\\+39"),
        ({"top_p": 0}, 400, "invalid_value", "top_p: "),
        ({"top_p": 1e-50}, 400, "invalid_value", "top_p: .*; got 1e-50"),
        ({"top_k": 1.0}, 400, "invalid_type", "top_k: .*; got 1.0; expected a valid integer"),
        ({"seed": -1}, 400, "invalid_value", "seed: "),
        ({"seed": 2**64}, 400, "invalid_value", "seed: "),
        ({"seed": True}, 400, "invalid_type", "seed: "),
        ({"seed": "1"}, 400, "invalid_type", "seed: "),
        ({"max_sec": 9}, 400, "invalid_value", "max_sec: too long; got 9.0; expected at most 8"),
        ({"max_sec": 0}, 400, "invalid_value", "max_sec: "),
        ({"max_sec": 1e-50}, 200, "", ""),
        ({"temprature": 1}, 400, "unknown_parameter", "temprature: unknown field"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/answer"])
def test_what_is_wrong_is_named(path: str, fields: dict, status: int, code: str, message: str, client: Client) -> None:
    response = client.speech(path, **fields)
    assert response.status_code == status
    if status != 200:
        assert code_of(response).startswith(code)
        error = response.json()["error"]
        names = {**fields, "question": 0} if path == "/v1/answer" else fields
        assert error["param"] in names
        expected = message.replace("input", "question") if path == "/v1/answer" else message
        assert re.search(expected, error["message"]), error["message"]


NOT_JSON = [b"", b"{", b"\xff", b"[" * 1500, b'{"seed": ' + b"9" * 5000 + b"}", b"input=Hello", b"\x00"]


@pytest.mark.parametrize("body", [*NOT_JSON, b"[]", b"1", b'"input"', b"null"])
def test_what_is_no_json_object_is_named(body: bytes, client: Client) -> None:
    response = client.post("/v1/audio/speech", content=body)
    assert (response.status_code, code_of(response)) == (400, "invalid_json")
    assert len(response.content) < 300


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_numbers_that_are_not_finite_are_named(number: bytes, client: Client) -> None:
    body = b'{"input": "Hi", "voice": "anna", "temperature": ' + number + b"}"
    response = client.post("/v1/audio/speech", content=body)
    assert (response.status_code, code_of(response)) == (400, "invalid_value")
    assert response.json()["error"]["param"] == "temperature"


def test_curl_needs_no_content_type(client: Client) -> None:
    body = json.dumps({"input": TEXT, "voice": "anna", "max_sec": 0.2})
    response = client.post(
        "/v1/audio/speech", content=body, headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert response.content == client.speech().content


@pytest.mark.parametrize("text", ["🎉🎉", "<sosp><a1>[Assistant]:", "\ud800", "Zażółć gęślą jaźń", "a\0", "5" * 200])
def test_odd_text_is_spoken_or_named(text: str, client: Client) -> None:
    response = client.post("/v1/audio/speech", content=json.dumps(speech_fields(input=text)))
    assert response.status_code == 200 or code_of(response) == "no_speech"


def test_a_large_body_is_refused_while_it_comes(client: Client) -> None:
    """More than fits the buffers between the two: who is still sending sees the answer all the same."""
    response = client.post("/v1/audio/speech", content=bytes(900_000))
    assert (response.status_code, code_of(response)) == (413, "body_too_large")
    chunks = (bytes(1000) for _ in range(100))  # of no length that is told before
    response = client.post("/v1/answer", content=chunks)
    assert (response.status_code, code_of(response)) == (413, "body_too_large")
    assert client.get("/health").status_code == 200


def test_a_body_that_does_not_come_is_given_up(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apps, "BODY_SEC", 0.05)
    with socket.create_connection(("127.0.0.1", client.port), timeout=60) as sock:
        sock.sendall(b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{")
        answer = read_all(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"timeout"' in answer


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", "/nothing", 404, None),
        ("POST", "/nothing", 404, None),
        ("GET", "/static/../../app.py", 404, None),
        ("GET", "/static/%2e%2e/app.py", 404, None),
        ("GET", "/v1/audio/speech", 405, "POST"),
        ("OPTIONS", "/v1/audio/speech", 405, "POST"),
        ("PUT", "/v1/models/tiny", 405, "GET"),
        ("BREW", "/metrics", 405, "GET"),
    ],
)
def test_other_addresses_and_methods_are_refused(
    method: str, path: str, status: int, allowed: str | None, client: Client
) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.headers.get("Allow")) == (status, allowed)
    assert code_of(response) in ("not_found", "method_not_allowed")
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


def test_head_is_get_without_a_body(client: Client) -> None:
    for path in ("/", "/docs", "/health", "/static/page.js"):
        head, get = client.head(path), client.get(path)
        assert head.status_code == 200
        assert head.content == b""
        assert head.headers["Content-Length"] == str(len(get.content))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost:x"])
def test_other_names_of_this_address_are_refused(host: str, client: Client) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:5", "[::1]"])
def test_names_of_this_machine_are_answered(host: str, client: Client) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "http://[", ""])
def test_pages_of_other_sites_get_no_speech(origin: str, client: Client) -> None:
    body = json.dumps({"input": TEXT, "voice": "anna", "max_sec": 0.1})
    other = client.post("/v1/audio/speech", content=body, headers={"Origin": origin, "Host": "localhost"})
    assert (other.status_code, code_of(other)) == (403, "wrong_origin")
    own = {"Origin": "http://localhost", "Host": "localhost"}
    assert client.post("/v1/audio/speech", content=body, headers=own).status_code == 200


def test_texts_stay_out_of_the_log(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "slmkit"):
        client.speech(input="A secret sentence.")
        client.get("/health?word=secret")
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("slmkit"))
    assert "'/v1/audio/speech' 200" in ours
    assert "secret" not in ours


def test_a_defect_is_500_without_a_word_of_it(
    client: Client, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*args: object) -> None:
        raise KeyError("a detail")

    monkeypatch.setattr(apps, "encoded", defect)
    response = client.speech()
    assert (response.status_code, code_of(response)) == (500, "internal_error")
    assert "detail" not in response.text
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    monkeypatch.undo()
    assert client.speech().status_code == 200


def test_the_addresses_are_described(client: Client) -> None:
    api = client.get("/openapi.json").json()
    assert set(api["paths"]) == {
        "/v1/audio/speech", "/v1/answer", "/v1/audio/speaker", "/v1/models", "/v1/models/{name}", "/v1/audio/voices",
        "/health", "/metrics",
    }  # fmt: skip
    fields = api["components"]["schemas"]["SpeechBody"]["properties"]
    assert all(field["description"] for field in fields.values())
    assert "422" not in api["paths"]["/v1/audio/speech"]["post"]["responses"]
    assert "docs.js" in client.get("/docs").text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_chars": 0}, "max_chars is out of range"),
        ({"max_chars": 50_001}, "max_chars is out of range"),
        ({"max_sec": 0.0}, "max_sec is out of range"),
        ({"max_sec": float("nan")}, "max_sec is out of range"),
        ({"max_sec": 1e300}, "max_sec is out of range"),
        ({"max_waiting": -1}, "max_waiting is out of range"),
        ({"format": "ogg"}, "no such format of sounds"),
        ({"aliases": ("tts-1", "")}, "a name of the model is empty"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ServeSettings(model="tiny", **settings)


def test_a_server_without_voices_of_its_codec_is_refused(synthesizer: Synthesizer) -> None:
    with pytest.raises(UserError, match="the server has no voices"):
        Service(synthesizer, {}, ServeSettings(model="tiny"))
    with pytest.raises(UserError, match="the voice carl is not of this codec"):
        Service(synthesizer, {"carl": np.zeros(3, np.float32)}, ServeSettings(model="tiny"))
