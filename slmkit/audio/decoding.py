"""Sound files read in blocks, from any sample on, and the number of samples that their headers give.

libsndfile reads WAV and its kin, FLAC, AIFF, CAF, W64, AU and NIST/SPHERE; all else FFmpeg reads (see `ffmpeg`). The
first bytes of a file decide, never its name.

A file is decoded forward. To begin in the middle, it is sought to WARM_UP_SEC before and decoded from there, since the
decoders of lossy formats need some of what came before; where a seek is not exact, it is decoded from its beginning.

Invariant: the samples from `first` on are those a decoder gives that began at the start of the file, to 1e-6; but the
noise that AAC tells its decoder to make up is made up anew.

Example:
    with closing(open_decoder(Path("a.mp3"), "a.mp3")) as decoder:
        for block in decoder.blocks(decoder.sample_rate * 60, None): ...
"""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from slmkit.audio import units
from slmkit.errors import BadSample

BLOCK_VALUES = 2**18  # samples times channels decoded at a time
# MP3 takes bits from up to half a second before, and Opus forgets a start in silence within two.
WARM_UP_SEC = 4.0
DECODER_SAYS = "; the decoder says: "
HEAD_BYTES = 16  # enough to tell a format
# How a file begins -> the name of its format in FFmpeg.
FFMPEG_FORMATS = {
    re.compile(rb"OggS"): "ogg",
    re.compile(rb"(?s)....(?:ftyp|moov|mdat|wide|free|skip)"): "mov",
    re.compile(rb"\x1aE\xdf\xa3"): "matroska",
    re.compile(rb"0&\xb2u\x8ef\xcf\x11"): "asf",
    re.compile(rb"#!AMR"): "amr",
    re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"): "aac",
    re.compile(rb"\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd]"): "mp3",
}
# Ways of writing in which libsndfile seeks exactly; not, for example, GSM in WAV.
SEEKING_SUBTYPES = {"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"}
# Lengths from here up stand for "unknown" in files written to a pipe, and in libsndfile.
UNKNOWN_BYTES = 2**31 - 2**16
UNKNOWN_SAMPLES = 2**62
# libsndfile shortens what these headers promise to what the file holds, and says so only in its log.
SHORTENED = re.compile(r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
SHORTENED_RF64 = re.compile(r"Calculated frame count (\d+) does not match value from 'ds64' chunk of (\d+)")
# A WAV file of no samples that are followed by something other than the next chunk: it was written to a pipe.
PIPED_WAV = re.compile(rb"(?s)(RIFF....WAVE.*?data)\0\0\0\0(?![A-Za-z0-9 ]{4}).")
# What ADPCM and GSM fill their last block with is not sound; a WAV file says the length without it.
WAV_LENGTH = re.compile(rb"(?s)RIFF....WAVE.*?fact\x04\0\0\0(....)")
BLOCK_SUBTYPES = {"IMA_ADPCM", "MS_ADPCM", "GSM610"}
MAX_BLOCK_SAMPLES = 2**12
HEADER_BYTES = 2**12  # where the chunks before the samples of a WAV file are looked for
MAX_PIPED_BYTES = 2**30  # of such a file, which is read into memory


class Decoder:
    """An open sound file, as one of the libraries reads it."""

    sample_rate: int  # Hz
    channels: int
    subtype: str = ""  # what libsndfile calls the way samples are written
    num_samples: int | None = None  # the exact length per channel, None where the file does not say
    promised_samples: int = 0  # with fewer per channel the file is cut short
    error: str = ""  # what the decoder says where it gave up
    file: Any  # of the library
    files: contextlib.ExitStack  # closed with the decoder

    def close(self) -> None:
        """Close what was opened."""
        self.files.close()

    def blocks(self, first: int, last: int | None) -> Iterator[np.ndarray]:
        """Blocks, float32 [samples, channels], of the samples from `first` to `last` (None: the end), or to where the
        decoder gives up. Once for each object."""
        ends = [end for end in (last, self.num_samples) if end is not None]
        place = self._seek(first)
        while not ends or place < min(ends):
            wanted = max(1, BLOCK_VALUES // self.channels)
            block = self._read(min([wanted, *(end - place for end in ends)]))
            if block is None:
                return
            if place + len(block) > first:
                yield block[max(0, first - place) :]
            place += len(block)

    def _seek(self, first: int) -> int:
        """Go to a place from which decoding is right once `first` is reached, and return it."""
        raise NotImplementedError

    def _read(self, num_samples: int) -> np.ndarray | None:
        """The next block, float32 [at most num_samples, channels], None at the end or where the decoder gives up."""
        raise NotImplementedError


def open_decoder(source: str | Path | BinaryIO, name: str) -> Decoder:
    """The decoder of a file, or of a stream from its beginning. Raises BadSample "unreadable" when it is no audio."""
    with contextlib.ExitStack() as opened:
        path = source if isinstance(source, str | Path) else None
        try:
            stream = source if not isinstance(source, str | Path) else opened.enter_context(open(source, "rb"))
            decoder = _decoder_of(stream, path)
        except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
            raise BadSample("unreadable", f"{name} cannot be read as audio ({error})") from error
        decoder.files = opened.pop_all()
        decoder.files.callback(lambda: decoder.file.close())  # of that time: a seek may have opened it anew
    return decoder


def _decoder_of(stream: BinaryIO, path: str | Path | None) -> Decoder:
    start, head = _after_id3(stream)
    found = [name for begins, name in FFMPEG_FORMATS.items() if begins.match(head)]
    refused: Exception | None = None
    if not found:
        try:
            return Libsndfile(path or stream, stream)
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            refused = error  # TypeError and ValueError for example for a headerless .raw file
    from slmkit.audio.ffmpeg import FFmpeg  # takes 60 ms, and most corpora do without

    try:
        return FFmpeg(stream, found[0] if found else "mp3", start)  # an MP3 file may begin with anything
    except ValueError as error:
        raise refused or error from error


def _after_id3(stream: BinaryIO) -> tuple[int, bytes]:
    """The first byte after an ID3v2 tag at the beginning, and what begins there."""
    stream.seek(0)
    head = stream.read(HEAD_BYTES)
    if head[:3] != b"ID3" or len(head) < 10:
        return 0, head
    start = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
    stream.seek(start)
    return start, stream.read(HEAD_BYTES)


class _ForwardFile(soundfile.SoundFile):
    """A sound file read from start to end. soundfile seeks after every read of a seekable file, which fails in FLAC
    files of unknown length."""

    def seekable(self) -> bool:
        return False


class Libsndfile(Decoder):
    """`source` is the name of the file, if it has one, since libsndfile reads a file faster than through Python."""

    def __init__(self, source: str | Path | BinaryIO, stream: BinaryIO) -> None:
        stream.seek(0)
        head = stream.read(HEADER_BYTES)
        stream.seek(0)  # libsndfile begins where the stream stands, and goes on from there
        self.file = _ForwardFile(source)
        if self.file.frames == 0 and (mended := _of_unknown_length(stream, head)):
            self.file.close()
            self.file = _ForwardFile(mended)
        if self.file.format in ("MP3", "OGG"):  # found behind something else
            self.file.close()
            raise ValueError("MP3 or Ogg data follows other data")
        self.sample_rate, self.channels = self.file.samplerate, self.file.channels
        self.subtype = self.file.subtype
        if self.file.frames < UNKNOWN_SAMPLES:
            self.num_samples = self.promised_samples = self.file.frames
        if self.subtype in BLOCK_SUBTYPES and self.num_samples and (said := WAV_LENGTH.match(head)):
            length = int.from_bytes(said[1], "little")
            if length and 0 <= self.num_samples - length < MAX_BLOCK_SAMPLES:
                self.num_samples = self.promised_samples = length
        for found in SHORTENED.finditer(self.file.extra_info):
            promised, present = (int(number) for number in found.groups())
            if present < promised < UNKNOWN_BYTES:
                self.promised_samples = self.file.frames * promised // max(1, present) + 1
        if found_rf64 := SHORTENED_RF64.search(self.file.extra_info):
            self.promised_samples = int(found_rf64[2])

    def _seek(self, first: int) -> int:
        place = first - units.seconds_to_samples(WARM_UP_SEC, self.sample_rate)
        if place <= 0 or self.num_samples is None or self.subtype not in SEEKING_SUBTYPES:
            return 0
        try:
            return self.file.seek(min(place, self.num_samples))
        except soundfile.SoundFileError as error:
            self.error = f"{DECODER_SAYS}{error}"
            return first

    def _read(self, num_samples: int) -> np.ndarray | None:
        if self.error:
            return None
        try:
            block = self.file.read(num_samples, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            self.error = f"{DECODER_SAYS}{error}"
            return None
        return block if len(block) else None


def _of_unknown_length(stream: BinaryIO, head: bytes) -> io.BytesIO | None:
    """A WAV file whose header says that it holds nothing, with one that leaves it open; None where nothing follows."""
    found = PIPED_WAV.match(head)
    if found is None or stream.seek(0, io.SEEK_END) > MAX_PIPED_BYTES:
        return None
    stream.seek(0)
    content = bytearray(stream.read())
    content[found.end(1) : found.end(1) + 4] = b"\xff" * 4
    return io.BytesIO(content)
