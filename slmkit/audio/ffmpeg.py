"""Sound files as FFmpeg (PyAV) reads them: MP3, Ogg, MP4, WebM, ASF (WMA), AMR and AAC.

FFmpeg is told the format, so that it looks for no other (a playlist could name other files), and decodes on one thread.
What an encoder added before and after the sound is left out where the file says how much that is. Damage is an error
and ends the reading, except what lies between the frames of an MP3 or AAC file and is none.

Not noticed: an Ogg, AMR or AAC file, or an MP3 file without a length, cut between two pages or frames is a shorter
valid file. Not done: exact seeks in WebM and WMA, whose time stamps are rounded to milliseconds.

Example:
    decoder = FFmpeg(open("a.mp3", "rb"), "mp3", 0)      # a `decoding.Decoder`
"""

import contextlib
import io
import itertools
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np

from slmkit.audio import units
from slmkit.audio.decoding import DECODER_SAYS, WARM_UP_SEC, Decoder

SEEKING_FORMATS = {"mp3", "ogg", "mov", "aac", "amr"}  # where seeks are exact, apart from warming up
AV_TIME_BASE = 1_000_000  # of the length of a whole file, per second
SLACK_SEC = 0.1  # lengths in MP4, WebM and ASF are rounded, and may count what the encoder added
SEARCHED_BYTES = 2**17  # at the beginning for a frame of MP3, at the end for a page of Ogg (at most 65307 bytes)
# Between the frames of these may lie what is none (tags, the rest of a recorded stream); it does not begin like one.
FRAME_BEGINS = {"mp3": re.compile(rb"\xff[\xe2-\xff]"), "aac": re.compile(rb"\xff[\xf0\xf1\xf8\xf9]")}
# The first frame of an MP3 file may say how many follow: Xing's tag, whose lowest flag says that the number is there,
# or Fraunhofer's.
MP3_TAG = re.compile(
    rb"(?s)\xff[\xe2\xe3\xf2\xf3\xfa\xfb]..(?:.{9}|.{17}|.{32})"
    rb"(?:(?:Xing|Info)...(?:[\1\3\5\7\x09\x0b\x0d\x0f](....)|.)|VBRI.{10}(....))"
)
MP3_PADDING_SAMPLES = 2**13  # more than an encoder adds at both ends together
OGG_PAGE = re.compile(rb"(?s)OggS\0(.).{8}(....)")  # flags, and the number of the stream
OGG_BEGINS = 2  # the flag of a stream's first page; those of all streams come before any other page
# In the header of an ASF file: the length in 100 ns, of which so many ms come before the sound, and flags.
ASF_LENGTH = re.compile(rb"(?s)\xa1\xdc\xab\x8cG\xa9\xcf\x11\x8e\xe4\0\xc0\x0c Se.{48}(.{8}).{8}(.{8})(.)")
# Where FFmpeg leaves out too much, and how much is right of what it would at the beginning: of WMA two frames, of which
# the second holds sound in files that FFmpeg wrote; at the end of Vorbis too much where all of it is in one page.
SKIPS = {("asf", "wmav1"): Fraction(1, 2), ("asf", "wmav2"): Fraction(1, 2), ("ogg", "vorbis"): Fraction(1)}
ASF_BROADCAST = 1  # the flag of a recorded stream, whose header knows no length


class FFmpeg(Decoder):
    """`format_name` is FFmpeg's; `start` the first byte after an ID3 tag. Raises ValueError when it cannot be read."""

    def __init__(self, stream: BinaryIO, format_name: str, start: int) -> None:
        self._stream, self._format = stream, format_name
        stream.seek(start)
        head = stream.read(SEARCHED_BYTES)  # before FFmpeg opens the stream, since it goes on from where that stands
        if format_name == "ogg" and _is_chained(stream, head):
            raise ValueError("it holds several Ogg streams in a row, expected one")
        skipped, num_frames = _mp3_tag(head, start) if format_name == "mp3" else (0, 0)
        self._options = {"skip_initial_bytes": str(skipped)}
        self._held: list[np.ndarray] = []  # decoded and not yet given, [samples, channels]
        self._open()
        if self.error:
            self.file.close()
            raise ValueError(self.error.removeprefix(DECODER_SAYS))
        self._take_length(head, num_frames)

    def _open(self) -> None:
        """Open the file and decode its first frame, since what a header says of rate and channels may be wrong."""
        self.error = ""
        self._stream.seek(0)
        try:
            self.file = av.open(self._stream, format=self._format, metadata_errors="replace", options=self._options)
        except av.FFmpegError as error:
            raise ValueError(error.strerror) from error
        self._track: Any = next(iter(self.file.streams.audio), None)
        context = None if self._track is None else self._track.codec_context
        if context is None:
            self.file.close()
            raise ValueError("it holds no audio that FFmpeg knows")
        context.thread_count = 1
        self._skips = SKIPS.get((self._format, context.name))
        if self._skips is not None:
            context.options = {"flags2": "+skip_manual"}
        delay = context.delay  # in samples by the header of the file; the decoder sets its own
        self.sample_rate, self.channels = 0, 0
        self._origin = 0  # where the first sample lies by the file's time stamps, in samples
        self._frames = self._decoded()
        for frame, values in itertools.islice(self._frames, 1):
            self.subtype = "PCM_16" if frame.format.name.startswith("s16") else ""
            place = self._samples(frame.pts)
            self._origin = max(0, place)
            # What is before the sound, where FFmpeg does not leave out the right number of samples:
            before = max(0, -place)  # Speex: none
            if self._format == "matroska":  # Opus: as WebM says, which older FFmpegs wrote wrong for other rates
                before = max(before, self._opus_delay() - delay)
            self._held = [values[before:]]
        if not self.channels:  # it holds no frame
            self.sample_rate, self.channels = context.sample_rate, 1

    def _opus_delay(self) -> int:
        """Samples before the sound by the header of Opus, 0 for other codecs."""
        context = self._track.codec_context
        return int.from_bytes(context.extradata[10:12], "little") if "opus" in context.name else 0

    def _take_length(self, head: bytes, num_frames: int) -> None:
        """Set the exact length, if the file says it, and the promised one; `num_frames` as in `_mp3_tag`."""
        rate, slack = self.sample_rate, units.seconds_to_samples(SLACK_SEC, self.sample_rate)
        said = self._samples(self._track.duration)
        if self._format == "mp3":
            # Where the tag does not fit the file, FFmpeg guesses by the bit rate.
            if 0 <= num_frames * self._track.codec_context.frame_size - said < MP3_PADDING_SAMPLES:
                self.num_samples = self.promised_samples = said
        elif self._format == "ogg" and (start := self._samples(self._track.start_time)) <= 0:
            # The last page has the time of its end, which for Opus counts what is before the sound. Where the first
            # does not begin at 0, the file is a part of a stream.
            self.num_samples = self.promised_samples = said + start - self._opus_delay()
        elif self._format == "mov":
            self.promised_samples = said - slack
        elif self._format == "matroska" and not said:  # else it is a guess by the bit rate
            self.promised_samples = units.nearest(Fraction(self.file.duration or 0, AV_TIME_BASE) * rate) - slack
        elif self._format == "asf" and (found := ASF_LENGTH.search(head)) and not found[3][0] & ASF_BROADCAST:
            length, before = (int.from_bytes(found[i], "little") for i in (1, 2))
            self.promised_samples = units.nearest((Fraction(length, 10**7) - Fraction(before, 10**3)) * rate) - slack

    def _decoded(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Frames of FFmpeg with their samples, float32 [samples, channels], to the end or the first damage."""
        begins = FRAME_BEGINS.get(self._format)
        last, num_good, num_junk = None, 0, 0
        try:
            for packet in self.file.demux(self._track):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    if begins is None or not num_good or begins.match(bytes(packet)):
                        raise
                    num_junk += 1
                    continue
                last = packet if packet.size else last
                for frame in frames:
                    values = _values(frame)
                    if not self.channels:
                        self.sample_rate, self.channels = frame.sample_rate, values.shape[1]
                    if (frame.sample_rate, values.shape[1]) != (self.sample_rate, self.channels):
                        raise ValueError("the sample rate or the number of channels changes")
                    num_good += 1
                    if self._skips is not None:
                        skips = (bytes(data) for data in frame.side_data if data.type.name == "SKIP_SAMPLES")
                        values = values[sum(int(int.from_bytes(skip[:4], "little") * self._skips) for skip in skips) :]
                    elif self._format == "mov":
                        values = values[: self._kept(packet, frame)]
                    if len(values):
                        yield frame, values
            if num_junk > num_good:
                raise ValueError("most of it cannot be decoded")
            # The decoder of MP3 makes up what is missing of a frame; the parser gives out none that is not whole.
            if self._format == "mp3" and last is not None:
                parser = av.CodecContext.create(self._track.codec_context.name, "r")
                if not parser.parse(bytes(last)):
                    raise ValueError("the last frame is cut short")
        except av.FFmpegError as error:
            self.error = f"{DECODER_SAYS}{error.strerror}"
        except ValueError as error:
            self.error = f"{DECODER_SAYS}{error}"

    def _kept(self, packet: Any, frame: Any) -> int:
        """Samples of a frame of MP4 that are sound: to the end of the track, which is rounded to milliseconds, but the
        last packet may be marked as shorter, exactly."""
        marked, end = self._samples(packet.duration), self._samples(self._track.duration)
        if 0 < marked < frame.samples or not end:
            return marked or frame.samples
        return max(0, end - self._samples(frame.pts) + self._origin)

    def _samples(self, time: int | None) -> int:
        """A time stamp of the track in samples, 0 for none."""
        return units.nearest((time or 0) * self._track.time_base * self.sample_rate)

    def _seek(self, first: int) -> int:
        place = first - units.seconds_to_samples(WARM_UP_SEC, self.sample_rate)
        if place <= 0 or self._format not in SEEKING_FORMATS:
            return 0
        with contextlib.suppress(av.FFmpegError, OverflowError):  # the second: no file is so long
            seconds = Fraction(self._origin + place, self.sample_rate)
            self.file.seek(int(seconds / self._track.time_base), stream=self._track)
            self._frames = self._decoded()
            begin, num_passed = None, 0
            for frame, values in self._frames:
                if frame.pts is None:
                    break
                # The time stamps of Vorbis are late where blocks of another length begin.
                found = self._samples(frame.pts) - self._origin - num_passed
                begin = found if begin is None else min(begin, found)
                num_passed += len(values)
                if begin + num_passed > first:
                    self._held = [values]
                    place = begin + num_passed - len(values)
                    if 0 <= place <= first:
                        return place
                    break
        self.file.close()
        self._open()
        return 0

    def _read(self, num_samples: int) -> np.ndarray | None:
        held = sum(map(len, self._held))
        while held < num_samples and (found := next(self._frames, None)):
            self._held.append(found[1])
            held += len(found[1])
        if not held:
            return None
        block = np.concatenate(self._held)
        self._held = [block[num_samples:]]
        return block[:num_samples]


def _values(frame: Any) -> np.ndarray:
    """The samples of a frame, float32 [samples, channels]. Raises ValueError for formats that numpy has not."""
    if frame.format.name == "fltp" and len(frame.planes) == 1:  # most speech; to_ndarray takes thrice the time
        return np.frombuffer(frame.planes[0], np.float32, frame.samples)[:, None]
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(frame.samples, -1)
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False)
    full_scale = 2.0 ** (8 * values.dtype.itemsize - 1)
    return ((values - (full_scale if values.dtype.kind == "u" else 0.0)) / full_scale).astype(np.float32)


def _mp3_tag(head: bytes, start: int) -> tuple[int, int]:
    """(bytes to pass over, frames) by the tag in the first frame; 0 for what is not known.

    FFmpeg itself passes over what is before the first frame, but then takes the tag for sound.
    """
    at_once = FRAME_BEGINS["mp3"].match(head)
    found = MP3_TAG.match(head) if at_once else MP3_TAG.search(head)
    if found is None:
        return 0, 0
    return 0 if at_once else start + found.start(), int.from_bytes(found[1] or found[2] or b"", "big")


def _is_chained(stream: BinaryIO, head: bytes) -> bool:
    """Whether the last page of an Ogg file belongs to a stream that does not begin at the beginning."""
    pages = OGG_PAGE.findall(head)
    begun = {number for flags, number in itertools.takewhile(lambda page: page[0][0] & OGG_BEGINS, pages)}
    stream.seek(max(0, stream.seek(0, io.SEEK_END) - SEARCHED_BYTES))
    pages = OGG_PAGE.findall(stream.read())
    return bool(pages) and pages[-1][1] not in begun
