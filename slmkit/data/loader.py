"""From a corpus of codes to the micro-batches of any rank, addressed by (epoch, step).

`TrainingData` knows the size of every example before it is read (cached per tokenizer), so the plan of an epoch, the
number of its steps and the valid targets of every global batch are known at once. Reading is by byte offset from the
shards, so resuming at a step costs nothing, and worker processes only make it faster, never different.

Invariant (law): over all ranks, micro-batches and workers, every sample of the plan is delivered exactly once.

Example:
    data = TrainingData.open(corpus, tokenizer, layout, ExampleFormat(task="tts", group=3, speaker=True))
    for step, micro, batch in micro_batches(data, split, rank=0, epoch=0, start_step=0, seed=0, row_tokens=2048):
        ...
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from slmkit.data import prompt, sequence
from slmkit.data.batch import Batch
from slmkit.data.index import Corpus
from slmkit.data.plan import Plan, plan_epoch
from slmkit.data.shards import Sample, ShardReader
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.files import atomic_write
from slmkit.world import BatchSplit

PREFETCH = 4  # micro-batches a worker prepares ahead


@dataclass(frozen=True, kw_only=True)
class ExampleFormat:
    """How a sample becomes an example: the task's prompt, the MTP group size (0 for NTP), the speaker slot."""

    task: str
    group: int
    speaker: bool = False

    def __post_init__(self) -> None:
        if self.task not in prompt.TASKS:
            raise UserError("there is no such task", got=self.task, expected=", ".join(prompt.TASKS))


@dataclass(frozen=True)
class TrainingData:
    """The samples of one corpus (or of a split of it) with the sizes of their examples."""

    corpus: Corpus
    tokenizer: TextTokenizer
    layout: VocabLayout
    format: ExampleFormat
    members: npt.NDArray[np.int64]  # corpus numbers of the samples
    sizes: npt.NDArray[np.int32]  # [len(members), 5], columns as in `sequence.Size`

    @staticmethod
    def open(
        corpus: Corpus,
        tokenizer: TextTokenizer,
        layout: VocabLayout,
        format: ExampleFormat,
        *,
        cache_dir: str | Path | None = None,
    ) -> "TrainingData":
        """Check that corpus and layout belong together and size every example, from `cache_dir` if it was done before.

        Raises UserError when the streams differ or the corpus has no speaker vectors for a speaker-aware format.
        """
        sizes = tuple(stream.size for stream in corpus.codec.lm_streams)
        if sizes != layout.codebook_sizes:
            raise UserError(
                "the corpus has other code streams than the model's vocabulary",
                got=f"{sizes} in {corpus.directory}",
                expected=layout.codebook_sizes,
                next_step="train on codes of the codec the model was made for",
            )
        if format.speaker and not corpus.codec.speaker_dim:
            raise UserError(
                "a speaker-aware model needs speaker vectors, and the corpus has none",
                got=corpus.directory,
                next_step="set model.speaker to false, or tokenize the audio with a codec that has speaker vectors",
            )
        text = _text_sizes(corpus, tokenizer, layout, format, cache_dir)
        speech = prompt.TASKS[format.task]
        size = sequence.measure(text[:, 0], text[:, 1], speech, corpus.frames, layout.num_streams, format.group)
        return TrainingData(corpus, tokenizer, layout, format, np.arange(len(corpus)), np.stack(size, axis=1))

    def __len__(self) -> int:
        return len(self.members)

    def split(self, eval_share: float) -> tuple["TrainingData", "TrainingData"]:
        """Training and held-out part. A sample's side depends on its key alone."""
        held_out = np.array([_hash_share(self.corpus.key(int(i))) < eval_share for i in self.members], dtype=bool)
        return self.only(~held_out), self.only(held_out)

    def first(self, number: int | None) -> "TrainingData":
        """The first `number` samples, all of them for None."""
        return self.only(np.arange(len(self)) < (len(self) if number is None else number))

    def only(self, mask: npt.NDArray[np.bool_]) -> "TrainingData":
        """The samples where `mask`, bool [len(self)], holds."""
        return replace(self, members=self.members[mask], sizes=self.sizes[mask])

    def plan(self, *, seed: int, epoch: int, row_tokens: int, shuffle: bool = True) -> Plan:
        """Rows of an epoch, in numbers 0 .. len(self) - 1."""
        return plan_epoch(self.sizes[:, 0], seed=seed, epoch=epoch, row_tokens=row_tokens, shuffle=shuffle)

    def counts(self, samples: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Valid targets per loss term, float64 [1 + T], of the given samples together."""
        return sequence.term_counts(self.sizes[samples], self.layout.num_streams, self.format.group)

    def example(self, reader: ShardReader, number: int) -> tuple[sequence.Example, Sample]:
        """Read a sample and build its example."""
        sample = reader.read(int(self.members[number]))
        segments = prompt.example(self.format.task, sample.meta, speaker=self.format.speaker)
        pieces = sequence.tokenize(segments, self.tokenizer.encode, self.layout)
        codes = sample.codes[: self.layout.num_streams]
        return sequence.build(pieces, codes, self.layout, self.format.group), sample


def micro_batches(
    data: TrainingData,
    split: BatchSplit,
    *,
    rank: int,
    seed: int,
    epoch: int,
    row_tokens: int,
    start_step: int = 0,
    num_workers: int = 0,
    shuffle: bool = True,
) -> Iterator[tuple[int, int, Batch]]:
    """(step, micro-batch number, batch) of `rank`, from `start_step` to the end of the epoch."""
    plan = data.plan(seed=seed, epoch=epoch, row_tokens=row_tokens, shuffle=shuffle)
    batches = _MicroBatches(data, plan, split, rank, row_tokens)
    positions = [
        (step, micro)
        for step in range(start_step, plan.num_steps(split.global_rows))
        for micro in range(split.accumulation)
    ]
    loader = DataLoader(
        batches,
        sampler=positions,
        batch_size=None,
        num_workers=min(num_workers, len(positions)),
        prefetch_factor=PREFETCH if num_workers and positions else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else the loader would draw from the model's random state
    )
    for (step, micro), batch in zip(positions, loader, strict=True):
        if isinstance(batch, UserError):
            raise batch
        yield step, micro, batch


class _MicroBatches(Dataset[Batch | UserError]):
    """Micro-batches of one rank, by (step, micro-batch number).

    A damaged shard comes as the error itself: raised in a worker, it would arrive wrapped in the worker's traceback.
    """

    def __init__(self, data: TrainingData, plan: Plan, split: BatchSplit, rank: int, row_tokens: int) -> None:
        self.data, self.plan, self.split, self.rank, self.row_tokens = data, plan, split, rank, row_tokens
        self.reader = ShardReader(data.corpus)

    def __getitem__(self, position: tuple[int, int]) -> Batch | UserError:
        try:
            return self._read(*position)
        except UserError as error:
            return error

    def _read(self, step: int, micro: int) -> Batch:
        rows = self.plan.step_rows(step, self.split.global_rows)
        mine = np.concatenate([rows[i] for i in self.split.rows(self.rank, micro)])
        counts = self.data.counts(np.concatenate(rows))
        examples = [self.data.example(self.reader, int(number)) for number in mine]
        return collate(
            examples,
            self.data.layout,
            self.data.format,
            speaker_dim=self.data.corpus.codec.speaker_dim,
            global_counts=counts,
            num_frames=int(self.data.sizes[mine, 2].sum()),
            row_tokens=self.row_tokens * self.split.micro_rows,
        )


def collate(
    examples: Sequence[tuple[sequence.Example, Sample]],
    layout: VocabLayout,
    format: ExampleFormat,
    *,
    speaker_dim: int,
    global_counts: npt.NDArray[np.float64],
    num_frames: int = 0,
    row_tokens: int = 0,
) -> Batch:
    """Lay examples back to back. Without any, the batch is one end-of-text position that predicts nothing."""
    built = [example for example, _ in examples]
    if not built:
        filler = sequence.Piece((layout.eos_id,), "text", False)
        built = [sequence.build([filler], None, layout, format.group)]
    lengths = [len(example.tokens) for example in built]
    borders = np.cumsum([0, *lengths])

    def shifted(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(e, name) + b for e, b in zip(built, borders, strict=False)]))

    def joined(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(example, name) for example in built]))

    voiced = [sample for example, sample in examples if len(example.speaker_positions)]
    vectors = [sample.speaker for sample in voiced if sample.speaker is not None]
    if len(vectors) < len(voiced):
        missing = next(sample.key for sample in voiced if sample.speaker is None)
        raise UserError("a sample has no speaker vector", got=missing, next_step="tokenize the corpus again")
    return Batch(
        tokens=joined("tokens"),
        speech_mask=joined("speech_mask"),
        position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        cu_seqlens=torch.from_numpy(borders.astype(np.int32)),
        speaker=torch.from_numpy(np.stack(vectors)) if vectors else torch.zeros(0, speaker_dim),
        speaker_positions=shifted("speaker_positions"),
        lm_positions=shifted("lm_positions"),
        lm_targets=joined("lm_targets"),
        lm_groups=joined("lm_groups"),
        head_positions=shifted("head_positions"),
        head_targets=joined("head_targets"),
        global_counts=torch.from_numpy(global_counts),
        keys=tuple(sample.key for _, sample in examples),
        num_frames=num_frames,
        row_tokens=row_tokens,
    )


def _text_sizes(
    corpus: Corpus,
    tokenizer: TextTokenizer,
    layout: VocabLayout,
    format: ExampleFormat,
    cache_dir: str | Path | None,
) -> npt.NDArray[np.int32]:
    """`sequence.text_size` of every sample's example, int32 [n, 2]."""
    facts = repr((corpus.fingerprint, tokenizer.fingerprint, layout.sha256, format.task, format.speaker))
    path = Path(cache_dir or ".") / f"lengths-{hashlib.sha256(facts.encode()).hexdigest()[:24]}.npy"
    cached = _read_table(path, len(corpus)) if cache_dir is not None else None
    if cached is not None:
        return cached
    reader = ShardReader(corpus)
    table = np.zeros((len(corpus), 2), dtype=np.int32)
    for number in range(len(corpus)):
        segments = prompt.example(format.task, reader.read_meta(number), speaker=format.speaker)
        table[number] = sequence.text_size(sequence.tokenize(segments, tokenizer.encode, layout))
    if cache_dir is not None:
        buffer = io.BytesIO()
        np.save(buffer, table, allow_pickle=False)
        with atomic_write(path, replace=True) as file:
            file.write(buffer.getvalue())
    return table


def _read_table(path: Path, num_rows: int) -> npt.NDArray[np.int32] | None:
    """A table that `_text_sizes` stored; None when there is none or it is damaged, so that it is made again."""
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return table if table.shape == (num_rows, 2) and table.dtype == np.int32 else None


def _hash_share(key: str) -> float:
    """A number in [0, 1) that depends on the key alone."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def report_too_long(data: TrainingData, plan: Plan, limit: int = 5) -> Iterable[str]:
    """Lines that name the samples a row cannot hold: their number and the first few keys."""
    if len(plan.too_long):
        names = [
            f"{data.corpus.key(int(data.members[i]))} ({data.sizes[i, 0]} positions)" for i in plan.too_long[:limit]
        ]
        yield f"{len(plan.too_long)} of {len(data)} samples are longer than a row and are left out: {', '.join(names)}"
