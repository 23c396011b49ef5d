"""Audio files in and out: any file that libsndfile or FFmpeg reads becomes mono float32 at the wanted rate.

Files are hostile: every way in which one cannot be used is a `BadSample` whose reason is a stable word: unreadable,
empty, truncated, too_long, too_short, non_finite, silent, bad_cut or bad_channel.
Memory is bounded by the samples asked for, mono at the file's own rate, and a time limit stops the decoder even when
the header lies. Of a long recording, a cut decodes only what is needed. Knows nothing of codecs.

Channels become their mean. Where they cancel each other in it (a microphone wired the wrong way round), the loudest
channel is taken. A number that is not finite in any channel refuses the file: it is damaged, and not only there.

Invariant: equal bytes give equal samples, and a resampled length is the nearest whole number to the exact one.

Example:
    wave = read_audio("a.flac", 16000, max_sec=30.0)
    recording = read_recording("hours.mp3", 16000, cut=(61.2, 64.0, 60.9, 64.5))
    recording = read_recording("call.wav", 8000, cut=(61.2, TO_END, 61.2, TO_END), channel=1)
    write_wav("b.wav", wave, 16000)
"""

import contextlib
import math
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import soxr

from slmkit.audio import TO_END, quality, units
from slmkit.audio.decoding import Decoder, open_decoder
from slmkit.audio.encode import encoded
from slmkit.errors import BadSample
from slmkit.files import atomic_write

RATES = (4_000, 400_000)  # Hz; outside, the header is taken for damaged
PEAK_LIMIT = 64.0  # full scale is 1; float files above this are not audio in [-1, 1]
SILENCE_SPAN = 1e-4  # largest minus smallest sample of digital silence, about 3 steps of 16 bit
END_SLACK_SEC = 0.1  # a cut may end so much after the recording: time stamps are rounded


class Recording(NamedTuple):
    """A decoded recording, or a cut of one, and what was seen of it at the file's own sample rate."""

    wave: np.ndarray  # float32 [samples], mono, at the wanted rate
    mono: np.ndarray  # the same at the file's own rate
    rate: int  # Hz, the file's own
    clipped: float  # share of samples at full scale in any channel
    dc: float  # mean of the samples, of full scale; removed where above quality.OFFSET_LIMIT
    silence: float  # share of 20 ms frames below quality.SILENCE_LEVEL


def read_audio(
    source: str | Path | BinaryIO, sample_rate: int, *, max_sec: float | None = None, min_sec: float = 0.0
) -> np.ndarray:
    """The wave of `read_recording`, float32 [samples] at `sample_rate` Hz."""
    return read_recording(source, sample_rate, min_sec=min_sec, max_sec=max_sec).wave


def read_recording(
    source: str | Path | BinaryIO,
    sample_rate: int,
    *,
    min_sec: float = 0.0,
    max_sec: float | None = None,
    cut: tuple[float, float, float, float] | None = None,
    channel: int | None = None,
) -> Recording:
    """Decode `source`, or a cut of it: mono, without a large offset, resampled (soxr HQ) to `sample_rate` Hz.

    `cut` is (start, end, earliest, latest) in seconds: speech from start to end, nobody speaking from earliest to start
    and from end to latest; TO_END in place of end and latest stands for the end of the recording. The cut is made in
    the middle of the quietest 20 ms of each, as far as `max_sec` allows, and is resampled as if it were a file of its
    own. `channel`, from 0, is taken in place of their mean.

    Samples are nominally in [-1, 1]; lossy and float files may exceed it a little. Raises BadSample; durations are
    compared at the file's own sample rate.
    """
    name = str(source if isinstance(source, str | Path) else getattr(source, "name", "audio stream"))
    if isinstance(source, str | Path) and not os.path.isfile(source):
        raise _bad("unreadable", name, "is not a file")  # a named pipe, above all, would never end
    piece = _read(source, name, max_sec, cut, channel)
    if channel is None and quality.cancelled(piece.mono_energy(), piece.channel_energy()):
        piece = _read(source, name, max_sec, cut, channel=int(piece.channel_energy().argmax()))
    mono, clipped = piece.joined()
    if not piece.finite:
        raise _bad("non_finite", name, "holds samples that are not finite numbers")
    if piece.gaps is not None:
        begin, end = _quiet_ends(mono, piece.rate, *piece.gaps)
        mono, clipped = mono[begin:end], clipped[begin:end]
    _check_values(mono, piece.rate, name, min_sec)
    offset = float(mono.mean(dtype=np.float64))
    if abs(offset) > quality.OFFSET_LIMIT:
        mono = mono - np.float32(offset)
    wave = resampled(mono, piece.rate, sample_rate)
    if len(wave) == 0:
        raise _bad("too_short", name, "is less than half a sample at the wanted rate")
    return Recording(wave, mono, piece.rate, float(clipped.mean()), offset, quality.silence_share(mono, piece.rate))


def write_wav(path: str | Path, wave: np.ndarray, sample_rate: int, *, replace: bool = False) -> None:
    """Write `wave`, float [samples] in [-1, 1] (clipped to it), as mono 16-bit WAV, whole or not at all.

    Raises ValueError when `wave` is not one-dimensional or not finite, UserError as `files.atomic_write` does.
    """
    content = encoded(wave, sample_rate, "wav")
    with atomic_write(path, replace=replace) as file:
        file.write(content)


def resampled(wave: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """`wave`, float [samples] at `source_rate` Hz, as float32 at `target_rate` Hz (soxr HQ); at the wanted rate it is
    left as it is."""
    wave = np.asarray(wave, dtype=np.float32)
    return wave if source_rate == target_rate else soxr.resample(wave, source_rate, target_rate, quality="HQ")


class _Piece:
    """Decoded samples, mono, and what has been seen of their channels."""

    def __init__(self, decoder: Decoder, channel: int | None) -> None:
        self.rate, self.subtype, self.channel = decoder.sample_rate, decoder.subtype, channel
        self.num_samples = 0
        self.finite = True
        self.gaps: tuple[int, int] | None = None  # of a cut: where speech starts and ends
        self._mono: list[np.ndarray] = []
        self._clipped: list[np.ndarray] = []
        # Of each channel and of their mean: sum and sum of squares. Of one channel there is nothing to tell.
        self._sums, self._squares = np.zeros(decoder.channels + 1), np.zeros(decoder.channels + 1)

    def add(self, block: np.ndarray) -> None:
        """Take float32 [samples, channels]."""
        mean = block[:, 0].copy()
        if block.shape[1] > 1:
            with np.errstate(over="ignore", invalid="ignore"):
                mean = block.mean(axis=1, dtype=np.float32)
                for values, place in ((block, slice(0, -1)), (mean[:, None], slice(-1, None))):
                    self._sums[place] += values.sum(axis=0, dtype=np.float64)
                    self._squares[place] += np.einsum("sc,sc->c", values, values, dtype=np.float64)
        self.finite = self.finite and bool(np.isfinite(mean).all())
        self.num_samples += len(block)
        self._mono.append(mean if self.channel is None else block[:, self.channel].copy())
        self._clipped.append(quality.clipped(block, self.subtype))

    def mono_energy(self) -> float:
        """Of the mean of the channels, without its offset."""
        return float(self._energy()[-1])

    def channel_energy(self) -> np.ndarray:
        """Of each channel, without its offset."""
        return self._energy()[:-1]

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """The samples, float32 [N], and which are clipped, bool [N]; once, since the blocks are let go."""
        mono, clipped = np.concatenate(self._mono), np.concatenate(self._clipped)
        self._mono, self._clipped = [], []
        return mono, clipped

    def _energy(self) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            return self._squares - np.square(self._sums) / max(1, self.num_samples)


def _read(
    source: str | Path | BinaryIO,
    name: str,
    max_sec: float | None,
    cut: tuple[float, float, float, float] | None,
    channel: int | None,
) -> _Piece:
    """All samples of the file, or those between the earliest and the latest of a cut. `channel` None: the mean."""
    with contextlib.closing(open_decoder(source, name)) as decoder:
        rate = decoder.sample_rate
        if not RATES[0] <= rate <= RATES[1]:
            raise _bad("unreadable", name, "has an impossible sample rate", got=rate, expected=f"{RATES} Hz")
        if channel is not None and not 0 <= channel < decoder.channels:
            expected = f"one of 0 to {decoder.channels - 1}"
            raise _bad("bad_channel", name, "has no such channel", got=channel, expected=expected)
        piece = _Piece(decoder, channel)
        if cut is not None:
            _read_cut(decoder, piece, name, max_sec, cut)
            return piece
        _check_too_long(decoder.num_samples or 0, rate, name, max_sec)
        for block in decoder.blocks(0, None):
            piece.add(block)
            _check_too_long(piece.num_samples, rate, name, max_sec)
        promised = decoder.promised_samples
        if piece.num_samples < promised or decoder.error:
            got = f"{piece.num_samples} samples{decoder.error}"
            raise _bad("truncated", name, "is cut short or damaged", got=got, expected=f"{promised} by its header")
        if piece.num_samples == 0:
            raise _bad("empty", name, "holds no samples")
        return piece


def _read_cut(
    decoder: Decoder, piece: _Piece, name: str, max_sec: float | None, cut: tuple[float, float, float, float]
) -> None:
    """Fill `piece` with what lies between the earliest and the latest of `cut`, as far as `max_sec` allows."""
    start_sec, end_sec, earliest_sec, latest_sec = cut
    to_end = end_sec == latest_sec == TO_END
    ordered = start_sec >= 0 and earliest_sec <= start_sec and (to_end or start_sec < end_sec <= latest_sec)
    if not (ordered and all(map(math.isfinite, cut))):
        expected = "earliest <= start < end <= latest, in seconds, start not below 0"
        raise _bad("bad_cut", name, "cannot be cut so", got=tuple(cut), expected=expected)
    rate = decoder.sample_rate
    if to_end:
        start = units.seconds_to_samples(start_sec, rate)
        for block in decoder.blocks(start, None):
            piece.add(block)
            _check_too_long(piece.num_samples, rate, name, max_sec)
        if decoder.error or piece.num_samples == 0 or start + piece.num_samples < decoder.promised_samples:
            got = f"{piece.num_samples} samples behind {start_sec:.3f} s{decoder.error}"
            raise _bad("truncated", name, "ends before the cut begins, or is damaged", got=got)
        return
    start, end = units.seconds_to_samples(start_sec, rate), units.seconds_to_samples(end_sec, rate)
    first, last = units.seconds_to_samples(earliest_sec, rate), units.seconds_to_samples(latest_sec, rate)
    if max_sec is not None:
        _check_too_long(end - start, rate, name, max_sec)
        spare = (units.seconds_to_samples(max_sec, rate) - (end - start)) // 2
        first, last = max(first, start - spare), min(last, end + spare)
    first = max(0, first)
    for block in decoder.blocks(first, last):
        piece.add(block)
    reached = first + piece.num_samples
    if decoder.error or reached <= start or reached < end - units.seconds_to_samples(END_SLACK_SEC, rate):
        got = f"{units.samples_to_seconds(reached, rate):.3f} s{decoder.error}"
        raise _bad("truncated", name, "ends or is damaged before the cut ends", got=got, expected=f"{end_sec:.3f} s")
    piece.gaps = start - first, min(end, reached) - first


def _quiet_ends(mono: np.ndarray, rate: int, start: int, end: int) -> tuple[int, int]:
    """Where to cut: in the quietest 20 ms before `start` and after `end`, next to the speech where all are equal."""
    sound = mono - mono.mean(dtype=np.float64)  # an offset would make loud and quiet alike
    width = quality.frame_samples(rate)
    begin = quality.quietest(sound, width, low=0, high=start, prefer_last=True)
    return begin, quality.quietest(sound, width, low=end, high=len(mono), prefer_last=False)


def _check_too_long(num_samples: int, sample_rate: int, name: str, max_sec: float | None) -> None:
    if max_sec is not None and num_samples > units.seconds_to_samples(max_sec, sample_rate):
        seconds = units.samples_to_seconds(num_samples, sample_rate)
        raise _bad("too_long", name, "is too long", got=f"{seconds:.3f} s or more", expected=f"at most {max_sec} s")


def _check_values(mono: np.ndarray, rate: int, name: str, min_sec: float) -> None:
    if len(mono) < units.seconds_to_samples(min_sec, rate):
        seconds = units.samples_to_seconds(len(mono), rate)
        raise _bad("too_short", name, "is too short", got=f"{seconds:.3f} s", expected=f"at least {min_sec} s")
    low, high = float(mono.min()), float(mono.max())
    if max(-low, high) > PEAK_LIMIT:
        got = f"peak {max(-low, high):g}"
        raise _bad("unreadable", name, "has samples far beyond full scale", got=got, expected="[-1, 1]")
    if high - low < SILENCE_SPAN:
        raise _bad("silent", name, "is digital silence: all samples are equal", got=f"{low:g} to {high:g}")


def _bad(reason: str, name: str, what: str, *, got: object = None, expected: object = None) -> BadSample:
    return BadSample(reason, f"{name} {what}", got=got, expected=expected)
