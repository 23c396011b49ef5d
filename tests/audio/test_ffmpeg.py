"""Files that FFmpeg reads: what their headers say wrong, what is missing of them, what must not be opened."""

import io
import itertools
import struct

import numpy as np
import pytest
import soundfile
from audio.encoding import RATE, by_ffmpeg, encoded, speech, tone, variable_mp3, without_tag
from fuzzed_audio import good

from slmkit.audio.decoding import open_decoder
from slmkit.audio.io import read_audio, read_recording
from slmkit.errors import BadSample


@pytest.fixture(scope="module")
def wave():
    return speech(4.0)


def read(content, rate=RATE):
    return read_audio(io.BytesIO(content), rate)


def reason(content):
    with pytest.raises(BadSample) as caught:
        read(content)
    return caught.value.reason


def pages(ogg):
    """The pages of an Ogg file."""
    starts = [place for place in range(len(ogg)) if ogg.startswith(b"OggS\0", place)] + [len(ogg)]
    return [ogg[start:end] for start, end in itertools.pairwise(starts)]


@pytest.mark.parametrize("kind", ["m4a", "alac", "webm", "wma", "amr", "aac"])
@pytest.mark.parametrize("share", [0.3, 0.617, 0.9])
def test_what_is_cut_short_is_refused(wave, kind, share):
    container, codec, options = {
        "m4a": ("ipod", "aac", {"movflags": "faststart"}),
        "alac": ("ipod", "alac", {}),  # whose table of contents is at its end
        "webm": ("webm", "libopus", {}),
        "wma": ("asf", "wmav2", {"bit_rate": 32_000}),
        "amr": ("amr", "libopencore_amrnb", {"rate": 8000, "bit_rate": 12_200}),
        "aac": ("adts", "aac", {}),
    }[kind]
    content = by_ffmpeg(wave, container, codec, **options)
    place = int(len(content) * share)
    assert reason(content[:place]) == ("unreadable" if kind == "alac" else "truncated")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_file_with_a_page_lost_is_refused_and_a_part_of_a_stream_is_read(subtype):
    whole = pages(encoded(speech(8.0), kind="OGG", subtype=subtype))
    assert reason(b"".join(whole[:4] + whole[5:])) == "truncated"
    headers = 2
    part = read(b"".join(whole[:headers] + whole[headers + 2 :]))
    assert 4.0 <= len(part) / RATE <= 7.0


def test_webm_that_says_too_little_of_what_is_before_the_sound(wave):
    """As older FFmpegs wrote it for Opus of 16 kHz."""
    content = by_ffmpeg(wave, "webm", "libopus")
    place = content.index(b"\x56\xaa\x83") + 3  # CodecDelay, in ns
    wrong = content[:place] + (2_166_667).to_bytes(3, "big") + content[place + 3 :]
    assert abs(len(read(wrong)) - len(wave)) <= 1
    assert np.abs(read(wrong)[1000:40_000] - read(content)[1000:40_000]).max() < 0.01


def test_the_first_samples_of_wma_are_there():
    wave = tone(1.0)
    assert np.abs(read(by_ffmpeg(wave, "asf", "wmav2"))[100 : len(wave)] - wave[100:])[:-600].max() < 0.05


def test_a_playlist_opens_no_other_file(tmp_path):
    (tmp_path / "other.wav").write_bytes(encoded(tone()))
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/other.wav\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile '{tmp_path}/other.wav'\n",
    ):
        (tmp_path / "a.m3u8").write_text(text)
        with pytest.raises(BadSample, match="cannot be read as audio") as caught:
            read_audio(tmp_path / "a.m3u8", RATE)
        assert caught.value.reason == "unreadable"


def test_a_codec_that_nobody_knows(wave):
    content = by_ffmpeg(wave, "ipod", "alac").replace(b"alac", b"zzzz")
    with pytest.raises(BadSample, match="it holds no audio that FFmpeg knows"):
        read(content)


def test_another_sample_rate_in_the_middle(wave):
    content = without_tag(variable_mp3(wave)) + without_tag(variable_mp3(np.stack([wave, wave], axis=1)))
    with pytest.raises(BadSample, match="the sample rate or the number of channels changes") as caught:
        read(content)
    assert caught.value.reason == "truncated"


def test_a_frame_of_mp3_among_noise(wave):
    noise = np.random.default_rng(0).integers(0, 256, 2_000_000, dtype=np.uint8).tobytes()
    with pytest.raises(BadSample, match="most of it cannot be decoded"):
        read(without_tag(variable_mp3(wave[:RATE]))[:400] + noise)


def test_much_behind_an_mp3_file_takes_none_of_it(wave):
    content = variable_mp3(wave)
    noise = np.random.default_rng(3).integers(0, 255, 20_000, dtype=np.uint8).tobytes()
    found, whole = read(content + noise), read(content)
    assert np.array_equal(found[: len(whole)], whole)
    assert len(found) - len(whole) < 1152  # the rest of the last frame


def test_an_mp4_track_that_ends_before_its_last_packet(wave):
    """By the edit list, in ms; the packet is marked as whole."""
    content = bytearray(by_ffmpeg(wave, "ipod", "aac"))
    place = content.index(b"elst") + 12
    assert struct.unpack_from(">I", content, place)[0] == 4000
    struct.pack_into(">I", content, place, 3000)
    assert len(read(bytes(content))) == 3 * RATE


def test_a_seek_that_fails_decodes_from_the_start(wave, monkeypatch):
    content = by_ffmpeg(np.tile(wave, 3), "ipod", "alac")
    decoder = open_decoder(io.BytesIO(content), "a.m4a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slmkit.audio.ffmpeg.WARM_UP_SEC", 1.0)
        patch.setattr(type(decoder), "_samples", lambda *_: 2**40)
        assert decoder._seek(8 * RATE) == 0
    decoder.close()
    with pytest.raises(AssertionError, match="not open"):
        decoder.file.seek(0)
    piece = read_recording(io.BytesIO(content), RATE, cut=(9.0, 10.0, 9.0, 10.0)).wave
    assert np.abs(piece - np.tile(wave, 3)[9 * RATE : 10 * RATE]).max() < 1e-4


def test_short_files_of_vorbis_are_as_libsndfile_reads_them():
    """All sound of many lies in one page, where FFmpeg's time stamps begin and end elsewhere."""
    for seed in range(40):
        content = good("ogg", np.random.default_rng(seed))
        expected, rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
        assert np.allclose(read(content, rate), expected.mean(axis=1), atol=1e-5)
