"""What is seen of a recording: clipping, offset, silence, channels that cancel."""

import io

import numpy as np
import pytest
from audio.encoding import RATE, encoded, tone

from slmkit.audio import quality
from slmkit.audio.io import read_audio, read_recording
from slmkit.errors import BadSample


def read(wave, rate=RATE, subtype="FLOAT", kind="WAV"):
    return read_recording(io.BytesIO(encoded(wave, rate, kind, subtype)), RATE)


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("WAV", "PCM_U8"),
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "PCM_32"),
        ("WAV", "FLOAT"),
        ("WAV", "ULAW"),
        ("WAV", "ALAW"),
        ("FLAC", "PCM_S8"),
        ("FLAC", "PCM_16"),
        ("AIFF", "PCM_S8"),
    ],
)
def test_clipped_samples_are_counted_in_the_file_itself(kind, subtype):
    """Before resampling, which would move the peaks; both ends of the scale, and nothing just below them."""
    wave = tone(1.0, 48000, peak=0.9)
    assert read(wave, 48000, subtype, kind).clipped == 0.0
    wave[1000:1300] = 1.0
    wave[2000:2180] = -1.0
    assert read(wave, 48000, subtype, kind).clipped == 480 / 48000


def test_a_sample_is_clipped_where_any_channel_is():
    wave = np.stack([tone(1.0), tone(1.0, hertz=300)], axis=1)
    wave[:160, 0] = 1.0
    wave[80:320, 1] = -1.0
    assert read(wave, subtype="PCM_16").clipped == 320 / RATE


def test_in_lossy_files_what_is_beyond_full_scale_is_clipped():
    loud = np.clip(2.5 * tone(1.0), -1, 1)
    assert read(loud, kind="MP3", subtype=None).clipped > 0.1
    assert read(0.5 * loud, kind="MP3", subtype=None).clipped == 0.0


def test_a_large_offset_is_removed_before_resampling():
    wave = tone(1.0, 48000, peak=0.3)
    plain, moved = read(wave, 48000), read(wave + 0.1, 48000)
    assert moved.dc == pytest.approx(0.1, abs=1e-5)
    assert np.abs(moved.wave - plain.wave).max() < 1e-5  # also at the ends, where a step would ring


def test_a_small_offset_is_reported_and_left():
    wave = tone(1.0, peak=0.3) + np.float32(0.009)
    found = read(wave)
    assert found.dc == pytest.approx(0.009, abs=1e-5)
    assert np.array_equal(found.wave, wave)


def test_silence_is_the_share_of_quiet_frames():
    wave = tone(2.0)
    wave[:RATE] *= 1e-3  # 0.0005 at its peaks
    assert read(wave).silence == 0.5
    for offset in (0.009, 0.2):  # left as it is, and removed
        assert read(wave + np.float32(offset)).silence == 0.5
    assert quality.silence_share(tone(0.001, peak=1e-4), RATE) == 1.0  # shorter than a frame
    assert quality.silence_share(tone(0.039), RATE) == 0.0


def test_silence_in_all_channels_but_one_leaves_the_sound():
    wave = np.zeros((RATE, 8), np.float32)
    wave[:, 5] = tone(1.0)
    assert np.allclose(read(wave).wave, tone(1.0) / 8, atol=1e-6)


@pytest.mark.parametrize(("rate", "subtype"), [(RATE, "PCM_16"), (48000, "FLOAT")])
def test_channels_that_cancel_give_the_loudest(rate, subtype):
    wave = tone(1.0, rate)
    pair = np.stack([-0.99 * wave, wave], axis=1)
    assert np.array_equal(read(pair, rate, subtype).wave, read(wave, rate, subtype).wave)


def test_channels_that_cancel_in_part_are_averaged():
    pair = np.stack([-0.8 * tone(1.0), tone(1.0)], axis=1)
    assert np.allclose(read(pair).wave, 0.1 * tone(1.0), atol=1e-6)


def test_opposite_offsets_without_sound_are_silence():
    with pytest.raises(BadSample, match="digital silence") as caught:
        read(np.stack([np.full(RATE, 0.25), np.full(RATE, -0.25)], axis=1).astype(np.float32))
    assert caught.value.reason == "silent"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("channels", [2, 8])
def test_a_number_that_is_not_finite_in_one_channel_refuses_the_file(value, channels):
    wave = np.stack([tone(1.0)] * channels, axis=1)
    wave[5000, 1] = value
    with pytest.raises(BadSample, match="not finite") as caught:
        read(wave)
    assert caught.value.reason == "non_finite"


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"])
def test_equal_bytes_give_equal_recordings_and_the_tone_is_there(rate, channels, subtype):
    data = encoded(np.stack([tone(1.0, rate)] * channels, axis=1), rate, "WAV", subtype)
    one, two = (read_recording(io.BytesIO(data), RATE) for _ in range(2))
    assert np.array_equal(one.wave, two.wave)
    assert np.array_equal(one.mono, two.mono)
    assert one[2:] == two[2:]
    tolerance = 0.02 if subtype == "PCM_U8" else 1e-3
    assert np.abs(one.wave - tone(1.0))[200:-200].max() < tolerance
    assert np.array_equal(one.wave, read_audio(io.BytesIO(data), RATE))
