"""Which utterance goes to which shard and position, fixed before anything is encoded.

`OUT/plan/` holds `items.jsonl` (a line per shard: the list of its utterances, in the order of the source),
`refused.jsonl` (a ledger line for every item of the source that is not planned) and `plan.json`, which says where each
shard's line begins. Shard s holds the items s * shard_samples and following. A task reads the lines of its shards
alone, so that any number of tasks, killed and started again, write the same bytes; the source is not listed again.

The source is read in its parts by several processes at once. No audio is opened: `Rules` go by what the source says.
Of several items with one key that are not refused the first is planned; but where the key is no more than a file's name
(`Utterance.named_by_file`), all that have this name are, with their paths as keys. Names that are there once stay as
they are.

Invariants: items of the source = utterances in items.jsonl + lines in refused.jsonl; the plan is the same for any
number of processes.

Example:
    plan = make_plan("out", sift_parts(read_parts(...), Rules(max_sec=30.0), num_workers=2), shard_samples=1000)
    plan.items(0)                     # the utterances of the first shard
"""

import contextlib
import fnmatch
import hashlib
import itertools
import json
import math
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from slmkit.corpora.base import SourcePart, Utterance, key_refusal, path_key, text_file
from slmkit.data.ledger import Failure
from slmkit.errors import UserError
from slmkit.files import atomic_write, new_directory, read_json, write_json
from slmkit.garbage import rare_collections
from slmkit.tokenization.screen import SCREENED, Screen
from slmkit.tokenization.workers import WorkerDied, Workers

DIRECTORY, PLAN, ITEMS, REFUSED = "plan", "plan.json", "items.jsonl", "refused.jsonl"
# Reasons of filters, which no one calls failures.
INTENDED = SCREENED | {"other_language", "other_source"}
AGAIN = "plan the corpus again, into a new directory"
CHUNK_ITEMS = 1000  # read and judged together
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=text_file).encode


class ShardPlan(NamedTuple):
    """What a shard is made of."""

    items: int  # utterances, before any is found to be bad
    seconds: float  # of audio, as far as the source says
    start_byte: int  # of its line in items.jsonl
    num_bytes: int
    sha256: str  # of its line


@dataclass(frozen=True, kw_only=True)
class TokenizationPlan:
    """A finished plan."""

    directory: Path
    shards: tuple[ShardPlan, ...]
    refused: Mapping[str, int]  # reason -> count

    @property
    def num_items(self) -> int:
        """Utterances that are planned."""
        return sum(shard.items for shard in self.shards)

    @staticmethod
    def exists(out: str | Path) -> bool:
        """Whether `out` holds a finished plan."""
        return os.path.isfile(Path(out) / DIRECTORY / PLAN)

    @staticmethod
    def open(out: str | Path) -> "TokenizationPlan":
        """The plan in `out`. Raises UserError when there is none, or it is damaged."""
        directory = Path(out) / DIRECTORY
        path = directory / PLAN
        if not os.path.isfile(path):
            raise UserError(f"{out} holds no plan", next_step="make one with `slmkit tokenize plan`")
        values = read_json(path)
        try:
            shards = tuple(_shard_plan(shard) for shard in values["shards"])
            refused = {str(reason): int(count) for reason, count in values["refused"].items()}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{path} is not a plan: {repr(error)[:200]}", next_step=AGAIN) from error
        return TokenizationPlan(directory=directory, shards=shards, refused=refused)

    def items(self, shard: int) -> list[Utterance]:
        """The utterances of a shard, in order. Raises UserError when the line is not what was planned."""
        path, planned = self.directory / ITEMS, self.shards[shard]
        try:
            with open(path, "rb") as file:
                is_there = planned.start_byte + planned.num_bytes <= os.fstat(file.fileno()).st_size
                file.seek(planned.start_byte if is_there else 0)
                line = file.read(planned.num_bytes) if is_there else b""
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}", next_step=AGAIN) from error
        if hashlib.sha256(line).hexdigest() != planned.sha256:
            raise UserError(f"{path} has changed since it was written: shard {shard}", next_step=AGAIN)
        try:
            return [Utterance.from_values(values) for values in json.loads(line)]
        except (ValueError, TypeError, KeyError, RecursionError, AttributeError) as error:
            raise UserError(f"{path} is not a plan: shard {shard}: {str(error)[:200]}", next_step=AGAIN) from error

    def open_refused(self) -> IO[bytes]:
        """The ledger of what was not planned, to read. Raises UserError when it is not there."""
        path = self.directory / REFUSED
        try:
            return open(path, "rb")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}", next_step=AGAIN) from error


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which utterances are refused, by what the source says of them."""

    min_sec: float = 0.0
    max_sec: float = float("inf")
    screen: Screen = field(default_factory=Screen)
    languages: frozenset[str] = field(default_factory=frozenset)  # none: all
    sources: tuple[str, ...] = ()  # patterns of paths in the source; none: all

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
        if self.sources and not any(fnmatch.fnmatchcase(utterance.source, pattern) for pattern in self.sources):
            what = f"it is from {utterance.source}, wanted are {', '.join(self.sources)}"
            return Failure(utterance.key, "other_source", what)
        return self.screen.refusal_by_source(utterance)


class Sifted(NamedTuple):
    """Some items in order, an entry for each in every list."""

    keys: list[str]
    lines: list[str]  # the JSON of an utterance that is kept, else ""
    seconds: list[float]  # of audio, 0 where the source does not say
    refusals: list[Failure | None]  # why it is not kept


SHARD_TYPES = (int, float, int, int, str)


def make_plan(out: str | Path, chunks: Iterable[Sifted], *, shard_samples: int) -> TokenizationPlan:
    """Read the source to its end and write the plan, whole or not at all.

    Raises UserError when there is a plan already, the disk refuses, or a reader does.
    """
    directory = Path(out) / DIRECTORY
    if os.path.exists(directory):
        raise UserError(f"{directory} exists already", next_step="continue with `slmkit tokenize run`, or remove it")
    reasons: Counter[str] = Counter()
    with new_directory(directory) as temporary:
        with atomic_write(temporary / REFUSED) as refused:
            keys = _Keys(refused, reasons)
            with atomic_write(temporary / ITEMS) as planned:
                shards = list(_write_shards(keys.first_of_each(chunks), planned, shard_samples))
            if keys.shared:
                before = TokenizationPlan(directory=temporary, shards=tuple(shards), refused={})
                items = itertools.chain.from_iterable(map(before.items, range(len(shards))))
                with atomic_write(temporary / ITEMS, replace=True) as planned:
                    shards = list(_write_shards(keys.with_paths(items), planned, shard_samples))
        write_json(temporary / PLAN, {"refused": dict(sorted(reasons.items())), "shards": shards})
    return TokenizationPlan.open(out)


class _Keys:
    """Which items keep their keys, as (JSON, seconds) of each that is planned; the others become lines of the ledger.

    That a file's name is there twice is known after the last item. So all that have it stay in a first pass, and a
    second pass, which most sources do without, gives them their paths as keys.
    """

    def __init__(self, ledger: IO[bytes], reasons: Counter[str]) -> None:
        self._ledger, self._reasons = ledger, reasons
        self._seen: set[str] = set()
        self.shared: set[str] = set()  # names of several files

    def first_of_each(self, chunks: Iterable[Sifted]) -> Iterator[tuple[str, float]]:
        """The first item of each key that is not refused, and all whose key is a file's name."""
        for chunk in chunks:
            for key, line, seconds, refusal in zip(*chunk, strict=True):
                if refusal is None:
                    refusal = key_refusal(key, self._seen)
                    is_twice = refusal is not None and refusal.reason == "duplicate_key"
                    if is_twice and Utterance.from_values(json.loads(line)).named_by_file:
                        self.shared.add(key)
                        refusal = None
                if refusal is None:
                    yield line, seconds
                else:
                    self._refuse(refusal)

    def with_paths(self, items: Iterable[Utterance]) -> Iterator[tuple[str, float]]:
        """The items of the first pass, in which files of one name have their paths as keys."""
        self._seen -= self.shared
        for item in items:
            if item.key in self.shared:
                item = item._replace(key=path_key(item)) if item.named_by_file else item
                if twice := key_refusal(item.key, self._seen):
                    self._refuse(twice)
                    continue
            yield _encode(item), item.seconds or 0.0

    def _refuse(self, refusal: Failure) -> None:
        self._reasons[refusal.reason] += 1
        self._ledger.write(refusal.line())


def _write_shards(items: Iterator[tuple[str, float]], file: IO[bytes], shard_samples: int) -> Iterator[ShardPlan]:
    """Write a line for each shard, and say what it consists of."""
    start_byte = 0
    while some := list(itertools.islice(items, shard_samples)):
        line = f"[{','.join(text for text, _ in some)}]\n".encode()
        file.write(line)
        seconds = round(math.fsum(length for _, length in some), 3)
        yield ShardPlan(len(some), seconds, start_byte, len(line), hashlib.sha256(line).hexdigest())
        start_byte += len(line)


def _shard_plan(values: list[object]) -> ShardPlan:
    """Raises ValueError when the values are not a shard's."""
    if [type(value) for value in values] != list(SHARD_TYPES):
        raise ValueError(f"a shard is {values!r:.100}")
    planned = ShardPlan(*values)  # type: ignore[arg-type]
    if not all(0 <= number < 2**62 for number in planned[:4]):  # also nan and infinite
        raise ValueError(f"a shard is {values!r:.100}")
    return planned


def sift_parts(parts: Iterable[SourcePart], rules: Rules, *, num_workers: int) -> Iterator[Sifted]:
    """What becomes of each item of the parts, in their order. The first part is read here; if there are more, worker
    processes read them, a few ahead of what is asked for.

    Raises UserError where a reader does, or a process dies.
    """
    parts = iter(parts)
    for part in parts if num_workers < 2 else itertools.islice(parts, 1):
        yield from _sift(part, rules)
    with contextlib.closing(Workers(num_workers or 1)) as workers:
        ahead: deque[Future[list[Sifted]]] = deque()
        try:
            for part in parts:
                ahead.append(workers.submit(_sift_whole, part, rules))
                if len(ahead) > 2 * num_workers:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        except WorkerDied as error:
            raise UserError(
                "a process that reads the source died",
                next_step="check the memory left, or run with num_workers=0 to see where",
            ) from error


def _sift_whole(part: SourcePart, rules: Rules) -> list[Sifted]:
    return list(_sift(part, rules))


def _sift(part: SourcePart, rules: Rules) -> Iterator[Sifted]:
    items = iter(part())
    while True:
        with rare_collections():
            some = list(itertools.islice(items, CHUNK_ITEMS))
            chunk = _chunk(some, rules)
        if not some:
            return
        yield chunk


def _chunk(items: list[Utterance | Failure], rules: Rules) -> Sifted:
    sifted = Sifted([], [], [], [])
    for item in items:
        refusal = item if isinstance(item, Failure) else rules.refusal(item)
        sifted.keys.append(item.key)
        sifted.lines.append("" if refusal else _encode(item))
        sifted.seconds.append(0.0 if isinstance(item, Failure) else item.seconds or 0.0)
        sifted.refusals.append(refusal)
    return sifted
