"""A voice from a recording of one's own: bounded, measured by the codec, never kept; and the place in the queue."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from serve.serving import RATE, Client, Gate, code_of, make_service, serving, speech_fields, until

from slmkit.infer.synthesizer import Synthesizer
from slmkit.serve import service as services
from slmkit.serve.schema import ApiError, OwnVoice
from slmkit.serve.server import Server

PATH = "/v1/audio/speaker"


@pytest.fixture(scope="module")
def served(synthesizer: Synthesizer, chain: Path) -> Iterator[tuple[Server, Client]]:
    with serving(synthesizer, chain, max_sec=8.0) as pair:
        yield pair


@pytest.fixture
def client(served: tuple[Server, Client]) -> Client:
    return served[1]


def sound(seconds: float, *, rate: int = RATE, form: str = "WAV", scale: float = 0.1) -> bytes:
    file = io.BytesIO()
    wave = scale * np.random.default_rng(0).standard_normal(round(seconds * rate))
    soundfile.write(file, wave.astype(np.float32), rate, format=form)
    return file.getvalue()


def test_the_voice_of_a_recording_is_that_of_its_file(client: Client, synthesizer: Synthesizer, chain: Path) -> None:
    """And speaks as one that the server knows by name; nobody else can name it."""
    voices, files = client.get("/v1/audio/voices").json(), sorted(chain.rglob("*"))
    recording = (chain / "voices" / "bert.wav").read_bytes()
    response = client.post(PATH, content=recording, headers={"Content-Type": "audio/wav"})
    assert response.status_code == 200
    told = response.json()
    assert (told["object"], told["seconds"]) == ("speaker", 1.0)
    vector = np.frombuffer(base64.b64decode(told["speaker"]), "<f4")
    assert np.array_equal(vector, synthesizer.read_speaker(chain / "voices" / "bert.wav"))
    spoken = client.speech(voice={"speaker": told["speaker"]})
    assert spoken.status_code == 200
    assert spoken.content == client.speech(voice="bert").content != client.speech(voice="anna").content
    assert client.get("/v1/audio/voices").json() == voices
    assert sorted(chain.rglob("*")) == files


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3"])
def test_recordings_of_other_kinds_are_read(form: str, client: Client) -> None:
    response = client.post(PATH, content=sound(1.5, rate=44_100, form=form))
    assert response.status_code == 200
    assert response.json()["seconds"] == pytest.approx(1.5, abs=0.1)


HOSTILE = {
    "empty": b"",
    "text": b"Hello there, this is no sound.",
    "page": b"<script>alert(1)</script>" * 99,
    "header alone": sound(2.0)[:44],
    "cut": sound(2.0)[:20_000],
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x04evil\x94.",
    "zeros": bytes(2**16),
    "too short": sound(0.5),
    "too long": sound(20.5),
    "silent": sound(2.0, scale=0.0),
    "a length that lies": b"RIFF\xff\xff\xff\x7fWAVEfmt " + sound(2.0)[16:],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_gives_no_voice_is_named(name: str, client: Client) -> None:
    response = client.post(PATH, content=HOSTILE[name])
    if name == "a length that lies" and response.status_code == 200:
        return  # the sound is whole all the same
    assert (response.status_code, code_of(response)) == (400, "invalid_value")
    error = response.json()["error"]
    assert error["param"] == "recording"
    assert "a sound file of 1 to 20 s" in error["message"]
    assert "/" not in error["message"].replace("/v1", "")
    assert client.speech().status_code == 200


def test_bodies_and_strangers_are_bounded(client: Client, served: tuple[Server, Client], chain: Path) -> None:
    response = client.post(PATH, content=bytes(services.RECORDING_BYTES + 1))
    assert (response.status_code, code_of(response)) == (413, "body_too_large")
    response = client.post("/v1/audio/speech", content=bytes(2**20))  # others have their own limit
    assert (response.status_code, code_of(response)) == (413, "body_too_large")
    response = client.post(PATH, content=sound(2.0), headers={"Origin": "http://evil.example"})
    assert (response.status_code, code_of(response)) == (403, "wrong_origin")
    service = served[0].service
    rooms = [service.room_for_recording() for _ in range(services.MAX_RECORDINGS)]
    for room in rooms:
        room.__enter__()
    response = client.post(PATH, content=sound(2.0))
    assert (response.status_code, code_of(response)) == (503, "overloaded")
    for room in rooms:
        room.__exit__(None, None, None)
    assert client.post(PATH, content=sound(2.0)).status_code == 200


def packed(values: np.ndarray) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


@pytest.mark.parametrize(
    "speaker",
    [
        "",
        "!!!",
        "ÄÖÜ",
        "AAAA",
        packed(np.zeros(3)),
        packed(np.full(80, np.nan)),
        packed(np.full(80, np.inf)),
        "A" * 3000,
        packed(np.zeros(80)) + "\n",
    ],
)
def test_what_is_no_speaker_vector_is_refused(speaker: str, client: Client, synthesizer: Synthesizer) -> None:
    assert synthesizer.codec.spec.speaker_dim == 80
    response = client.speech(voice={"speaker": speaker})
    assert (response.status_code, code_of(response)) == (400, "invalid_value")
    assert "expected 80 finite float32 numbers in base64" in response.json()["error"]["message"]
    for voice in ({"speaker": 5}, {"speaker": None}, {"speaker": speaker, "id": "anna"}, {"speaker": [speaker]}):
        response = client.speech(voice=voice)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "voice")


def test_numbers_that_are_absurd_end_no_answer_beside_theirs(client: Client) -> None:
    with ThreadPoolExecutor(1) as others:
        other = others.submit(client.speech, max_sec=1.0)
        absurd = client.speech(voice={"speaker": packed(np.full(80, 3e38))})
        assert absurd.status_code in (200, 500)
        assert other.result().content == client.speech(max_sec=1.0).content


def test_a_server_that_takes_no_voice_says_so(
    synthesizer: Synthesizer, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_service(synthesizer, chain).models["tiny"]["recording"] == {
        "max_bytes": services.RECORDING_BYTES,
        "min_sec": 1.0,
        "max_sec": 20.0,
    }
    monkeypatch.setattr(Synthesizer, "takes_voice", False)
    deaf = services.Service(synthesizer, {}, services.ServeSettings(model="tiny"))
    assert deaf.models["tiny"]["recording"] is None
    for ask in (
        lambda: deaf.check_recordings_taken("recording"),
        lambda: deaf.speaker_of(OwnVoice(speaker=packed(np.zeros(80)))),
    ):
        with pytest.raises(ApiError, match="this server takes no voice"):
            ask()


def test_voices_are_measured_between_turns(
    client: Client, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the worker's thread, while an answer goes on; what fails there fails alone."""
    threads, encode = [], type(synthesizer.codec).encode

    def noting_encode(codec: object, *args: object) -> object:
        threads.append(threading.current_thread().name)
        return encode(codec, *args)

    monkeypatch.setattr(type(synthesizer.codec), "encode", noting_encode)
    with ThreadPoolExecutor(1) as others:
        answer = others.submit(client.speech, max_sec=4.0)
        until(lambda: client.figure("running_requests") == 1)
        assert client.post(PATH, content=sound(2.0)).status_code == 200
        assert threads == ["worker_0"]

        def failing_encode(codec: object, *args: object) -> object:
            raise RuntimeError("a detail")

        monkeypatch.setattr(type(synthesizer.codec), "encode", failing_encode)
        response = client.post(PATH, content=sound(2.0))
        assert (response.status_code, code_of(response)) == (500, "internal_error")
        assert "a detail" not in response.text
        assert answer.result().status_code == 200


def test_recordings_that_wait_when_the_server_stops_are_told(
    synthesizer: Synthesizer, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(synthesizer, monkeypatch)
    with serving(synthesizer, chain) as (server, client), ThreadPoolExecutor(2) as clients:
        worker = server.service.worker
        clients.submit(client.speech)
        until(lambda: client.figure("running_requests") == 1)
        waiting = [worker.between_turns(lambda: 1 / 0) for _ in range(3)]
        assert waiting[0].cancel()
        recording = clients.submit(client.post, PATH, content=sound(2.0))
        until(lambda: len(worker._between) == 4)
        with pytest.raises(ApiError, match="its queue is full"):
            worker.between_turns(lambda: None)
        closing = threading.Thread(target=server.close)
        closing.start()
        until(lambda: not worker.is_open)
        gate.open()
        response = recording.result()
        assert (response.status_code, code_of(response)) == (503, "shutting_down")
        with pytest.raises(ApiError, match="shutting down"):
            waiting[1].result(1)
        with pytest.raises(ApiError, match="shutting down"):
            worker.between_turns(lambda: None)
        closing.join()


def test_who_waits_is_told_the_place_in_the_queue(
    synthesizer: Synthesizer, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(synthesizer, monkeypatch)
    with serving(synthesizer, chain, max_waiting=4) as (_, client), ThreadPoolExecutor(4) as clients:
        fields = {"stream_format": "sse", "progress": True}
        asked = []
        for number, more in enumerate(({}, {}, fields, fields), start=1):  # the first two take both slots
            asked.append(clients.submit(client.speech, **more))
            until(lambda number=number: sum(map(client.figure, ("running_requests", "waiting_requests"))) == number)
        gate.open()
        places = []
        for future in asked[2:]:
            events = [json.loads(part.removeprefix("data: ")) for part in future.result().text.split("\n\n")[:-1]]
            kinds = [event["type"] for event in events]
            assert kinds == sorted(kinds, key=["speech.queue", "speech.audio.delta", "speech.audio.done"].index)
            places.append([event["place"] for event in events if event["type"] == "speech.queue"])
        assert places == [[1, 0], [2, 1, 0]]
        assert all(answer.result().status_code == 200 for answer in asked)
        assert "speech.queue" not in client.speech(stream_format="sse").text
        response = client.speech(progress=True)
        assert (response.status_code, code_of(response)) == (400, "unsupported_value")
        response = client.post("/v1/audio/speech", json=speech_fields(voice="nobody", **fields))
        assert (response.status_code, code_of(response)) == (400, "voice_not_found")
