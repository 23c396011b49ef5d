"""Bad and odd audio files, all written here with soundfile."""

import io
import os
import struct
from fractions import Fraction

import numpy as np
import pytest
import soundfile
import soxr
from audio.encoding import RATE, REASONS, encoded, tone, unknown_flac

from slmkit.audio import units
from slmkit.audio.decoding import UNKNOWN_SAMPLES
from slmkit.audio.ffmpeg import SEARCHED_BYTES
from slmkit.audio.io import read_audio, resampled, write_wav
from slmkit.errors import BadSample, UserError

HOUR_SEC = 3600


def cut(data, part=0.6):
    return data[: int(len(data) * part)]


def with_value(value, at=100):
    wave = tone()
    wave[at] = value
    return encoded(wave, subtype="FLOAT")


def lying_flac():
    """A FLAC header that promises 2^36 - 1 samples of a file that holds half a second."""
    data = bytearray(encoded(tone(), kind="FLAC"))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4
    return bytes(data)


def wav_with_rate(rate):
    data = bytearray(encoded(tone()))
    data[24:28] = struct.pack("<I", rate)
    return bytes(data)


def hour():
    return encoded(np.tile(tone(1.0, 4000), HOUR_SEC), 4000, "WAV", "PCM_U8")


BAD = {
    "no_bytes.wav": ("unreadable", lambda: b"", "cannot be read as audio"),
    "text.wav": ("unreadable", lambda: b"This is not audio.\n" * 50, "cannot be read as audio"),
    "headerless.raw": ("unreadable", lambda: bytes(1000), "cannot be read as audio"),
    "rate_1_hz.wav": ("unreadable", lambda: wav_with_rate(1), "impossible sample rate"),
    "rate_huge.wav": ("unreadable", lambda: wav_with_rate(2_000_000_000), "impossible sample rate"),
    "integer_scale.wav": ("unreadable", lambda: encoded(tone() * 30000, subtype="FLOAT"), "far beyond full scale"),
    "empty.wav": ("empty", lambda: encoded(np.zeros(0, np.float32)), "holds no samples"),
    "cut.wav": ("truncated", lambda: cut(encoded(tone())), "is cut short"),
    "cut_float.wav": ("truncated", lambda: cut(encoded(tone(), subtype="FLOAT")), "is cut short"),
    "cut_rf64.wav": ("truncated", lambda: cut(encoded(tone(), kind="RF64")), "is cut short"),
    "cut.aiff": ("truncated", lambda: cut(encoded(tone(), kind="AIFF")), "is cut short"),
    "cut.au": ("truncated", lambda: cut(encoded(tone(), kind="AU")), "is cut short"),
    "cut.flac": ("truncated", lambda: cut(encoded(tone(), kind="FLAC")), "is cut short"),
    "cut.mp3": ("truncated", lambda: cut(encoded(tone(2.0), kind="MP3")), "is cut short"),
    "too_large.wav": ("truncated", lambda: wav_with(40, 3 * RATE), "is cut short"),
    "says_nothing.wav": ("empty", lambda: wav_with(40, 0)[:44] + b"LIST\4\0\0\0INFO", "holds no samples"),
    "huge_chunk.wav": ("unreadable", lambda: wav_with(16, 2**31), "cannot be read as audio"),
    "chained.ogg": (
        "unreadable",
        lambda: encoded(tone(), kind="OGG") + encoded(tone(), kind="OGG", subtype="OPUS"),
        "several Ogg streams in a row",
    ),
    "lying.flac": ("truncated", lying_flac, "is cut short"),
    "silent.wav": ("silent", lambda: encoded(np.zeros(8000, np.float32)), "digital silence"),
    "offset.wav": ("silent", lambda: encoded(np.full(8000, 0.25, np.float32)), "digital silence"),
    "last_bit.wav": ("silent", lambda: encoded(tone(peak=1 / 32768)), "digital silence"),
    "one_sample.wav": ("silent", lambda: encoded(np.array([0.5], np.float32)), "digital silence"),
    "nan.wav": ("non_finite", lambda: with_value(np.nan), "not finite"),
    "inf.wav": ("non_finite", lambda: with_value(-np.inf), "not finite"),
    "overflow.wav": ("non_finite", lambda: encoded(tone().astype(np.float64) * 1e300, subtype="DOUBLE"), "not finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_has_its_reason(tmp_path, name):
    reason, make, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(BadSample, match=message) as caught:
        read_audio(path, RATE)
    assert caught.value.reason == reason
    assert reason in REASONS
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["missing.wav", ".", "nul\0.wav", "pipe.wav"])
def test_path_that_is_no_file_is_unreadable(tmp_path, name):
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(BadSample, match="is not a file") as caught:
        read_audio(f"{tmp_path}/{name}", RATE)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "AU", "FLAC", "MP3"])
def test_damaged_bytes_give_a_wave_or_a_reason(tmp_path, kind):
    """Random damage, mostly in the header: nothing but BadSample may come out."""
    whole = encoded(tone(0.3), kind=kind)
    generator = np.random.default_rng(0)
    reasons = set()
    for _ in range(60):
        data = bytearray(whole)
        for place in generator.integers(0, generator.choice([40, 100, len(data)]), size=3):
            data[place] = generator.integers(256)
        (tmp_path / "damaged").write_bytes(data)
        try:
            assert np.isfinite(read_audio(tmp_path / "damaged", RATE, max_sec=5)).all()
        except BadSample as bad:
            reasons.add(bad.reason)
    assert reasons
    assert reasons <= REASONS


ODD = {
    "16 bit": lambda wave: encoded(wave, subtype="PCM_16"),
    "8 bit": lambda wave: encoded(wave, subtype="PCM_U8"),
    "24 bit": lambda wave: encoded(wave, subtype="PCM_24"),
    "32 bit": lambda wave: encoded(wave, subtype="PCM_32"),
    "float": lambda wave: encoded(wave, subtype="FLOAT"),
    "mu-law": lambda wave: encoded(wave, subtype="ULAW"),
    "flac": lambda wave: encoded(wave, kind="FLAC"),
    "flac of unknown length": unknown_flac,
    "wav of length 0": lambda wave: encoded(wave).replace(struct.pack("<I", 2 * len(wave)), bytes(4)),
    "wav of unknown length": lambda wave: encoded(wave).replace(struct.pack("<I", 2 * len(wave)), b"\xff" * 4),
    "vorbis": lambda wave: encoded(wave, kind="OGG", subtype="VORBIS"),
    "opus": lambda wave: encoded(wave, kind="OGG", subtype="OPUS"),
    "mp3": lambda wave: encoded(wave, kind="MP3"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_encodings_give_the_same_wave(name):
    wave = tone(20.0)  # several blocks
    read = read_audio(io.BytesIO(ODD[name](wave)), RATE)
    assert read.dtype == np.float32
    assert read.shape == wave.shape
    lossy = {"8 bit": 0.02, "mu-law": 0.02, "vorbis": 0.1, "opus": 0.1, "mp3": 0.1}
    assert np.abs(read - wave)[200:-200].max() < lossy.get(name, 1e-4)


def wav_with(place, value, num_bytes=4):
    """A WAV file of 16 bit with some of its 44 header bytes changed."""
    data = bytearray(encoded(tone()))
    data[place : place + num_bytes] = value.to_bytes(num_bytes, "little")
    return bytes(data)


def wav_with_chunk(content, at):
    data = encoded(tone())
    return data[:at] + b"note" + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) + data[at:]


ODD_HEADERS = {
    "riff size 0": lambda: wav_with(4, 0),
    "riff size unknown": lambda: wav_with(4, 2**32 - 1),
    "data size unknown": lambda: wav_with(40, 2**32 - 1),
    "data size of a pipe": lambda: wav_with(40, 2**31 - 1),
    "byte rate 0": lambda: wav_with(28, 0),
    "byte rate wrong": lambda: wav_with(28, 123456),
    "block align 0": lambda: wav_with(32, 0, 2),
    "block align wrong": lambda: wav_with(32, 3, 2),
    "chunk before the format": lambda: wav_with_chunk(b"odd", 12),
    "chunk before the data": lambda: wav_with_chunk(b"even", 36),
    "chunk after the data": lambda: wav_with_chunk(b"odd", 44 + RATE),
    "noise after the data": lambda: encoded(tone()) + bytes(range(256)),
}


@pytest.mark.parametrize("name", ODD_HEADERS)
def test_odd_wav_headers_change_no_sample(name):
    read, expected = (read_audio(io.BytesIO(data), RATE) for data in (ODD_HEADERS[name](), encoded(tone())))
    assert np.array_equal(read, expected)


def test_mp3_blocks_join_without_clicks(monkeypatch):
    """Seeking between blocks would lose the bit reservoir: errors of 0.2 and more in noise."""
    wave = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)
    data = encoded(wave, kind="MP3")
    whole = read_audio(io.BytesIO(data), RATE)
    monkeypatch.setattr("slmkit.audio.decoding.BLOCK_VALUES", 1000)
    assert np.abs(read_audio(io.BytesIO(data), RATE) - whole).max() < 1e-5


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_channels_are_averaged(channels):
    parts = np.stack([tone(peak=0.1 * (i + 1)) for i in range(channels)], axis=1)
    read = read_audio(io.BytesIO(encoded(parts, subtype="FLOAT")), RATE)
    assert np.allclose(read, parts.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 192000])
def test_resampling_keeps_pitch_and_length(rate):
    wave = tone(3.0, rate)[: 3 * rate - 7]
    read = read_audio(io.BytesIO(encoded(wave, rate, subtype="FLOAT")), RATE)
    assert len(read) == units.nearest(Fraction(len(wave) * RATE, rate))
    assert np.abs(read - tone(3.0)[: len(read)])[200:-200].max() < 1e-3
    assert np.array_equal(read, soxr.resample(wave, rate, RATE, quality="HQ"))  # blocks leave no trace


def test_equal_bytes_give_equal_samples():
    data = encoded(np.random.default_rng(1).normal(0, 0.2, 44100).astype(np.float32), 44100, "MP3")
    assert np.array_equal(read_audio(io.BytesIO(data), RATE), read_audio(io.BytesIO(data), RATE))


def test_file_object_and_path_agree(tmp_path):
    path = tmp_path / "a.flac"
    path.write_bytes(encoded(tone(), kind="FLAC"))
    with open(path, "rb") as file:
        assert np.array_equal(read_audio(file, RATE), read_audio(str(path), RATE))


def test_streams_are_read_from_their_beginning():
    stream = io.BytesIO(encoded(tone()))
    stream.seek(100)
    assert len(read_audio(stream, RATE)) == RATE // 2


def test_ogg_files_of_one_stream_are_not_taken_for_several():
    """Short, and so long that the pages searched at the end leave out the beginning."""
    for seconds in (0.3, 120.0):
        wave = np.random.default_rng(0).normal(0, 0.2, round(seconds * RATE)).astype(np.float32)
        data = encoded(wave, kind="OGG")
        assert (len(data) > SEARCHED_BYTES) == (seconds > 1)
        assert len(read_audio(io.BytesIO(data), RATE)) == len(wave)


def test_hour_is_refused_by_its_header(monkeypatch):
    monkeypatch.setattr("slmkit.audio.decoding.Libsndfile._read", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadSample, match=r"is too long\n.*3600\.000 s.*\n.*at most 30") as caught:
        read_audio(io.BytesIO(hour()), RATE, max_sec=30)
    assert caught.value.reason == "too_long"


def test_hour_with_a_lying_header_is_refused_after_the_limit(monkeypatch):
    data = unknown_flac(np.tile(tone(1.0, 4000), HOUR_SEC))
    assert soundfile.info(io.BytesIO(data)).frames > UNKNOWN_SAMPLES
    monkeypatch.setattr("slmkit.audio.decoding.BLOCK_VALUES", 4000)
    with pytest.raises(BadSample, match=r"is too long\n.*3[01]\.\d+ s or more"):
        read_audio(io.BytesIO(data), RATE, max_sec=30)


def test_limits_are_inclusive():
    data = encoded(tone(0.5))
    assert len(read_audio(io.BytesIO(data), RATE, max_sec=0.5, min_sec=0.5)) == RATE // 2
    with pytest.raises(BadSample, match="is too long") as caught:
        read_audio(io.BytesIO(data), RATE, max_sec=0.499)
    assert caught.value.reason == "too_long"
    with pytest.raises(BadSample, match="is too short") as caught:
        read_audio(io.BytesIO(data), RATE, min_sec=0.501)
    assert caught.value.reason == "too_short"


def test_nothing_left_after_resampling_is_too_short():
    data = encoded(np.array([0.5, -0.5], np.float32), 192000)
    with pytest.raises(BadSample, match="less than half a sample") as caught:
        read_audio(io.BytesIO(data), 8000)
    assert caught.value.reason == "too_short"


def test_written_wav_reads_back_exactly(tmp_path):
    steps = np.arange(-32768, 32768, 7)
    write_wav(tmp_path / "a.wav", steps / 32768, RATE)
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    assert np.array_equal(read_audio(tmp_path / "a.wav", RATE) * 32768, steps)


def test_writing_clips_and_does_not_overwrite_unasked(tmp_path):
    path = tmp_path / "a.wav"
    write_wav(path, np.array([2.0, -2.0, 0.0]), RATE)
    assert soundfile.read(path, dtype="int16")[0].tolist() == [32767, -32768, 0]
    with pytest.raises(UserError, match="already exists"):
        write_wav(path, tone(), RATE)
    write_wav(path, tone(), RATE, replace=True)
    assert soundfile.info(path).frames == RATE // 2


@pytest.mark.parametrize("wave", [np.zeros((2, 3)), np.array([0.0, np.nan])])
def test_writing_refuses_what_is_no_wave(tmp_path, wave):
    with pytest.raises(ValueError, match="expected a finite wave"):
        write_wav(tmp_path / "a.wav", wave, RATE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("source", "target"), [(16000, 10000), (24000, 16000), (16000, 44100)])
def test_a_tone_stays_a_tone(source, target):
    num_samples = source // 2 + 1
    wave = np.sin(2 * np.pi * 440 * np.arange(num_samples) / source)
    found = resampled(wave, source, target)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(found)) / target)
    assert found.dtype == np.float32
    assert len(found) == units.nearest(Fraction(num_samples * target, source))
    assert np.abs(found - expected)[200:-200].max() < 1e-3


def test_the_same_rate_leaves_the_wave():
    wave = np.random.default_rng(0).standard_normal(99).astype(np.float32)
    assert resampled(wave, 16000, 16000) is wave


@pytest.mark.parametrize("kind", ["WAV", "AIFF"])
@pytest.mark.parametrize("said", [None, 0, 2**31])
def test_short_files_in_blocks_are_read_whatever_their_header_says(kind, said):
    data = encoded(tone(0.1, 8000), 8000, kind, "GSM610")
    if said is not None and b"fact" in data:
        place = data.index(b"fact") + 8
        data = data[:place] + struct.pack("<I", said) + data[place + 4 :]
    found = len(read_audio(io.BytesIO(data), 8000))
    assert found == 800 if said is None else 800 <= found <= 800 + 2 * 320  # blocks have 320 samples
