"""The samples of a sound file, from any sample on, in blocks, and what its header promises.

A file is decoded forward, block by block. To begin in the middle, it is sought to WARM_UP_SEC before and decoded from
there, since the decoders of lossy formats need some of what came before; where libsndfile does not seek exactly, it is
decoded from its beginning. Knows nothing of resampling or limits.

Not done: an index of places in MP3 files. A seek reads the headers of all frames before, 0.1 s of one core for half an
hour; a file without a length is counted first, 0.3 s for an hour.

Invariant: the samples from `first` on are those a decoder gives that began at the start of the file, to 1e-6.

Example:
    with closing(Decoder(Path("a.mp3"), "a.mp3")) as decoder:
        for block in decoder.blocks(decoder.sample_rate * 60, None): ...
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from slmkit.audio import mp3, ogg, units
from slmkit.errors import BadSample

BLOCK_VALUES = 2**18  # samples times channels decoded at a time
# MP3 takes bits from up to half a second before, and Opus forgets a start in silence within two.
WARM_UP_SEC = 4.0
# Ways of writing in which libsndfile seeks exactly (apart from warming up); not, for example, GSM in WAV.
SEEKING = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"} | {
    "MPEG_LAYER_III",
    "VORBIS",
    "OPUS",
}
# Lengths from here up stand for "unknown" in files written to a pipe, and in libsndfile.
UNKNOWN_BYTES = 2**31 - 2**16
UNKNOWN_FRAMES = 2**62
# libsndfile shortens what these headers promise to what the file holds, and says so only in its log.
SHORTENED = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
SHORTENED_RF64 = re.compile(r"Calculated frame count (\d+) does not match value from 'ds64' chunk of (\d+)")


class _ForwardFile(soundfile.SoundFile):
    """A sound file read from start to end. soundfile seeks after every read of a seekable file, which breaks the bit
    reservoir of MP3 at each block and fails in FLAC files of unknown length."""

    def seekable(self) -> bool:
        return False


class Decoder:
    """An open sound file; a stream is read from its beginning. Raises BadSample "unreadable" when it is none."""

    def __init__(self, source: str | Path | BinaryIO, name: str) -> None:
        self._files = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            self._file = _open(source, name, opened)
            self._files = opened.pop_all()
        self.sample_rate: int = self._file.samplerate
        self.channels: int = self._file.channels
        self.subtype: str = self._file.subtype
        self.num_samples: int | None = self._file.frames if self._file.frames < UNKNOWN_FRAMES else None
        self.error = ""  # what the decoder says where it gave up

    def close(self) -> None:
        """Close what this object opened."""
        self._files.close()

    def promised_samples(self) -> int:
        """Samples per channel the header promises, 0 when it does not say."""
        for found in SHORTENED.finditer(self._file.extra_info):
            promised, present = (int(number) for number in found.groups())
            if present < promised < UNKNOWN_BYTES:
                return self._file.frames * promised // max(1, present) + 1
        if found_rf64 := SHORTENED_RF64.search(self._file.extra_info):
            return int(found_rf64[2])
        return self.num_samples or 0

    def blocks(self, first: int, last: int | None) -> Iterator[np.ndarray]:
        """Blocks, float32 [samples, channels], of the samples from `first` to `last` (None: the end), or to where the
        decoder gives up. Once for each object."""
        place = self._seek(first)
        while last is None or place < last:
            wanted = max(1, BLOCK_VALUES // self.channels)
            block = self._read(wanted if last is None else min(wanted, last - place))
            if block is None:
                return
            if place + len(block) > first:
                yield block[max(0, first - place) :]
            place += len(block)

    def _seek(self, first: int) -> int:
        """Go to a place from which decoding is right once `first` is reached, and return it."""
        place = first - units.seconds_to_samples(WARM_UP_SEC, self.sample_rate)
        if place <= 0 or self.num_samples is None or self.subtype not in SEEKING:
            return 0
        try:
            return self._file.seek(min(place, self.num_samples))
        except soundfile.SoundFileError as error:
            self.error = f"; the decoder says: {error}"
            return first

    def _read(self, num_samples: int) -> np.ndarray | None:
        """The next block, float32 [samples, channels], None at the end or where the decoder gives up."""
        if self.error:
            return None
        try:
            block = self._file.read(num_samples, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            self.error = f"; the decoder says: {error}"
            return None
        return block if len(block) else None


def _open(source: str | Path | BinaryIO, name: str, opened: contextlib.ExitStack) -> soundfile.SoundFile:
    """The file, by way of `mp3.mended` where libsndfile would guess its length or not find its beginning."""
    # TypeError and ValueError come from soundfile itself, for example for a headerless .raw file.
    refused: Exception | None = None
    try:
        if not isinstance(source, str | Path):
            source.seek(0)
        file = opened.enter_context(_ForwardFile(source))
        if file.format not in ("MP3", "OGG"):
            return file
    except (soundfile.SoundFileError, TypeError, ValueError, OSError) as error:
        refused = error
    try:
        stream = opened.enter_context(_content(source))
        place = stream.tell()
        if better := mp3.mended(stream):
            return opened.enter_context(_ForwardFile(better))
        chained = ogg.is_chained(stream)
        stream.seek(place)  # `file` may read the same stream
    except (soundfile.SoundFileError, OSError) as error:
        refused = refused or error
    if refused:
        raise BadSample("unreadable", f"{name} cannot be read as audio ({refused})") from refused
    if chained:
        raise BadSample("unreadable", f"{name} holds several Ogg streams in a row; only the first would be read")
    return file


@contextlib.contextmanager
def _content(source: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    """The bytes of a source."""
    if isinstance(source, str | Path):
        with open(source, "rb") as file:
            yield file
    else:
        yield source
