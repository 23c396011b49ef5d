"""Waves and encoded files for the tests of audio."""

import io
import tempfile
from pathlib import Path

import av
import numpy as np
import soundfile

from slmkit.audio.io import read_audio

RATE = 16000
# Of a file that cannot be used.
REASONS = {
    "unreadable",
    "empty",
    "truncated",
    "too_long",
    "too_short",
    "non_finite",
    "silent",
    "bad_cut",
    "bad_channel",
}
CORPUS = Path(__file__).parents[2] / "tokenize_jobs" / "sample_corpus"


def tone(seconds=0.5, rate=RATE, hertz=440.0, peak=0.5):
    return (peak * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def speech(seconds, rate=RATE):
    """Speech, which every codec treats with all it has."""
    parts, length = [], 0
    for path in sorted(CORPUS.rglob("*.flac")):
        parts.append(read_audio(path, rate))
        length += len(parts[-1])
        if length >= seconds * rate:
            break
    return np.resize(np.concatenate(parts), round(seconds * rate))


def encoded(wave, rate=RATE, kind="WAV", subtype=None, **options):
    """The bytes of a sound file. Written second by second: libsndfile crashes on long writes of Ogg."""
    buffer = io.BytesIO()
    channels = 1 if wave.ndim == 1 else wave.shape[1]
    with soundfile.SoundFile(buffer, "w", rate, channels, subtype, format=kind, **options) as file:
        for start in range(0, len(wave), rate):
            file.write(wave[start : start + rate])
    return buffer.getvalue()


def by_ffmpeg(wave, container, codec, rate=RATE, bit_rate=48_000, **options):
    """The bytes of a mono file that FFmpeg writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a")
        _write_by_ffmpeg(path, wave, container, codec, rate, bit_rate, options)
        return path.read_bytes()


def _write_by_ffmpeg(path, wave, container, codec, rate, bit_rate, options):
    with av.open(str(path), "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(np.asarray(wave, np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)


def variable_mp3(wave, rate=RATE):
    return encoded(wave, rate, "MP3", bitrate_mode="VARIABLE", compression_level=0.5)


def without_tag(mp3):
    """An MP3 file as old encoders and recorders of streams leave it: without the frame that says how long it is."""
    with av.open(io.BytesIO(mp3), format="mp3") as file:
        return mp3[next(file.demux()).pos :]


def unknown_flac(wave, rate=RATE):
    """A FLAC file as a pipe leaves it: the header does not say how many samples follow."""
    data = bytearray(encoded(wave, rate, "FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)
