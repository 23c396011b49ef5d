"""One utterance in the encodings that corpora come in: the same speech, of the same length."""

import io
import itertools
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soxr
from audio.encoding import CORPUS, RATE, by_ffmpeg, encoded, unknown_flac, variable_mp3, without_tag

from slmkit.audio.io import read_audio
from slmkit.audio.mel import log_mel


def at_rate(rate, write):
    return lambda wave: write(soxr.resample(wave, RATE, rate, quality="HQ"))


def with_number(content, after, number):
    """A WAV file with another number in its header."""
    place = content.index(after) + len(after)
    return content[:place] + struct.pack("<I", number) + content[place + 4 :]


def six_channels(wave):
    return encoded(np.outer(wave, [1.0, 0.8, 0.3, 0.0, 0.5, 0.5]).astype(np.float32))


def ima_adpcm(wave):
    """With its true length, as SoX writes it; libsndfile and FFmpeg write that of whole blocks."""
    return with_number(encoded(wave, subtype="IMA_ADPCM"), b"fact\4\0\0\0", len(wave))


# name -> (how it is written, by how many samples it may be longer, and later). A file that does not say where its sound
# ends is as long as its own frames, of 20 ms in AMR and 32 ms in WMA; MP3 without a length and AAC keep the encoder's
# delay too. All others are equal to 2 ms, far less than a frame of a codec.
ENCODINGS = {
    "mu-law": (lambda wave: encoded(wave, subtype="ULAW"), 0),
    "A-law": (lambda wave: encoded(wave, subtype="ALAW"), 0),
    "IMA ADPCM": (ima_adpcm, 0),
    "MS ADPCM": (lambda wave: encoded(wave, subtype="MS_ADPCM"), 0),
    "GSM": (at_rate(8000, lambda wave: encoded(wave, 8000, subtype="GSM610")), 1),
    "24 bit": (lambda wave: encoded(wave, subtype="PCM_24"), 0),
    "32 bit": (lambda wave: encoded(wave, subtype="PCM_32"), 0),
    "64 bit": (lambda wave: encoded(wave, subtype="DOUBLE"), 0),
    "AIFF": (lambda wave: encoded(wave, kind="AIFF"), 0),
    "AIFC mu-law": (lambda wave: encoded(wave, kind="AIFF", subtype="ULAW"), 0),
    "AU": (lambda wave: encoded(wave, kind="AU"), 0),
    "SPHERE": (lambda wave: encoded(wave, kind="NIST"), 0),
    "CAF": (lambda wave: encoded(wave, kind="CAF"), 0),
    "W64": (lambda wave: encoded(wave, kind="W64"), 0),
    "RF64": (lambda wave: encoded(wave, kind="RF64"), 0),
    "six channels": (six_channels, 0),
    "piped WAV": (lambda wave: with_number(encoded(wave), b"data", 2**32 - 1), 0),
    "piped WAV of length 0": (lambda wave: with_number(encoded(wave), b"data", 0), 0),
    "piped FLAC": (unknown_flac, 0),
    "Opus": (lambda wave: encoded(wave, kind="OGG", subtype="OPUS"), 0),
    "Vorbis": (lambda wave: encoded(wave, kind="OGG", subtype="VORBIS"), 0),
    "Ogg FLAC": (lambda wave: by_ffmpeg(wave, "ogg", "flac"), 0),
    "MP3": (variable_mp3, 0),
    "MP3 without a length": (lambda wave: without_tag(variable_mp3(wave)), 1105 + 576),
    "M4A": (lambda wave: by_ffmpeg(wave, "ipod", "aac"), 0),
    "MP4 in fragments": (lambda wave: by_ffmpeg(wave, "mp4", "flac", movflags="frag_keyframe+empty_moov"), 0),
    "3GP": (at_rate(8000, lambda wave: by_ffmpeg(wave, "3gp", "libopencore_amrnb", 8000, 12_200)), 32),
    "AAC": (lambda wave: by_ffmpeg(wave, "adts", "aac"), 1024 + 1024),
    "WebM": (at_rate(48_000, lambda wave: by_ffmpeg(wave, "webm", "libopus", 48_000)), 0),
    "WMA": (lambda wave: by_ffmpeg(wave, "asf", "wmav2", bit_rate=32_000), 512),
    "AMR": (at_rate(8000, lambda wave: by_ffmpeg(wave, "amr", "libopencore_amrnb", 8000, 12_200)), 320),
}


@pytest.fixture(scope="module")
def utterance():
    return read_audio(min(CORPUS.rglob("*.flac")), RATE)


@pytest.mark.parametrize("name", ENCODINGS)
def test_the_same_speech_of_the_same_length(utterance, name):
    from scipy.signal import correlate  # takes a second; other workers do not need it

    write, longest = ENCODINGS[name]
    found = read_audio(io.BytesIO(write(utterance)), RATE)
    assert abs(len(found) - len(utterance)) <= longest
    lag = int(correlate(found, utterance, method="fft").argmax()) - len(utterance) + 1
    assert abs(lag) <= longest
    one, other = found[max(0, lag) :], utterance[max(0, -lag) :]
    one, other = one[: len(other)], other[: len(one)]
    if name in ("AMR", "3GP"):  # its decoder keeps the spectrum of speech, below 4 kHz, and not the shape of the wave
        one, other = (10 ** (log_mel(wave, RATE)[:56] / 20) for wave in (one, other))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.95


def test_threads_change_no_sample(utterance):
    """Each file in several threads at once, as many others are decoded beside it."""
    files = [write(utterance) for write, _ in ENCODINGS.values()]
    alone = [read_audio(io.BytesIO(content), RATE) for content in files]
    with ThreadPoolExecutor(4) as threads:
        together = threads.map(lambda content: read_audio(io.BytesIO(content), RATE), 3 * files)
        for one, other in zip(itertools.cycle(alone), together, strict=False):
            assert np.array_equal(one, other)
