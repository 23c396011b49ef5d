"""Checks that the shards of a corpus are as they were written and planned.

Every tar is read through against its sha256; the members it holds, every sample (checksum, frames, codes, text, checks)
and the order of the keys are compared with the index, the manifest and the plan. Nothing is repaired.

Invariant: every shard is looked at, whatever the others are like, with no more than one sample and one index in memory.

Example:
    problems = list(check_shards(Corpus.open("shards/libritts"), planned_keys=lambda shard: None))
"""

import math
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from slmkit.config.tokenize import CORPUS_NAME
from slmkit.data.index import INDEX_SUFFIX, MANIFEST, Corpus, ShardIndex, index_path, shard_name
from slmkit.data.shards import SECONDS_DIGITS, Sample, ShardReader
from slmkit.errors import DamagedSample, UserError
from slmkit.files import read_json, sha256_file

PlannedKeys = Callable[[int], Sequence[str] | None]


class ShardProblem(NamedTuple):
    """What is wrong with a shard, or with the corpus as a whole."""

    where: str  # file name of the tar, or of another file
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def check_shards(corpus: Corpus, planned_keys: PlannedKeys, num_planned: int | None = None) -> Iterator[ShardProblem]:
    """Read everything and say what is wrong. `planned_keys` gives the keys of a shard in order, None without a plan;
    `num_planned` is the number of shards of the plan.

    Raises UserError when the manifest does not name a corpus.
    """
    manifest = read_json(corpus.directory / MANIFEST)
    name = manifest.get("corpus")
    if not isinstance(name, str) or not CORPUS_NAME.fullmatch(name):
        raise UserError(f"{corpus.directory / MANIFEST} does not name its corpus", got=repr(name)[:100])
    if num_planned is not None and num_planned != len(corpus.shards):
        yield ShardProblem(MANIFEST, f"it lists {len(corpus.shards)} shards, {num_planned} were planned")
    # The manifest must list the shards 0, 1, ... of this corpus, and no more may lie beside it.
    listed = [tar for tar, _, _ in corpus.shards.listed]
    for shard, tar in enumerate(listed):
        if tar != shard_name(name, shard):
            yield ShardProblem(tar, f"{MANIFEST} lists it where {shard_name(name, shard)} belongs")
    known = {index_path(corpus.directory, tar).name for tar in listed}
    for path in sorted(corpus.directory.glob(f"{name}-*{INDEX_SUFFIX}")):
        if path.name not in known:
            yield ShardProblem(path.name, f"{MANIFEST} does not list its shard")

    reader, num_read = ShardReader(corpus), 0
    totals = {"samples": 0, "frames": 0, "seconds": 0.0}  # of the indexes
    paths = [corpus.directory / tar for tar in listed]
    sizes_bytes = [path.stat().st_size if path.is_file() else 0 for path in paths]
    with tqdm(desc="reading", total=sum(sizes_bytes), unit="B", unit_scale=True, disable=None) as progress:
        for shard, tar in enumerate(listed):
            if tar == shard_name(name, shard):  # else it may lie anywhere
                is_there = paths[shard].is_file()
                if not is_there:
                    yield ShardProblem(tar, "the tar is missing")
                elif what := _changed(corpus, shard):
                    yield ShardProblem(tar, what)
                try:
                    index = corpus.shards[shard]
                except UserError as error:
                    yield ShardProblem(tar, _one_line(error))
                else:
                    num_read += 1
                    totals["samples"] += len(index)
                    totals["frames"] += int(index.frames.sum())
                    totals["seconds"] += index.seconds
                    found = list(_check_content(reader, shard, index)) if is_there else []
                    for what in [*found, *_check_keys(index, shard, planned_keys)]:
                        yield ShardProblem(tar, what)
            progress.update(sizes_bytes[shard])
    if num_read == len(corpus.shards):
        counts = manifest.get("counts")
        assert isinstance(counts, dict), "Corpus.open has read it"
        for unit, total in totals.items():
            promised = counts.get(unit)
            if not isinstance(promised, int | float) or not math.isclose(promised, total, rel_tol=1e-9):
                yield ShardProblem(MANIFEST, f"it counts {promised} {unit}, the indexes {total}")


def _changed(corpus: Corpus, shard: int) -> str | None:
    """What the sha256 of a tar says, if it is not the one that the manifest lists."""
    tar, expected, _ = corpus.shards.listed[shard]
    try:
        found = sha256_file(corpus.directory / tar)
    except OSError as error:
        return f"the tar cannot be read: {error.strerror}"
    if found == expected:
        return None
    for other, theirs, _ in corpus.shards.listed:
        if theirs == found:
            return f"the tar has the content of {other}"
    return f"the tar has changed: sha256 {found}, expected {expected}"


def _check_content(reader: ShardReader, shard: int, index: ShardIndex) -> Iterator[str]:
    """Compare the tar's own headers with the places in the index; where they agree, read the samples there."""
    promised = sorted(
        (int(offset), int(size))
        for suffix in index.offsets
        for offset, size in zip(index.offsets[suffix], index.sizes[suffix], strict=True)
    )
    found = []
    try:
        with tarfile.open(reader.corpus.directory / index.tar, "r:") as tar:
            while (member := tar.next()) is not None:
                if member.isfile():
                    found.append((member.offset_data, member.size))
                tar.members = []  # type: ignore[attr-defined] # else it keeps all, and a shard has very many
    except (tarfile.TarError, OSError) as error:
        yield f"the tar cannot be read to its end: {error}"
        return
    if len(found) != len(promised):
        yield f"the tar holds {len(found)} files, the index lists {len(promised)}"
    elif found != promised:
        yield "the files of the tar lie elsewhere than the index says"
    else:
        yield from _check_samples(reader, shard, index)


def _check_samples(reader: ShardReader, shard: int, index: ShardIndex) -> Iterator[str]:
    """Read every sample; the reader looks at its checksum, frames and codes."""
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
    """How a sample's text and checks differ from what the index says, if they do."""
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


def _one_line(error: UserError) -> str:
    return "; ".join(line.strip() for line in str(error).splitlines() if not line.startswith("  next:"))
