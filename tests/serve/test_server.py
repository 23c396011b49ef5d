"""A server under load, with clients that go away, and told to stop: nothing hangs, the next request is answered."""

import json
import select
import socket
import threading
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import soundfile
from serve.serving import (
    TEXT,
    WAIT_SEC,
    Client,
    Gate,
    code_of,
    make_service,
    read_all,
    serving,
    speech_fields,
    until,
)

from slmkit.audio.encode import FORMATS, wav_header
from slmkit.errors import UserError
from slmkit.infer.synthesizer import Synthesizer
from slmkit.serve.server import GRACE_SEC, LEAVE_SEC, Server
from slmkit.serve.worker import Call

NUM_CLIENTS = 200
SOME_STEPS = 250  # enough for the first sound of a stream, and not for its end
ENDING = b"0\r\n\r\n"  # of an answer in chunks


@pytest.mark.full
def test_two_hundred_at_once_get_what_each_gets_alone(synthesizer: Synthesizer, chain: Path) -> None:
    with serving(synthesizer, chain, max_waiting=NUM_CLIENTS) as (_, client):
        kinds = [
            {"voice": voice, "seed": seed, "temperature": 0.8, "stream": stream, "input": text, "max_sec": 0.05}
            for voice in ("anna", "bert")
            for seed, stream in ((1, True), (2, False))
            for text in (TEXT, "Hello.")
        ]
        alone = [client.speech(**kind).content for kind in kinds]
        assert len(set(alone)) == len(kinds)

        def ask(number: int) -> bool:
            response = client.speech(**kinds[number % len(kinds)])
            return response.status_code == 200 and response.content == alone[number % len(kinds)]

        with ThreadPoolExecutor(NUM_CLIENTS) as clients:
            assert all(clients.map(ask, range(NUM_CLIENTS)))
        assert client.figure('requests_total{outcome="done"}') == NUM_CLIENTS + len(kinds)


def test_beyond_the_queue_requests_are_refused_and_the_rest_answers(
    synthesizer: Synthesizer, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(synthesizer, monkeypatch)
    with serving(synthesizer, chain, max_waiting=1) as (_, client), ThreadPoolExecutor(3) as clients:
        taken = [clients.submit(client.speech) for _ in range(3)]  # two slots and a place to wait
        until(lambda: client.figure("running_requests") + client.figure("waiting_requests") == 3)
        response = client.speech()
        assert (response.status_code, code_of(response)) == (503, "overloaded")
        assert int(response.headers["Retry-After"]) >= 1
        assert [client.get(path).status_code for path in ("/", "/health", "/v1/models")] == [200] * 3
        gate.open()
        assert {future.result().status_code for future in taken} == {200}
        assert client.speech().status_code == 200
        assert client.figure('requests_total{outcome="refused"}') == 1


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"stream_format": "sse"}])
def test_a_client_that_leaves_frees_its_slot(
    fields: dict, synthesizer: Synthesizer, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stream: in the middle of it."""
    left: list[Call] = []
    give_up = Call.give_up
    monkeypatch.setattr(Call, "give_up", lambda call: (left.append(call), give_up(call)))
    gate = Gate(synthesizer, monkeypatch, SOME_STEPS if fields else 0)
    with serving(synthesizer, chain, max_waiting=1) as (_, client):
        leaving = [client.begin(**fields) for _ in range(3)]
        if fields:
            begun, _, _ = select.select(leaving, [], [], WAIT_SEC)  # which of them have the slots is not known
            assert begun[0].recv(12) == b"HTTP/1.1 200"
        until(lambda: client.figure("running_requests") + client.figure("waiting_requests") == 3)
        for sock in leaving:
            sock.close()
        until(lambda: len(left) == 3)
        gate.open()
        until(lambda: client.figure('requests_total{outcome="given_up"}') == 3)
        assert client.speech().status_code == 200
        counts = [client.figure(f'requests_total{{outcome="{name}"}}') for name in ("given_up", "done", "failed")]
        assert (counts, client.figure("running_requests")) == ([3, 1, 0], 0)


def test_a_stop_cuts_what_does_not_end(synthesizer: Synthesizer, chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(synthesizer, monkeypatch, SOME_STEPS)
    with serving(synthesizer, chain) as (server, client):
        idle = socket.create_connection(("127.0.0.1", client.port), timeout=WAIT_SEC)
        sound = client.begin(stream=True)
        assert sound.recv(12) == b"HTTP/1.1 200"
        events = client.begin(stream_format="sse")
        until(lambda: client.figure("running_requests") + client.figure("waiting_requests") == 2)
        closing = threading.Thread(target=server.close)
        closing.start()
        until(lambda: not server.service.worker.is_open)
        gate.open()
        closing.join(WAIT_SEC)
        assert not server.is_alive
        assert not read_all(sound).endswith(ENDING)
        assert b"shutting_down" in read_all(events)
        assert read_all(idle) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", client.port), timeout=WAIT_SEC)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("worker", "http"))]


def test_a_stop_lets_a_running_answer_end_and_refuses_what_waits(
    synthesizer: Synthesizer, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(synthesizer, monkeypatch)
    with serving(synthesizer, chain, grace_sec=WAIT_SEC) as (server, client), ThreadPoolExecutor(2) as clients:
        running = clients.submit(client.speech)
        until(lambda: client.figure("running_requests") == 1)
        waiting = clients.submit(client.speech)
        until(lambda: client.figure("waiting_requests") == 1)
        closing = threading.Thread(target=server.close)
        closing.start()
        until(lambda: not server.service.worker.is_open)
        gate.open()
        assert len(running.result().content) == 44 + 6400
        refused = waiting.result()
        assert (refused.status_code, code_of(refused)) == (503, "shutting_down")
        closing.join(WAIT_SEC)
        assert not server.is_alive


def test_a_stop_does_not_wait_for_a_client_that_takes_nothing(synthesizer: Synthesizer, chain: Path) -> None:
    with serving(synthesizer, chain) as (server, client):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.connect(("127.0.0.1", client.port))
        request = httpx.Request("POST", "http://localhost/", json=speech_fields(stream=True, max_sec=30.0))
        length = int(request.headers["Content-Length"])
        sock.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % length)
        sock.sendall(request.content)
        until(lambda: client.figure("running_requests") == 1)
        server.close()
        assert not server.is_alive
        sock.close()
    assert GRACE_SEC + LEAVE_SEC <= 7  # three seconds are left for the process to go


def test_another_address_family(synthesizer: Synthesizer, chain: Path) -> None:
    listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    with Server(make_service(synthesizer, chain), listener, grace_sec=0) as server:
        assert server.address == f"http://[::1]:{server.port}"
        assert server.is_loopback
        assert httpx.get(server.address + "/health", trust_env=False).status_code == 200


def test_every_name_is_answered_on_addresses_of_the_network(synthesizer: Synthesizer, chain: Path) -> None:
    with Server(make_service(synthesizer, chain), socket.create_server(("0.0.0.0", 0)), grace_sec=0) as server:
        assert not server.is_loopback
        with Client(server.port) as client:
            assert client.get("/health", headers={"Host": "speech.example"}).status_code == 200


def test_an_engine_that_cannot_be_made_leaves_the_port_free(synthesizer: Synthesizer, chain: Path) -> None:
    none = Synthesizer(synthesizer.model, synthesizer.tokenizer, synthesizer.codec, num_slots=0)
    listener = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(UserError, match="the engine has no slots"), Server(make_service(none, chain), listener):
        pass
    assert listener.fileno() == -1


def test_a_port_that_was_taken_while_the_model_loaded_is_named(synthesizer: Synthesizer, chain: Path) -> None:
    with socket.socket() as ours, socket.socket() as other:
        for sock in (ours, other):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", ours.getsockname()[1]))
        other.listen()
        with (
            pytest.raises(UserError, match=r"cannot listen at http://127.0.0.1:\d+: "),
            Server(make_service(synthesizer, chain), ours),
        ):
            pass


def test_a_defect_of_the_worker_is_raised_when_the_server_closes(
    synthesizer: Synthesizer, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect() -> None:
        raise AssertionError("a defect")

    with pytest.raises(AssertionError, match="a defect"), serving(synthesizer, chain) as (server, client):
        monkeypatch.setattr(synthesizer.engine, "step", defect)
        assert code_of(client.speech()) == "internal_error"
        until(lambda: not server.is_alive)
        assert code_of(client.get("/health")) == "shutting_down"


def test_the_client_of_openai_speaks(synthesizer: Synthesizer, chain: Path, tmp_path: Path) -> None:
    import openai

    with serving(synthesizer, chain, max_sec=0.5) as (server, client):
        api = openai.OpenAI(
            base_url=server.address + "/v1", api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False)
        )
        whole = client.speech(max_sec=0.5)
        ours = {"model": "tiny", "input": TEXT, "voice": "anna"}
        assert api.audio.speech.create(**ours, response_format="wav").content == whole.content
        assert (
            api.audio.speech.create(**ours | {"voice": {"id": "anna"}}, response_format="wav").content == whole.content
        )
        for form, kind in FORMATS.items():
            spoken = api.audio.speech.create(**ours, response_format=form)
            assert spoken.response.headers["content-type"] == kind.content_type
            with api.audio.speech.with_streaming_response.create(
                **ours, response_format=form, stream_format="audio"
            ) as streamed:
                assert streamed.headers["content-type"] == kind.content_type
                assert 0.5 < len(b"".join(streamed.iter_bytes())) / len(spoken.content) < 2
        with pytest.raises(openai.BadRequestError, match=r"speed: only 1\.0 is served; got 1\.5"):
            api.audio.speech.create(**ours, speed=1.5)
        with api.audio.speech.with_streaming_response.create(
            **ours, response_format="mp3", stream_format="sse"
        ) as events:
            lines = [json.loads(line.removeprefix("data: ")) for line in events.iter_lines() if line]
        assert {event["type"] for event in lines[:-1]} == {"speech.audio.delta"}
        assert lines[-1]["type"] == "speech.audio.done"
        assert (
            api.audio.speech.create(**ours, response_format="pcm", extra_body={"seed": 3}).content == whole.content[44:]
        )
        with api.audio.speech.with_streaming_response.create(
            **ours, response_format="wav", stream_format="audio"
        ) as streamed:
            pieces = b"".join(streamed.iter_bytes())
        assert pieces[:44] == wav_header(16_000, None)
        assert len(pieces) == len(whole.content)
        api.audio.speech.create(**ours, response_format="wav").write_to_file(tmp_path / "speech.wav")
        with wave.open(str(tmp_path / "speech.wav")) as file:
            assert (file.getframerate(), file.getnframes()) == (16_000, 8000)
        assert [model.id for model in api.models.list()] == ["tiny"]
        with pytest.raises(openai.BadRequestError, match='no such voice; got "alloy"') as caught:
            api.audio.speech.create(**ours | {"voice": "alloy"})
        assert (caught.value.code, caught.value.param) == ("voice_not_found", "voice")
        with pytest.raises(openai.NotFoundError, match="no such model"):
            api.audio.speech.create(**ours | {"model": "tts-1"})


def test_the_client_of_openai_is_served_as_it_is_set_up(synthesizer: Synthesizer, chain: Path, tmp_path: Path) -> None:
    """The lines of OpenAI's own guide: its model name, no format, a file that ends in mp3."""
    import openai

    with serving(synthesizer, chain, max_sec=0.5, format="mp3", aliases=("gpt-4o-mini-tts",)) as (server, _):
        api = openai.OpenAI(
            base_url=server.address + "/v1", api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False)
        )
        with api.audio.speech.with_streaming_response.create(
            model="gpt-4o-mini-tts", voice={"id": "anna"}, input=TEXT
        ) as response:
            response.stream_to_file(tmp_path / "speech.mp3")
        assert soundfile.info(tmp_path / "speech.mp3").format == "MP3"
        assert [model.id for model in api.models.list()] == ["tiny", "gpt-4o-mini-tts"]
        assert api.models.retrieve("gpt-4o-mini-tts").id == "gpt-4o-mini-tts"


def test_numbers_that_are_nothing_in_float32_end_no_answer_beside_theirs(synthesizer: Synthesizer, chain: Path) -> None:
    poison = [{"temperature": 1e-40}, {"top_p": 1e-50}, {"repetition_penalty": 1e-44}, {"repetition_penalty": 1e39}]
    with serving(synthesizer, chain) as (_, client), ThreadPoolExecutor(2) as clients:
        others = [clients.submit(client.speech, seed=seed, temperature=1.0, max_sec=2.0) for seed in (1, 2)]
        for fields in poison:
            response = client.speech(**{"temperature": 1.0, **fields})
            assert (response.status_code, code_of(response)) == (400, "invalid_value")
            assert response.json()["error"]["param"] in fields
        assert [other.result().status_code for other in others] == [200, 200]
