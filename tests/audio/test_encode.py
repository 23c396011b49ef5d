"""Waves as bytes: other decoders read them back, and pieces join to the whole."""

import io
import wave

import numpy as np
import pytest
import soundfile
from audio.encoding import RATE, speech

from slmkit.audio.encode import FORMATS, WAV_HEADER_BYTES, PieceEncoder, encoded, pcm16, wav_header
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


@pytest.mark.parametrize("rate", [RATE, 17_000, 24_000])
@pytest.mark.parametrize("name", FORMATS)
def test_pieces_are_a_file_of_the_same_sound_at_any_rate(name: str, rate: int) -> None:
    """Delayed by what an encoder needs; in a format that does not know the rate, at the next one it knows."""
    sound = speech(1.0, rate)
    encoder = PieceEncoder(rate, name)
    parts = [encoder.push(piece) for piece in [*np.array_split(sound, 7), []]]
    data = b"".join([*parts, encoder.finish()])
    assert sum(map(bool, parts)) > 2
    if name == "pcm":
        assert data == encoded(sound, rate, name)
        return
    for file in (data, encoded(sound, rate, name)):
        heard = read_audio(io.BytesIO(file), rate)
        late = np.correlate(np.pad(heard, (0, 3000)), sound[: rate // 2], "valid")[:3000].argmax()
        heard = heard[late : late + len(sound)]
        assert len(heard) > 0.98 * len(sound)
        error = heard - sound[: len(heard)]
        assert np.sqrt(np.mean(error**2)) < (2e-5 if name in ("wav", "flac") else 0.25 * sound.std())
    assert encoded(sound, rate, name) == encoded(sound, rate, name)


def test_a_piece_that_is_no_wave_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a finite wave of shape"):
        PieceEncoder(RATE, "opus").push([np.nan])
