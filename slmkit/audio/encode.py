"""A wave as the bytes of a sound file, whole or piece by piece, to be sent instead of stored.

Knows nothing of files on a disk (see `io.write_wav`). All sound is mono; samples beyond full scale are clipped.

A WAV file that is sent while it is made cannot tell its length. Its header then holds the largest number in both
places, which players and decoders take for "until the end".

Invariant: header and samples of the pieces, joined, hold the samples of the whole file.

Example:
    socket.sendall(wav_header(16_000, None))
    for piece in pieces:
        socket.sendall(pcm16(piece).tobytes())
"""

import io
import struct

import numpy as np
import numpy.typing as npt
import soundfile

PCM16_SCALE = 32768  # full scale in 16-bit steps
UNKNOWN_BYTES = 2**32 - 1
WAV_HEADER_BYTES = 44
CONTENT_TYPES = {"wav": "audio/wav", "pcm": "audio/pcm", "flac": "audio/flac", "mp3": "audio/mpeg"}
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz; the format knows no others


def formats(sample_rate: int) -> tuple[str, ...]:
    """Names that `encoded` takes at this rate."""
    return tuple(name for name in CONTENT_TYPES if name != "mp3" or sample_rate in MP3_RATES)


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
    """The file of a whole wave, float [samples], in one of `formats`: WAV and FLAC of 16 bits, PCM without a header.

    Raises ValueError as `pcm16` does.
    """
    steps = pcm16(wave)
    if name == "pcm":
        return steps.tobytes()
    if name == "wav":
        return wav_header(sample_rate, len(steps)) + steps.tobytes()
    file = io.BytesIO()
    soundfile.write(file, steps, sample_rate, format=name.upper())
    return file.getvalue()
