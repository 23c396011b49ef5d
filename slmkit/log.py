"""What the commands say: one line per message, only from the first process unless asked, and tables of 80 columns.

Library code calls `get_logger(__name__)` and logs; only the command line calls `set_up`.

Example:
    get_logger(__name__).info("saved %s", path)
    print("\n".join(table([("run", "runs/a"), ("", "step 10 of 100")])))
"""

import logging
import sys
import textwrap
import warnings
from collections.abc import Sequence
from typing import TextIO

from slmkit.texts import visible

COLUMNS = 80


def get_logger(name: str) -> logging.Logger:
    """The logger of a module. Silent below WARNING until `set_up` is called."""
    return logging.getLogger(name)


def set_up(rank: int = 0, verbose: bool = False) -> None:
    """Send slmkit's messages to standard error; other ranks than 0 speak from WARNING upwards."""
    handler = StderrHandler()
    prefix = f"[rank {rank}] " if rank else ""
    handler.setFormatter(VisibleFormatter(f"%(asctime)s {prefix}%(levelname).1s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("slmkit")
    logger.handlers[:] = [handler]
    logger.propagate = False
    level = logging.DEBUG if verbose else logging.INFO
    logger.setLevel(level if rank == 0 else logging.WARNING)
    if not verbose:
        quiet_libraries()


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at that moment: it may be another stream than when the handler was made."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class VisibleFormatter(logging.Formatter):
    """Messages with control characters shown, for they may hold names and texts of strangers."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def quiet_libraries() -> None:
    """Keep out what libraries say at every start and nobody can act upon."""
    logging.getLogger("DeepSpeed").addFilter(_is_of_use)  # again and again, it is added once
    warnings.filterwarnings("ignore", category=FutureWarning, message=r".*torch\.distributed\.\w+.*deprecated")


def _is_of_use(record: logging.LogRecord) -> bool:
    return "Setting accelerator to CPU" not in record.getMessage()


def table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Lines of a table of (name, text): the names beside texts, which are wrapped at 80 columns between words."""
    width = max(len(name) for name, _ in rows) + 2
    lines = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, COLUMNS - width, break_long_words=False, break_on_hyphens=False)
        lines += [f"{name if i == 0 else '':{width}}{part}".rstrip() for i, part in enumerate(wrapped or [""])]
    return lines


def duration(seconds: float) -> str:
    """The two largest units: 3 d 4 h, 2 h 13 min, 5 min 20 s, 12 s."""
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    rest = max(0, round(seconds))
    parts: list[str] = []
    for name, size in units:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count} {name}")
    return " ".join(parts[:2]) or "0 s"
