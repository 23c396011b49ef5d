"""One client's connection: HTTP/1.1 with limits on everything a stranger could make large or slow.

Reads requests (head and body within a time and a size), writes replies whole or in pieces, and knows nothing of what
they are about: `answer(connection)` is called for each request and calls `reply` or `stream` once. Every way out is a
reply in JSON or a closed connection; a defect behind `answer` gives 500 without a word of it. A client that closes its
sending side counts as gone.

Not done: request bodies in chunks (411), TLS and passwords (a proxy in front has them).

Invariant: after a request whose body was not read to its end the connection is closed, so that no byte of a body is
ever taken for a request.

Example:
    class Handler(Connection):
        def answer(self) -> None:
            self.reply(200, b"{}", "application/json")
"""

import contextlib
import io
import json
import select
import socket
import time
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from slmkit import log
from slmkit.serve.problem import Problem, internal, invalid

IDLE_SEC = 15.0  # until the first line of a request is whole
HEAD_SEC = 10.0  # for the other lines
BODY_SEC = 10.0
WRITE_SEC = 30.0  # for a client to take one piece of a reply
LINGER_SEC, LINGER_BYTES = 1.0, 2**20  # what is read of a refused body, so that its sender sees the reply
HEAD_BYTES = 32 * 1024
READ_AHEAD_BYTES = io.DEFAULT_BUFFER_SIZE
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class ClientGone(Exception):
    """The client has closed its connection, or takes nothing any more."""


class _LimitedReader(io.RawIOBase):
    """A socket that gives so many bytes within so many seconds and no more, however slowly they trickle in."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._deadline, self._left = sock, 0.0, 0

    def allow(self, seconds: float, num_bytes: int) -> None:
        self._deadline, self._left = time.monotonic() + seconds, num_bytes + READ_AHEAD_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises TimeoutError after the deadline, HTTPException beyond the number of bytes."""
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("too slow")
        if self._left <= 0:
            raise HTTPException("too many bytes")
        self._socket.settimeout(seconds)
        count = self._socket.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count


class Connection(BaseHTTPRequestHandler):
    """See the module. The server keeps account of connections (`enter`, `leave`) and says whether they may last
    (`keeps_connections`)."""

    protocol_version = "HTTP/1.1"
    server: Any

    def answer(self) -> None:
        """Reply to one request."""
        raise NotImplementedError

    def setup(self) -> None:
        self.connection = self.request
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._limits = _LimitedReader(self.connection)
        self.rfile = io.BufferedReader(self._limits, READ_AHEAD_BYTES)
        self.is_idle = True  # nothing of a request has come yet
        self.server.enter(self)

    def finish(self) -> None:
        self.server.leave(self)
        self._limits.close()

    def handle(self) -> None:
        """All requests of the connection, one after the other."""
        self.close_connection = False
        with contextlib.suppress(ConnectionError, TimeoutError, ClientGone):
            while not self.close_connection:
                self.handle_one_request()
            if not self._is_read:
                self._linger()

    def handle_one_request(self) -> None:
        """One request from its first byte to the last of the reply."""
        self.close_connection, self.is_idle = True, True
        self._is_answered = self._may_keep = self._is_read = False
        self._body_bytes = 0
        self.command, self.requestline, self.request_version, self.path = "", "", self.protocol_version, ""
        self._limits.allow(IDLE_SEC, HEAD_BYTES)
        try:
            if self._read_head():
                self.answer()
                assert self._is_answered, self.requestline
        except Problem as problem:
            self.reply_problem(problem)
        except ClientGone:
            self._is_answered = True
            self._log(0, "client gone")
        finally:
            if self.command and not self._is_answered:  # a defect, which goes on to the log of the server
                self._may_keep = False
                with contextlib.suppress(ClientGone):
                    self.reply_problem(internal())

    def _read_head(self) -> bool:
        """Read request line and headers. False when there is nothing more to do for this client."""
        try:
            self.raw_requestline = self.rfile.readline(HEAD_BYTES + 1)
        except (TimeoutError, HTTPException):
            return False
        self.is_idle, self._began = False, time.monotonic()
        if not self.raw_requestline:
            self._is_read = True
            return False
        if len(self.raw_requestline) > HEAD_BYTES:
            raise invalid("the request line is too long", code="uri_too_long", status=414)
        self._limits.allow(HEAD_SEC, HEAD_BYTES)
        try:
            if not self.parse_request():  # has replied
                return False
        except TimeoutError as error:
            raise invalid("the request came too slowly", code="timeout", status=408) from error
        self._check_head()
        return True

    def _check_head(self) -> None:
        """Refuse what could be read in two ways."""
        if self.request_version == "HTTP/0.9":
            raise invalid("HTTP/0.9 is not served", code="bad_request")
        if self.request_version == "HTTP/1.1" and len(self.headers.get_all("Host", [])) != 1:
            raise invalid("there must be one Host header", code="bad_request")
        if "Transfer-Encoding" in self.headers:
            raise invalid("send the body with its Content-Length", code="length_required", status=411)
        lengths = self.headers.get_all("Content-Length", ["0"])
        if len(lengths) > 1 or not (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 16):
            raise invalid("Content-Length is not one number", code="bad_request")
        self._body_bytes = int(lengths[0])
        self._is_read = self._body_bytes == 0
        try:
            self.route = urlsplit(self.path).path
        except ValueError as error:
            raise invalid("the address cannot be read", code="bad_request") from error
        wanted = self.headers.get("Connection", "").lower()
        self._may_keep = "keep-alive" in wanted if self.request_version == "HTTP/1.0" else "close" not in wanted

    def handle_expect_100(self) -> bool:
        """The go-ahead that a client with a large body waits for."""
        self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def body(self, max_bytes: int) -> bytes:
        """The body of the request. Raises Problem when it is missing, too large, too slow or cut short."""
        if "Content-Length" not in self.headers:
            self._is_read = False  # whoever forgot it may send a body all the same
            raise invalid("send the body with its Content-Length", code="length_required", status=411)
        if self._body_bytes > max_bytes:
            raise invalid(f"the body is larger than {max_bytes} bytes", code="body_too_large", status=413)
        self._limits.allow(BODY_SEC, self._body_bytes)
        try:
            body = self.rfile.read(self._body_bytes)
        except TimeoutError as error:
            raise invalid("the body came too slowly", code="timeout", status=408) from error
        if len(body) < self._body_bytes:
            raise invalid("the body ends before its Content-Length", code="bad_request")
        self._is_read = True
        return body

    def is_gone(self) -> bool:
        """Whether the client has closed its end."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        if not poll.poll(0):
            return False
        try:
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except ConnectionError:
            return True

    def reply(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        """A whole reply; of an answer to HEAD the head alone."""
        head = self._head(status, {"Content-Type": content_type, "Content-Length": str(len(body)), **(headers or {})})
        self._send(head if self.command == "HEAD" else head + body)
        self._log(status)

    def reply_json(self, values: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        self.reply(status, json.dumps(values).encode(), "application/json", headers)

    def reply_problem(self, problem: Problem) -> None:
        self.reply(problem.status, problem.body(), "application/json", problem.headers)

    def begin_stream(self, content_type: str, headers: Mapping[str, str], trailers: Iterable[str] = ()) -> None:
        """The head of a reply whose length is not known; pieces follow, then `end_stream`.

        Without `end_stream` the client sees that the reply was cut.
        """
        self._is_chunked = self.request_version != "HTTP/1.0"
        self._may_keep = self._may_keep and self._is_chunked
        kind = {"Content-Type": content_type}
        if self._is_chunked:
            kind["Transfer-Encoding"] = "chunked"
            if names := ", ".join(trailers):
                kind["Trailer"] = names
        self._send(self._head(200, {**kind, **headers}))

    def send_piece(self, data: bytes) -> None:
        """More of a reply; an empty piece is nothing."""
        if data:
            self._send(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    def end_stream(self, trailers: Mapping[str, str]) -> None:
        """The end of a reply in pieces, with what was not known at its head."""
        if self._is_chunked:
            lines = "".join(f"{name}: {value}\r\n" for name, value in trailers.items())
            self._send(f"0\r\n{lines}\r\n".encode("latin-1"))
        self._log(200)

    def cut_stream(self) -> None:
        """Leave a reply in pieces without an end."""
        self.close_connection = True
        self._log(200, "cut")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server finds wrong with a request line or with headers."""
        del explain
        words = HTTPStatus(code).phrase if message is None else message
        self.reply_problem(invalid(words[:200], code="bad_request", status=int(code)))

    def log_message(self, format: str, *args: Any) -> None:
        """http.server's own lines; `_log` has better ones."""

    def _head(self, status: int, headers: Mapping[str, str]) -> bytes:
        """Status line and headers; from here on the request counts as answered."""
        self._is_answered = True
        self.close_connection = not (self._may_keep and self._is_read and self.server.keeps_connections)
        every = {"Server": "slmkit", "Date": self.date_time_string(), **SECURITY, **headers}
        every["Connection"] = "close" if self.close_connection else "keep-alive"
        lines = "".join(f"{name}: {value}\r\n" for name, value in every.items())
        return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{lines}\r\n".encode("latin-1")

    def _send(self, data: bytes) -> None:
        """Raises ClientGone when the client does not take it."""
        self.connection.settimeout(WRITE_SEC)
        try:
            self.connection.sendall(data)
        except (ConnectionError, TimeoutError) as error:
            self.close_connection = True
            raise ClientGone from error

    def _linger(self) -> None:
        """Read a little of what the client still sends: were it reset at once, it might never see the reply."""
        with contextlib.suppress(OSError):  # gone already
            self.connection.shutdown(socket.SHUT_WR)
        self._limits.allow(LINGER_SEC, LINGER_BYTES)
        with contextlib.suppress(HTTPException):
            while self._limits.readinto(bytearray(READ_AHEAD_BYTES)):
                pass

    def _log(self, status: int, note: str = "") -> None:
        took_ms = 1000 * (time.monotonic() - self._began)
        line = (self.command or "?", self.path.partition("?")[0][:200], status, took_ms, note)
        log.get_logger(__name__).info("%s %r %d in %.0f ms %s", *line)
