"""Which utterance goes to which shard and position, fixed before anything is encoded.

`OUT/plan/` holds `items.jsonl` (a line per shard: the list of its utterances, in the order of the source),
`refused.jsonl` (a ledger line for every item of the source that is not planned) and `plan.json`, which says where each
shard's line begins. Shard s holds the items s * shard_samples and following. A task reads the lines of its shards
alone, so that any number of tasks, killed and started again, write the same bytes; the source is not listed again.

It opens no audio: what it refuses, it refuses by what the source says.

Invariant: items of the source = utterances in items.jsonl + lines in refused.jsonl.

Example:
    plan = make_plan("out", read_source(...), Rules(min_sec=0.5, max_sec=30.0), shard_samples=1000)
    plan.items(0)                     # the utterances of the first shard
"""

import gc
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from slmkit.data.importers.base import Utterance, text_file, with_sound_keys
from slmkit.data.ledger import Failure
from slmkit.errors import UserError
from slmkit.files import atomic_write, new_directory, read_json, write_json

DIRECTORY, PLAN, ITEMS, REFUSED = "plan", "plan.json", "items.jsonl", "refused.jsonl"
INTENDED = frozenset({"low_dnsmos", "no_dnsmos", "other_language"})  # reasons of filters, which no one calls failures
OBJECTS_PER_COLLECTION = 200_000
AGAIN = "plan the corpus again, into a new directory"
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=text_file).encode


class ShardPlan(NamedTuple):
    """What a shard is made of."""

    items: int  # utterances, before any is found to be bad
    seconds: float  # of audio, as far as the source says
    start_byte: int  # of its line in items.jsonl
    num_bytes: int
    sha256: str  # of its line


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
            return _refused(utterance, "too_short", f"{seconds} s, at least {self.min_sec} s are wanted")
        if seconds is not None and not seconds <= self.max_sec:
            what = f"{seconds} s, at most {self.max_sec} s are wanted, and the source has no time stamps to cut it by"
            return _refused(utterance, "too_long", what)
        if self.languages and utterance.language not in self.languages:
            what = f"the language is {utterance.language or 'unknown'}, wanted are {', '.join(sorted(self.languages))}"
            return _refused(utterance, "other_language", what)
        if self.min_dnsmos is not None:
            dnsmos = utterance.extra.get("dnsmos")
            if not isinstance(dnsmos, int | float):
                return _refused(utterance, "no_dnsmos", "the source gives no DNSMOS")
            if not dnsmos >= self.min_dnsmos:
                return _refused(utterance, "low_dnsmos", f"DNSMOS {dnsmos}, at least {self.min_dnsmos} is wanted")
        return None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A finished plan."""

    directory: Path
    shards: tuple[ShardPlan, ...]
    refused: Mapping[str, int]  # reason -> count

    @property
    def num_items(self) -> int:
        """Utterances that are planned."""
        return sum(shard.items for shard in self.shards)

    @property
    def seconds(self) -> float:
        """Of audio, as far as the source says."""
        return sum(shard.seconds for shard in self.shards)

    @staticmethod
    def exists(out: str | Path) -> bool:
        """Whether `out` holds a finished plan."""
        return (Path(out) / DIRECTORY / PLAN).is_file()

    @staticmethod
    def open(out: str | Path) -> "Plan":
        """The plan in `out`. Raises UserError when there is none, or it is damaged."""
        directory = Path(out) / DIRECTORY
        path = directory / PLAN
        if not path.is_file():
            raise UserError(f"{out} holds no plan", next_step="make one with `slmkit tokenize plan`")
        values = read_json(path)
        try:
            shards = tuple(_shard_plan(shard) for shard in values["shards"])
            refused = {str(reason): int(count) for reason, count in values["refused"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is not a plan: {error!r}", next_step=AGAIN) from error
        return Plan(directory=directory, shards=shards, refused=refused)

    def items(self, shard: int) -> list[Utterance]:
        """The utterances of a shard, in order. Raises UserError when the line is not what was planned."""
        path, planned = self.directory / ITEMS, self.shards[shard]
        try:
            with open(path, "rb") as file:
                file.seek(planned.start_byte)
                line = file.read(planned.num_bytes)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}", next_step=AGAIN) from error
        if hashlib.sha256(line).hexdigest() != planned.sha256:
            raise UserError(f"{path} has changed since it was written: shard {shard}", next_step=AGAIN)
        return [Utterance.from_values(values) for values in json.loads(line)]

    def refused_lines(self) -> Path:
        """The ledger of what was not planned."""
        return self.directory / REFUSED


SHARD_TYPES = (int, float, int, int, str)


def make_plan(out: str | Path, items: Iterable[Utterance | Failure], rules: Rules, *, shard_samples: int) -> Plan:
    """Read the source to its end and write the plan, whole or not at all.

    Raises UserError when there is a plan already, the disk refuses, or a reader does.
    """
    directory = Path(out) / DIRECTORY
    if directory.exists():
        raise UserError(f"{directory} exists already", next_step="go on with `slmkit tokenize run`, or remove it")
    reasons: Counter[str] = Counter()
    with new_directory(directory) as temporary:
        with (
            atomic_write(temporary / ITEMS) as planned,
            atomic_write(temporary / REFUSED) as refused,
            _rare_garbage_collection(),
        ):
            shards = list(_write_shards(_keep(items, rules, refused, reasons), planned, shard_samples))
        write_json(temporary / PLAN, {"refused": dict(sorted(reasons.items())), "shards": shards})
    return Plan.open(out)


@contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Inside, cycles are looked for after many more objects than usual: nothing here makes any, and looking through
    the utterances of a shard again and again takes a quarter of the time."""
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS_PER_COLLECTION, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _keep(
    items: Iterable[Utterance | Failure], rules: Rules, ledger: IO[bytes], reasons: Counter[str]
) -> Iterator[Utterance]:
    """The items that are planned; the others become lines of the ledger, and are counted."""
    for item in with_sound_keys(items):
        refusal = item if isinstance(item, Failure) else rules.refusal(item)
        if refusal is None:
            assert isinstance(item, Utterance)
            yield item
        else:
            reasons[refusal.reason] += 1
            ledger.write(refusal.line())


def _write_shards(items: Iterator[Utterance], file: IO[bytes], shard_samples: int) -> Iterator[ShardPlan]:
    """Write a line for each shard, and say what it consists of."""
    start_byte = 0
    while some := list(itertools.islice(items, shard_samples)):
        line = _encode(some).encode() + b"\n"  # all at once: the encoder is slow to start
        file.write(line)
        seconds = round(math.fsum(item.seconds or 0.0 for item in some), 3)
        yield ShardPlan(len(some), seconds, start_byte, len(line), hashlib.sha256(line).hexdigest())
        start_byte += len(line)


def _refused(utterance: Utterance, reason: str, detail: str) -> Failure:
    return Failure(utterance.key, reason, detail)


def _shard_plan(values: list[object]) -> ShardPlan:
    """Raises ValueError when the values are not a shard's."""
    if [type(value) for value in values] != list(SHARD_TYPES):
        raise ValueError(f"a shard is {values}")
    return ShardPlan(*values)  # type: ignore[arg-type]
