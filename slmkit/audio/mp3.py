"""MP3 files whose own header does not say how long they are.

An MP3 file has no header but a first frame that may be a tag with the number of frames. Where it is missing, libsndfile
guesses the length from the first frame's bit rate and stops there: most of a file of varying bit rate would be lost
without a word. Where files were joined, it stops after the first. Bytes before the first frame make it give up.

`mended` counts the frames and puts a tag of its own before them. Knows nothing of samples.

Invariant: a file that needs no mending is left alone, and one that does is read whole or not at all.

Not done: layers I and II, free-format bit rates.

Example:
    stream = mended(open("podcast.mp3", "rb"))        # None: nothing to mend
"""

import io
import struct
from typing import BinaryIO, NamedTuple

BIT_RATES = {  # kbit/s by index; 0 stands for free format, 15 is forbidden
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
SAMPLE_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
SEARCHED_BYTES = 2**16  # for the first frame, after an ID3 tag
FRAMES_IN_A_ROW = 4  # make sure that what looks like a frame is one
SPARE_SHARE, SPARE_BYTES = 0.02, 4096  # beyond what the tag says, not worth a count
TAG_BIT_RATE_INDEX = 9


class _Frame(NamedTuple):
    num_bytes: int
    kind: int  # the bits of the header that all frames of a stream share
    mpeg1: bool
    mono: bool


def mended(file: BinaryIO) -> io.RawIOBase | None:
    """The content of `file` from its first frame on, with a true tag before it; None where it needs or allows none."""
    first_byte = _first_frame(file)
    if first_byte is None:
        return None
    frame = _frame_at(file, first_byte)
    assert frame is not None
    size = file.seek(0, io.SEEK_END)
    frames, num_bytes = _tag(file, first_byte, frame)
    sound = first_byte + (0 if frames is None else frame.num_bytes)  # the tag is itself a frame, without sound
    is_long = frames is None or size - first_byte > (1 + SPARE_SHARE) * num_bytes + SPARE_BYTES
    counted = _count(file, sound, frame.kind) if is_long else 0
    if frames is None or counted > frames:
        return _Joined(_new_tag(frame, counted, size - sound), file, sound)
    return None if first_byte == _after_id3(file) else _Joined(b"", file, first_byte)


class _Joined(io.RawIOBase):
    """`head`, then `file` from `first_byte` on, as one stream to read."""

    def __init__(self, head: bytes, file: BinaryIO, first_byte: int) -> None:
        super().__init__()
        self.head, self.file, self.first_byte, self.place = head, file, first_byte, 0
        self.size = len(head) + file.seek(0, io.SEEK_END) - first_byte

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence])
        return self.place

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        if self.place < len(self.head):
            content = self.head[self.place : self.place + len(buffer)]
        else:
            self.file.seek(self.first_byte + self.place - len(self.head))
            content = self.file.read(len(buffer))
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)


def _after_id3(file: BinaryIO) -> int:
    """The first byte after an ID3v2 tag at the beginning."""
    file.seek(0)
    head = file.read(10)
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    return 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))


def _first_frame(file: BinaryIO) -> int | None:
    """Where the first of several frames in a row begins."""
    start = _after_id3(file)
    file.seek(start)
    searched = file.read(SEARCHED_BYTES)
    offset = searched.find(b"\xff")
    while offset >= 0:
        if _in_a_row(file, start + offset):
            return start + offset
        offset = searched.find(b"\xff", offset + 1)
    return None


def _in_a_row(file: BinaryIO, place: int) -> bool:
    kind = None
    for _ in range(FRAMES_IN_A_ROW):
        frame = _frame_at(file, place)
        if frame is None or kind not in (None, frame.kind):
            return False
        kind, place = frame.kind, place + frame.num_bytes
    return True


def _frame_at(file: BinaryIO, place: int) -> _Frame | None:
    file.seek(place)
    return _parsed(file.read(4))


def _parsed(header: bytes) -> _Frame | None:
    """The frame of a header, None when it is none of layer III."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, bit_rate, rate = (header[1] >> 3) & 3, header[2] >> 4, (header[2] >> 2) & 3
    if version == 1 or rate == 3 or bit_rate in (0, 15):
        return None
    mpeg1, mono = version == 3, header[3] >> 6 == 3
    kilobits, hertz = BIT_RATES[1 if mpeg1 else 2][bit_rate - 1], SAMPLE_RATES[version][rate]
    num_bytes = (144 if mpeg1 else 72) * kilobits * 1000 // hertz + ((header[2] >> 1) & 1)
    return _Frame(num_bytes, version << 3 | rate << 1 | mono, mpeg1, mono)


def _count(file: BinaryIO, place: int, kind: int) -> int:
    """Frames of `kind` from `place` to the end; what lies between them is passed over."""
    counted = 0
    while True:
        file.seek(place)
        header = file.read(4)
        if len(header) < 4:
            return counted
        frame = _parsed(header)
        if frame is not None and frame.kind == kind:
            counted, place = counted + 1, place + frame.num_bytes
        else:
            place = _next_sync(file, place + 1)


def _next_sync(file: BinaryIO, place: int) -> int:
    """The place of the next byte that could begin a frame, the end when there is none."""
    file.seek(place)
    while chunk := file.read(SEARCHED_BYTES):
        if (offset := chunk.find(b"\xff")) >= 0:
            return place + offset
        place += len(chunk)
    return place


def _side_bytes(frame: _Frame) -> int:
    """Bytes between a frame's header and its tag."""
    return {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}[frame.mpeg1, frame.mono]


def _tag(file: BinaryIO, place: int, frame: _Frame) -> tuple[int | None, int]:
    """(frames, bytes) by the tag in the frame at `place`: None without one, or where it does not say both."""
    file.seek(place)
    content = file.read(frame.num_bytes)
    for words, at, skipped in (((b"Xing", b"Info"), 4 + _side_bytes(frame), 0), ((b"VBRI",), 36, 6)):
        if content[at : at + 4] in words and len(content) >= at + 18:
            first, second, third = struct.unpack_from(">III", content, at + 4 + skipped)
            if skipped:
                return second, first
            return (second, third) if first & 3 == 3 else (None, 0)
    return None, 0


def _new_tag(frame: _Frame, num_frames: int, num_bytes: int) -> bytes:
    """A frame without sound that says how many follow it."""
    version, rate = frame.kind >> 3, frame.kind >> 1 & 3
    header = bytes((0xFF, 0xE3 | version << 3, TAG_BIT_RATE_INDEX << 4 | rate << 2, 0xC0 if frame.mono else 0))
    own = _parsed(header)
    assert own is not None
    words = bytes(_side_bytes(frame)) + b"Xing" + struct.pack(">III", 3, num_frames, num_bytes + own.num_bytes)
    return (header + words).ljust(own.num_bytes, b"\0")
