"""What stops speech that will not end: models may miss the end, fall silent, or say the same over and over.

    length   more frames than twice what one text of a thousand of the corpus has, for as many tokens of text
    loop     the newest frames repeat those of some frames before, three times and for three seconds
    silence  three seconds without sound, where the speech is longer than its text lets expect

An end that has become impossible has no watch of its own: in the middle of good speech `<eosp>` is as improbable as in
speech that cannot end, and once the speech is too long the length stops it. A model that notes no rates of its corpus
(`data.rates`) has no length from the text.

Such an answer is a runaway. It is tried again with other random numbers, `max_retries` times at most, and so is one
that is far too short for its text. The best attempt is kept: one that ended by itself with enough speech, else the one
whose length is nearest to what the text lets expect. Another attempt at a greedy request draws its speech at
`RETRY_TEMPERATURE`, since other random numbers change nothing for it; the words around the speech stay greedy.

Invariant: what is watched depends on the request, its frames and the codec alone.

Example:
    lookout = Lookout(Watch(rate=rates.widest, num_tokens=12), frame_rate=80.0)
    lookout.look(frames, num_words=0)  # None, or "loop"
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from slmkit.codec.base import Codes
from slmkit.data.rates import Rate

Runaway = Literal["length", "loop", "silence"]
MAX_RETRIES = 20
RETRY_TEMPERATURE = 0.7  # of speech, where the request is greedy
LENGTH_FACTOR = 2.0  # of the highest quantile of the corpus
LEAST_SEC = 2.0  # of speech that any text may have: pauses around one word
SHORT_FACTOR = 0.5  # of the lowest quantile of the corpus, below which the speech cannot be that of the text
LOOP_SEC, LOOP_TIMES = 3.0, 3  # a loop lasts so long beyond its first turn, and has so many turns
LOOP_LEAK = 8  # frames of a loop that one other frame outweighs
SILENCE_SEC = 3.0
SILENT_DB, SILENT_LEVEL = -30.0, 1e-3  # below the loudest block, or below this root mean square, there is no speech
BLOCK_SEC = 0.05
CHECKED_SHARE = 0.5  # of its length that speech without a pause grows by until it is decoded and looked at again


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is known of an answer before it is spoken."""

    rate: Rate | None = None  # of the corpus; None where it is not known
    num_tokens: int | None = None  # of the text that is read; None: of the words that the answer writes before
    num_mark_tokens: int = 0  # of those words, tokens that are not spoken
    silent_sec: Callable[[Codes], float] | None = None  # how long uint16 [K, T] ends in silence, in seconds
    max_retries: int = 2


class Lookout:
    """Watches one attempt at an answer."""

    def __init__(self, watch: Watch, frame_rate: float) -> None:
        """`frame_rate` in frames per second."""
        self._watch, self._frame_rate = watch, frame_rate
        self._repeats = RepeatCounter(frame_rate)
        self._num_seen = 0
        self._num_tokens = watch.num_tokens
        self._check_at = 2 * SILENCE_SEC * frame_rate

    def look(self, frames: Sequence[Sequence[int]], num_words: int) -> Runaway | None:
        """What shows that the speech will not end. `frames` are all so far, the K codes of each; `num_words` counts the
        text tokens of the answer."""
        if len(frames) == self._num_seen:
            return None
        if self._num_tokens is None:
            self._num_tokens = max(0, num_words - self._watch.num_mark_tokens)
        if self._watch.rate is not None and not self._num_seen:
            self._check_at = self._watch.rate.high * self._num_tokens
        is_loop = any(self._repeats.add(frame) for frame in frames[self._num_seen :])
        self._num_seen = len(frames)
        if is_loop:
            return "loop"
        if self._is_silent(frames):
            return "silence"
        return "length" if len(frames) >= self.most_frames else None

    @property
    def most_frames(self) -> float:
        """The length that no speech of such a text has; infinite where that is not known."""
        if self._watch.rate is None or self._num_tokens is None:
            return math.inf
        most = LENGTH_FACTOR * self._watch.rate.highest * self._num_tokens
        return max(1.0, float(int(max(most, LEAST_SEC * self._frame_rate))))

    def is_short(self, num_frames: int) -> bool:
        """Whether so many frames are too few for the text."""
        if self._watch.rate is None or self._num_tokens is None:
            return False
        return num_frames < SHORT_FACTOR * self._watch.rate.lowest * self._num_tokens

    def distance(self, num_frames: int) -> float:
        """How far a length is from what the text lets expect; 0 where nothing is known."""
        if self._watch.rate is None or self._num_tokens is None:
            return 0.0
        return abs(math.log((num_frames + 1) / (self._watch.rate.median * self._num_tokens + 1)))

    def _is_silent(self, frames: Sequence[Sequence[int]]) -> bool:
        least = SILENCE_SEC * self._frame_rate
        if self._watch.silent_sec is None or len(frames) < max(least, self._check_at):
            return False
        silent_sec = self._watch.silent_sec(np.array(frames, dtype=np.uint16).T)
        wait = (SILENCE_SEC - silent_sec) * self._frame_rate
        self._check_at = len(frames) + (wait if silent_sec else max(wait, CHECKED_SHARE * len(frames)))
        return silent_sec >= SILENCE_SEC


class RepeatCounter:
    """How long the newest frames have repeated those of p frames before, for every p at once."""

    def __init__(self, frame_rate: float) -> None:
        self._least = LOOP_SEC * frame_rate
        self._number_of: dict[tuple[int, ...], int] = {}  # a number for each kind of frame
        self._waiting: list[int] = []  # numbers of frames that are not counted yet
        self._known_run = 0
        self._num_frames = 0
        self._history, self._runs, self._needed = (np.zeros(0, np.int64) for _ in range(3))

    def add(self, frame: Sequence[int]) -> bool:
        """Take the K codes of the next frame; whether the speech is in a loop. A run outlives single frames that
        differ: each costs it `LOOP_LEAK` frames."""
        known = len(self._number_of)
        number = self._number_of.setdefault(tuple(frame), known)
        self._waiting.append(number)
        # No run is longer than that of frames that were there before. Speech has few of them, and is not looked at.
        self._known_run = self._known_run + 1 if number < known else max(self._known_run - LOOP_LEAK, 0)
        if self._known_run < self._least:
            return False
        is_loop = [self._count(number) for number in self._waiting]
        self._waiting.clear()
        return is_loop[-1]

    def _count(self, number: int) -> bool:
        count = self._num_frames
        if count == len(self._history):
            self._history, self._runs = (np.pad(a, (0, count + 256)) for a in (self._history, self._runs))
            periods = np.arange(1, len(self._runs) + 1)
            self._needed = np.maximum(self._least, (LOOP_TIMES - 1) * periods)
        same, runs = self._history[:count][::-1] == number, self._runs[:count]  # by period, from 1 on
        runs[:] = np.where(same, runs + 1, np.maximum(runs - LOOP_LEAK, 0))
        self._history[count] = number
        self._num_frames += 1
        return bool((runs >= self._needed[:count]).any())


def silent_tail_sec(wave: npt.NDArray[np.float32], sample_rate: int) -> float:
    """For how long a wave, float32 [n], has been silent at its end, in seconds."""
    block = max(1, round(BLOCK_SEC * sample_rate))
    blocks = wave[len(wave) % block :].reshape(-1, block).astype(np.float64)
    if not len(blocks) or not np.isfinite(blocks).all():
        return 0.0
    levels = np.sqrt((blocks**2).mean(axis=1))
    heard = np.flatnonzero(levels > max(SILENT_LEVEL, levels.max() * 10 ** (SILENT_DB / 20)))
    num_silent = len(levels) - 1 - heard[-1] if len(heard) else len(levels)
    return float(num_silent * block / sample_rate)
