"""Sound while an answer is still being decoded.

`SpeechStream` turns the frames of one answer into pieces of its wave as they come; `Speaking` runs the requests of a
passage through an engine, one after the other, and hands the pieces out. `codec.stream` says when pieces come, how long
they are and what they cost.

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
import torch

from slmkit.codec.base import Codec, Codes, to_tensor
from slmkit.codec.stream import StreamDecoder
from slmkit.errors import UserError
from slmkit.infer.engine import Engine
from slmkit.infer.passage import Passage, SpokenSentence, Wave, joined, silence
from slmkit.infer.request import Output

NUMBER = 0  # of the one request that an engine has


class SpeechStream:
    """The wave of one answer, piece by piece."""

    def __init__(self, codec: Codec, speaker: Wave) -> None:
        """`speaker` float32 [D]."""
        self._decoder = StreamDecoder(codec, torch.from_numpy(speaker))

    @property
    def num_frames(self) -> int:
        """Frames taken: what comes next is `engine.frames(number, first=stream.num_frames)`."""
        return self._decoder.num_frames

    def push(self, codes: Codes) -> Wave:
        """Samples float32 [n] that codes uint16 [K, t] complete, often none.

        Raises ValueError as `StreamDecoder.push`, and UserError as `checked_wave`.
        """
        return checked_wave(self._decoder.push(to_tensor(codes)).cpu().numpy())

    def finish(self) -> Wave:
        """The samples float32 [n] that are left. Raises ValueError when called again."""
        return checked_wave(self._decoder.finish().cpu().numpy())


def checked_wave(wave: Wave) -> Wave:
    """`wave`, float32 [n]. Raises UserError when it is not finite: no codec may hand that on as sound."""
    if not np.isfinite(wave).all():
        raise UserError(
            "the codec made a sound that is not finite",
            next_step="check the speaker vector; it may be far out of range",
        )
    return wave


class Speaking(Iterator[Wave]):
    """The pieces of the wave of a passage, in order, none of them empty; the engine decodes when the next one is asked
    for. Held in memory: what one sentence needs, and the codes of those that were heard.

    Left early it must be closed, or dropped: until then its place in the engine is taken.
    """

    def __init__(self, engine: Engine, codec: Codec, passage: Passage, speaker: Wave) -> None:
        """`speaker` float32 [D], the voice the codec gives. Raises UserError as `Engine.check`."""
        for request in passage.requests:
            engine.check(request)
        self.output: Output | None = None  # of the whole, once the last frame is decoded
        self.spoken: list[SpokenSentence] = []  # sentences that have come to their end
        self.first_audio_sec: float | None = None  # from the first call for a piece: prompt, steps and codec
        self._began: float | None = None
        self._passage, self._outputs = passage, list[Output]()
        self._pieces = _pieces(engine, codec, passage, speaker)

    def __next__(self) -> Wave:
        """Raises UserError when another answer is in the engine at the first call; where the model gave numbers that
        are not finite; and at the end, where no sentence has speech."""
        self._began = self._began or time.perf_counter()
        for wave, output in self._pieces:
            if output is not None:
                self._outputs.append(output)
                self.spoken = self._passage.told(self._outputs)
                if len(self.spoken) == len(self._passage.requests):
                    self.output = joined(self._outputs)
            if len(wave):
                self.first_audio_sec = self.first_audio_sec or time.perf_counter() - self._began
                return wave
        if self.output is not None:
            self.output.check_speech()
        raise StopIteration

    def close(self) -> None:
        """Give up what is not decoded yet."""
        self._pieces.close()


def _pieces(engine: Engine, codec: Codec, passage: Passage, speaker: Wave) -> Generator[tuple[Wave, Output | None]]:
    """After each step: samples, and the output of a sentence that is done. (No method: it would hold a `Speaking` that
    was dropped.)"""
    if engine.num_free < engine.num_slots:
        raise UserError("the engine is busy with other requests", next_step="wait for them, or make another engine")
    pause_sec = 0.0
    for sentence, request in zip(passage.sentences, passage.requests, strict=True):
        stream, output = SpeechStream(codec, speaker), None
        engine.admit(request.tried_once(), NUMBER)  # what was heard cannot be said again
        try:
            while output is None:
                output, first = dict(engine.step()).get(NUMBER), stream.num_frames
                wave = stream.push(engine.frames(NUMBER, first) if output is None else output.codes[:, first:])
                if output is not None:
                    wave = np.concatenate([wave, stream.finish()])
                if len(wave) and pause_sec:
                    wave, pause_sec = np.concatenate([silence(pause_sec, codec.spec.sample_rate), wave]), 0.0
                yield wave, output
        finally:
            if output is None:
                engine.cancel(NUMBER)
        output.check_finite()
        if output.codes.shape[1]:
            pause_sec = sentence.pause_sec
