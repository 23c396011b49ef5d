"""The one thread that computes: it owns model, engine and codec, and answers all requests at once.

Each turn it takes one waiting request into a free slot, goes one position on in every running answer, and hands what is
new to whoever listens. Other threads only put requests in and take events out. Nothing here waits for a client: what a
slow one has not fetched lies in its own queue, at most the seconds of speech that a request may have.

A streamed answer is decoded by `SpeechStream` as its frames come; a whole one at its end in one piece, so that it is
bit for bit what `Synthesizer.speak` gives. Not done: decoding a long whole answer in turns with the others' steps.

Invariant: every answer gets exactly one last event, `Done` or `Failed`, unless it was given up; whatever happens to a
request, its slot is free afterwards and the next one is answered.

Example:
    worker = Worker(synthesizer, Counts(), max_waiting=16)
    worker.start()
    answer = worker.submit(Job(request=request, speaker=speaker, is_streamed=True))
    while not isinstance(event := answer.next(1.0), Done): ...
"""

import contextlib
import queue
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from slmkit import log
from slmkit.data.sequence import Example
from slmkit.errors import UserError
from slmkit.infer.request import Output, Request
from slmkit.infer.stream import SpeechStream
from slmkit.infer.synthesizer import Synthesizer
from slmkit.serve.counts import Counts
from slmkit.serve.problem import Problem, internal, invalid, overloaded, stopping

TURN_SEC = 30.0  # that the last turn of a stopping worker may take

Wave = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is computed for one client."""

    request: Request
    speaker: Wave  # float32 [D]
    is_streamed: bool

    @property
    def num_prompt_positions(self) -> int:
        prompt = self.request.prompt
        return len(prompt.tokens) if isinstance(prompt, Example) else len(prompt)


class Piece(NamedTuple):
    """Sound that follows what came before, float32 [samples], never empty."""

    wave: Wave


class Done(NamedTuple):
    """The end of an answer: the last of its sound, or all of it where it is not streamed."""

    wave: Wave
    output: Output


class Failed(NamedTuple):
    """There will be no more."""

    problem: Problem


Event = Piece | Done | Failed


class Answer:
    """What one client waits for; made by `Worker.submit`."""

    def __init__(self, job: Job) -> None:
        self.job, self.began = job, time.monotonic()
        self.is_given_up = False
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def next(self, limit_sec: float) -> Event | None:
        """What came next, or None when nothing came in time."""
        with contextlib.suppress(queue.Empty):
            return self._events.get(timeout=limit_sec)
        return None

    def give_up(self) -> None:
        """Nobody listens any more: the worker frees the slot with its next turn. Harmless once the answer is done."""
        self.is_given_up = True

    def put(self, event: Event) -> None:
        """For the worker."""
        self._events.put(event)


class _Running:
    """An answer in a slot."""

    def __init__(self, answer: Answer, stream: SpeechStream | None) -> None:
        self.answer, self.stream = answer, stream
        self.has_sound = False


class Worker:
    """See the module."""

    def __init__(self, synthesizer: Synthesizer, counts: Counts, *, max_waiting: int) -> None:
        """At most `max_waiting` requests wait beside those in the slots."""
        self._synthesizer, self._counts, self._max_waiting = synthesizer, counts, max_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="worker")
        self._work: Future[None] | None = None
        self._changed = threading.Condition()
        # Below: shared, under the lock of `_changed`.
        self._waiting: deque[Answer] = deque()
        self._num_running = 0
        self._stop_at: float | None = None
        self._is_ended = False
        # Below: the thread's own.
        self._running: dict[int, _Running] = {}
        self._next_number = 0

    def start(self) -> None:
        """Begin to answer. Raises UserError as making the engine does."""
        try:
            # Made there: its rounding is tried out with the threads that the worker's own thread computes with.
            self._thread.submit(lambda: self._synthesizer.engine).result()
            self._work = self._thread.submit(self._run)
        finally:
            self._thread.shutdown(wait=False)  # no more than this

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered; also while it is stopping."""
        return self._work is not None and not self._work.done()

    def load(self) -> tuple[int, int]:
        """Requests in slots, and waiting ones."""
        with self._changed:
            return self._num_running, len(self._waiting)

    def submit(self, job: Job) -> Answer:
        """Queue a request. Raises Problem 503 when there is no room for it or the worker is stopping."""
        answer = Answer(job)
        with self._changed:
            if self._stop_at is not None or self._is_ended:
                self._counts.add("refused")
                raise stopping()
            slots = self._synthesizer.engine.num_slots
            if self._num_running + len(self._waiting) >= slots + self._max_waiting:
                self._counts.add("refused")
                raise overloaded("all places are taken", self._counts.answer_sec)
            self._waiting.append(answer)
            self._changed.notify()
        return answer

    def close(self, grace_sec: float) -> None:
        """Refuse what waits, let running answers end for `grace_sec` seconds, cut the others, and end the thread.

        Raises what ended the thread before, if anything did.
        """
        with self._changed:
            self._stop_at = time.monotonic() + grace_sec
            self._changed.notify()
        if self._work is not None:
            self._work.result(grace_sec + TURN_SEC)

    def _run(self) -> None:
        try:
            while self._has_work():
                began = time.perf_counter()
                self._drop_given_up()
                if self._synthesizer.engine.num_free:
                    self._take_in()
                if self._running:
                    self._step()
                self._counts.worked(time.perf_counter() - began)
        finally:
            self._end()

    def _has_work(self) -> bool:
        """Wait until there is something to do; False when it is time to end."""
        with self._changed:
            while True:
                if self._stop_at is not None:
                    while self._waiting:
                        self._waiting.popleft().put(Failed(stopping()))
                    return bool(self._running) and time.monotonic() < self._stop_at
                if self._running or self._waiting:
                    return True
                self._changed.wait()

    def _drop_given_up(self) -> None:
        for number, running in list(self._running.items()):
            if running.answer.is_given_up:
                self._release(number)
                self._synthesizer.engine.cancel(number)
                self._counts.add("given_up")
        with self._changed:
            for answer in [answer for answer in self._waiting if answer.is_given_up]:
                self._waiting.remove(answer)
                self._counts.add("given_up")

    def _take_in(self) -> None:
        """Begin one waiting request; one per turn, so that those who run are not kept waiting for many prompts."""
        with self._changed:
            if not self._waiting:
                return
            answer = self._waiting.popleft()
            self._num_running += 1
        number, job = self._next_number, answer.job
        self._next_number += 1
        stream = SpeechStream(self._synthesizer.codec, job.speaker) if job.is_streamed else None
        self._running[number] = _Running(answer, stream)
        try:
            self._synthesizer.engine.admit(job.request, number)
        except UserError as error:
            self._fail(number, invalid(error.what, got=error.got, expected=error.expected))
        except RuntimeError:
            log.get_logger(__name__).exception("a prompt could not be read")
            self._fail(number, internal())

    def _step(self) -> None:
        """One position of every running answer."""
        try:
            done = self._synthesizer.engine.step()
        except RuntimeError:  # torch's, as for want of memory: what was in the slots is lost, the engine is not
            log.get_logger(__name__).exception("a step failed; %d answers are given up", len(self._running))
            for number in list(self._running):
                with contextlib.suppress(KeyError):
                    self._synthesizer.engine.cancel(number)
                self._fail(number, internal())
            return
        for number, output in done:
            self._decoded(number, output)
        for number in list(self._running):
            self._decoded(number, None)

    def _decoded(self, number: int, output: Output | None) -> None:
        """Hand out what an answer has of new sound, all that is left when it is at its end."""
        running = self._running[number]
        try:
            if output is None:
                self._hand_out(number, running)
            else:
                self._finish(number, running, output)
        except (RuntimeError, ValueError):
            log.get_logger(__name__).exception("codes could not be decoded")
            if output is None:
                self._synthesizer.engine.cancel(number)
            self._fail(number, internal())

    def _hand_out(self, number: int, running: _Running) -> None:
        if running.stream is None:
            return
        wave = running.stream.push(self._synthesizer.engine.frames(number, running.stream.num_frames))
        if len(wave):
            self._note_sound(running)
            running.answer.put(Piece(wave))

    def _finish(self, number: int, running: _Running, output: Output) -> None:
        if running.stream is not None:
            last = running.stream.push(output.codes[:, running.stream.num_frames :])
            wave = np.concatenate([last, running.stream.finish()])
        elif output.codes.shape[1]:
            wave = self._synthesizer.decode(output.codes, torch.from_numpy(running.answer.job.speaker))
        else:
            wave = np.zeros(0, np.float32)
        if len(wave):
            self._note_sound(running)
        self._release(number)
        spec = self._synthesizer.codec.spec
        audio_sec = output.codes.shape[1] * spec.hop_samples / spec.sample_rate
        self._counts.answered(time.monotonic() - running.answer.began, audio_sec)
        running.answer.put(Done(wave, output))

    def _note_sound(self, running: _Running) -> None:
        if not running.has_sound:
            running.has_sound = True
            self._counts.first_audio(time.monotonic() - running.answer.began)

    def _fail(self, number: int, problem: Problem) -> None:
        self._counts.add("failed")
        self._release(number).put(Failed(problem))

    def _release(self, number: int) -> Answer:
        """Forget an answer that has left its slot."""
        with self._changed:
            self._num_running -= 1
        return self._running.pop(number).answer

    def _end(self) -> None:
        """Whatever is left hears that there will be no more."""
        with self._changed:
            self._is_ended = True
            left = [*self._waiting, *(running.answer for running in self._running.values())]
            self._waiting.clear()
            self._num_running = 0
            problem = stopping() if self._stop_at is not None else internal()
        for answer in left:
            self._counts.add("failed")
            answer.put(Failed(problem))
        for number in self._running:
            with contextlib.suppress(KeyError):
                self._synthesizer.engine.cancel(number)
        self._running.clear()
