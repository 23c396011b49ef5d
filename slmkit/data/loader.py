"""From planned steps to the micro-batches of any rank, read ahead by worker processes.

The training process plans (`data.steps`) and knows what every global batch holds; workers are told which samples to
read and share nothing else with it. Reading is by byte offset from the shards, so starting anywhere costs nothing, and
workers only make it faster, never different.

A sample that cannot be read stops the run, or with `on_damage: skip` is left out of its batch: the targets it would
have brought stay in the count of the global batch, so that every split leaves out the same.

Invariant (law): over all ranks, micro-batches and workers, every sample of a step is delivered exactly once.

Example:
    steps = Steps(data.plan(seed=0, row_tokens=2048), split.global_rows)
    batches = micro_batches(data, split, steps.walk(done_steps), rank=0, row_tokens=2048)
    for step, micro, batch in ahead(batches, lambda batch: batch.to(device)):
        ...
"""

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from slmkit.data import sequence
from slmkit.data.batch import Batch
from slmkit.data.examples import ExampleFormat, TrainingData
from slmkit.data.shards import Sample
from slmkit.data.steps import PlannedStep
from slmkit.data.vocab import VocabLayout
from slmkit.errors import DamagedSample, UserError
from slmkit.world import BatchSplit

PREFETCH = 4  # micro-batches a worker prepares ahead
DEATH_SEC = 0.5  # the longest wait for each worker to be gone, once something has failed


class _Order(NamedTuple):
    """What a worker is asked to read."""

    samples: list[tuple[int, int]]  # (part, number in its source)
    sizes: npt.NDArray[np.int64]  # [n, 5], what the plan takes them for
    global_counts: npt.NDArray[np.float64]
    num_frames: int


def micro_batches(
    data: TrainingData,
    split: BatchSplit,
    steps: Iterable[PlannedStep],
    *,
    rank: int,
    row_tokens: int,
    num_workers: int = 0,
) -> Iterator[tuple[PlannedStep, int, Batch]]:
    """(step, micro-batch number, batch) of `rank` in the given steps."""
    waiting: deque[tuple[PlannedStep, int]] = deque()

    def orders() -> Iterator[_Order]:
        for step in steps:
            counts = data.counts(np.concatenate(step.rows))
            for micro in range(split.accumulation):
                mine = np.concatenate([step.rows[i] for i in split.rows(rank, micro)])
                waiting.append((step, micro))
                sizes = data.sizes(mine)
                yield _Order(data.locate(mine), sizes, counts, int(sizes[:, 2].sum()))

    ordered = orders()
    first = list(islice(ordered, num_workers))
    loader = DataLoader(
        _MicroBatches(data, row_tokens * split.micro_rows),
        sampler=chain(first, ordered),
        batch_size=None,
        num_workers=len(first),
        prefetch_factor=PREFETCH if first else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals,
        generator=torch.Generator(),  # else the loader would draw from the model's random state
    )
    # Torch's handler of SIGCHLD would raise in the middle of anything. Without it a worker that died is noticed where
    # its batch is waited for, within seconds.
    signal_handling._SIGCHLD_handler_set = True
    for batch in _alive(iter(loader)):
        if isinstance(batch, UserError):
            raise batch
        yield *waiting.popleft(), batch


def ahead(
    batches: Iterable[tuple[PlannedStep, int, Batch]], copy: Callable[[Batch], Batch]
) -> Iterator[tuple[PlannedStep, int, Batch]]:
    """What `micro_batches` gives, with a `copy` of each batch that is begun before the one before it is handed out.

    With a copy to a device, whoever computes with a batch and waits for it finds the next one there. From pinned memory
    it does not wait. It goes through the stream of the computation: a batch of 16 384 positions of 12 tokens is 2 MB,
    which takes less than 0.1 ms, too little for a stream of its own.

    An error in reading comes after the batches that were read before it.
    """
    held: tuple[PlannedStep, int, Batch] | None = None
    try:
        for step, micro, batch in batches:
            copied = step, micro, copy(batch)
            if held is not None:
                yield held
            held = copied
    except UserError:
        if held is not None:
            yield held
        raise
    if held is not None:
        yield held


def _alive(batches: Iterator[Batch | UserError]) -> Iterator[Batch | UserError]:
    """The batches of a loader. Raises UserError naming a worker that has died, whatever that looks like here."""
    try:
        yield from batches
    except (EOFError, OSError, RuntimeError) as error:
        workers = getattr(batches, "_workers", [])
        for worker in workers:
            worker.join(timeout=DEATH_SEC)
        dead = [worker for worker in workers if worker.exitcode is not None]
        if not dead:
            raise
        raise UserError(
            "a process that reads data has died",
            got=f"process {dead[0].pid}, exit code {dead[0].exitcode}",
            next_step="look whether the machine ran out of memory (dmesg); lower data.num_workers; start again",
        ) from error


def _leave_signals(worker: int) -> None:
    """Signals that stop a run are for the training process, which still needs batches then.

    Schedulers and launchers send them to workers too. A worker ends when the training process lets it, or is gone.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


class _MicroBatches(Dataset[Batch | UserError]):
    """Reads what it is asked to. It keeps none of the tables, which the start of a worker would have to copy.

    A damaged shard comes as the error itself: raised in a worker, it would arrive wrapped in the worker's traceback.
    """

    def __init__(self, data: TrainingData, row_tokens: int) -> None:
        self.parts = [(part.source, part.wording) for part in data.parts]
        self.layout, self.format, self.speaker_dim = data.layout, data.format, data.speaker_dim
        self.skips, self.row_tokens = data.on_damage == "skip", row_tokens

    def __getitem__(self, order: _Order) -> Batch | UserError:
        try:
            return self._read(order)
        except UserError as error:
            return error

    def _read(self, order: _Order) -> Batch:
        examples, skipped = [], []
        for (part, number), size in zip(order.samples, order.sizes.tolist(), strict=True):
            try:
                examples.append(self._example(part, number, sequence.Size(*size)))
            except DamagedSample as error:
                if not self.skips:
                    raise
                skipped.append(error.what)
        return collate(
            examples,
            self.layout,
            self.format,
            speaker_dim=self.speaker_dim,
            global_counts=order.global_counts,
            num_frames=order.num_frames,
            row_tokens=self.row_tokens,
            skipped=tuple(skipped),
        )

    def _example(self, part: int, number: int, planned: sequence.Size) -> tuple[sequence.Example, Sample]:
        """Raises DamagedSample where the example is not of the size that the plan takes it for."""
        source, wording = self.parts[part]
        sample = source.reader.read(number)
        pieces = wording.pieces(source, sample.key, sample.meta)
        codes = None if source.codec is None else sample.codes[: self.layout.num_streams]
        example = sequence.build(pieces, codes, self.layout, self.format.group)
        speech = planned.steps if self.format.group else planned.frames * self.layout.num_streams + planned.endings
        found = len(example.tokens), len(example.lm_targets) + len(example.head_targets)
        expected = planned.positions, planned.text_targets + speech
        if found != expected:
            raise DamagedSample(
                sample.key,
                source.path,
                f"{source.path}: sample {sample.key!r} is not of the size that the table of lengths has for it",
                got=f"{found[0]} positions, {found[1]} targets",
                expected=f"{expected[0]} positions, {expected[1]} targets",
                next_step="remove the files lengths-*.npy of the run's cache or of data.length_cache, which are then "
                "made again; if it comes again, the shard is damaged: `slmkit tokenize verify`",
            )
        return example, sample


def collate(
    examples: Sequence[tuple[sequence.Example, Sample]],
    layout: VocabLayout,
    format: ExampleFormat,
    *,
    speaker_dim: int,
    global_counts: npt.NDArray[np.float64],
    num_frames: int = 0,
    row_tokens: int = 0,
    skipped: tuple[str, ...] = (),
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
    groups, phases = joined("lm_groups"), joined("head_phases")
    by_phase = phases.argsort(stable=True)  # the heads' targets of one phase choose among the same classes
    return Batch(
        tokens=joined("tokens"),
        speech_mask=joined("speech_mask"),
        position_ids=torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        cu_seqlens=torch.from_numpy(borders.astype(np.int32)),
        speaker=torch.from_numpy(np.stack(vectors)) if vectors else torch.zeros(0, speaker_dim),
        speaker_positions=shifted("speaker_positions"),
        lm_positions=shifted("lm_positions"),
        lm_targets=joined("lm_targets"),
        lm_groups=groups,
        head_positions=shifted("head_positions")[by_phase],
        head_targets=joined("head_targets")[by_phase],
        global_counts=torch.from_numpy(global_counts),
        lengths=tuple(lengths),
        lm_counts=tuple(groups.bincount(minlength=len(global_counts)).tolist()),
        head_counts=tuple(phases.bincount(minlength=layout.num_streams).tolist()),
        keys=tuple(sample.key for _, sample in examples),
        num_frames=num_frames,
        row_tokens=row_tokens,
        skipped=skipped,
    )
