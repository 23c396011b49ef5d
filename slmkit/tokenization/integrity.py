"""Whether the shards of a corpus hold what they held when they were written, and what was planned.

Every tar is read through against its sha256; the members it holds, every sample (checksum, frames, codes, text, checks)
and the order of the keys are compared with the index, the manifest and the plan. Nothing is mended.

Invariant: every shard is looked at, whatever the others are like, with no more than one sample and one index in memory.

Example:
    problems = list(check_shards(Corpus.open("shards/libritts"), planned_keys=lambda shard: None))
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from slmkit.config.tokenize import CORPUS_NAME
from slmkit.data.index import INDEX_SUFFIX, MANIFEST, Corpus, ShardIndex, index_path, shard_name
from slmkit.data.shards import SECONDS_DIGITS, Sample, ShardReader
from slmkit.errors import DamagedSample, UserError
from slmkit.files import read_json

CHUNK_BYTES = 2**20
HEADER_BYTES = 512  # of a member of a tar; its content is filled up to a multiple of this
SIZE_FIELD, KIND_FIELD = slice(124, 136), slice(156, 157)  # of the header; the size is octal
FILE_KINDS = (b"0", b"\0")
PlannedKeys = Callable[[int], Sequence[str] | None]


class Problem(NamedTuple):
    """What is wrong with a shard, or with the corpus as a whole."""

    where: str  # file name of the tar, or of another file
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def check_shards(corpus: Corpus, planned_keys: PlannedKeys, num_planned: int | None = None) -> Iterator[Problem]:
    """Read everything and say what is wrong. `planned_keys` gives the keys of a shard in order, None without a plan;
    `num_planned` is the number of shards of the plan.

    Raises UserError when the manifest does not name a corpus.
    """
    manifest = read_json(corpus.directory / MANIFEST)
    name = manifest.get("corpus")
    if not isinstance(name, str) or not CORPUS_NAME.fullmatch(name):
        raise UserError(f"{corpus.directory / MANIFEST} does not name its corpus", got=repr(name)[:100])
    if num_planned is not None and num_planned != len(corpus.shards):
        yield Problem(MANIFEST, f"it lists {len(corpus.shards)} shards, {num_planned} were planned")
    yield from _check_files(corpus, name)
    reader, totals = ShardReader(corpus), _Totals()
    sizes_bytes = [_size_bytes(corpus.directory / tar) for tar, _, _ in corpus.shards.listed]
    with tqdm(desc="reading", total=sum(sizes_bytes), unit="B", unit_scale=True, disable=None) as progress:
        for shard, (tar, _, _) in enumerate(corpus.shards.listed):
            if tar == shard_name(name, shard):  # else it may lie anywhere
                for what in _check_shard(reader, shard, planned_keys, totals):
                    yield Problem(tar, what)
            progress.update(sizes_bytes[shard])
    if totals.shards == len(corpus.shards):
        yield from totals.compare(manifest.get("counts"))


class _Totals:
    """What the indexes hold together, to be compared with the manifest."""

    def __init__(self) -> None:
        self.shards, self.samples, self.frames, self.seconds = 0, 0, 0, 0.0

    def add(self, index: ShardIndex) -> None:
        self.shards += 1
        self.samples += len(index)
        self.frames += int(index.frames.sum())
        self.seconds += index.seconds

    def compare(self, counts: object) -> Iterator[Problem]:
        assert isinstance(counts, dict), "Corpus.open has read it"
        for name, found in (("samples", self.samples), ("frames", self.frames), ("seconds", self.seconds)):
            promised = counts.get(name)
            if not isinstance(promised, int | float) or not math.isclose(promised, found, rel_tol=1e-9):
                yield Problem(MANIFEST, f"it counts {promised} {name}, the indexes {found}")


def _check_files(corpus: Corpus, name: str) -> Iterator[Problem]:
    """The manifest must list the shards 0, 1, ... of this corpus, and no more may lie beside it."""
    listed = [tar for tar, _, _ in corpus.shards.listed]
    for shard, tar in enumerate(listed):
        if tar != shard_name(name, shard):
            yield Problem(tar, f"{MANIFEST} lists it where {shard_name(name, shard)} belongs")
    known = {index_path(corpus.directory, tar).name for tar in listed}
    for path in sorted(corpus.directory.glob(f"{name}-*{INDEX_SUFFIX}")):
        if path.name not in known:
            yield Problem(path.name, f"{MANIFEST} does not list its shard")


def _check_shard(reader: ShardReader, shard: int, planned_keys: PlannedKeys, totals: _Totals) -> Iterator[str]:
    corpus = reader.corpus
    tar, sha256, _ = corpus.shards.listed[shard]
    path = corpus.directory / tar
    is_there = path.is_file()
    if not is_there:
        yield "the tar is missing"
    elif what := _changed(corpus, path, sha256):
        yield what
    try:
        index = corpus.shards[shard]
    except UserError as error:
        yield _one_line(error)
        return
    totals.add(index)
    if is_there:
        yield from _check_content(reader, shard, index, path)
    yield from _check_keys(index, shard, planned_keys)


def _changed(corpus: Corpus, path: Path, sha256: str) -> str | None:
    try:
        found = _sha256(path)
    except OSError as error:
        return f"the tar cannot be read: {error.strerror}"
    if found == sha256:
        return None
    for other, theirs, _ in corpus.shards.listed:
        if theirs == found:
            return f"the tar has the content of {other}"
    return f"the tar has changed: sha256 {found}, expected {sha256}"


def _check_content(reader: ShardReader, shard: int, index: ShardIndex, path: Path) -> Iterator[str]:
    """Compare the tar's own headers with the places in the index; where they agree, read the samples there."""
    promised = sorted(
        (int(offset), int(size))
        for suffix in index.offsets
        for offset, size in zip(index.offsets[suffix], index.sizes[suffix], strict=True)
    )
    try:
        found = _member_places(path)
    except (ValueError, OSError) as error:
        yield f"the tar cannot be read to its end: {error}"
        return
    if len(found) != len(promised):
        yield f"the tar holds {len(found)} files, the index lists {len(promised)}"
    elif found != promised:
        yield "the files of the tar lie elsewhere than the index says"
    else:
        yield from _check_samples(reader, shard, index)


def _member_places(path: Path) -> list[tuple[int, int]]:
    """Offset and size in bytes of the content of every file in a tar, by its headers alone.

    Several times faster than `tarfile`, whose names and owners nobody needs here. Raises ValueError where a header is
    none, or promises more than there is.
    """
    places, start, end = [], 0, path.stat().st_size
    with open(path, "rb", buffering=0) as file:
        while (header := os.pread(file.fileno(), HEADER_BYTES, start)).strip(b"\0"):
            try:
                size = int(header[SIZE_FIELD].strip(b"\0 "), 8)
            except ValueError as error:
                raise ValueError(f"there is no header at byte {start}") from error
            content = start + HEADER_BYTES
            if not 0 <= size <= end - content:
                raise ValueError(f"the member at byte {start} promises {size} bytes, {max(0, end - content)} are left")
            if header[KIND_FIELD] in FILE_KINDS:
                places.append((content, size))
            start = content + -(-size // HEADER_BYTES) * HEADER_BYTES
    return places


def _check_samples(reader: ShardReader, shard: int, index: ShardIndex) -> Iterator[str]:
    """Read every sample; its checksum, frames and codes are looked at by the reader."""
    first = int(reader.corpus.starts[shard])
    damaged, foreign, seconds = [], [], 0.0
    for row, key in enumerate(index.keys):
        try:
            sample = reader.read(first + row)
        except DamagedSample as error:
            damaged.append(f"{key!r}: {error.__cause__}")
            continue
        try:
            what = _difference(index, row, sample)
            seconds += float(sample.meta["seconds"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"its json is not a sample's: {error!r}"
        if what:
            foreign.append(f"{key!r}: {what}")
    if damaged:
        yield f"{len(damaged)} of {len(index)} samples cannot be read, the first {damaged[0]}"
    if foreign:
        yield f"{len(foreign)} of {len(index)} samples are not as the index says, the first {foreign[0]}"
    if not damaged and not foreign and not math.isclose(seconds, index.seconds, rel_tol=1e-9):
        yield f"the index counts {index.seconds} s of speech, its samples have {seconds} s"


def _difference(index: ShardIndex, row: int, sample: Sample) -> str | None:
    """In what a sample's text and checks are not as the index says."""
    text_chars = len(sample.meta["text"])
    if text_chars != index.text_chars[row]:
        return f"its text has {text_chars} characters, not {index.text_chars[row]}"
    checks = {**sample.meta.get("checks", {}), "seconds": round(float(sample.meta["seconds"]), SECONDS_DIGITS)}
    for name, column in index.checks.items():
        found, promised = np.float32(checks.get(name, math.nan)), column[row]
        if found != promised and not (np.isnan(found) and np.isnan(promised)):
            return f"its check {name} is {found!s}, not {promised!s}"
    return None


def _check_keys(index: ShardIndex, shard: int, planned_keys: PlannedKeys) -> Iterator[str]:
    """Every planned utterance must be a sample, in order, or a line of the ledger."""
    try:
        planned = planned_keys(shard)
    except UserError as error:
        yield _one_line(error)
        return
    if planned is None:
        return
    failed = {failure.key for failure in index.failures}
    made, expected = list(index.keys), [key for key in planned if key not in failed]
    if missing := sorted(set(expected) - set(made)):
        yield f"{len(missing)} planned utterances are missing, such as {missing[0]!r}"
    if unplanned := sorted((set(made) | failed) - set(planned)):
        yield f"{len(unplanned)} utterances are not in the plan, such as {unplanned[0]!r}"
    if not missing and not unplanned and made != expected:
        row = next((i for i, (a, b) in enumerate(zip(made, expected, strict=False)) if a != b), len(expected))
        yield f"the order is not the plan's from sample {row} on"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _one_line(error: UserError) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if not line.startswith("  next:"))
