"""Cuts of long recordings: the same samples however they are reached, quiet ends, no more memory than needed."""

import io
import tracemalloc

import numpy as np
import pytest
import soundfile
from audio.encoding import RATE, encoded, speech, tone, unknown_flac, variable_mp3, without_tag

from slmkit.audio import TO_END, decoding, ffmpeg, quality
from slmkit.audio.decoding import WARM_UP_SEC
from slmkit.audio.io import read_audio, read_recording
from slmkit.errors import BadSample

SECONDS = 40
PAGE_SEC = 1.5  # of Ogg, to whose beginning a seek goes
KINDS = {
    "wav": lambda wave: encoded(wave),
    "wav float": lambda wave: encoded(wave, subtype="FLOAT"),
    "wav mu-law": lambda wave: encoded(wave, subtype="ULAW"),
    "aiff 24 bit": lambda wave: encoded(wave, kind="AIFF", subtype="PCM_24"),
    "flac": lambda wave: encoded(wave, kind="FLAC"),
    "flac of unknown length": unknown_flac,
    "gsm": lambda wave: encoded(wave, kind="WAV", subtype="GSM610"),
    "ima": lambda wave: encoded(wave, kind="WAV", subtype="IMA_ADPCM"),
    "mp3 constant": lambda wave: encoded(wave, kind="MP3", bitrate_mode="CONSTANT", compression_level=0.9),
    "mp3 variable": variable_mp3,
    "mp3 without length": lambda wave: without_tag(variable_mp3(wave)),
    "vorbis": lambda wave: encoded(wave, kind="OGG", subtype="VORBIS"),
    "opus": lambda wave: encoded(wave, kind="OGG", subtype="OPUS"),
}
FEW = ("wav", "gsm", "mp3 variable", "opus")  # of the default run
SOUGHT = sorted(set(KINDS) - {"flac of unknown length", "gsm", "ima"})


@pytest.fixture(scope="module")
def files():
    wave = speech(SECONDS)
    return {kind: make(wave) for kind, make in KINDS.items()}


def cut(data, start, end, margin=0.3, **options):
    options = {"cut": (start, end, start - margin, end + margin), **options}
    return read_recording(io.BytesIO(data), RATE, **options).wave


@pytest.mark.parametrize(
    "kind", [kind if kind in FEW else pytest.param(kind, marks=pytest.mark.full) for kind in KINDS]
)
def test_a_cut_is_the_same_sought_or_decoded_from_the_start(files, kind, monkeypatch):
    """Tolerance: MP3 decoders keep sums of floats from block to block, whose last bit depends on what came before."""
    places = [(0.4, 2.0), (5.1, 7.0), (11.37, 13.0), (23.456, 25.0), (31.0, 39.9)]
    sought = [cut(files[kind], *place) for place in places]
    monkeypatch.setattr(decoding, "SEEKING_SUBTYPES", set())
    monkeypatch.setattr(ffmpeg, "SEEKING_FORMATS", set())
    for one, place in zip(sought, places, strict=True):
        other = cut(files[kind], *place)
        assert len(one) == len(other)
        assert np.abs(one - other).max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_is_a_part_of_the_whole(files, kind):
    rate = 48000 if kind == "opus" else RATE  # the decoder's own, since the ends of a cut are resampled otherwise
    whole = read_audio(io.BytesIO(files[kind]), rate)
    for start in (20, 27):
        piece = read_recording(io.BytesIO(files[kind]), rate, cut=(start, start + 2, start, start + 2)).wave
        assert len(piece) == 2 * rate
        assert np.abs(piece - whole[start * rate : (start + 2) * rate]).max() < 1e-6


@pytest.mark.parametrize("kind", ["wav", "mp3 variable", "flac of unknown length"])
def test_a_cut_to_the_end_goes_on_to_the_last_sample(files, kind):
    def to_end(start, content=files[kind], **options):
        return read_recording(io.BytesIO(content), RATE, cut=(start, TO_END, start, TO_END), **options).wave

    whole = read_audio(io.BytesIO(files[kind]), RATE)
    assert np.abs(to_end(31.0) - whole[31 * RATE :]).max() < 1e-6
    with pytest.raises(BadSample, match="is too long"):
        to_end(31.0, max_sec=5.0)
    for start in (SECONDS + 1.0, 1e12):
        with pytest.raises(BadSample, match="ends before the cut begins") as caught:
            to_end(start)
        assert caught.value.reason == "truncated"
    if kind == "wav":
        with pytest.raises(BadSample, match="ends before the cut begins, or is damaged"):
            to_end(31.0, files[kind][: -5 * RATE])


def test_one_channel_is_taken_where_it_is_named():
    left, right = speech(3), tone(3)
    both = np.stack([left, right], axis=1)
    for channel, wave in enumerate((left, right)):
        stream = io.BytesIO(encoded(both, subtype="FLOAT"))
        found = read_recording(stream, RATE, cut=(1.0, 2.0, 1.0, 2.0), channel=channel).wave
        np.testing.assert_allclose(found, wave[RATE : 2 * RATE], atol=1e-6)
    for channel in (2, -1):
        with pytest.raises(BadSample, match="has no such channel") as caught:
            read_recording(io.BytesIO(encoded(both)), RATE, channel=channel)
        assert caught.value.reason == "bad_channel"


@pytest.mark.parametrize("kind", SOUGHT)
def test_only_what_a_cut_needs_is_decoded(files, kind, monkeypatch):
    read = []
    read_block, values = decoding.Libsndfile._read, ffmpeg._values
    monkeypatch.setattr(decoding.Libsndfile, "_read", lambda self, n: read.append(n / RATE) or read_block(self, n))
    monkeypatch.setattr(
        ffmpeg, "_values", lambda frame: read.append(frame.samples / frame.sample_rate) or values(frame)
    )
    cut(files[kind], 30.0, 31.0)
    assert WARM_UP_SEC + 1.6 - 1e-3 <= sum(read) <= WARM_UP_SEC + 1.6 + PAGE_SEC


def test_an_hour_decoded_to_its_end_is_not_held():
    data = unknown_flac(np.tile(tone(1.0, 4000), 3600), 4000)
    tracemalloc.start()
    try:
        wave = read_recording(io.BytesIO(data), 4000, cut=(3590.0, 3592.0, 3589.0, 3593.0)).wave
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 2 * 4000 <= len(wave) <= 4 * 4000
    assert peak < 20 * 2**20  # the hour itself takes 55 MiB


def noise_with(*quiet, seconds=4.0):
    """Noise, with what is given as (from, to, level) softer."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)
    for start, end, level in quiet:
        wave[round(start * RATE) : round(end * RATE)] *= level
    return wave


def test_the_ends_lie_where_it_is_quietest():
    wave = noise_with((0.70, 0.72, 0.01), (0.9, 0.93, 0.1), (3.2, 3.22, 0.02), (3.05, 3.09, 0.2))
    data = encoded(wave, subtype="FLOAT")
    piece = read_recording(io.BytesIO(data), RATE, cut=(1.0, 3.0, 0.5, 3.5)).wave
    assert np.array_equal(piece, wave[round(0.71 * RATE) : round(3.21 * RATE)])


def test_an_offset_does_not_hide_what_is_quiet():
    wave = noise_with((0.70, 0.72, 0.0), (3.2, 3.22, 0.0)) * 0.1 + 0.4
    piece = read_recording(io.BytesIO(encoded(wave, subtype="FLOAT")), RATE, cut=(1.0, 3.0, 0.5, 3.5))
    assert len(piece.wave) == round(2.5 * RATE)
    assert piece.dc == pytest.approx(0.4, abs=0.01)


def test_in_silence_the_ends_lie_next_to_the_speech():
    data = encoded(noise_with((0.0, 1.0, 0.0), (3.0, 4.0, 0.0)))
    piece = read_recording(io.BytesIO(data), RATE, cut=(1.0, 3.0, 0.0, 4.0)).wave
    assert len(piece) == round(2.02 * RATE)


@pytest.mark.parametrize("margin", [0.0, 0.005, 0.019, 0.5])
def test_speech_is_never_cut_into(margin):
    wave = noise_with((1.0, 3.0, 0.0))  # the speech itself is the quietest
    wave[[RATE, 3 * RATE - 1]] = 0.25
    piece = read_recording(
        io.BytesIO(encoded(wave, subtype="FLOAT")), RATE, cut=(1.0, 3.0, 1.0 - margin, 3.0 + margin)
    ).wave
    silent = np.flatnonzero(piece == 0.25)
    assert silent[-1] - silent[0] == 2 * RATE - 1
    assert 2 * RATE <= len(piece) <= round((2 + 2 * margin) * RATE)


def test_a_cut_is_resampled_as_a_file_of_its_own():
    wave = np.random.default_rng(0).normal(0, 0.1, 44100 * 9).astype(np.float32)
    whole, part = (encoded(w, 44100, subtype="FLOAT") for w in (wave, wave[44100 * 6 : 44100 * 8]))
    piece = read_recording(io.BytesIO(whole), RATE, cut=(6.0, 8.0, 6.0, 8.0)).wave
    assert np.array_equal(piece, read_audio(io.BytesIO(part), RATE))


def test_the_longest_length_takes_from_the_gaps_and_never_from_the_speech():
    data = encoded(tone(10.0))
    options = {"cut": (4.0, 6.0, 1.0, 9.0)}
    assert len(read_recording(io.BytesIO(data), RATE, **options, max_sec=2.0).wave) == 2 * RATE
    assert len(read_recording(io.BytesIO(data), RATE, **options, max_sec=2.5).wave) <= 2.5 * RATE
    with pytest.raises(BadSample, match=r"is too long\n.*2\.000 s or more") as caught:
        read_recording(io.BytesIO(data), RATE, **options, max_sec=1.999)
    assert caught.value.reason == "too_long"
    with pytest.raises(BadSample, match="is too short") as caught:
        read_recording(io.BytesIO(data), RATE, cut=(4.0, 6.0, 4.0, 6.0), min_sec=2.001)
    assert caught.value.reason == "too_short"


@pytest.mark.parametrize("kind", ["wav", "flac", "flac of unknown length", "mp3 variable", "opus", "gsm"])
def test_a_cut_beyond_the_end_is_truncated_but_time_stamps_may_be_rounded(files, kind):
    assert len(cut(files[kind], SECONDS - 2.0, SECONDS + 0.05, margin=0.0)) == pytest.approx(2 * RATE, abs=400)
    for start, end in ((SECONDS - 2.0, SECONDS + 0.5), (SECONDS + 100.0, SECONDS + 101.0)):
        with pytest.raises(BadSample, match="ends or is damaged before the cut ends") as caught:
            cut(files[kind], start, end)
        assert caught.value.reason == "truncated"


def test_a_file_damaged_before_its_cut_can_still_be_cut_and_after_it_cannot():
    data = bytearray(encoded(speech(20.0), kind="FLAC"))
    half = data[: len(data) // 2]
    assert len(cut(bytes(half), 2.0, 4.0, margin=0.0)) == 2 * RATE
    with pytest.raises(BadSample, match="before the cut ends") as caught:
        cut(bytes(half), 17.0, 19.0)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize(
    "wrong",
    [
        (2.0, 2.0, 1.0, 3.0),
        (3.0, 2.0, 1.0, 4.0),
        (1.0, 2.0, 1.5, 3.0),
        (1.0, 2.0, 0.5, 1.9),
        (-1.0, 2.0, -2.0, 3.0),
        (float("nan"), 2.0, 0.0, 3.0),
        (1.0, 2.0, 0.5, float("inf")),
    ],
)
def test_a_cut_that_is_none_is_refused(wrong):
    with pytest.raises(BadSample, match="cannot be cut so") as caught:
        read_recording(io.BytesIO(encoded(tone(5.0))), RATE, cut=wrong)
    assert caught.value.reason == "bad_cut"


def test_a_seek_that_fails_is_damage(monkeypatch):
    def refuse(*_):
        raise soundfile.LibsndfileError(39)

    monkeypatch.setattr(decoding._ForwardFile, "seek", refuse)
    with pytest.raises(BadSample, match="the decoder says") as caught:
        cut(encoded(tone(20.0)), 12.0, 13.0)
    assert caught.value.reason == "truncated"


def test_quiet_frames_are_at_most_as_loud_as_any_other():
    """Against every place tried one by one; the sums of the fast way round differently, by less than 1e-9."""
    random = np.random.default_rng(0)
    for _ in range(50):
        wave = random.choice([0.0, 0.5, 1.0], size=60).astype(np.float32)
        low, high, width = random.integers(0, 20), random.integers(20, 61), int(random.integers(1, 25))
        for prefer_last in (False, True):
            place = quality.quietest(wave, width, low=low, high=high, prefer_last=prefer_last)
            if high - low < width:
                assert place == (low + high) // 2
                continue
            sums = {s: float(np.square(wave[s : s + width]).sum()) for s in range(low, high - width + 1)}
            best = [s for s, total in sums.items() if total == min(sums.values())]
            assert place == best[-1 if prefer_last else 0] + width // 2
