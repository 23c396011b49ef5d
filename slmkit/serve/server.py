"""The server: uvicorn in a thread of its own, beside the worker's, and how both end.

On a loopback address only names of this machine are answered to, so that no page of another site can reach the server
by giving its own name that address (DNS rebinding). On others any name is.

Example:
    with Server(service, socket.create_server(("127.0.0.1", 0))) as server:
        print(server.address)
        ...  # leaving the block closes it
"""

import ipaddress
import math
import socket
import threading
from types import TracebackType

import uvicorn

from slmkit.errors import UserError
from slmkit.serve.app import make_app
from slmkit.serve.service import Service

GRACE_SEC = 5.0  # for running answers when the server is told to stop
LEAVE_SEC = 1.0  # for the last bytes of answers after that
HEAD_BYTES = 32 * 1024  # of a request at most
IDLE_SEC = 15  # that a connection stays open without a request


class Server:
    """See the module."""

    def __init__(self, service: Service, listener: socket.socket, *, grace_sec: float = GRACE_SEC) -> None:
        """`listener` is bound; the server listens at it and closes it."""
        self.service, self._listener, self._grace_sec = service, listener, grace_sec
        host, self.port = listener.getsockname()[:2]
        name = f"[{host}]" if listener.family == socket.AF_INET6 else host
        self.address = f"http://{name}:{self.port}"
        self.is_loopback = ipaddress.ip_address(host).is_loopback
        names = ["localhost", "127.0.0.1", "[::1]", name] if self.is_loopback else ["*"]
        config = uvicorn.Config(
            make_app(service, names),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,  # ours has no texts in it
            server_header=False,
            h11_max_incomplete_event_size=HEAD_BYTES,
            timeout_keep_alive=IDLE_SEC,
            timeout_graceful_shutdown=math.ceil(grace_sec + LEAVE_SEC),
        )
        self._uvicorn = uvicorn.Server(config)
        # Outside the main thread uvicorn leaves the signals of the process alone.
        self._thread = threading.Thread(target=self._uvicorn.run, args=([listener],), name="http", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and self.service.worker.is_alive

    def __enter__(self) -> "Server":
        """Begin to answer. Raises UserError as `Worker.start`, and where another process listens by now."""
        try:
            self._listener.listen()
            self.service.worker.start()
        except (UserError, OSError) as error:
            self._listener.close()
            if isinstance(error, OSError):
                raise UserError(f"cannot listen at {self.address}: {error}") from error
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take no more connections, let running answers end for the grace period, then cut what is left.

        Raises what ended the worker before, if anything did.
        """
        self._uvicorn.should_exit = True
        try:
            self.service.worker.close(self._grace_sec, LEAVE_SEC)
        finally:
            self._thread.join(self._grace_sec + 2 * LEAVE_SEC)
