"""Audio files in and out: any file libsndfile reads becomes mono float32 at the wanted rate.

Files are hostile: every way in which one cannot be used is a `BadSample` whose reason is a stable word (`REASONS`). A
file is decoded block by block, so that memory stays bounded by the mono audio asked for, and a time limit stops the
decoder even when the header lies. Knows nothing of codecs.

Invariant: equal bytes give equal samples, and the number of samples is `units.resampled_samples` of the file's.

Not noticed: an Ogg file cut at any point is a shorter valid file, since it promises no length.

Example:
    wave = read_audio("a.flac", 16000, max_sec=30.0)
    write_wav("b.wav", wave, 16000)
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from slmkit.audio import units
from slmkit.errors import BadSample
from slmkit.files import atomic_write

REASONS = ("unreadable", "empty", "truncated", "too_long", "too_short", "non_finite", "silent")
BLOCK_VALUES = 2**18  # samples times channels decoded at a time
RATES = (4_000, 400_000)  # Hz; outside, the header is taken for damaged
PEAK_LIMIT = 64.0  # full scale is 1; float files above this are not audio in [-1, 1]
SILENCE_SPAN = 1e-4  # largest minus smallest sample of digital silence, about 3 steps of 16 bit
PCM16_SCALE = 32768  # full scale in 16-bit steps
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


def read_audio(
    source: str | Path | BinaryIO, sample_rate: int, *, max_sec: float | None = None, min_sec: float = 0.0
) -> np.ndarray:
    """Decode `source`: mean of its channels, resampled (soxr HQ), float32 [samples] at `sample_rate` Hz.

    Samples are nominally in [-1, 1]; lossy and float files may exceed it a little. Raises BadSample with a reason of
    `REASONS`; durations are compared at the file's own sample rate.
    """
    name = str(source if isinstance(source, str | Path) else getattr(source, "name", "audio stream"))
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise _bad("unreadable", name, "is not a file")  # a named pipe, above all, would never end
    # TypeError and ValueError come from soundfile itself, for example for a headerless .raw file.
    try:
        file = _ForwardFile(source)
    except (soundfile.SoundFileError, TypeError, ValueError, OSError) as error:
        raise _bad("unreadable", name, f"cannot be read as audio ({error})") from error
    with file:
        _check_header(file, name, max_sec)
        mono = _Mono(file, name, max_sec)
        wave = _resample(mono, file.samplerate, sample_rate)
    _check_length(mono, name, min_sec)
    _check_values(mono, wave, name)
    return wave


def write_wav(path: str | Path, wave: np.ndarray, sample_rate: int, *, replace: bool = False) -> None:
    """Write `wave`, float [samples] in [-1, 1] (clipped to it), as mono 16-bit WAV, whole or not at all.

    Raises ValueError when `wave` is not one-dimensional or not finite, UserError as `files.atomic_write` does.
    """
    wave = np.asarray(wave, dtype=np.float64)
    if wave.ndim != 1 or not np.isfinite(wave).all():
        raise ValueError(f"expected a finite wave of shape [samples], got shape {wave.shape}")
    steps = np.clip(np.rint(wave * PCM16_SCALE), -PCM16_SCALE, PCM16_SCALE - 1).astype(np.int16)
    with atomic_write(path, replace=replace) as file:
        soundfile.write(file, steps, sample_rate, format="WAV", subtype="PCM_16")


class _Mono:
    """The mono blocks of a file, float32, and what has been seen of them so far."""

    def __init__(self, file: soundfile.SoundFile, name: str, max_sec: float | None) -> None:
        self.file, self.name, self.max_sec = file, name, max_sec
        self.num_samples = 0
        self.low, self.high = np.inf, -np.inf
        self.finite = True
        self.promised = _promised_samples(file)
        self.decoder_error = ""

    def __iter__(self) -> Iterator[np.ndarray]:
        block_samples = max(1, BLOCK_VALUES // self.file.channels)
        while (block := self._read(block_samples)) is not None:
            self.num_samples += len(block)
            _check_too_long(self.num_samples, self.file.samplerate, self.name, self.max_sec)
            with np.errstate(over="ignore", invalid="ignore"):
                mono = block.mean(axis=1, dtype=np.float32)
            self.finite = self.finite and bool(np.isfinite(mono).all())
            self.low, self.high = min(self.low, mono.min()), max(self.high, mono.max())
            yield mono

    def _read(self, block_samples: int) -> np.ndarray | None:
        """The next block, float32 [samples, channels], None at the end or where the decoder gives up."""
        try:
            block = self.file.read(block_samples, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            self.decoder_error = f"; the decoder says: {error}"
            return None
        return block if len(block) else None


def _resample(mono: _Mono, source_rate: int, target_rate: int) -> np.ndarray:
    """All blocks as one wave, float32 [samples] at `target_rate` Hz."""
    if source_rate == target_rate:
        return np.concatenate([np.zeros(0, np.float32), *mono])
    stream = soxr.ResampleStream(source_rate, target_rate, 1, dtype="float32", quality="HQ")
    parts = [stream.resample_chunk(block) for block in mono]
    parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(parts)


def _promised_samples(file: soundfile.SoundFile) -> int:
    """Samples per channel the header promises, 0 when it does not say."""
    for found in SHORTENED.finditer(file.extra_info):
        promised, present = (int(number) for number in found.groups())
        if present < promised < UNKNOWN_BYTES:
            return file.frames * promised // max(1, present) + 1
    if found_rf64 := SHORTENED_RF64.search(file.extra_info):
        return int(found_rf64[2])
    return file.frames if file.frames < UNKNOWN_FRAMES else 0


def _check_header(file: soundfile.SoundFile, name: str, max_sec: float | None) -> None:
    if not RATES[0] <= file.samplerate <= RATES[1]:
        raise _bad("unreadable", name, "has an impossible sample rate", got=file.samplerate, expected=f"{RATES} Hz")
    if file.frames < UNKNOWN_FRAMES:
        _check_too_long(file.frames, file.samplerate, name, max_sec)


def _check_too_long(num_samples: int, sample_rate: int, name: str, max_sec: float | None) -> None:
    if max_sec is not None and num_samples > units.seconds_to_samples(max_sec, sample_rate):
        seconds = units.samples_to_seconds(num_samples, sample_rate)
        raise _bad("too_long", name, "is too long", got=f"{seconds:.3f} s or more", expected=f"at most {max_sec} s")


def _check_length(mono: _Mono, name: str, min_sec: float) -> None:
    rate = mono.file.samplerate
    if mono.num_samples < mono.promised or mono.decoder_error:
        got = f"{mono.num_samples} samples{mono.decoder_error}"
        raise _bad("truncated", name, "is cut short or damaged", got=got, expected=f"{mono.promised} by its header")
    if mono.num_samples == 0:
        raise _bad("empty", name, "holds no samples")
    if mono.num_samples < units.seconds_to_samples(min_sec, rate):
        seconds = units.samples_to_seconds(mono.num_samples, rate)
        raise _bad("too_short", name, "is too short", got=f"{seconds:.3f} s", expected=f"at least {min_sec} s")


def _check_values(mono: _Mono, wave: np.ndarray, name: str) -> None:
    if not (mono.finite and np.isfinite(wave).all()):
        raise _bad("non_finite", name, "holds samples that are not finite numbers")
    peak = max(-mono.low, mono.high)
    if peak > PEAK_LIMIT:
        raise _bad("unreadable", name, "has samples far beyond full scale", got=f"peak {peak:g}", expected="[-1, 1]")
    if mono.high - mono.low < SILENCE_SPAN:
        raise _bad("silent", name, "is digital silence: all samples are equal", got=f"{mono.low:g} to {mono.high:g}")
    if len(wave) == 0:
        raise _bad("too_short", name, "is less than half a sample at the wanted rate")


def _bad(reason: str, name: str, what: str, *, got: object = None, expected: object = None) -> BadSample:
    return BadSample(reason, f"{name} {what}", got=got, expected=expected)
