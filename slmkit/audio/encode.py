"""A wave as the bytes of a sound file, whole or piece by piece, to be sent instead of stored.

Knows nothing of files on a disk (see `io.write_wav`). All sound is mono; samples beyond full scale are clipped.

A WAV file that is sent while it is made cannot tell its length. Its header then holds the largest number in both
places, which players and decoders take for "until the end".

MP3, Opus (in Ogg), AAC (in ADTS) and FLAC are FFmpeg's; where a format does not know the sample rate, the sound is
resampled to the next that it knows.

Invariant: equal waves give equal bytes; the pieces of a WAV, PCM or FLAC file hold the samples of the whole file.

Example:
    encoder = PieceEncoder(16_000, "mp3")
    for piece in pieces:
        socket.sendall(encoder.push(piece))
    socket.sendall(encoder.finish())
"""

import io
import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PCM16_SCALE = 32768  # full scale in 16-bit steps
UNKNOWN_BYTES = 2**32 - 1
WAV_HEADER_BYTES = 44


class Format(NamedTuple):
    """A kind of sound file, with FFmpeg's names of container and encoder; WAV and PCM need none."""

    content_type: str
    container: str = ""
    codec: str = ""


FORMATS = {
    "wav": Format("audio/wav"),
    "pcm": Format("audio/pcm"),
    "flac": Format("audio/flac", "flac", "flac"),
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame"),
    "opus": Format("audio/ogg", "ogg", "libopus"),
    "aac": Format("audio/aac", "adts", "aac"),
}
BITS_PER_SEC = 96_000  # of lossy formats, or the most that one has at its rate: good for one voice
OGG_PAGE_USEC = 200_000  # of sound that FFmpeg holds back until a page of an Ogg file is full


def pcm16(wave: npt.ArrayLike) -> npt.NDArray[np.int16]:
    """16-bit samples, little-endian [samples], of float [samples] in [-1, 1] (clipped to it).

    Raises ValueError when `wave` is not one-dimensional or not finite.
    """
    wave = np.asarray(wave, dtype=np.float64)
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise ValueError(f"expected a finite wave of shape [samples], got shape {wave.shape}")
    return np.clip(np.rint(wave * PCM16_SCALE), -PCM16_SCALE, PCM16_SCALE - 1).astype("<i2")


def wav_header(sample_rate: int, num_samples: int | None) -> bytes:
    """What stands before the samples of a mono 16-bit WAV file; `num_samples` None: not known yet."""
    num_bytes = UNKNOWN_BYTES if num_samples is None else 2 * num_samples
    riff_bytes = UNKNOWN_BYTES if num_samples is None else WAV_HEADER_BYTES - 8 + num_bytes
    pcm, channels, width = 1, 1, 2
    form = struct.pack("<HHIIHH", pcm, channels, sample_rate, sample_rate * width, width, 8 * width)
    return struct.pack("<4sI4s4sI16s4sI", b"RIFF", riff_bytes, b"WAVE", b"fmt ", 16, form, b"data", num_bytes)


def encoded(wave: npt.ArrayLike, sample_rate: int, name: str) -> bytes:
    """The file of a whole wave, float [samples], in one of `FORMATS`: WAV and FLAC of 16 bits, PCM without a header.

    Raises ValueError as `pcm16` does.
    """
    steps = pcm16(wave)
    if name == "pcm":
        return steps.tobytes()
    if name == "wav":
        return wav_header(sample_rate, len(steps)) + steps.tobytes()
    file = io.BytesIO()
    writer = _Writer(file, sample_rate, FORMATS[name])
    writer.write(steps)
    writer.close()
    return file.getvalue()


class PieceEncoder:
    """The bytes of a sound file in one of `FORMATS`, as its wave comes."""

    def __init__(self, sample_rate: int, name: str) -> None:
        self._made = bytearray(wav_header(sample_rate, None) if name == "wav" else b"")
        self._writer = _Writer(self, sample_rate, FORMATS[name]) if FORMATS[name].codec else None

    def push(self, wave: npt.ArrayLike) -> bytes:
        """What float [samples] adds to the file; at times nothing yet. Raises ValueError as `pcm16` does."""
        steps = pcm16(wave)
        if self._writer is None:
            self._made += steps.tobytes()
        else:
            self._writer.write(steps)
        return self._taken()

    def finish(self) -> bytes:
        """The end of the file. To be called once."""
        if self._writer is not None:
            self._writer.close()
        return self._taken()

    def write(self, content: bytes) -> int:
        """For FFmpeg, to which this is a file."""
        self._made += content
        return len(content)

    def _taken(self) -> bytes:
        made, self._made = bytes(self._made), bytearray()
        return made


class _Writer:
    """16-bit samples into a file of one of FFmpeg's formats."""

    def __init__(self, file: Any, sample_rate: int, form: Format) -> None:
        import av  # takes 60 ms, and most that is written is WAV

        options = {"fflags": "+bitexact"}  # or an Ogg file has a random number in it
        if form.container == "ogg":
            options["page_duration"] = str(OGG_PAGE_USEC)
        self._container = av.open(file, "w", format=form.container, options=options)
        known = av.Codec(form.codec, "w").audio_rates or [sample_rate]
        rate = min((rate for rate in known if rate >= sample_rate), default=max(known))
        stream: Any = self._container.add_stream(form.codec, rate=rate, layout="mono")
        stream.bit_rate = BITS_PER_SEC
        self._stream, self._make_frame = stream, av.AudioFrame.from_ndarray
        self._sample_rate, self._num_samples = sample_rate, 0

    def write(self, steps: npt.NDArray[np.int16]) -> None:
        """Take int16 [samples]."""
        if len(steps):
            frame = self._make_frame(steps[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = self._sample_rate, self._num_samples
            self._num_samples += len(steps)
            self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()
