"""Sound while an answer is still being decoded.

`SpeechStream` turns the frames of one answer into pieces of its wave as they come; `Speaking` runs one request through
an engine and hands the pieces out. `codec.stream` says when pieces come, how long they are and what they cost.

Invariant: the codes are those of the first attempt at the same request in a batch, and the joined pieces are the wave
of decoding them at once, within `codec.stream.JOINED_BOUND`.

Example:
    speaking = synthesizer.stream(synthesizer.reading("Good morning.", speaker), speaker)
    for wave in speaking:  # float32 [n]
        play(wave)
    speaking.first_audio_sec, speaking.output.reason
"""

import time
from collections.abc import Generator, Iterator

import numpy as np
import numpy.typing as npt
import torch

from slmkit.codec.base import Codec, Codes, to_tensor
from slmkit.codec.stream import StreamDecoder
from slmkit.errors import UserError
from slmkit.infer.engine import Engine
from slmkit.infer.request import Output, Request

Wave = npt.NDArray[np.float32]
NUMBER = 0  # of the one request that an engine has


class SpeechStream:
    """The wave of one answer, piece by piece. Its clock starts when it is made."""

    def __init__(self, codec: Codec, speaker: Wave) -> None:
        """`speaker` float32 [D]."""
        self._decoder = StreamDecoder(codec, torch.from_numpy(speaker))
        self._start = time.perf_counter()
        self.first_audio_sec: float | None = None  # until the first piece was ready

    @property
    def num_frames(self) -> int:
        """Frames taken: what comes next is `engine.frames(number, first=stream.num_frames)`."""
        return self._decoder.num_frames

    def push(self, codes: Codes) -> Wave:
        """Samples float32 [n] that codes uint16 [K, t] complete, often none.

        Raises ValueError as `StreamDecoder.push`, and UserError as `checked_wave`.
        """
        return self._heard(self._decoder.push(to_tensor(codes)))

    def finish(self) -> Wave:
        """The samples float32 [n] that are left. Raises ValueError when called again."""
        return self._heard(self._decoder.finish())

    def _heard(self, samples: torch.Tensor) -> Wave:
        wave = checked_wave(samples.cpu().numpy())
        if len(wave) and self.first_audio_sec is None:
            self.first_audio_sec = time.perf_counter() - self._start
        return wave


def checked_wave(wave: Wave) -> Wave:
    """`wave`, float32 [n]. Raises UserError when it is not finite: no codec may hand that on as sound."""
    if not np.isfinite(wave).all():
        raise UserError(
            "the codec made a sound that is not finite",
            next_step="check the speaker vector; it may be far out of range",
        )
    return wave


class Speaking(Iterator[Wave]):
    """The pieces of the wave of one request, none of them empty; the engine decodes when the next one is asked for.

    Left early it must be closed, or dropped: until then its place in the engine is taken.
    """

    def __init__(self, engine: Engine, codec: Codec, request: Request, speaker: Wave) -> None:
        """`speaker` float32 [D], the voice the codec gives. Raises UserError as `Engine.check`."""
        engine.check(request)
        self.output: Output | None = None  # there once the last frame is decoded
        self.first_audio_sec: float | None = None  # from the first call for a piece: prompt, steps and codec
        self._pieces = _pieces(engine, codec, request.tried_once(), speaker)  # what was heard cannot be said again

    def __next__(self) -> Wave:
        """Raises UserError when another answer is in the engine at the first call; and at the end, where the model gave
        no speech or numbers that are not finite."""
        for wave, output, first_audio_sec in self._pieces:
            self.output, self.first_audio_sec = output, first_audio_sec
            if len(wave):
                return wave
        if self.output is not None:
            self.output.check_finite()
            self.output.check_speech()
        raise StopIteration

    def close(self) -> None:
        """Give up what is not decoded yet."""
        self._pieces.close()


def _pieces(
    engine: Engine, codec: Codec, request: Request, speaker: Wave
) -> Generator[tuple[Wave, Output | None, float | None]]:
    """After each step: samples, the output once there is one, seconds until the first samples."""
    if engine.num_free < engine.num_slots:
        raise UserError("the engine is busy with other requests", next_step="wait for them, or make another engine")
    stream, output = SpeechStream(codec, speaker), None
    engine.admit(request, NUMBER)
    try:
        while output is None:
            output = dict(engine.step()).get(NUMBER)
            first = stream.num_frames
            wave = stream.push(output.codes[:, first:] if output else engine.frames(NUMBER, first))
            yield wave, output, stream.first_audio_sec
    finally:
        if output is None:
            engine.cancel(NUMBER)
    wave = stream.finish()  # before the next line, which asks it for the time
    yield wave, output, stream.first_audio_sec
