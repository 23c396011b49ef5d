"""Utterances of a corpus decoded again, beside the audio they were made of.

For each: both waves as WAV files, a picture of their log-mel spectra, and the log-mel distance between them. A distance
alone says little, so the same is measured between each source and the decoded speech of another utterance: that is what
a wrong pairing would give.

Invariant: no more than five waves are in memory at a time.

Example:
    copies = make_copies(ShardReader(corpus), codec, [3, 14], planned_audio("shards", 16000), Path("report"))
    copies[0].distance_db, copies[0].other_db       # 7.1, 15.8
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from slmkit import plot
from slmkit.audio.io import write_wav
from slmkit.audio.mel import HOP_SEC, log_mel, log_mel_distance
from slmkit.audio.units import samples_to_seconds
from slmkit.codec.base import Codec, decode_alone
from slmkit.data.ledger import Failure, printable
from slmkit.data.shards import ShardReader
from slmkit.errors import UserError
from slmkit.files import atomic_write
from slmkit.tokenization import decode
from slmkit.tokenization.corpus_job import CorpusJob
from slmkit.tokenization.plan import TokenizationPlan

OpenSource = Callable[[int, str], np.ndarray | None]
SOURCE_WAV, DECODED_WAV, PICTURE_PNG = "{}-source.wav", "{}-decoded.wav", "{}-mel.png"


class Copy(NamedTuple):
    """An utterance that was decoded. Texts can be written as UTF-8."""

    name: str  # of its files: SOURCE_WAV, DECODED_WAV and PICTURE_PNG
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
    """Decode the samples with these numbers and write their files to `directory`.

    Samples that cannot be read are left out: `integrity.check_shards` reports them. `open_source(shard, key)` gives
    the wave an utterance was made of, float32 [samples] at the codec's rate, or None where it is not available.
    """
    copies: list[Copy] = []
    compared: list[int] = []  # places of the copies that have a source
    rate, first_source, previous = codec.spec.sample_rate, None, None
    for number in numbers:
        try:
            sample = reader.read(number)
        except UserError:
            continue
        shard, _ = reader.corpus.locate(number)
        source = open_source(shard, sample.key)
        speaker = np.zeros(0, np.float32) if sample.speaker is None else sample.speaker
        decoded = decode_alone(codec, sample.codes, speaker)
        checks = sample.meta.get("checks")
        text, spoken_by, language, origin = (
            printable(str(sample.meta.get(name, ""))) for name in ("text", "speaker", "language", "source")
        )
        copy = Copy(
            name=f"{len(copies):04d}",
            shard=reader.corpus.shards[shard].tar,
            key=printable(sample.key),
            text=text,
            speaker=spoken_by,
            language=language,
            source=origin,
            seconds=samples_to_seconds(len(decoded), rate),
            checks={
                printable(name): float(value)  # the sample may be a stranger's
                for name, value in sorted(checks.items() if isinstance(checks, dict) else ())
                if isinstance(value, int | float) and np.isfinite(value)
            },
            distance_db=None if source is None else log_mel_distance(source, decoded, rate),
        )
        if source is not None:
            write_wav(directory / SOURCE_WAV.format(copy.name), source, rate)
        write_wav(directory / DECODED_WAV.format(copy.name), decoded, rate)
        waves = {"source": source, "decoded": decoded}
        levels = {title: log_mel(wave, rate) for title, wave in waves.items() if wave is not None}
        with atomic_write(directory / PICTURE_PNG.format(copy.name)) as file:
            file.write(plot.png(plot.spectra(levels, sec_per_column=HOP_SEC)))
        if source is not None:
            if previous is None:
                first_source = source
            else:
                copy = copy._replace(other_db=_distance_to_other(source, previous, rate))
            compared.append(len(copies))
            previous = decoded
        copies.append(copy)
    if len(compared) > 1 and first_source is not None and previous is not None:
        # The first is compared with the last, as each other one is with the one before it.
        other_db = _distance_to_other(first_source, previous, rate)
        copies[compared[0]] = copies[compared[0]]._replace(other_db=other_db)
    return copies


def _distance_to_other(source: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float | None:
    """Distance to another utterance as far as both go, so that a difference in length does not count by itself."""
    shared = min(len(source), len(decoded))
    if samples_to_seconds(shared, sample_rate) < HOP_SEC:
        return None
    return log_mel_distance(source[:shared], decoded[:shared], sample_rate)


def planned_audio(directory: str | Path, sample_rate: int) -> OpenSource:
    """Opens the audio an utterance was made of, at `sample_rate` Hz; gives None where the corpus has no plan, or the
    file is gone."""
    if not TokenizationPlan.exists(directory):
        return lambda shard, key: None
    plan, settings = TokenizationPlan.open(directory), CorpusJob.open(directory).settings
    # With the job's own max_sec, which bounds where a long recording is cut.
    decoding = decode.Decoding(sample_rate=sample_rate, max_sec=settings.get("max_sec"))

    def open_source(shard: int, key: str) -> np.ndarray | None:
        item = next((item for item in plan.items(shard) if item.key == key), None)
        if item is None:
            return None
        decoded = decode.decode(item, decoding)
        return None if isinstance(decoded, Failure) else decoded.wave

    return open_source
