"""The listening socket: takes connections, a thread for each, so many and no more, and puts all away in the end.

Connections beyond the most stay in the system's queue until one is over; while it is crowded, connections are closed
after their reply.

On a loopback address only names of this machine are answered to, so that no page of another site can reach the server
by giving its own name that address (DNS rebinding). On others the name is not checked.

Example:
    with Server(service, "127.0.0.1", 0) as server:
        print(server.address)
        ...  # leaving the block closes it
"""

import contextlib
import ipaddress
import socket
import socketserver
import threading
import time
from types import TracebackType
from typing import Any

from slmkit import log
from slmkit.errors import UserError
from slmkit.serve.connection import Connection
from slmkit.serve.routes import Routes
from slmkit.serve.service import Service

GRACE_SEC = 5.0  # for running answers when the server is told to stop
LEAVE_SEC = 2.0  # for the last bytes of replies after that
SPARE_CONNECTIONS = 128  # beside those whose requests have a slot or wait for one
STEP_SEC = 0.1  # how soon a stop is noticed


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """See the module."""

    allow_reuse_address = True
    daemon_threads = False  # Python waits for them when it ends, and `close` sees to it that they do
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, service: Service, host: str, port: int) -> None:
        """Listen at `host` and `port` (0 picks one). Raises UserError when that is not possible."""
        self.service, self.created = service, int(time.time())
        self.is_closing = False
        self._most, self._places = 0, threading.Semaphore(0)
        self._connections: set[Connection] = set()
        self._changed = threading.Condition()
        self._accepting = threading.Thread(target=self.serve_forever, args=(STEP_SEC,), name="accepting")
        try:
            self.address_family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            super().__init__((str(place[0]), port), Routes)
        except (OSError, OverflowError, UnicodeError) as error:
            raise UserError(
                f"cannot listen at {host}, port {port}: {error}", next_step="give another --host or --port"
            ) from error
        self.host, self.port = str(self.server_address[0]), int(self.server_address[1])
        self.is_loopback = ipaddress.ip_address(self.host).is_loopback
        self.hosts = {"localhost", "127.0.0.1", "[::1]", host.lower(), self._name()} if self.is_loopback else None

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://{self._name()}:{self.port}"

    @property
    def keeps_connections(self) -> bool:
        """Whether a connection may stay after its reply."""
        return not self.is_closing and 2 * len(self._connections) <= self._most

    def __enter__(self) -> "Server":
        """Begin to answer. Raises UserError as `Service.start`."""
        try:
            self.service.start()
        except UserError:
            self.server_close()
            raise
        self._most = self.service.most_at_once + SPARE_CONNECTIONS
        self._places.release(self._most)
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self, grace_sec: float = GRACE_SEC) -> None:
        """Take no more connections, let running answers end for `grace_sec` seconds, then cut what is left.

        Raises what ended the worker before, if anything did.
        """
        self.is_closing = True
        self.shutdown()
        self.server_close()
        self._hang_up(socket.SHUT_RD, is_idle=True)
        try:
            self.service.close(grace_sec)
        finally:
            self._wait_for_leaving(LEAVE_SEC)
            self._hang_up(socket.SHUT_RDWR, is_idle=False)
            self._wait_for_leaving(LEAVE_SEC)

    def enter(self, connection: Connection) -> None:
        """A connection has begun."""
        with self._changed:
            self._connections.add(connection)
            if self.is_closing:  # and hung up on the others already, perhaps
                with contextlib.suppress(OSError):  # over already
                    connection.connection.shutdown(socket.SHUT_RD)

    def leave(self, connection: Connection) -> None:
        """A connection is over."""
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a connection's thread as soon as there is a place for it."""
        while not self._places.acquire(timeout=STEP_SEC):
            if self.is_closing:
                self.shutdown_request(request)
                return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A defect in a connection's thread: for the log alone."""
        log.get_logger(__name__).exception("a request failed")

    def _name(self) -> str:
        return f"[{self.host}]" if self.address_family == socket.AF_INET6 else self.host

    def _hang_up(self, how: int, *, is_idle: bool) -> None:
        """Close one or both directions of the idle connections, or of all."""
        with self._changed:
            connections = [c for c in self._connections if c.is_idle or not is_idle]
        for connection in connections:
            with contextlib.suppress(OSError):  # over in the meantime
                connection.connection.shutdown(how)

    def _wait_for_leaving(self, limit_sec: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._connections, limit_sec)
