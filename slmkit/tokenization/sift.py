"""The items of a source and whether the rules keep them, read by several processes at once.

A reader gives its source in parts that can be read by themselves (see importers/read.py). The first is read here; if
there are more, processes of their own read them, a few ahead of what is asked for. What comes back is small: keys, the
JSON of what is kept, and the ledger lines of what is not.

Invariant: the chunks together are every item of the source once, in its order, for any number of processes.

Example:
    for chunk in sift_parts(read_parts(...), Rules(max_sec=30.0), num_workers=2): ...
"""

import gc
import json
import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from slmkit.corpora.base import SourcePart, Utterance, text_file
from slmkit.data.ledger import Failure
from slmkit.errors import UserError
from slmkit.tokenization.decode import start_worker

CHUNK_ITEMS = 1000
OBJECTS_PER_COLLECTION = 200_000
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=text_file).encode


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which utterances are refused, by what the source says of them."""

    min_sec: float = 0.0
    max_sec: float = float("inf")
    min_dnsmos: float | None = None
    languages: frozenset[str] = field(default_factory=frozenset)  # none: all

    def refusal(self, utterance: Utterance) -> Failure | None:
        """Why this utterance is left out; None when it is not."""
        seconds = utterance.seconds
        if seconds is not None and not seconds >= self.min_sec:
            return Failure(utterance.key, "too_short", f"{seconds} s, at least {self.min_sec} s are wanted")
        if seconds is not None and not seconds <= self.max_sec:
            what = f"{seconds} s, at most {self.max_sec} s are wanted, and the source has no time stamps to cut it by"
            return Failure(utterance.key, "too_long", what)
        if self.languages and utterance.language not in self.languages:
            what = f"the language is {utterance.language or 'unknown'}, wanted are {', '.join(sorted(self.languages))}"
            return Failure(utterance.key, "other_language", what)
        if self.min_dnsmos is not None:
            dnsmos = utterance.extra.get("dnsmos")
            if not isinstance(dnsmos, int | float):
                return Failure(utterance.key, "no_dnsmos", "the source gives no DNSMOS")
            if not dnsmos >= self.min_dnsmos:
                return Failure(utterance.key, "low_dnsmos", f"DNSMOS {dnsmos}, at least {self.min_dnsmos} is wanted")
        return None


class Sifted(NamedTuple):
    """Some items in order, an entry for each in every list."""

    keys: list[str | None]  # None for an item that its reader refused
    lines: list[str]  # the JSON of an utterance that is kept, else ""
    seconds: list[float]  # of audio, 0 where the source does not say
    refusals: list[Failure | None]  # why it is not kept


def sift_parts(parts: Iterable[SourcePart], rules: Rules, *, num_workers: int) -> Iterator[Sifted]:
    """What becomes of each item of the parts. Raises UserError where a reader does, or a process dies."""
    parts = iter(parts)
    for part in parts if num_workers < 2 else islice(parts, 1):
        yield from _sift(part, rules)
    ahead: deque[Future[list[Sifted]]] = deque()
    pool: ProcessPoolExecutor | None = None
    try:
        for part in parts:
            pool = pool or ProcessPoolExecutor(
                num_workers, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker
            )
            ahead.append(pool.submit(_sift_in_worker, part, rules))
            if len(ahead) > 2 * num_workers:
                yield from ahead.popleft().result()
        while ahead:
            yield from ahead.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that reads the source died",
            next_step="check the memory left, or run with num_workers=0 to see where",
        ) from error
    finally:
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def _sift_in_worker(part: SourcePart, rules: Rules) -> list[Sifted]:
    return list(_sift(part, rules))


def _sift(part: SourcePart, rules: Rules) -> Iterator[Sifted]:
    items = iter(part())
    while True:
        with _rare_garbage_collection():
            some = list(islice(items, CHUNK_ITEMS))
            chunk = _chunk(some, rules)
        if not some:
            return
        yield chunk


def _chunk(items: list[Utterance | Failure], rules: Rules) -> Sifted:
    sifted = Sifted([], [], [], [])
    for item in items:
        refusal = item if isinstance(item, Failure) else rules.refusal(item)
        sifted.keys.append(None if item is refusal else item.key)
        sifted.lines.append("" if refusal else _encode(item))
        sifted.seconds.append(0.0 if isinstance(item, Failure) else item.seconds or 0.0)
        sifted.refusals.append(refusal)
    return sifted


@contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Inside, cycles are looked for after many more objects than usual: nothing here makes any, and looking through
    the items again and again takes a quarter of the time."""
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS_PER_COLLECTION, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
