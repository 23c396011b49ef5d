"""The samples a model is trained on: which ones of which sources, as what examples, how large each is.

Samples of all sources are numbered together, 0 .. len - 1. Their sizes come from memory-mapped tables (`data.lengths`),
so a part of ten million samples opens at once and nothing is held for each of them but, where a share is held out, four
bytes.

Invariant: on which side of a split a sample stands depends on its key alone, or on its speaker alone.

Example:
    form = ExampleFormat(task="tts", group=3, speaker=True)
    data = TrainingData.open(open_source("shards/libritts", "tts"), tokenizer, layout, form)
    train, held_out = data.split(0.01)
    train.plan(seed=0, row_tokens=2048)
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slmkit.data import plan, prompt, sequence
from slmkit.data.lengths import UNREADABLE, Table, Wording, open_table, speaker_hash
from slmkit.data.plan import Plan
from slmkit.data.sources import Source
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError

SCANNED = 1 << 20  # samples looked at together when all are
NAMED = 5  # samples that a report names
ORDER_VERSION = 2  # of the rule that orders and packs samples

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ExampleFormat:
    """How a sample becomes an example: the task's prompt, the MTP group size (0 for NTP), the speaker slot."""

    task: str
    group: int
    speaker: bool = False

    def __post_init__(self) -> None:
        if self.task not in prompt.TASKS:
            raise UserError("there is no such task", got=self.task, expected=", ".join(prompt.TASKS))


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The chosen samples of one source: those in `members`, or the first `count`."""

    source: Source
    wording: Wording
    table: Table  # of the whole source
    weight: Fraction  # passes per epoch
    count: int
    members: npt.NDArray[np.int32] | None = None  # [count] numbers in the source, rising
    chosen: tuple[Any, ...] = ()  # how they were chosen

    @property
    def starts(self) -> IntArray:
        """Where each shard's samples begin among the chosen ones, then their number. int64 [shards + 1]."""
        if self.members is None:
            return np.minimum(self.source.starts, self.count)
        return np.searchsorted(self.members, self.source.starts).astype(np.int64)

    def numbers(self, places: IntArray) -> IntArray:
        """Numbers in the source of the chosen samples at `places`."""
        return places if self.members is None else self.members[places].astype(np.int64)

    def first(self, number: int | None) -> "Part":
        """The first `number` samples."""
        count = self.count if number is None else min(number, self.count)
        members = None if self.members is None else self.members[:count]
        return replace(self, count=count, members=members, chosen=(*self.chosen, number))

    def split(self, share: float) -> tuple["Part", "Part"]:
        """The samples whose hash is not, and is, within `share`; the latter to be seen once in an epoch."""
        return self._divided("key_hash", lambda hashes: hashes >> np.uint64(32) < np.uint64(share * 2**32), share)

    def split_speakers(self, names: tuple[str, ...]) -> tuple["Part", "Part"]:
        """The samples of other voices, and of those named; the latter to be seen once in an epoch."""
        wanted = np.array([speaker_hash(name) for name in names], dtype=np.uint64)
        return self._divided("speaker_hash", lambda hashes: np.isin(hashes, wanted), ("speakers", *names))

    def _divided(
        self, column: str, is_second: Callable[[npt.NDArray[Any]], npt.NDArray[np.bool_]], rule: Any
    ) -> tuple["Part", "Part"]:
        """The samples for which `is_second` of a column of the table does not hold, and those for which it does."""
        sides: tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]] = ([], [])
        for start in range(0, self.count, SCANNED):
            chosen = slice(start, min(start + SCANNED, self.count))
            numbers = np.arange(chosen.start, chosen.stop, dtype=np.int32)
            if self.members is not None:
                numbers = self.members[chosen]
            # Whole slices are read much faster than single samples.
            is_held_out = is_second(self.table[column][chosen if self.members is None else numbers])
            for side, mask in zip(sides, (~is_held_out, is_held_out), strict=True):
                side.append(numbers[mask])
        train, held_out = (np.concatenate([np.zeros(0, np.int32), *side]) for side in sides)
        rules = (*self.chosen, rule)
        return (
            replace(self, count=len(train), members=train, chosen=(*rules, "train")),
            replace(self, count=len(held_out), members=held_out, chosen=(*rules, "held out"), weight=Fraction(1)),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """Samples of one or more sources for one model."""

    parts: tuple[Part, ...]
    layout: VocabLayout
    format: ExampleFormat  # of the first source: task and speaker are each source's own, the group is the model's
    speaker_dim: int
    on_damage: Literal["stop", "skip"] = "stop"

    @staticmethod
    def open(
        source: Source,
        tokenizer: TextTokenizer,
        layout: VocabLayout,
        format: ExampleFormat,
        *,
        cache_dir: str | Path | None = None,
        weight: float = 1.0,
        max_samples: int | None = None,
        on_damage: Literal["stop", "skip"] = "stop",
    ) -> "TrainingData":
        """Check that source and layout belong together; size every example, from `cache_dir` if it was done before.

        Raises UserError when the streams differ, or there are no speaker vectors for a speaker-aware format.
        """
        codec = source.codec
        if codec is not None and (sizes := tuple(s.size for s in codec.lm_streams)) != layout.codebook_sizes:
            raise UserError(
                "the corpus has other code streams than the model's vocabulary",
                got=f"{sizes} in {source.path}",
                expected=layout.codebook_sizes,
                next_step="train on codes of the codec the model was made for",
            )
        if format.speaker and codec is not None and not codec.speaker_dim:
            raise UserError(
                "a speaker-aware model needs speaker vectors, and the corpus has none",
                got=source.path,
                next_step="set model.speaker to false, or tokenize the audio with a codec that has speaker vectors",
            )
        wording = Wording(task=format.task, speaker=format.speaker, tokenizer=tokenizer, layout=layout)
        table = open_table(source, wording, directory=cache_dir, skip_damaged=on_damage == "skip")
        part = Part(
            source=source, wording=wording, table=table, weight=Fraction(repr(float(weight))), count=len(source)
        )
        return TrainingData(
            parts=(part.first(max_samples),),
            layout=layout,
            format=format,
            speaker_dim=codec.speaker_dim if codec is not None else 0,
            on_damage=on_damage,
        )

    @staticmethod
    def joined(data: Sequence["TrainingData"]) -> "TrainingData":
        """Several sources for the same model, numbered one after the other."""
        parts = tuple(part for one in data for part in one.parts)
        return replace(data[0], parts=parts, speaker_dim=max(one.speaker_dim for one in data))

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def offsets(self) -> IntArray:
        """Number of the first sample of each part, then of all. int64 [parts + 1]."""
        return np.cumsum([0, *(part.count for part in self.parts)], dtype=np.int64)

    def split(self, eval_share: float) -> tuple["TrainingData", "TrainingData"]:
        """Training and held-out part. A sample's side depends on its key alone."""
        train, held_out = zip(*(part.split(eval_share) for part in self.parts), strict=True)
        return replace(self, parts=train), replace(self, parts=held_out)

    def split_speakers(self, names: Sequence[str]) -> tuple["TrainingData", "TrainingData"]:
        """The part of other voices, and that of the named ones. A sample's side depends on its speaker alone.

        Raises UserError for a name that no sample has, which may be a slip that lets a voice through.
        """
        others, theirs = zip(*(part.split_speakers(tuple(sorted(set(names)))) for part in self.parts), strict=True)
        found = {int(h) for part in theirs for h in np.unique(part.table["speaker_hash"][part.members])}
        if missing := [name for name in names if speaker_hash(name) not in found]:
            raise UserError(
                "a voice to be held out has no samples",
                got=", ".join(missing),
                expected="names as in the column `speaker` of the samples",
                next_step="look at a sample's json, or at `columns.speaker` of the job that made the shards",
            )
        return replace(self, parts=others), replace(self, parts=theirs)

    def locate(self, numbers: npt.NDArray[Any]) -> list[tuple[int, int]]:
        """(part, number in its source) of samples."""
        offsets = self.offsets
        found = np.searchsorted(offsets, numbers, side="right") - 1
        return [
            (int(p), int(self.parts[p].numbers(np.array([n - offsets[p]]))[0]))
            for p, n in zip(found, numbers, strict=True)
        ]

    def key(self, number: int) -> str:
        """Key of a sample."""
        ((part, i),) = self.locate(np.array([number]))
        return self.parts[part].source.samples.key(i)

    def sizes(self, numbers: npt.NDArray[Any]) -> IntArray:
        """Sizes of the examples of samples, int64 [n, 5], columns as in `sequence.Size`."""
        sizes = np.zeros((len(numbers), len(sequence.Size._fields)), dtype=np.int64)
        for part, first in zip(self.parts, self.offsets, strict=False):
            inside = (numbers >= first) & (numbers < first + part.count)
            if inside.any():
                sizes[inside] = self._measured(part.table[part.numbers(numbers[inside] - first)])
        return sizes

    def lengths(self, numbers: IntArray) -> IntArray:
        """Positions of the examples of samples, int64 [n]."""
        return self.sizes(numbers)[:, 0]

    def counts(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Valid targets per loss term, float64 [1 + T], of the given samples together."""
        return sequence.term_counts(self.sizes(numbers), self.layout.num_streams, self.format.group)

    def plan(
        self,
        *,
        seed: int,
        row_tokens: int,
        window: int = plan.DEFAULT_WINDOW,
        shuffle: bool = True,
        shuffle_shards: int | None = None,
    ) -> Plan:
        """Rows of every epoch."""
        sources = [plan.WeightedShards(starts=part.starts, weight=part.weight) for part in self.parts]
        options: dict[str, Any] = {"window": window, "shuffle": shuffle, "shuffle_shards": shuffle_shards}
        return Plan(sources, self.lengths, seed=seed, row_tokens=row_tokens, **options)

    @property
    def fingerprint(self) -> str:
        """Equal where samples, sizes and weights are: with a plan's options it decides every row."""
        parts = [
            (p.source.fingerprint, p.wording.fingerprint, str(p.weight), p.chosen, p.count, self.on_damage)
            for p in self.parts
        ]
        return hashlib.sha256(repr((ORDER_VERSION, self.format.group, parts)).encode()).hexdigest()

    def left_out(self, row_tokens: int) -> dict[str, Any]:
        """How many samples no row of `row_tokens` can hold or nobody could read, and the first few. JSON.

        Looks at every sample, a few at a time.
        """
        counts = {"too long": 0, "unreadable": 0}
        named: dict[str, list[str]] = {reason: [] for reason in counts}
        for start in range(0, len(self), SCANNED):
            numbers = np.arange(start, min(start + SCANNED, len(self)))
            lengths = self.lengths(numbers)
            for reason, mask in (
                ("too long", (lengths > row_tokens) & (lengths < UNREADABLE)),
                ("unreadable", lengths >= UNREADABLE),
            ):
                counts[reason] += int(mask.sum())
                for i in np.flatnonzero(mask)[: NAMED - len(named[reason])]:
                    size = f" ({lengths[i]} positions)" if reason == "too long" else ""
                    named[reason].append(self.key(int(numbers[i])) + size)
        return {"samples": len(self), "counts": counts, "named": named}

    def _measured(self, records: Table) -> IntArray:
        fields = ("text_positions", "text_targets", "speech", "labelled", "frames")
        columns = (records[field].astype(np.int64) for field in fields)
        size = sequence.measure(*columns, num_streams=self.layout.num_streams, group=self.format.group)
        return np.stack(size, axis=1)


def describe_left_out(left_out: dict[str, Any]) -> list[str]:
    """What `TrainingData.left_out` found, as lines for a reader."""
    words = {"too long": "are longer than a row", "unreadable": "cannot be read"}
    # What was unreadable once stays left out: the rows of a run that has begun must not change.
    then = {"unreadable": "; once they can, remove lengths-*-skipping.npy from data.length_cache and begin a new run"}
    return [
        f"{number} of {left_out['samples']} samples {words[reason]} and are left out: "
        f"{', '.join(left_out['named'][reason])}{then.get(reason, '')}"
        for reason, number in left_out["counts"].items()
        if number
    ]
