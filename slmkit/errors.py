"""Errors that a user can cause and fix.

A `UserError` says what is wrong, what was found, what was expected and what to do next. The command line prints it
without a traceback and exits with code 2. Bugs in slmkit itself stay ordinary exceptions.

Example:
    raise UserError("the sample rate does not match", got=24000, expected=16000, next_step="resample the file")
"""

from collections.abc import Sequence
from typing import Any


class UserError(Exception):
    """Something outside slmkit is wrong: what, got, expected, next step, each on a line of its own."""

    def __init__(self, what: str, *, got: Any = None, expected: Any = None, next_step: str = "") -> None:
        self.what, self.got, self.expected, self.next_step = what, got, expected, next_step
        lines = [what]
        if got is not None:
            lines.append(f"  got:      {got}")
        if expected is not None:
            lines.append(f"  expected: {expected}")
        if next_step:
            lines.append(f"  next:     {next_step}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.__dict__)


def _rebuild(kind: type[UserError], message: str, fields: dict[str, Any]) -> UserError:
    """Unpickle without calling the constructor of a subclass, so that errors cross process borders whole."""
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    error.__dict__.update(fields)
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator complains: for a CPU, and for pinned memory, torch has no error of its own."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


class ConfigError(UserError):
    """One or more problems in a configuration, all reported at once."""

    MAX_SHOWN = 30

    def __init__(self, source: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems[: self.MAX_SHOWN])
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        count = count if len(problems) <= self.MAX_SHOWN else f"more than {count}"
        listed = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{source}: {count}{listed}")


class BadSample(UserError):
    """One utterance cannot be used; the job records the reason in its ledger and goes on.

    `reason` is a short stable word for counting ("empty", "truncated", ...); `what` is the sentence for the reader.
    """

    def __init__(self, reason: str, what: str, **fields: Any) -> None:
        self.reason = reason
        super().__init__(what, **fields)


class DamagedSample(UserError):
    """A sample that was stored well cannot be read: its bytes have changed, end too early or are gone.

    `key` names the sample, `path` the file (or URL) that should hold it.
    """

    def __init__(self, key: str, path: object, what: str, **fields: Any) -> None:
        self.key, self.path = key, str(path)
        super().__init__(what, **fields)
