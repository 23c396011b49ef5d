"""The one thread that computes: it owns model, engine and codec, and answers all requests at once.

Each turn it takes one waiting request into a free slot, decodes one position of every running answer, and delivers
what is new. Other threads only submit requests and give them up. A slow client holds nothing up: what it has not
fetched waits in its own queue, at most the seconds of speech that a request may have.

A streamed answer is decoded by `SpeechStream` as its frames come; a whole one at its end, so that it is bit for bit
what `Synthesizer.speak` gives. A text of several sentences is a request for each, one after the other in one slot; a
sentence without speech is passed over where another one has some. Not done: decoding a long whole answer in turns with
the others' steps.

Other work with model or codec, such as measuring the voice of a recording, is done between two turns (`between_turns`),
one piece of it at a time; it holds the answers up for as long as it takes.

Invariant: every call gets exactly one last event (a `Sound` with an output, or an ApiError) unless it was given up.
An answer without speech, or with numbers or sound that are not finite, is an ApiError.
Where the engine fails at one request after the other the worker ends, with an error.
Whatever happens to a request, its slot is free afterwards, and the other requests get the answers that they would
have got without it.

Example:
    worker = Worker(synthesizer, ServeMetrics(), max_waiting=16)
    worker.start()
    events = queue.SimpleQueue()
    call = Call(request, speaker, is_streamed=True, deliver=events.put)
    worker.submit(call)
    events.get().wave
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from slmkit import log
from slmkit.errors import UserError
from slmkit.infer.engine import MAX_LONE_FAILURES
from slmkit.infer.passage import Passage, joined, silence
from slmkit.infer.playback import PlaybackClock
from slmkit.infer.request import Output, Request
from slmkit.infer.stream import SpeechStream
from slmkit.infer.synthesizer import Synthesizer
from slmkit.serve.schema import ApiError, from_user_error, internal, no_speech, overloaded, shutting_down

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # upper bounds of the histograms' buckets
MAX_BETWEEN = 4  # pieces of other work that wait
NEWEST_SHARE = 0.2  # of the newest answer in the mean time of an answer

Wave = npt.NDArray[np.float32]


class ServeMetrics:
    """What `/metrics` shows, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        of: Any = {"registry": self.registry}
        self.requests = Counter(
            "slmkit_requests", "Requests by outcome: done refused failed given_up", ["outcome"], **of
        )
        for outcome in ("done", "refused", "failed", "given_up"):
            self.requests.labels(outcome)  # shown as 0 from the start
        self.audio_sec = Counter("slmkit_audio_seconds", "Speech made", **of)
        self.busy_sec = Counter("slmkit_busy_seconds", "Time that model and codec have computed", **of)
        self.runaways = Counter(
            "slmkit_runaways", "Attempts at answers that were stopped, since they would not have ended", **of
        )
        self.first_audio_sec = Histogram(
            "slmkit_first_audio_seconds", "From a request to its first sound", buckets=SECONDS, **of
        )
        self.streams = Counter(
            "slmkit_streams",
            "Streamed answers: those that a listener hears without a gap, and those with one",
            ["heard"],
            **of,
        )
        for heard in ("whole", "with_gap"):
            self.streams.labels(heard)
        self.gap_sec = Counter("slmkit_gap_seconds", "Of all gaps in streamed answers together", **of)
        self.answer_sec = Histogram("slmkit_answer_seconds", "From a request to its last sound", buckets=SECONDS, **of)
        self.running = Gauge("slmkit_running_requests", "Requests in slots", **of)
        self.waiting = Gauge("slmkit_waiting_requests", "Requests that wait for a slot", **of)
        self.slots = Gauge("slmkit_slots", "Answers at a time", **of)


class Sound(NamedTuple):
    """Sound that follows what came before. It is empty only with an output, which comes with the last."""

    wave: Wave  # float32 [samples]
    output: Output | None = None


class Queued(NamedTuple):
    """A new place in the queue, from 1 on; 0: it is answered now."""

    place: int


class Call:
    """One client's request, from the queue to its last sound: a passage, or a request alone."""

    def __init__(
        self,
        asked: Passage | Request,
        speaker: Wave,
        *,
        is_streamed: bool,
        deliver: Callable[[Sound | Queued | ApiError], None],
        wants_place: bool = False,
    ) -> None:
        """`speaker` float32 [D], the voice the codec gives. `deliver` is called in the worker's thread; with
        `wants_place` it is also told each new place in the queue."""
        self.wants_place, self.place = wants_place, -1  # not told yet
        self.passage = asked if isinstance(asked, Passage) else Passage.of("", asked)
        self.speaker, self.is_streamed, self.deliver = speaker, is_streamed, deliver
        self.outputs: list[Output] = []  # of the sentences that are done
        self.waves: list[Wave] = []  # theirs, where they are not streamed
        self.pause_sec = 0.0  # to be heard before the next sound
        self.clock = PlaybackClock(time.monotonic())  # of who plays the sound as it is delivered
        self.stream: SpeechStream | None = None
        self.is_given_up = self.is_suspect = False

    @property
    def request(self) -> Request:
        """Of the sentence that is spoken, or the last one. A streamed one is tried once: what was heard cannot be said
        again."""
        request = self.passage.requests[min(len(self.outputs), len(self.passage.requests) - 1)]
        return request.tried_once() if self.is_streamed else request

    @property
    def is_mute(self) -> bool:
        """Whether no sentence had speech, and there is none left but one."""
        has_speech = any(output.codes.shape[1] for output in self.outputs)
        return not has_speech and len(self.outputs) + 1 >= len(self.passage.requests)

    def sentence_done(self, wave: Wave, output: Output) -> tuple[Wave, Output | None]:
        """Take the last sound of a sentence, float32 [n], and its output. Gives what is to be delivered; the output of
        all sentences once there is none left."""
        sentence = self.passage.sentences[len(self.outputs)]
        self.outputs.append(output)
        self.stream = None
        if output.codes.shape[1]:
            self.pause_sec = sentence.pause_sec
        if len(self.outputs) == len(self.passage.requests):
            return np.concatenate([*self.waves, wave]), joined(self.outputs)
        if not self.is_streamed:
            self.waves.append(wave)
            wave = wave[:0]
        return wave, None

    def give_up(self) -> None:
        """Nobody listens any more: the worker frees the slot with its next turn. Harmless once the answer is done."""
        self.is_given_up = True


class Worker:
    """See the module."""

    def __init__(self, synthesizer: Synthesizer, metrics: ServeMetrics, *, max_waiting: int) -> None:
        """At most `max_waiting` requests wait beside those in the slots."""
        self._synthesizer, self._metrics, self._max_waiting = synthesizer, metrics, max_waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="worker")
        self._work: Future[None] | None = None
        self._changed = threading.Condition()
        # Changed under the lock of `_changed`:
        self._waiting: deque[Call] = deque()
        self._running: dict[int, Call] = {}
        self._between: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._is_open = False
        self._stop_at: float | None = None
        # The thread's own:
        self._suspects: deque[Call] = deque()
        self._next_number = self._num_lone_failures = 0
        self._mean_answer_sec = 1.0
        metrics.running.set_function(lambda: len(self._running))
        metrics.waiting.set_function(lambda: len(self._waiting))

    def start(self) -> None:
        """Begin to answer. Raises UserError as making the engine does."""
        try:
            # In the worker's thread: how the engine rounds is measured with the threads that it will compute with.
            self._thread.submit(lambda: self._synthesizer.engine).result()
            self._metrics.slots.set(self._synthesizer.engine.num_slots)
            self._is_open = True
            self._work = self._thread.submit(self._run)
        finally:
            self._thread.shutdown(wait=False)  # it takes nothing more, and ends after `_run`

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._work is not None and not self._work.done()

    @property
    def is_open(self) -> bool:
        """Whether requests are taken."""
        return self._is_open

    def submit(self, call: Call) -> None:
        """Queue a request. Raises ApiError 503 when there is no room for it or the worker is stopping."""
        with self._changed:
            num_calls = len(self._running) + len(self._suspects) + len(self._waiting)
            is_full = num_calls >= self._synthesizer.engine.num_slots + self._max_waiting
            if is_full or not self._is_open:
                self._metrics.requests.labels("refused").inc()
                raise overloaded(self._mean_answer_sec) if self._is_open else shutting_down()
            self._waiting.append(call)
            self._changed.notify()

    def between_turns(self, work: Callable[[], Any]) -> "Future[Any]":
        """Have `work` done in the worker's thread, unless the future is cancelled before.

        The future raises ApiError, also for what `work` raises. Raises ApiError 503 as `submit`.
        """
        future: Future[Any] = Future()
        with self._changed:
            if len(self._between) >= MAX_BETWEEN or not self._is_open:
                raise overloaded(self._mean_answer_sec) if self._is_open else shutting_down()
            self._between.append((future, work))
            self._changed.notify()
        return future

    def close(self, grace_sec: float, turn_sec: float = 2.0) -> None:
        """Refuse what waits, let running answers end for `grace_sec` seconds, fail the others and end the thread.

        A turn that takes longer than `turn_sec` seconds after that is not waited for: `is_alive` is then still true.
        Raises what ended the thread before, if anything did.
        """
        with self._changed:
            self._is_open, self._stop_at = False, time.monotonic() + grace_sec
            self._changed.notify()
        if self._work is not None:
            with contextlib.suppress(TimeoutError):
                self._work.result(grace_sec + turn_sec)

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                began = time.perf_counter()
                self._drop_given_up()
                self._work_between()
                self._admit_one()
                self._tell_places()
                if self._running:
                    self._step()
                self._metrics.busy_sec.inc(time.perf_counter() - began)
                if self._num_lone_failures >= MAX_LONE_FAILURES:  # as after an error of the GPU that stays
                    raise UserError(
                        f"the engine failed at {self._num_lone_failures} requests in a row, each without company",
                        next_step="the log says how; start the server again, perhaps with fewer --slots",
                    )
        finally:
            with self._changed:
                self._is_open = False
                left = [*self._waiting, *self._suspects, *self._running.values()]
                undone = [future for future, _ in self._between]
                self._waiting.clear()
                self._between.clear()
            for number in list(self._running):
                self._leave_slot(number)
            why = internal() if self._stop_at is None else shutting_down()
            for call in left:
                self._fail(call, why)
            for future in undone:
                if future.set_running_or_notify_cancel():
                    future.set_exception(why)

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; False when it is time to end."""
        with self._changed:
            while True:
                is_busy = bool(self._running or self._suspects)
                if self._stop_at is not None:
                    while self._waiting:
                        self._fail(self._waiting.popleft(), shutting_down())
                    return is_busy and time.monotonic() < self._stop_at
                if is_busy or self._waiting or self._between:
                    return True
                self._changed.wait()

    def _drop_given_up(self) -> None:
        for number, call in list(self._running.items()):
            if call.is_given_up:
                self._leave_slot(number)
                self._metrics.requests.labels("given_up").inc()
        with self._changed:
            for calls in (self._waiting, self._suspects):
                for call in [call for call in calls if call.is_given_up]:
                    calls.remove(call)
                    self._metrics.requests.labels("given_up").inc()

    def _work_between(self) -> None:
        """One piece of other work."""
        with self._changed:
            if not self._between:
                return
            future, work = self._between.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except UserError as error:
            future.set_exception(from_user_error(error))
        except (RuntimeError, ValueError):
            log.get_logger(__name__).exception("work between two turns failed")
            future.set_exception(internal())

    def _tell_places(self) -> None:
        """Each call that wants to know, when its place in the queue has changed."""
        with self._changed:
            places = [*enumerate(self._waiting, start=1), *((0, call) for call in self._running.values())]
        for place, call in places:
            if call.wants_place and call.place != place:
                call.place = place
                call.deliver(Queued(place))

    def _admit_one(self) -> None:
        """Begin one request; one per turn, so that those who run are not kept waiting for many prompts.

        A suspect runs alone, and nothing beside it.
        """
        with self._changed:
            if any(call.is_suspect for call in self._running.values()):
                return
            if self._suspects:
                if self._running:
                    return
                call = self._suspects.popleft()
            elif self._waiting and self._synthesizer.engine.num_free:
                call = self._waiting.popleft()
            else:
                return
            number = self._next_number
            self._next_number += 1
            self._running[number] = call
        self._begin(number, call)

    def _begin(self, number: int, call: Call) -> None:
        """Let the engine read the prompt of a call, or of its next sentence."""
        try:
            if call.is_streamed and call.stream is None:
                call.stream = SpeechStream(self._synthesizer.codec, call.speaker)
            self._synthesizer.engine.admit(call.request, number)
        except UserError as error:
            self._fail(self._leave_slot(number), from_user_error(error))
        except (RuntimeError, ValueError):
            log.get_logger(__name__).exception("a prompt could not be read")
            self._fail(self._leave_slot(number), internal())
            self._num_lone_failures += not self._running

    def _step(self) -> None:
        """One position of every running answer."""
        try:
            done = dict(self._synthesizer.engine.step())
        except (RuntimeError, ValueError):  # torch's, as for want of memory
            log.get_logger(__name__).exception("a step failed with %d answers", len(self._running))
            calls = [self._leave_slot(number) for number in list(self._running)]
            if len(calls) == 1:
                self._fail(calls[0], internal())
                self._num_lone_failures += 1
                return
            # Which of them it was is not known. An answer depends on its request alone, so each is computed again
            # from its beginning, without company, and whoever fails then is the one. What was sent stays sent.
            for call in calls:
                call.is_suspect = True
            self._suspects.extend(calls)
            return
        if done:
            self._num_lone_failures = 0
        for number, call in list(self._running.items()):
            output = done.get(number)
            try:
                if output is not None:
                    self._metrics.runaways.inc(output.runaways)
                    output.check_finite()
                    if not output.codes.shape[1] and call.is_mute:
                        self._fail(self._leave_slot(number), no_speech(output.limit))
                        continue
                self._deliver(number, call, output)
            except UserError as error:
                self._fail(self._leave_slot(number), ApiError(500, error.what, code="not_finite"))
            except (RuntimeError, ValueError):
                log.get_logger(__name__).exception("codes could not be decoded")
                self._fail(self._leave_slot(number), internal())

    def _deliver(self, number: int, call: Call, output: Output | None) -> None:
        """Hand out what an answer has of new sound; with `output`, all that is left."""
        wave, ended = np.zeros(0, np.float32), output
        if output is not None and not output.codes.shape[1]:
            pass  # a sentence without speech, among others
        elif call.stream is not None:
            first = call.stream.num_frames
            codes = self._synthesizer.engine.frames(number, first) if output is None else output.codes[:, first:]
            wave = call.stream.push(codes)
            if output is not None:
                wave = np.concatenate([wave, call.stream.finish()])
        elif output is not None:
            wave = self._synthesizer.decode(output.codes, torch.from_numpy(call.speaker))
        if len(wave) and call.pause_sec:
            wave = np.concatenate([silence(call.pause_sec, self._synthesizer.codec.spec.sample_rate), wave])
            call.pause_sec = 0.0
        if output is not None:
            wave, output = call.sentence_done(wave, output)
        now, clock, spec = time.monotonic(), call.clock, self._synthesizer.codec.spec
        is_first = clock.first_audio_sec is None
        clock.hear(now, len(wave) / spec.sample_rate)
        if is_first and clock.first_audio_sec is not None:
            self._metrics.first_audio_sec.observe(clock.first_audio_sec)
        if output is not None:
            self._leave_slot(number)
            self._metrics.requests.labels("done").inc()
            self._metrics.answer_sec.observe(now - clock.began_sec)
            self._metrics.audio_sec.inc(output.codes.shape[1] * spec.hop_samples / spec.sample_rate)
            self._mean_answer_sec += NEWEST_SHARE * (now - clock.began_sec - self._mean_answer_sec)
            if call.is_streamed:
                self._metrics.streams.labels("with_gap" if clock.num_gaps else "whole").inc()
                self._metrics.gap_sec.inc(clock.gap_sec)
        if len(wave) or output is not None:
            call.deliver(Sound(wave, output))
        if ended is not None and output is None:
            if call.is_suspect:  # no more: it may have company again, and gives way to those who may not
                call.is_suspect = False
                with self._changed:
                    self._waiting.appendleft(self._leave_slot(number))
            else:
                self._begin(number, call)

    def _fail(self, call: Call, error: ApiError) -> None:
        self._metrics.requests.labels("failed").inc()
        call.deliver(error)

    def _leave_slot(self, number: int) -> Call:
        """Forget a running answer, in the engine too if it is still there."""
        with contextlib.suppress(KeyError):
            self._synthesizer.engine.cancel(number)
        with self._changed:
            return self._running.pop(number)
