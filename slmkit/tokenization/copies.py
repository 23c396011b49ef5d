"""Utterances of a corpus decoded again, beside the audio they were made of.

For each: both waves as WAV files, a picture of their log-mel levels, and the log-mel distance between them. A distance
alone says little, so the same is measured between each source and the decoded speech of another utterance: that is what
a wrong pairing would give.

It knows nothing of plans or files of audio: the caller gives the source's wave.

Invariant: no more than five waves are in memory at a time.

Example:
    copies = make_copies(ShardReader(corpus), codec, [3, 14], open_source, Path("report"))
    copies[0].distance_db, copies[0].other_db       # 7.1, 15.8
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slmkit import plot
from slmkit.audio.io import write_wav
from slmkit.audio.mel import HOP_SEC, log_mel, log_mel_distance
from slmkit.audio.units import samples_to_seconds
from slmkit.codec.base import Codec, decode_alone
from slmkit.data.ledger import Failure, printable
from slmkit.data.shards import Sample, ShardReader
from slmkit.errors import UserError
from slmkit.files import atomic_write
from slmkit.tokenization.corpus_job import CorpusJob
from slmkit.tokenization.decode import Decoding
from slmkit.tokenization.decode import decode as decode_item
from slmkit.tokenization.plan import Plan

OpenSource = Callable[[int, str], np.ndarray | None]
SOURCE, DECODED, PICTURE = "{}-source.wav", "{}-decoded.wav", "{}-mel.png"


class Copy(NamedTuple):
    """An utterance that was decoded. File names are relative to the report; texts can be written as UTF-8."""

    name: str  # of its files
    shard: str  # file name of the tar
    key: str
    text: str
    speaker: str
    language: str
    source: str  # where it came from
    seconds: float  # of the decoded speech
    checks: dict[str, float]
    distance_db: float | None  # to its source; None where there is no source
    other_db: float | None = None  # from its source to another utterance's decoded speech; None where there is none

    @property
    def is_doubtful(self) -> bool:
        """Whether the decoded speech is no more like its source than that of another utterance is."""
        return self.distance_db is not None and self.other_db is not None and self.distance_db >= self.other_db


def make_copies(
    reader: ShardReader, codec: Codec, numbers: Sequence[int], open_source: OpenSource, directory: Path
) -> list[Copy]:
    """Decode the samples with these numbers and write their files to `directory`; samples that cannot be read are left
    out. `open_source(shard, key)` gives a wave at the codec's rate, or None where it is not to be had.
    """
    copies: list[Copy] = []
    rate, first, previous = codec.spec.sample_rate, None, None
    for number in numbers:
        try:
            sample = reader.read(number)
        except UserError:  # told by `integrity.check_shards`
            continue
        shard, _ = reader.corpus.locate(number)
        source, decoded = open_source(shard, sample.key), decode(codec, sample)
        copy = _copy(f"{len(copies):04d}", reader.corpus.shards[shard].tar, sample, source, decoded, rate)
        _write_files(directory, copy.name, source, decoded, rate)
        if source is not None:
            if previous is None:
                first = copy, source
            else:
                copy = copy._replace(other_db=_distance_to_other(source, previous, rate))
            previous = decoded
        copies.append(copy)
    if first is not None and previous is not None and sum(copy.distance_db is not None for copy in copies) > 1:
        copy, source = first
        copies[copies.index(copy)] = copy._replace(other_db=_distance_to_other(source, previous, rate))
    return copies


def decode(codec: Codec, sample: Sample) -> np.ndarray:
    """The speech of a sample, float32 [samples]."""
    speaker = np.zeros(0, np.float32) if sample.speaker is None else sample.speaker
    return decode_alone(codec, sample.codes, speaker)


def _copy(
    name: str, tar: str, sample: Sample, source: np.ndarray | None, decoded: np.ndarray, sample_rate: int
) -> Copy:
    return Copy(
        name=name,
        shard=tar,
        key=printable(sample.key),
        text=_text(sample.meta, "text"),
        speaker=_text(sample.meta, "speaker"),
        language=_text(sample.meta, "language"),
        source=_text(sample.meta, "source"),
        seconds=samples_to_seconds(len(decoded), sample_rate),
        checks=_checks(sample.meta),
        distance_db=None if source is None else log_mel_distance(source, decoded, sample_rate),
    )


def _write_files(directory: Path, name: str, source: np.ndarray | None, decoded: np.ndarray, sample_rate: int) -> None:
    waves = {"decoded": decoded} if source is None else {"source": source, "decoded": decoded}
    if source is not None:
        write_wav(directory / SOURCE.format(name), source, sample_rate)
    write_wav(directory / DECODED.format(name), decoded, sample_rate)
    levels = {title: log_mel(wave, sample_rate) for title, wave in waves.items()}
    with atomic_write(directory / PICTURE.format(name)) as file:
        file.write(plot.png(plot.spectra(levels, sec_per_column=HOP_SEC)))


def _distance_to_other(source: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float | None:
    """Distance to another utterance as far as both go, so that a difference in length does not count by itself."""
    shared = min(len(source), len(decoded))
    if samples_to_seconds(shared, sample_rate) < HOP_SEC:
        return None
    return log_mel_distance(source[:shared], decoded[:shared], sample_rate)


def _text(meta: dict[str, Any], column: str) -> str:
    return printable(str(meta.get(column, "")))


def _checks(meta: dict[str, Any]) -> dict[str, float]:
    """The checks that are finite numbers: the sample may be a stranger's."""
    checks = meta.get("checks")
    if not isinstance(checks, dict):
        return {}
    return {
        printable(name): float(value)
        for name, value in sorted(checks.items())
        if isinstance(value, int | float) and np.isfinite(value)
    }


def planned_audio(directory: str | Path, sample_rate: int) -> OpenSource:
    """Opens the audio an utterance was made of, at `sample_rate`; gives None where the corpus has no plan, or the file
    is gone."""
    if not Plan.exists(directory):
        return lambda shard, key: None
    plan, settings = Plan.open(directory), CorpusJob.open(directory).settings
    # With the job's own max_sec, which bounds where a long recording is cut.
    decoding = Decoding(sample_rate=sample_rate, max_sec=settings.get("max_sec"))

    def open_source(shard: int, key: str) -> np.ndarray | None:
        item = next((item for item in plan.items(shard) if item.key == key), None)
        if item is None:
            return None
        decoded = decode_item(item, decoding)
        return None if isinstance(decoded, Failure) else decoded.wave

    return open_source
