"""How long the example of every sample is, known before anything is read: one table for each source.

A table is a memory-mapped file of RECORDs. It depends on the samples, the tokenizer, the vocabulary and the prompt, and
its name on all of them (on what the prompt is, not only on which); the group size and the length of rows come later.
Building reads the text of every sample, in several processes where that is worth their start; memory holds one shard
at a time.

Invariant: a table that is there is whole, and equal for equal sources, however many processes built it.

Example:
    table = open_table(source, prompt_of, directory="RUN/cache")
    table["frames"].sum()
"""

import hashlib
import io
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from slmkit.data import prompt, sequence
from slmkit.data.sources import Source
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.errors import BadSample, DamagedSample, UserError
from slmkit.files import NPY_ERRORS, atomic_write

RECORD = np.dtype(
    [
        ("text_positions", "<i4"),  # UNREADABLE for a sample that could not be read
        ("text_targets", "<i4"),
        ("frames", "<i4"),  # of the codec
        ("key_hash", "<u8"),  # uniform: decides what is held out, and tells utterances apart
        ("speech", "u1"),  # speech pieces
        ("labelled", "u1"),  # those that are learnt
        ("speaker_hash", "<u8"),  # of the speaker's name: tells voices apart
        ("language_hash", "<u4"),  # of the language's name
    ]
)
UNREADABLE = np.iinfo(np.int32).max
SAMPLES_PER_WORKER = 20_000  # fewer are not worth the start of a process
Table = npt.NDArray[np.void]  # RECORD [n]


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How the text of a sample becomes the positions of an example."""

    task: str
    speaker: bool
    tokenizer: TextTokenizer
    layout: VocabLayout

    @property
    def fingerprint(self) -> str:
        """Equal where the same text gives the same positions: for equal prompts, too, and equal rules of tokenizing."""
        probes = [prompt.example(self.task, probe, speaker=self.speaker) for probe in prompt.PROBES]
        pieces = [tuple(piece) for p in probes for piece in sequence.tokenize(p, self.tokenizer.encode, self.layout)]
        facts = (self.tokenizer.fingerprint, self.layout.sha256, self.task, self.speaker, pieces)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def pieces(self, source: Source, key: str, meta: dict[str, Any]) -> tuple[sequence.Piece, ...]:
        """The example's pieces. Raises DamagedSample when `meta` lacks what the task needs."""
        try:
            segments = prompt.example(self.task, meta, speaker=self.speaker)
        except BadSample as error:
            raise DamagedSample(key, source.path, f"{source.path}: sample {key!r}: {error.what}") from error
        return sequence.tokenize(segments, self.tokenizer.encode, self.layout)


def open_table(source: Source, wording: Wording, *, directory: str | Path | None, skip_damaged: bool = False) -> Table:
    """The table of a source, from `directory` if it was built before; else it is built, and stored there.

    A sample that cannot be read raises DamagedSample, or is marked with `skip_damaged`; the table with such marks has
    another name, so that a run that must not skip never sees it.
    """
    if directory is None:
        shards = range(len(source.starts) - 1)
        return np.concatenate([np.zeros(0, RECORD), *(_of_shard(source, wording, s, skip_damaged) for s in shards)])
    whole = table_path(directory, source, wording)
    marked = whole.with_stem(f"{whole.stem}-skipping")
    for path in [whole, marked] if skip_damaged else [whole]:
        table = _read(path, len(source))
        if table is not None:
            return table
    _write(marked if skip_damaged else whole, source, wording, skip_damaged)
    if skip_damaged and not (_stored(marked, len(source))["text_positions"] == UNREADABLE).any():
        os.replace(marked, whole)
        return _stored(whole, len(source))
    return _stored(marked if skip_damaged else whole, len(source))


def _stored(path: Path, num_samples: int) -> Table:
    table = _read(path, num_samples)
    if table is None:
        raise UserError(
            f"{path} cannot be read back",
            next_step="choose another directory for data.length_cache or the run, on a file system with mmap",
        )
    return table


def _read(path: Path, num_samples: int) -> Table | None:
    """A stored table; None when there is none or it is damaged, so that it is made again."""
    try:
        table = np.load(path, mmap_mode="r" if num_samples else None, allow_pickle=False)
    except NPY_ERRORS:
        return None
    return table if table.shape == (num_samples,) and table.dtype == RECORD else None


def table_path(directory: str | Path, source: Source, wording: Wording) -> Path:
    """Where the table of a source is stored."""
    name = hashlib.sha256((source.fingerprint + wording.fingerprint).encode()).hexdigest()[:24]
    return Path(directory) / f"lengths-{name}.npy"


@contextmanager
def table_writer(path: Path, num_samples: int) -> Iterator[IO[bytes]]:
    """A file for the bytes of `num_samples` RECORDs, which takes its name when the block ends."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(RECORD)
    values = {"descr": descr, "fortran_order": False, "shape": (num_samples,)}
    np.lib.format.write_array_header_1_0(header, values)
    with atomic_write(path, replace=True) as file:
        file.write(header.getvalue())
        yield file


def _write(path: Path, source: Source, wording: Wording, skip_damaged: bool) -> None:
    with table_writer(path, len(source)) as file:
        for records in _of_shards(source, wording, skip_damaged):
            file.write(records.tobytes())


def _of_shards(source: Source, wording: Wording, skip_damaged: bool) -> Iterator[Table]:
    """Records of every shard in turn."""
    num_shards = len(source.starts) - 1
    num_workers = min(len(os.sched_getaffinity(0)), num_shards, len(source) // SAMPLES_PER_WORKER)
    if num_workers < 2:
        for shard in range(num_shards):
            yield _of_shard(source, wording, shard, skip_damaged)
        return
    fresh = multiprocessing.get_context("spawn")  # a fork would copy the threads' locks of this process
    arguments = (source, wording, skip_damaged)
    with ProcessPoolExecutor(num_workers, mp_context=fresh, initializer=_start_worker, initargs=arguments) as pool:
        try:
            yield from pool.map(_in_worker, range(num_shards))
        except BrokenProcessPool as error:
            raise UserError(
                "a process that reads the lengths of the examples died",
                next_step="look whether the machine ran out of memory (dmesg), then start again",
            ) from error


def _of_shard(source: Source, wording: Wording, shard: int, skip_damaged: bool) -> Table:
    start = int(source.starts[shard])
    keys, frames = source.keys(shard), source.frames(shard)
    table = np.zeros(len(keys), RECORD)
    for i, key in enumerate(keys):
        try:
            meta = source.reader.read_meta(start + i)
            pieces = wording.pieces(source, key, meta)
            names = speaker_hash(str(meta.get("speaker", ""))), language_hash(str(meta.get("language", "")))
            sizes = (*sequence.text_size(pieces), frames[i], key_hash(key), *sequence.speech_size(pieces), *names)
        except DamagedSample:
            if not skip_damaged:
                raise
            sizes = (UNREADABLE, 0, 0, key_hash(key), 0, 0, 0, 0)
        table[i] = sizes
    return table


def key_hash(key: str) -> int:
    """A number of 64 bits that depends on the key alone."""
    return _hash(key)


def speaker_hash(name: str) -> int:
    """A number of 64 bits that depends on the name alone: two of a million voices share one at odds of 1 to 10^7."""
    return _hash(name)


def language_hash(name: str) -> int:
    """A number of 32 bits that depends on the name alone."""
    return _hash(name) >> 32


def _hash(text: str) -> int:
    # Half a surrogate pair, which UTF-8 cannot hold, becomes an escape.
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()[:8], "big")


_worker: list[Any] = []  # what `_start_worker` was given


def _start_worker(source: Source, wording: Wording, skip_damaged: bool) -> None:
    _worker[:] = source, wording, skip_damaged


def _in_worker(shard: int) -> Table:
    source, wording, skip_damaged = _worker
    return _of_shard(source, wording, shard, skip_damaged)
