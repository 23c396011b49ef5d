"""MP3 files that do not say how long they are, with other bytes before and after, joined, cut short."""

import io
import struct

import numpy as np
import pytest
from audio.encoding import RATE, encoded, speech, variable_mp3, without_tag

from slmkit.audio.io import read_audio
from slmkit.errors import BadSample

SECONDS = 12


@pytest.fixture(scope="module")
def wave():
    wave = speech(SECONDS)
    wave[: 2 * RATE] *= 0.001  # the first frames are short, so that a guess by them is wrong
    return wave


@pytest.fixture(scope="module")
def mp3(wave):
    return variable_mp3(wave)


def read(data):
    return read_audio(io.BytesIO(data), RATE)


def id3(num_bytes):
    sizes = [num_bytes >> shift & 0x7F for shift in (21, 14, 7, 0)]
    return b"ID3\x04\0\0" + bytes(sizes) + bytes(num_bytes)


def noise(num_bytes):
    return np.random.default_rng(3).integers(0, 256, num_bytes, dtype=np.uint8).tobytes()


def best_agreement(read_wave, wave):
    """The correlation with `wave` at the best of the delays an encoder may have left."""
    size = len(wave) - 3000
    return max(np.corrcoef(read_wave[d : d + size], wave[:size])[0, 1] for d in range(0, 2400, 1))


@pytest.mark.parametrize(
    "harm",
    [
        lambda mp3: mp3 + b"TAG" + bytes(125),
        lambda mp3: id3(300) + mp3,
        lambda mp3: id3(100_000) + mp3,
        lambda mp3: bytes(417) + mp3,
        lambda mp3: noise(5000) + mp3,
        lambda mp3: id3(300) + noise(999) + mp3,
        lambda mp3: mp3 + noise(2000),
        lambda mp3: b"RIFF" + struct.pack("<I", len(mp3)) + b"WAVEjunk" + mp3,
    ],
)
def test_what_lies_before_and_after_changes_no_sample(mp3, harm):
    assert np.array_equal(read(harm(mp3)), read(mp3))


@pytest.mark.parametrize("before", [b"", id3(300), bytes(100), noise(3000)])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, *(pytest.param(rate, marks=pytest.mark.full) for rate in (RATE, 44100))])
def test_a_file_that_does_not_say_its_length_is_read_whole(wave, rate, channels, before):
    sound = np.resize(wave, SECONDS * rate)
    data = variable_mp3(sound if channels == 1 else np.stack([sound, sound], axis=1), rate)
    found = read_audio(io.BytesIO(before + without_tag(data)), rate)
    assert 0 <= len(found) - SECONDS * rate < 3500  # the encoder's delay and the last frame's rest remain


@pytest.mark.full
def test_a_file_that_does_not_say_its_length_sounds_the_same(wave, mp3):
    assert best_agreement(read(without_tag(mp3)), wave) > 0.99


def test_joined_files_are_read_whole(wave, mp3):
    assert 0 <= len(read(mp3 + mp3)) - 2 * SECONDS * RATE < 6000
    assert 0 <= len(read(without_tag(mp3) + mp3)) - 2 * SECONDS * RATE < 6000


@pytest.mark.parametrize("tagged", [True, False])
def test_half_a_frame_at_the_end_is_a_file_cut_short(mp3, tagged):
    data = mp3 if tagged else without_tag(mp3)
    with pytest.raises(BadSample, match="is cut short") as caught:
        read(data[: len(data) * 2 // 3])
    assert caught.value.reason == "truncated"


def test_a_name_says_nothing_of_the_content(mp3, wave, tmp_path):
    (tmp_path / "a.wav").write_bytes(mp3)
    (tmp_path / "b.mp3").write_bytes(encoded(wave))
    (tmp_path / "c.wav").write_bytes(noise(300) + without_tag(mp3))
    assert np.array_equal(read_audio(tmp_path / "a.wav", RATE), read(mp3))
    assert np.array_equal(read_audio(tmp_path / "b.mp3", RATE), read(encoded(wave)))
    assert np.array_equal(read_audio(tmp_path / "c.wav", RATE), read(without_tag(mp3)))


def test_a_tag_that_says_too_little_is_replaced(mp3):
    data = bytearray(mp3)
    struct.pack_into(">II", data, data.index(b"Xing") + 8, 100, 4000)
    assert 0 <= len(read(bytes(data))) - SECONDS * RATE < 3500


def test_a_tag_without_a_length_is_replaced(mp3):
    data = bytearray(mp3)
    struct.pack_into(">I", data, data.index(b"Xing") + 4, 0)
    assert 0 <= len(read(bytes(data))) - SECONDS * RATE < 3500
