"""Logging for the commands: one line per message, only from the first process unless asked.

Library code calls `get_logger(__name__)` and logs; only the command line calls `set_up`.
"""

import logging
import sys


def get_logger(name: str) -> logging.Logger:
    """The logger of a module. Silent below WARNING until `set_up` is called."""
    return logging.getLogger(name)


def set_up(rank: int = 0, verbose: bool = False) -> None:
    """Send slmkit's messages to standard error; other ranks than 0 speak from WARNING upwards."""
    handler = logging.StreamHandler(sys.stderr)
    prefix = f"[rank {rank}] " if rank else ""
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(levelname).1s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("slmkit")
    logger.handlers[:] = [handler]
    logger.propagate = False
    level = logging.DEBUG if verbose else logging.INFO
    logger.setLevel(level if rank == 0 else logging.WARNING)
