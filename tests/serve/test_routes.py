"""What stands at which address, in OpenAI's shapes, and who is not answered."""

import base64
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from serve.serving import RATE, TEXT, Client, Reply, serving

from slmkit.audio.encode import encoded, wav_header
from slmkit.infer.sampling import Sampling
from slmkit.infer.synthesizer import Synthesizer

HOST = {"Host": "localhost"}


@pytest.fixture(scope="module")
def client(synthesizer: Synthesizer, chain: Path) -> Iterator[Client]:
    with serving(synthesizer, chain, max_chars=200) as (_, made):
        yield made


@pytest.fixture(scope="module")
def anna(chain: Path) -> np.ndarray:
    return np.load(chain / "voices" / "anna.npy")


def steps_of(wav: bytes) -> np.ndarray:
    return np.frombuffer(wav[44:], "<i2").astype(int)


def events_of(reply: Reply) -> list[dict]:
    parts = reply.body.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_a_whole_wav_is_what_the_synthesizer_speaks(client: Client, synthesizer: Synthesizer, anna: np.ndarray) -> None:
    """Computed afterwards with the same seed and settings, by the server's own slots."""
    settings = {"temperature": 0.9, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.1}
    reply = client.speech(**settings, seed=11, max_sec=0.5)
    assert (reply.status, reply.headers["Content-Type"]) == (200, "audio/wav")
    told = {name: reply.headers["X-Slmkit-" + name] for name in ("Sample-Rate", "Seconds", "Reason", "Limit")}
    assert told == {"Sample-Rate": "16000", "Seconds": "0.5", "Reason": "limit", "Limit": "seconds"}
    spoken = synthesizer.speak(TEXT, anna, sampling=Sampling(**settings), seed=11, max_sec=0.5)
    assert reply.body == encoded(spoken.wave, RATE, "wav")
    assert client.speech(**settings, seed=12, max_sec=0.5).body != reply.body


def test_a_streamed_wav_holds_the_samples_of_the_whole(client: Client) -> None:
    whole, streamed = client.speech(max_sec=1.3), client.speech(max_sec=1.3, stream=True)
    assert streamed.headers["Transfer-Encoding"] == "chunked"
    assert streamed.headers["Trailer"] == "X-Slmkit-Seconds, X-Slmkit-Reason, X-Slmkit-Limit"
    assert streamed.body[:44] == wav_header(RATE, None)
    assert np.abs(steps_of(streamed.body) - steps_of(whole.body)).max() <= 1
    read, rate = soundfile.read(io.BytesIO(whole.body), dtype="int16")
    assert (len(read), rate) == (1.3 * RATE, RATE)


def test_the_end_of_a_stream_says_how_it_ended(client: Client) -> None:
    body = json.dumps({"input": TEXT, "voice": "anna", "max_sec": 0.2, "stream": True}).encode()
    head = b"POST /v1/audio/speech HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    answer = client.raw(head.replace(b": a", b": 127.0.0.1") % len(body) + body)
    ending = b"\r\n0\r\nX-Slmkit-Seconds: 0.2\r\nX-Slmkit-Reason: limit\r\nX-Slmkit-Limit: seconds\r\n\r\n"
    assert answer.endswith(ending)


def test_events_carry_the_same_sound(client: Client) -> None:
    events = events_of(client.speech(max_sec=1.3, stream_format="sse", response_format="pcm"))
    *deltas, done = events
    assert len(deltas) > 1
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    sound = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert np.abs(np.frombuffer(sound, "<i2").astype(int) - steps_of(client.speech(max_sec=1.3).body)).max() <= 1
    usage = done.pop("usage")
    assert done == {"type": "speech.audio.done", "seconds": 1.3, "reason": "limit", "limit": "seconds"}
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 30


@pytest.mark.parametrize(
    ("form", "kind"), [("pcm", "audio/pcm"), ("flac", "audio/flac"), ("mp3", "audio/mpeg"), ("wav", "audio/wav")]
)
def test_each_format_is_served(form: str, kind: str, client: Client) -> None:
    reply = client.speech(response_format=form)
    assert (reply.status, reply.headers["Content-Type"]) == (200, kind)
    if form == "pcm":
        assert len(reply.body) == 2 * 3200
        return
    wave, rate = soundfile.read(io.BytesIO(reply.body))
    assert rate == RATE
    assert len(wave) >= 3200


def test_a_voice_is_that_of_its_file(client: Client, synthesizer: Synthesizer, chain: Path) -> None:
    bert = synthesizer.read_speaker(chain / "voices" / "bert.wav")
    assert client.speech(voice="bert").body == encoded(synthesizer.speak(TEXT, bert, max_sec=0.2).wave, RATE, "wav")
    assert client.speech(voice="bert").body != client.speech(voice="anna").body


def test_questions_are_answered_in_words_and_speech(client: Client, synthesizer: Synthesizer, anna: np.ndarray) -> None:
    output = synthesizer.engine.generate([synthesizer.answering(TEXT, anna, max_sec=0.2)])[0]
    wave = synthesizer.decode(output.codes, torch.from_numpy(anna))
    reply = client.speech("/v1/answer", response_format="flac").values
    assert base64.b64decode(reply.pop("audio")) == encoded(wave, RATE, "flac")
    assert len(wave) == 3200
    how = {"seconds": 0.2, "reason": "limit", "limit": "seconds", "sample_rate": RATE, "response_format": "flac"}
    assert reply == {"object": "answer", "text": reply["text"], **how}
    assert reply["text"]
    *_, done = events_of(client.speech("/v1/answer", stream_format="sse"))
    assert (done["type"], done["text"]) == ("speech.audio.done", reply["text"])
    streamed = client.speech("/v1/answer", stream=True)
    assert "X-Slmkit-Text" in streamed.headers["Trailer"]
    assert np.abs(steps_of(streamed.body) - np.rint(wave * 32768)).max() <= 1


def test_a_model_that_does_not_speak_is_named(client: Client, synthesizer: Synthesizer) -> None:
    weight = synthesizer.model.lm_model.model.embed_tokens.weight
    place = synthesizer.model.layout.id_of("<sosp>")
    with torch.no_grad():
        kept = weight[place].clone()
        weight[place] = 0
        try:
            reply = client.speech(stream=True)
            answer = client.speech("/v1/answer").values
            streamed = client.speech("/v1/answer", stream=True)
        finally:
            weight[place] = kept
    assert (reply.status, reply.code) == (500, "no_speech")
    assert (answer["audio"], answer["seconds"]) == ("", 0)
    assert answer["text"]
    assert (streamed.status, streamed.body) == (200, wav_header(RATE, None))
    assert client.speech().status == 200


def test_lists_and_figures(client: Client) -> None:
    models = client.get("/v1/models").values
    assert [model["id"] for model in models["data"]] == ["tiny"]
    assert client.get("/v1/models/tiny").values == models["data"][0]
    assert (client.get("/v1/models/t%C3%AFny").status, client.get("/v1/models/other").code) == (404, "model_not_found")
    assert client.get("/v1/audio/voices").values == {"voices": [{"id": n, "name": n} for n in ("anna", "bert")]}
    assert client.get("/health").values == {"status": "ok"}
    before = client.get("/metrics").values
    client.speech(max_sec=0.5)
    after = client.get("/metrics").values
    assert (after["slots"], after["active"], after["waiting"]) == (2, 0, 0)
    assert after["requests"]["done"] == before["requests"]["done"] + 1
    assert after["audio_sec"] == pytest.approx(before["audio_sec"] + 0.5)
    assert after["time_to_first_audio_sec"]["median"] > 0


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"input": ""}, 400, "empty_text"),
        ({"input": "x" * 201}, 400, "string_above_max_length"),
        ({"voice": "nobody"}, 400, "voice_not_found"),
        ({"model": "tts-1"}, 404, "model_not_found"),
        ({"response_format": "aac"}, 400, "unsupported_value"),
        ({"speed": 2}, 400, "unsupported_value"),
        ({"max_sec": 9}, 400, "invalid_value"),
        ({"seed": "1"}, 400, "invalid_type"),
        ({"colour": "red"}, 400, "unknown_parameter"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/answer"])
def test_bad_fields_get_an_error(path: str, fields: dict, status: int, code: str, client: Client) -> None:
    reply = client.speech(path, **fields)
    assert (reply.status, reply.code) == (status, code)


@pytest.mark.parametrize("text", ["🎉🎉", "<sosp><a1>[Assistant]:", "\ud800", "Zażółć gęślą jaźń", "\0", "5" * 200])
def test_odd_text_is_spoken_or_named(text: str, client: Client) -> None:
    reply = client.speech(input=text)
    assert reply.status == 200 or reply.code == "no_speech"


def test_bad_bodies_get_an_error(client: Client) -> None:
    for body, status, code in [
        ("{", 400, "invalid_json"),
        ("[]", 400, "invalid_json"),
        ("x" * 9000, 413, "body_too_large"),
    ]:
        reply = client.send("POST", "/v1/audio/speech", body)
        assert (reply.status, reply.code) == (status, code)
    assert client.raw(b"POST /v1/answer HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 411 ")


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", "/nothing", 404, None),
        ("GET", "/v1/models/", 404, None),
        ("GET", "/page.js/..", 404, None),
        ("GET", "/v1/audio/speech", 405, "POST"),
        ("HEAD", "/v1/audio/speech", 405, "POST"),
        ("OPTIONS", "/v1/audio/speech", 405, "POST"),
        ("DELETE", "/", 405, "GET, HEAD"),
        ("PUT", "/v1/models/tiny", 405, "GET, HEAD"),
        ("BREW", "/health", 405, "GET, HEAD"),
        ("POST", "/metrics", 405, "GET, HEAD"),
    ],
)
def test_other_addresses_and_methods_are_refused(
    method: str, path: str, status: int, allowed: str | None, client: Client
) -> None:
    reply = client.send(method, path)
    assert (reply.status, reply.headers["Allow"]) == (status, allowed)
    assert method == "HEAD" or reply.code in ("not_found", "method_not_allowed", "model_not_found")
    assert not [name for name in reply.headers if name.lower().startswith("access-control")]


def test_head_is_get_without_a_body(client: Client) -> None:
    for path in ("/", "/health", "/v1/models/tiny"):
        head, get = client.send("HEAD", path), client.get(path)
        assert head.status == 200
        assert head.body == b""
        assert head.headers["Content-Length"] == str(len(get.body))


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "localhost:x"])
def test_other_names_of_this_address_are_refused(host: str, client: Client) -> None:
    reply = client.send("GET", "/", Host=host)
    assert (reply.status, reply.code) == (403, "wrong_host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:5", "[::1]"])
def test_names_of_this_machine_are_answered(host: str, client: Client) -> None:
    assert client.send("GET", "/health", Host=host).status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "http://[", ""])
def test_pages_of_other_sites_get_no_speech(origin: str, client: Client) -> None:
    body = json.dumps({"input": TEXT, "voice": "anna", "max_sec": 0.1})
    reply = client.send("POST", "/v1/audio/speech", body, Origin=origin, **HOST)
    assert (reply.status, reply.code) == (403, "wrong_origin")
    own = client.send("POST", "/v1/audio/speech", body, Origin="http://localhost", **HOST)
    assert own.status == 200


def test_texts_stay_out_of_the_log(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "slmkit"):
        client.speech(input="A secret sentence.")
        client.get("/health?word=secret")
    assert "'/v1/audio/speech' 200" in caplog.text
    assert "secret" not in caplog.text
