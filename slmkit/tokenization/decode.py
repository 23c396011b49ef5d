"""Audio files to waves in parallel processes, in the order of the source.

Files are hostile: a worker that a file crashes, or that takes too long, is replaced, and the file becomes a ledger
line. Workers are started afresh (not forked, so that no thread or device of the main process is copied), ignore the
signals that are for the main process, and end when it does. torch is not imported here, to keep their start quick.

A worker keeps nothing of one file for the next: a cut of a long recording is sought each time (see audio/decoding.py).

Invariant: as many results as items, in the same order, the same for any number of workers.

Example:
    for tag, result in decode_in_order(tagged_items, Decoding(sample_rate=16000), num_workers=4, ahead=64): ...
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from slmkit.audio.io import Recording, read_recording
from slmkit.corpora.base import Utterance, read_transcript
from slmkit.corpora.content import open_audio
from slmkit.data.ledger import Failure
from slmkit.errors import BadSample, UserError
from slmkit.stopping import STOPPING

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How audio is decoded."""

    sample_rate: int  # Hz, of the waves
    min_sec: float = 0.0
    max_sec: float | None = None
    limit_sec: float = 120.0  # a worker is ended when one file takes longer


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
    with contextlib.closing(_Workers(decoding, num_workers)) as workers:
        waiting: deque[tuple[T, _Waiting | Failure]] = deque()
        for tag, item in items:
            waiting.append((tag, workers.submit(item)))
            if len(waiting) > ahead:
                first, oldest = waiting.popleft()
                yield first, workers.result(oldest)
        for tag, remaining in waiting:
            yield tag, workers.result(remaining)


def decode(utterance: Utterance, decoding: Decoding) -> Decoded | Failure:
    """Read the transcript and the audio of one utterance."""
    try:
        text = read_transcript(utterance.text) if isinstance(utterance.text, Path) else utterance.text
        recording = read_recording(
            open_audio(utterance.audio),
            decoding.sample_rate,
            min_sec=decoding.min_sec,
            max_sec=decoding.max_sec,
            cut=utterance.cut,
        )
        return Decoded(utterance, text, recording.wave, checks_of(utterance, text, recording, decoding.sample_rate))
    except BadSample as error:
        if error.reason == "too_long" and utterance.cut is None:
            what = f"{error.what}, and its source gives no time stamps to cut it by"
            error = BadSample(error.reason, what, got=error.got, expected=error.expected)
        return Failure.of(utterance.key, error)


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


class _Waiting(NamedTuple):
    item: Utterance
    future: "Future[Decoded | Failure]"


class _Workers:
    """A pool that outlives its workers, and a single process in which the files it died of are tried alone."""

    def __init__(self, decoding: Decoding, num_workers: int) -> None:
        self.decoding = decoding
        self.num_workers = num_workers
        self._pool: ProcessPoolExecutor | None = None
        self._single: ProcessPoolExecutor | None = None

    def submit(self, item: Utterance | Failure) -> "_Waiting | Failure":
        """Decode soon; a pool that has died is replaced."""
        if isinstance(item, Failure):
            return item
        self._pool = self._pool or self._start(self.num_workers)
        try:
            return _Waiting(item, self._pool.submit(_decode_in_worker, item, self.decoding))
        except BrokenProcessPool:
            self._pool = None
            return self.submit(item)

    def result(self, waiting: "_Waiting | Failure") -> Decoded | Failure:
        """Wait for an item. If the pool died meanwhile, whoever's fault it was, the item is tried alone."""
        if isinstance(waiting, Failure):
            return waiting
        try:
            return waiting.future.result()
        except BrokenProcessPool:
            return self._alone(waiting.item)

    def _alone(self, item: Utterance) -> Decoded | Failure:
        self._single = self._single or self._start(1)
        try:
            return self._single.submit(_decode_in_worker, item, self.decoding).result()
        except BrokenProcessPool:
            self._single = self._start(1)
            _check_alive(self._single)
            what = f"decoding it crashed the process or took more than {self.decoding.limit_sec} s"
            return Failure.of(item.key, BadSample("crashed", what))

    def close(self) -> None:
        """End the workers without waiting for what nobody asks for any more."""
        for pool in (self._pool, self._single):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _start(num_workers: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(num_workers, mp_context=context, initializer=start_worker)


def _check_alive(pool: ProcessPoolExecutor) -> None:
    """Raise UserError when not even an empty task survives: then no file is to blame."""
    try:
        pool.submit(os.getpid).result()
    except BrokenProcessPool as error:
        raise UserError(
            "decoding processes cannot be started", next_step="check the memory left, or run with num_workers=0"
        ) from error


def start_worker() -> None:
    """Make this process a worker: signals do not end it, the death of its parent does, and C code is silent."""
    # They are for the main process. Slurm sends them to all: a worker that died while handing a result over would leave
    # the main process waiting for the rest of it.
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    # libmpg123 writes a line about each damaged frame, and each place sought, to file descriptor 2.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _decode_in_worker(item: Utterance, decoding: Decoding) -> Decoded | Failure:
    signal.setitimer(signal.ITIMER_REAL, decoding.limit_sec)  # SIGALRM is not handled: it ends the process
    try:
        return decode(item, decoding)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
