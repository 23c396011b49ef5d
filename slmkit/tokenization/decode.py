"""Audio files to waves in parallel processes, in the order of the source, and what is measured of them (see screen).

Files are hostile: a worker that a file crashes, or that takes too long, is replaced, and the file becomes a ledger
line. torch is not imported here, to keep the start of workers quick.

A worker keeps nothing of one file for the next: a cut of a long recording is sought each time (see audio/decoding.py).

Invariant: as many results as items, in the same order, the same for any number of workers.

Example:
    for tag, result in decode_in_order(tagged_items, Decoding(sample_rate=16000), num_workers=4, ahead=64): ...
"""

import contextlib
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from slmkit.audio.io import Recording, read_recording
from slmkit.corpora.base import Utterance, read_transcript
from slmkit.corpora.content import open_audio
from slmkit.data.ledger import Failure
from slmkit.errors import BadSample
from slmkit.tokenization.screen import Screen
from slmkit.tokenization.workers import WorkerDied, Workers

T = TypeVar("T")
# A whole file this much longer than its source says is refused. Seconds that were rounded to whole ones are not.
MAX_TIMES_STATED, MIN_LONGER_SEC = 1.8, 1.0


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How audio is decoded."""

    sample_rate: int  # Hz, of the waves
    min_sec: float = 0.0
    max_sec: float | None = None
    limit_sec: float = 120.0  # a worker is ended when one file takes longer
    screen: Screen = field(default_factory=Screen)


class Decoded(NamedTuple):
    """An utterance ready for the codec."""

    utterance: Utterance
    text: str
    wave: np.ndarray  # float32 [samples]
    checks: dict[str, float]  # what tells an outlier, see `checks_of`


def decode_in_order(
    items: Iterable[tuple[T, Utterance | Failure]], decoding: Decoding, *, num_workers: int, ahead: int
) -> Generator[tuple[T, Decoded | Failure], None, None]:
    """Decode every utterance, at most `ahead` of them before they are asked for; failures pass through.

    Each item travels with a tag, which stays in the main process. Raises UserError when no process can be started.
    """
    if num_workers == 0:
        for tag, item in items:
            yield tag, item if isinstance(item, Failure) else decode(item, decoding)
        return
    with contextlib.closing(Workers(num_workers)) as workers:
        waiting: deque[tuple[T, Failure | _Submitted]] = deque()
        for tag, item in items:
            if isinstance(item, Failure):
                waiting.append((tag, item))
            else:
                future = workers.submit(decode, item, decoding, limit_sec=decoding.limit_sec)
                waiting.append((tag, _Submitted(item.key, future)))
            if len(waiting) > ahead:
                first, oldest = waiting.popleft()
                yield first, _result(oldest, decoding)
        for tag, remaining in waiting:
            yield tag, _result(remaining, decoding)


class _Submitted(NamedTuple):
    key: str
    future: "Future[Decoded | Failure]"


def _result(item: Failure | _Submitted, decoding: Decoding) -> Decoded | Failure:
    if isinstance(item, Failure):
        return item
    try:
        return item.future.result()
    except WorkerDied:
        what = f"decoding or measuring it crashed the process or took more than {decoding.limit_sec} s"
        return Failure.of(item.key, BadSample("crashed", what))


def decode(utterance: Utterance, decoding: Decoding) -> Decoded | Failure:
    """Read the transcript and the audio of one utterance, and measure what is to be measured."""
    try:
        text = read_transcript(utterance.text) if isinstance(utterance.text, Path) else utterance.text
        recording = read_recording(
            open_audio(utterance.audio),
            decoding.sample_rate,
            min_sec=decoding.min_sec,
            max_sec=decoding.max_sec,
            cut=utterance.cut,
            channel=utterance.audio.channel,
        )
        _check_length(utterance, len(recording.wave) / decoding.sample_rate)
        checks = checks_of(utterance, text, recording, decoding.sample_rate)
        screened = decoding.screen.screened(utterance, recording.mono, recording.rate)
        return screened if isinstance(screened, Failure) else Decoded(screened, text, recording.wave, checks)
    except BadSample as error:
        if error.reason == "too_long" and utterance.cut is None:
            what = f"{error.what}, and its source gives no time stamps to cut it by"
            error = BadSample(error.reason, what, got=error.got, expected=error.expected)
        return Failure.of(utterance.key, error)


def _check_length(utterance: Utterance, seconds: float) -> None:
    """Refuse a whole file that is much longer than its source says: it has more in it than the text."""
    stated = utterance.seconds
    if stated is None or utterance.cut is not None:
        return
    if seconds > stated * MAX_TIMES_STATED and seconds > stated + MIN_LONGER_SEC:
        raise BadSample(
            "longer_than_stated",
            "the file is much longer than its source says; if the text is that of a part, say which with the columns "
            "`start`, and `end` or `seconds`",
            got=f"{seconds:.3f} s",
            expected=f"{stated} s",
        )


def checks_of(utterance: Utterance, text: str, recording: Recording, sample_rate: int) -> dict[str, float]:
    """Numbers by which outliers are found: `clipped`, `silence`, `dc` (see `Recording`), `chars_per_sec`, and for a
    whole file whose source gives its length `seconds_off`, the seconds by which it is longer than that."""
    seconds = len(recording.wave) / sample_rate
    found = {
        "clipped": recording.clipped,
        "silence": recording.silence,
        "dc": recording.dc,
        "chars_per_sec": len(text) / seconds,
    }
    if utterance.seconds is not None and utterance.cut is None:
        found["seconds_off"] = seconds - utterance.seconds
    return {name: significant(value) for name, value in found.items()}


def significant(value: float) -> float:
    """To four significant digits: short in JSON, and the same where the last bits of a sum are not."""
    return float(f"{value:.4g}") + 0.0  # no minus zero
