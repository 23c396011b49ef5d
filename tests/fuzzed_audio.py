"""Damaged audio files from a seed.

Each is made of a good file (WAV, FLAC, AIFF, MP3, Ogg Vorbis, Ogg Opus, M4A, WebM, WMA, AMR; 0.3 to 1.5 s) by one kind
of harm. Some harm
leaves nothing that could be a recording, or leaves less than the header promises: such a file is surely bad and must
end in the ledger. Other harm may be survived, and then any finite wave will do.

Example:
    for name, content, surely_bad in fuzzed(seed=0, count=300): ...       # ("000007-truncated.flac", b"fLaC...", True)
"""

import io
import itertools
from collections.abc import Iterator

import av
import numpy as np
import soundfile

KINDS = {
    "wav": ("WAV", "PCM_16"),
    "float.wav": ("WAV", "FLOAT"),
    "flac": ("FLAC", None),
    "aiff": ("AIFF", "PCM_24"),
    "mp3": ("MP3", None),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "m4a": ("ipod", "aac"),
    "webm": ("webm", "libopus"),
    "wma": ("asf", "wmav2"),
    "amr": ("amr", "libopencore_amrnb"),
}
FFMPEG = ("m4a", "webm", "wma", "amr")  # written by FFmpeg, mono, the others by libsndfile
BIT_RATE = {"wma": 32_000, "amr": 12_200}
RATES = (8000, 16000, 48000)  # Hz; Opus takes only these and two more
PROMISING = ("wav", "float.wav", "flac", "aiff", "mp3", "m4a")  # kinds whose header says how long they are
HEADER_BYTES = 100


def fuzzed(seed: int, count: int) -> Iterator[tuple[str, bytes, bool]]:
    """(name, content, whether it is surely bad) of `count` files; every kind of harm and of file comes up in turn."""
    pairs = [(harm, kind) for harm in HARMS for kind in KINDS if harm[1] is None or kind in harm[1]]
    order = np.random.default_rng(seed).permutation(len(pairs))
    for number, place in enumerate(itertools.islice(itertools.cycle(order), count)):
        random = np.random.default_rng([seed, number])
        (harm, _, surely_bad), kind = pairs[place]
        content = harm(good(kind, random), random)
        yield f"{number:06d}-{harm.__name__.strip('_')}.{kind}", content, surely_bad


def good(kind: str, random: np.random.Generator) -> bytes:
    """An undamaged file."""
    rate = 8000 if kind == "amr" else int(random.choice(RATES))
    seconds = random.uniform(0.3, 1.5)
    times = np.arange(round(seconds * rate)) / rate
    wave = 0.3 * np.sin(2 * np.pi * random.uniform(80, 800) * times) + random.normal(0, 0.05, len(times))
    container, subtype = KINDS[kind]
    buffer = io.BytesIO()
    if kind in FFMPEG:
        _write_by_ffmpeg(buffer, wave.astype(np.float32), rate, kind)
        return buffer.getvalue()
    if random.integers(2):
        wave = np.stack([wave, 0.7 * wave], axis=1)
    soundfile.write(buffer, wave, rate, format=container, subtype=subtype)
    return _timeless(buffer.getvalue())


def _write_by_ffmpeg(buffer: io.BytesIO, wave: np.ndarray, rate: int, kind: str) -> None:
    container, codec = KINDS[kind]
    with av.open(buffer, "w", format=container, options={"fflags": "+bitexact"}) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = BIT_RATE.get(kind, 48_000)
        frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)


def _timeless(content: bytes) -> bytes:
    """The file without what depends on when it was written: serial numbers of Ogg streams, a date in float WAV."""
    fixed = bytearray(content)
    if (peak := content.find(b"PEAK")) > 0:
        fixed[peak + 12 : peak + 16] = bytes(4)
    place = 0
    while content[place : place + 4] == b"OggS":
        segments = content[place + 27 : place + 27 + content[place + 26]]
        end = place + 27 + len(segments) + sum(segments)
        fixed[place + 14 : place + 18] = b"\1\0\0\0"
        fixed[place + 22 : place + 26] = bytes(4)
        fixed[place + 22 : place + 26] = _ogg_checksum(fixed[place:end]).to_bytes(4, "little")
        place = end
    return bytes(fixed)


def _ogg_checksum(page: bytes) -> int:
    """The remainder by 0x104C11DB7, highest bit first, from zero (RFC 3533)."""
    remainder = 0
    for byte in page:
        remainder = (remainder << 8 & 0xFFFFFFFF) ^ CHECKSUMS[remainder >> 24 ^ byte]
    return remainder


def _shifted_out(byte: int) -> int:
    """What a byte at the top of a remainder leaves once it is shifted out."""
    remainder = byte << 24
    for _ in range(8):
        remainder = remainder << 1 ^ (0x104C11DB7 if remainder & 0x80000000 else 0)
    return remainder


CHECKSUMS = [_shifted_out(byte) for byte in range(256)]


def _random_bytes(content: bytes, random: np.random.Generator) -> bytes:
    return b"\1" + random.bytes(len(content))


def _text(content: bytes, _: np.random.Generator) -> bytes:
    return (content[:200].hex() + "\n").encode() * (1 + len(content) // 400)


def _nothing(*_: object) -> bytes:
    return b""


def _truncated(content: bytes, random: np.random.Generator) -> bytes:
    return content[: int(len(content) * random.uniform(0.01, 0.9))]


def _truncated_header(content: bytes, random: np.random.Generator) -> bytes:
    return content[: random.integers(1, 40)]


def _beheaded(content: bytes, random: np.random.Generator) -> bytes:
    return b"\1" + content[random.integers(1, 12) :]


def _silenced(content: bytes, random: np.random.Generator) -> bytes:
    """All sound of a WAV file becomes zero."""
    start = content.index(b"data") + 8
    return content[:start] + bytes(len(content) - start)


def _not_a_number(content: bytes, random: np.random.Generator) -> bytes:
    """One sample of a float WAV file becomes NaN."""
    start = content.index(b"data") + 8
    place = start + 4 * int(random.integers((len(content) - start) // 4))
    return content[:place] + np.float32(np.nan).tobytes() + content[place + 4 :]


def _impossible_rate(content: bytes, random: np.random.Generator) -> bytes:
    """The sample rate of a WAV file becomes one no recorder has."""
    rate = int(random.choice([0, 1, 3999, 400_001, 2**31 - 1, 2**32 - 1]))
    return content[:24] + rate.to_bytes(4, "little") + content[28:]


def _mutated_header(content: bytes, random: np.random.Generator) -> bytes:
    return _mutated(content, random, HEADER_BYTES)


def _mutated_anywhere(content: bytes, random: np.random.Generator) -> bytes:
    return _mutated(content, random, len(content))


def _mutated(content: bytes, random: np.random.Generator, end: int) -> bytes:
    damaged = bytearray(content)
    for place in random.integers(0, end, size=random.integers(1, 9)):
        damaged[place] = random.integers(256)
    return bytes(damaged)


def _overwritten(content: bytes, random: np.random.Generator) -> bytes:
    """A block in the middle becomes noise, as on a damaged disk."""
    start = int(random.integers(len(content)))
    return (content[:start] + random.bytes(512) + content[start + 512 :])[: len(content)]


def _lost_block(content: bytes, random: np.random.Generator) -> bytes:
    start = int(random.integers(len(content)))
    return content[:start] + content[start + int(random.integers(1, 2000)) :]


def _inserted(content: bytes, random: np.random.Generator) -> bytes:
    start = int(random.integers(len(content)))
    return content[:start] + random.bytes(int(random.integers(1, 2000))) + content[start:]


def _spliced(content: bytes, random: np.random.Generator) -> bytes:
    """The beginning of this file and the end of another, of any kind."""
    other = good(str(random.choice(list(KINDS))), random)
    return content[: random.integers(len(content))] + other[random.integers(len(other)) :]


def _extreme_header(content: bytes, random: np.random.Generator) -> bytes:
    """Some four bytes of the header become 0, the largest number, or one that is just negative."""
    place = int(random.integers(4, 60))
    word = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f")[random.integers(4)]
    return content[:place] + word + content[place + 4 :]


# (harm, the kinds it is done to: None all, whether the result is surely bad)
HARMS = [
    (_random_bytes, ("wav", "mp3"), True),
    (_text, ("wav", "flac"), True),
    (_nothing, ("wav",), True),
    (_truncated, PROMISING, True),
    (_truncated_header, None, True),
    (_beheaded, ("wav", "float.wav", "flac", "aiff", "ogg", "opus", "webm", "wma"), True),
    (_silenced, ("wav", "float.wav"), True),
    (_not_a_number, ("float.wav",), True),
    (_impossible_rate, ("wav", "float.wav"), True),
    (_truncated, ("ogg", "opus"), False),
    (_mutated_header, None, False),
    (_mutated_anywhere, None, False),
    (_overwritten, None, False),
    (_lost_block, None, False),
    (_inserted, None, False),
    (_spliced, None, False),
    (_extreme_header, None, False),
]
