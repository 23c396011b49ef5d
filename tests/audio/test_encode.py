"""Waves as bytes: other decoders read them back, and pieces join to the whole."""

import io
import wave

import numpy as np
import pytest
import soundfile
from audio.encoding import RATE, speech

from slmkit.audio.encode import WAV_HEADER_BYTES, encoded, formats, pcm16, wav_header
from slmkit.audio.io import read_audio


@pytest.mark.parametrize("name", ["wav", "flac"])
def test_whole_files_hold_the_16_bit_samples(name: str) -> None:
    sound = np.append(speech(0.5), [2.0, -2.0])
    found, rate = soundfile.read(io.BytesIO(encoded(sound, RATE, name)), dtype="int16")
    assert rate == RATE
    assert np.array_equal(found, pcm16(sound))
    assert (found[-2], found[-1]) == (32767, -32768)


def test_the_standard_library_reads_the_wav_header() -> None:
    with wave.open(io.BytesIO(encoded(np.zeros(7), 24_000, "wav"))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 24_000, 7)


def test_pcm_is_the_samples_alone_and_mp3_sounds_alike() -> None:
    sound = speech(1.0)
    assert encoded(sound, RATE, "pcm") == pcm16(sound).tobytes()
    heard, _ = soundfile.read(io.BytesIO(encoded(sound, RATE, "mp3")))
    assert np.sqrt(np.mean((heard[: len(sound)] - sound) ** 2)) < 0.1 * sound.std()


def test_a_header_of_unknown_length_reads_to_the_end(tmp_path) -> None:
    sound = speech(0.5)
    pieces = [pcm16(part).tobytes() for part in np.array_split(sound, 5)]
    assert b"".join(pieces) == encoded(sound, RATE, "wav")[WAV_HEADER_BYTES:]
    (tmp_path / "a.wav").write_bytes(wav_header(RATE, None) + b"".join(pieces))
    assert len(read_audio(tmp_path / "a.wav", RATE)) == len(sound)


def test_no_sound_is_a_file_too() -> None:
    assert len(encoded([], RATE, "wav")) == WAV_HEADER_BYTES


@pytest.mark.parametrize("bad", [np.zeros((2, 2)), [0.0, np.nan]])
def test_what_is_no_wave_is_refused(bad) -> None:
    with pytest.raises(ValueError, match="expected a finite wave of shape"):
        encoded(bad, RATE, "wav")


def test_mp3_is_named_only_where_the_format_knows_the_rate() -> None:
    assert "mp3" in formats(16_000)
    assert formats(17_000) == ("wav", "pcm", "flac")
