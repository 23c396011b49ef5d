"""Which utterance goes to which shard and position, fixed before anything is encoded.

`OUT/plan/` holds `items.jsonl` (a line per shard: the list of its utterances, in the order of the source),
`refused.jsonl` (a ledger line for every item of the source that is not planned) and `plan.json`, which says where each
shard's line begins. Shard s holds the items s * shard_samples and following. A task reads the lines of its shards
alone, so that any number of tasks, killed and started again, write the same bytes; the source is not listed again.

Of several items with one key the first is planned. No audio is opened (see sift.py for the rules).

Invariant: items of the source = utterances in items.jsonl + lines in refused.jsonl.

Example:
    plan = make_plan("out", sift_parts(read_parts(...), Rules(max_sec=30.0), num_workers=2), shard_samples=1000)
    plan.items(0)                     # the utterances of the first shard
"""

import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from slmkit.corpora.base import Utterance, key_refusal
from slmkit.errors import UserError
from slmkit.files import atomic_write, new_directory, read_json, write_json
from slmkit.tokenization.sift import Sifted

DIRECTORY, PLAN, ITEMS, REFUSED = "plan", "plan.json", "items.jsonl", "refused.jsonl"
INTENDED = frozenset({"low_dnsmos", "no_dnsmos", "other_language"})  # reasons of filters, which no one calls failures
AGAIN = "plan the corpus again, into a new directory"


class ShardPlan(NamedTuple):
    """What a shard is made of."""

    items: int  # utterances, before any is found to be bad
    seconds: float  # of audio, as far as the source says
    start_byte: int  # of its line in items.jsonl
    num_bytes: int
    sha256: str  # of its line


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


def make_plan(out: str | Path, chunks: Iterable[Sifted], *, shard_samples: int) -> Plan:
    """Read the source to its end and write the plan, whole or not at all.

    Raises UserError when there is a plan already, the disk refuses, or a reader does.
    """
    directory = Path(out) / DIRECTORY
    if directory.exists():
        raise UserError(f"{directory} exists already", next_step="go on with `slmkit tokenize run`, or remove it")
    reasons: Counter[str] = Counter()
    with new_directory(directory) as temporary:
        with atomic_write(temporary / ITEMS) as planned, atomic_write(temporary / REFUSED) as refused:
            shards = list(_write_shards(_keep(chunks, refused, reasons), planned, shard_samples))
        write_json(temporary / PLAN, {"refused": dict(sorted(reasons.items())), "shards": shards})
    return Plan.open(out)


def _keep(chunks: Iterable[Sifted], ledger: IO[bytes], reasons: Counter[str]) -> Iterator[tuple[str, float]]:
    """(JSON, seconds) of the items that are planned; the others become lines of the ledger, and are counted."""
    seen: set[str] = set()
    for chunk in chunks:
        for key, line, seconds, refusal in zip(*chunk, strict=True):
            refusal = (key is not None and key_refusal(key, seen)) or refusal
            if refusal is None:
                yield line, seconds
            else:
                reasons[refusal.reason] += 1
                ledger.write(refusal.line())


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
        raise ValueError(f"a shard is {values}")
    return ShardPlan(*values)  # type: ignore[arg-type]
