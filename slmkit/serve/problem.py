"""What a request cannot have, as status and JSON in the form of OpenAI's errors.

Knows nothing of connections. A message names what was wrong and what would be right; it never holds a traceback or a
path of the server.

Example:
    raise invalid("no such voice", param="voice", got="nobody", expected="anna, bert")
"""

import json
from collections.abc import Mapping
from typing import Any

RETRY_LIMIT_SEC = 60


class Problem(Exception):
    """An HTTP error. `code` is a short stable word, `param` the field of the request that is wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})
        super().__init__(message)

    def values(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        return json.dumps(self.values()).encode()


def invalid(
    what: str,
    *,
    code: str = "invalid_value",
    param: str | None = None,
    got: Any = None,
    expected: Any = None,
    status: int = 400,
) -> Problem:
    """A request that would have to be changed."""
    message = what if param is None else f"{param}: {what}"
    if got is not None:
        message += f"; got {shortened(got)}"
    if expected is not None:
        message += f"; expected {expected}"
    return Problem(status, message, code=code, param=param)


def overloaded(what: str, retry_sec: float) -> Problem:
    """A request that came when there was no room; it may come again after `retry_sec` seconds."""
    seconds = str(min(RETRY_LIMIT_SEC, max(1, round(retry_sec))))
    return Problem(503, f"{what}; try again in {seconds} s", code="overloaded", headers={"Retry-After": seconds})


def stopping() -> Problem:
    """A request that the server can no longer answer because it was told to stop."""
    return Problem(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})


def internal() -> Problem:
    """A defect of the server; what it was is in its log alone."""
    return Problem(500, "the server failed to answer this request; its log says why", code="internal_error")


def shortened(value: Any, limit: int = 60) -> str:
    """A stranger's value for a message, at most `limit` characters; of lists and objects the kind alone."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value, default=str)
    return text if len(text) <= limit else text[: limit - 3] + "..."
