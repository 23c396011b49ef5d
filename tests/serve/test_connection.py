"""HTTP with strangers: odd, large, slow and broken requests end in a reply in JSON or a closed connection, in time."""

import http.client
import json
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from serve.serving import Client, read_all

from slmkit.serve import connection as connections
from slmkit.serve.connection import Connection

SECRET = "a detail that is nobody's business"
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n"


class Echo(Connection):
    """Answers with what it was sent; `/defect` has one before its reply, `/late` after the head."""

    def answer(self) -> None:
        if self.route == "/defect":
            raise KeyError(SECRET)
        if self.route == "/stream":
            self.begin_stream("text/plain", {}, ["X-End"])
            for piece in (b"ab", b"", b"cde"):
                self.send_piece(piece)
            self.end_stream({"X-End": "well"})
        elif self.route == "/late":
            self.begin_stream("text/plain", {})
            self.send_piece(b"begun")
            raise KeyError(SECRET)
        elif self.route == "/flood":
            self.reply(200, bytes(64 * 2**20), "application/octet-stream")
        else:
            body = self.body(1000) if self.command == "POST" else b""
            self.reply_json({"method": self.command, "route": self.route, "body": body.decode()})


class Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    keeps_connections = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.num_open = 0
        self.defects: list[BaseException] = []

    def enter(self, connection: Connection) -> None:
        self.num_open += 1

    def leave(self, connection: Connection) -> None:
        self.num_open -= 1

    def handle_error(self, request: object, client_address: object) -> None:
        self.defects.append(sys.exc_info()[1])


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def wait_for_defects(listener: Listener) -> list[BaseException]:
    deadline = time.monotonic() + 5
    while not listener.defects:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return listener.defects


@pytest.fixture
def client(listener: Listener) -> Client:
    return Client(listener.server_address[1])


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def code_of(answer: bytes) -> str:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"
    assert b"Connection: close" in head
    return json.loads(body)["error"]["code"]


def test_a_connection_serves_many_requests(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port)
    for number in range(3):
        connection.request("POST", f"/{number}?q=1", b"x" * number)
        values = json.load(connection.getresponse())
        assert values == {"method": "POST", "route": f"/{number}", "body": "x" * number}
        connection.request("HEAD", "/")
        reply = connection.getresponse()
        assert (reply.status, reply.read()) == (200, b"")
        assert int(reply.headers["Content-Length"]) > 0
    connection.close()


def test_requests_sent_at_once_are_answered_in_order(client: Client) -> None:
    post = b"POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    answer = client.raw(post + GET.replace(b"/x", b"/2") + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert answer.index(b'"route": "/1", "body": "abc"') < answer.index(b'"route": "/2"')


def test_pieces_come_in_chunks_with_trailers_or_until_the_end(client: Client) -> None:
    answer = client.raw(GET.replace(b"/x", b"/stream") + b"Connection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Trailer: X-End" in head
    assert body == b"2\r\nab\r\n3\r\ncde\r\n0\r\nX-End: well\r\n\r\n"
    old = client.raw(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"chunked" not in old
    assert b"Connection: close" in old
    assert old.endswith(b"\r\n\r\nabcde")


def test_an_old_client_may_keep_its_connection(client: Client) -> None:
    once = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    assert client.raw(once + b"GET / HTTP/1.0\r\n\r\n").count(b"200 OK") == 2


LONG = b"a" * 50_000
ODD = {
    "no version": (b"GET /\r\n\r\n", 400),
    "wrong version": (b"GET / HTTP/9.9\r\n\r\n", 505),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "four words": (b"GET / x HTTP/1.1\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (GET + b"Host: b\r\n\r\n", 400),
    "bad address": (b"GET http://[/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "long line": (b"GET /" + LONG + b" HTTP/1.1\r\n\r\n", 414),
    "long header": (GET + b"X: " + LONG + b"\r\n\r\n", 431),
    "many headers": (GET + b"X: 1\r\n" * 200 + b"\r\n", 431),
    "chunks": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 411),
    "no length": (b"POST / HTTP/1.1\r\nHost: a\r\n\r\n", 411),
    "negative length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
    "odd length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\n", 400),
    "endless length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "large": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, 413),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_requests_get_an_error_and_the_connection_ends(name: str, client: Client) -> None:
    data, status = ODD[name]
    answer = client.raw(data + GET + b"\r\n")  # what follows is not taken for a request
    assert status_of(answer) == status, answer
    assert code_of(answer)
    assert client.get("/").status == 200


def test_a_large_body_is_refused_while_it_comes(client: Client) -> None:
    """More than fits the buffers between the two: who is still sending sees the reply all the same."""
    with client.open() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n" + bytes(900_000))
        assert code_of(read_all(sock)) == "body_too_large"


def test_the_body_of_a_request_that_takes_none_is_no_request(client: Client) -> None:
    answer = client.raw(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n" + GET + b"\r\n")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"Connection: close" in answer


def test_a_client_that_waits_for_the_go_ahead_gets_it(client: Client) -> None:
    with client.open() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"ok")
        assert b'"body": "ok"' in sock.recv(4096)


def test_a_body_cut_short_is_named(client: Client) -> None:
    with client.open() as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        sock.shutdown(socket.SHUT_WR)
        assert code_of(read_all(sock)) == "bad_request"


@pytest.mark.parametrize(
    ("beginning", "code"),
    [
        (b"", ""),
        (b"GE", ""),
        (GET, "timeout"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\n", "timeout"),
    ],
)
def test_trickling_ends_in_time(
    beginning: bytes, code: str, client: Client, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then does not renew the time a request has."""
    for name in ("IDLE_SEC", "HEAD_SEC", "BODY_SEC"):
        monkeypatch.setattr(connections, name, 0.4)
    began = time.monotonic()
    with client.open() as sock:
        sock.sendall(beginning)
        sock.settimeout(0.05)
        answer = b""
        while time.monotonic() < began + 10:
            try:
                sock.sendall(b"x")
                if not (part := sock.recv(4096)):
                    break
                answer += part
            except TimeoutError:
                continue
            except ConnectionError:
                break
    assert time.monotonic() - began < 5
    assert (code_of(answer) if answer else "") == code
    deadline = time.monotonic() + 5
    while listener.num_open:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_client_that_takes_nothing_is_left(client: Client, listener: Listener, monkeypatch) -> None:
    monkeypatch.setattr(connections, "WRITE_SEC", 0.3)
    with client.open() as sock:
        sock.sendall(GET.replace(b"/x", b"/flood") + b"\r\n")
        deadline = time.monotonic() + 10
        while not listener.num_open:
            time.sleep(0.01)
        while listener.num_open:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert not listener.defects


def test_a_defect_is_500_without_a_word_of_it(client: Client, listener: Listener) -> None:
    reply = client.get("/defect")
    assert (reply.status, reply.code) == (500, "internal_error")
    assert SECRET.encode() not in reply.body
    assert reply.headers["Connection"] == "close"
    assert client.get("/").status == 200
    assert [str(error) for error in wait_for_defects(listener)] == [repr(SECRET)]


def test_a_defect_in_the_middle_of_a_stream_shows_as_a_cut(client: Client, listener: Listener) -> None:
    answer = client.raw(GET.replace(b"/x", b"/late") + b"\r\n")
    assert answer.endswith(b"5\r\nbegun\r\n")
    assert len(wait_for_defects(listener)) == 1
