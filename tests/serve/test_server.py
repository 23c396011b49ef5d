"""A server under load, with clients that go away, and told to stop: nothing hangs, the next request is answered."""

import collections
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serve.serving import TEXT, Client, read_all, serving, stand_still_when_full

from slmkit.errors import UserError
from slmkit.infer.synthesizer import Synthesizer
from slmkit.serve import server as servers
from slmkit.serve.server import Server
from slmkit.serve.service import Service, Settings

ENDLESS_SEC = 60.0
NUM_CLIENTS = 200


def test_two_hundred_at_once_all_get_an_answer(synthesizer: Synthesizer, chain: Path) -> None:
    with serving(synthesizer, chain, max_waiting=6) as (_, client):
        alone = client.speech().body

        def ask(number: int) -> int:
            reply = client.speech(stream=number % 2 == 1)
            if reply.status == 200:
                assert len(reply.body) == len(alone)
                assert reply.body == alone or number % 2
            else:
                assert (reply.status, reply.code) == (503, "overloaded")
                assert int(reply.headers["Retry-After"]) >= 1
            return reply.status

        with ThreadPoolExecutor(NUM_CLIENTS) as clients:
            found = collections.Counter(clients.map(ask, range(NUM_CLIENTS)))
        assert found[200] + found[503] == NUM_CLIENTS
        assert found[200] >= 8
        assert found[503] >= 1
        assert client.speech().body == alone
        figures = client.get("/metrics").values
        assert (figures["active"], figures["waiting"]) == (0, 0)
        assert figures["requests"]["refused"] == found[503]
        assert figures["requests"]["asked"] == NUM_CLIENTS + 2


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_client_that_leaves_frees_its_slot(is_streamed: bool, synthesizer: Synthesizer, chain: Path) -> None:
    with serving(synthesizer, chain, max_sec=ENDLESS_SEC, max_waiting=1) as (_, client):
        leaving = [client.begin(stream=is_streamed)]
        client.wait_for(active=1)
        leaving += [client.begin(stream=is_streamed) for _ in range(2)]
        client.wait_for(active=2, waiting=1)
        if is_streamed:
            assert leaving[0].recv(12) == b"HTTP/1.1 200"
        for sock in leaving:
            sock.close()
        client.wait_for(active=0, waiting=0)
        assert client.speech().status == 200
        requests = client.get("/metrics").values["requests"]
        assert (requests["given_up"], requests["done"], requests["failed"]) == (3, 1, 0)


def test_the_page_and_figures_answer_while_all_places_are_taken(synthesizer: Synthesizer, chain: Path) -> None:
    with serving(synthesizer, chain, max_sec=ENDLESS_SEC, max_waiting=0) as (_, client):
        taken = [client.begin() for _ in range(2)]
        client.wait_for(active=2)
        assert (client.speech().status, client.get("/").status, client.get("/health").status) == (503, 200, 200)
        for sock in taken:
            sock.close()
        client.wait_for(active=0)
        assert client.speech().status == 200


def test_connections_beyond_the_most_wait_for_their_turn(
    synthesizer: Synthesizer, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "SPARE_CONNECTIONS", 1)
    with serving(synthesizer, chain, max_waiting=0) as (server, client):
        held = [client.open() for _ in range(3)]  # as many as there are places
        while len(server._connections) < 3:
            time.sleep(0.01)
        late = client.open()
        late.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        late.settimeout(0.3)
        with pytest.raises(TimeoutError):
            late.recv(1)
        held.pop().close()
        late.settimeout(10)
        answer = read_all(late)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"Connection: close" in answer  # the others want the place
        for sock in (*held, late):
            sock.close()


def test_a_stop_ends_answers_and_cuts_what_does_not_end(
    synthesizer: Synthesizer, chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(synthesizer, chain, max_sec=ENDLESS_SEC) as (server, client):
        stand_still_when_full(server.service.worker, monkeypatch)
        idle = client.open()
        endless = client.begin(stream=True)
        assert endless.recv(12) == b"HTTP/1.1 200"
        short = client.begin(max_sec=0.2)
        client.wait_for(active=2)
        waiting = client.begin()
        client.wait_for(active=2, waiting=1)
        began = time.monotonic()
        server.close(3.0)
        took = time.monotonic() - began
        assert 2.5 < took < 7.5
        assert read_all(idle) == b""
        assert b"200 OK" in (whole := read_all(short))
        assert len(whole.partition(b"\r\n\r\n")[2]) == 44 + 6400
        assert not read_all(endless).endswith(b"0\r\n\r\n")
        refused = read_all(waiting)
        assert refused.startswith(b"HTTP/1.1 503 ")
        assert b"shutting_down" in refused
        with pytest.raises(ConnectionRefusedError):
            client.open()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("worker", "accepting"))]


def test_a_stop_does_not_wait_for_a_client_that_takes_nothing(synthesizer: Synthesizer, chain: Path) -> None:
    with serving(synthesizer, chain, max_sec=ENDLESS_SEC) as (server, client):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.connect(("127.0.0.1", client.port))
        body = json.dumps({"input": TEXT, "voice": "anna", "stream": True}).encode()
        sock.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        client.wait_for(active=1)
        began = time.monotonic()
        server.close(0.2)
        assert time.monotonic() - began < 6
        sock.close()


def test_an_idle_server_stops_at_once(synthesizer: Synthesizer, chain: Path) -> None:
    with serving(synthesizer, chain) as (server, client):
        assert client.get("/health").status == 200
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 1


def test_another_address_family(synthesizer: Synthesizer, chain: Path) -> None:
    service = Service(synthesizer, {"anna": synthesizer.read_speaker(chain / "voices" / "anna.npy")}, SETTINGS)
    with Server(service, "::1", 0) as server, socket.create_connection(("::1", server.port)) as sock:
        assert server.address == f"http://[::1]:{server.port}"
        sock.sendall(b"GET /health HTTP/1.0\r\nHost: [::1]:80\r\n\r\n")
        assert read_all(sock).startswith(b"HTTP/1.1 200 OK")


SETTINGS = Settings(model="tiny")


def test_every_name_is_answered_on_addresses_of_the_network(synthesizer: Synthesizer, chain: Path) -> None:
    service = Service(synthesizer, {"anna": synthesizer.read_speaker(chain / "voices" / "anna.npy")}, SETTINGS)
    with Server(service, "0.0.0.0", 0) as server:
        assert not server.is_loopback
        assert Client(server.port).send("GET", "/health", Host="speech.example").status == 200


def test_a_place_to_listen_that_is_not_to_be_had_is_named(synthesizer: Synthesizer, chain: Path) -> None:
    service = Service(synthesizer, {"anna": synthesizer.read_speaker(chain / "voices" / "anna.npy")}, SETTINGS)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for host, number in (("127.0.0.1", port), ("a..b", 0), ("127.0.0.1", 99_999), ("1.2.3.4", 0)):
            with pytest.raises(UserError, match=f"cannot listen at {host}, port {number}"):
                Server(service, host, number)


def test_an_engine_that_cannot_be_made_leaves_the_port_free(synthesizer: Synthesizer, chain: Path) -> None:
    none = Synthesizer(synthesizer.model, synthesizer.tokenizer, synthesizer.codec, num_slots=0)
    with pytest.raises(UserError, match="the engine has no slots"), serving(none, chain):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_chars": 0}, "texts cannot be so long"),
        ({"max_chars": 2001}, "texts cannot be so long"),
        ({"max_sec": 0.0}, "answers cannot be so long"),
        ({"max_sec": float("nan")}, "answers cannot be so long"),
        ({"max_waiting": -1}, "so many requests cannot wait"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict, message: str, synthesizer: Synthesizer, chain: Path) -> None:
    with pytest.raises(UserError, match=message), serving(synthesizer, chain, **settings):
        pass


def test_a_server_without_voices_is_refused(synthesizer: Synthesizer) -> None:
    with pytest.raises(UserError, match="the server has no voices"):
        Service(synthesizer, {}, SETTINGS)
