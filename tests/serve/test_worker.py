"""The thread that computes: every request has its end, and whatever befalls one, the others have their answers."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from serve.serving import ENDLESS_SEC, TEXT, WAIT_SEC, Gate, until

from slmkit.codec.stream import JOINED_BOUND
from slmkit.errors import UserError
from slmkit.infer.engine import MAX_LONE_FAILURES
from slmkit.infer.synthesizer import Synthesizer
from slmkit.serve import worker as workers
from slmkit.serve.schema import ApiError
from slmkit.serve.worker import Call, ServeMetrics, Sound, Worker


@pytest.fixture
def metrics() -> ServeMetrics:
    return ServeMetrics()


@pytest.fixture
def worker(synthesizer: Synthesizer, metrics: ServeMetrics) -> Iterator[Worker]:
    made = Worker(synthesizer, metrics, max_waiting=3)
    made.start()
    yield made
    made.close(0)


def outcomes(metrics: ServeMetrics) -> dict[str, float]:
    return {
        name: metrics.registry.get_sample_value("slmkit_requests_total", {"outcome": name})
        for name in ("done", "refused", "failed", "given_up")
    }


def load_of(metrics: ServeMetrics) -> tuple[float, float]:
    names = ("slmkit_running_requests", "slmkit_waiting_requests")
    return tuple(metrics.registry.get_sample_value(name) for name in names)


class Listener:
    """A call and what came of it."""

    def __init__(self, synthesizer: Synthesizer, max_sec: float = 0.2, *, is_streamed: bool = False, **options: Any):
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        speaker = np.full(synthesizer.codec.spec.speaker_dim, 0.5, np.float32)
        request = synthesizer.reading(TEXT, speaker, max_sec=max_sec, **options)
        self.call = Call(request, speaker, is_streamed=is_streamed, deliver=self.events.put)

    def wait(self) -> list[Sound | ApiError]:
        """All events."""
        found = [self.events.get(timeout=WAIT_SEC)]
        while isinstance(found[-1], Sound) and found[-1].output is None:
            found.append(self.events.get(timeout=WAIT_SEC))
        assert self.events.empty()
        return found

    def wave(self) -> np.ndarray:
        return np.concatenate([event.wave for event in self.wait()])


def submitted(worker: Worker, *listeners: Listener) -> list[Listener]:
    for listener in listeners:
        worker.submit(listener.call)
    return list(listeners)


def test_whole_answers_are_what_the_synthesizer_speaks(worker: Worker, synthesizer: Synthesizer) -> None:
    """Of more requests than slots at once, whole and streamed ones mixed."""
    made = [Listener(synthesizer, 1.2, is_streamed=number % 2 == 1, seed=number) for number in range(4)]
    found = [listener.wave() for listener in submitted(worker, *made)]
    outputs = synthesizer.engine.generate([listener.call.request for listener in made])
    for number, (listener, wave, output) in enumerate(zip(made, found, outputs, strict=True)):
        spoken = synthesizer.decode(output.codes, torch.from_numpy(listener.call.speaker))
        assert len(spoken) == 19_200
        assert np.abs(wave - spoken).max() <= (JOINED_BOUND if number % 2 else 0)


def test_a_stream_has_sound_before_its_end_and_the_same_codes(worker: Worker, synthesizer: Synthesizer) -> None:
    streamed, whole = submitted(worker, Listener(synthesizer, 1.5, is_streamed=True), Listener(synthesizer, 1.5))
    events, (only,) = streamed.wait(), whole.wait()
    assert len(events) > 2
    assert all(len(event.wave) for event in events[:-1])
    assert np.array_equal(events[-1].output.codes, only.output.codes)
    assert events[-1].output.limit == "seconds"


def test_a_stream_that_comes_too_slowly_is_counted(
    worker: Worker, synthesizer: Synthesizer, metrics: ServeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of the test: a position takes no time at first, and then longer than it sounds."""

    def streams() -> tuple[float, ...]:
        names = ("slmkit_streams_total", "slmkit_streams_total", "slmkit_gap_seconds_total")
        labels = ({"heard": "whole"}, {"heard": "with_gap"}, {})
        return tuple(metrics.registry.get_sample_value(*wanted) for wanted in zip(names, labels, strict=True))

    now, step_sec, step = 1000.0, 0.0, synthesizer.engine.step

    def timed_step() -> list:
        nonlocal now
        now += step_sec
        return step()

    monkeypatch.setattr(workers, "time", SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter))
    monkeypatch.setattr(synthesizer.engine, "step", timed_step)
    submitted(worker, Listener(synthesizer, 1.5, is_streamed=True))[0].wait()
    submitted(worker, Listener(synthesizer, 1.5))[0].wait()  # whole: nobody plays it as it comes
    assert streams() == (1, 0, 0)
    step_sec = 0.1  # a position is a frame of 12.5 ms
    submitted(worker, Listener(synthesizer, 1.5, is_streamed=True))[0].wait()
    whole, with_gap, gap_sec = streams()
    assert (whole, with_gap) == (1, 1)
    # Pieces of 12, 13, 14 and 81 frames come at frames 87, 100, 114 and 120, when codec and answer let them.
    assert gap_sec == pytest.approx((13 - 12 / 8) / 10 + (14 - 13 / 8) / 10 + (6 - 14 / 8) / 10)


def test_requests_beyond_the_room_are_refused(
    worker: Worker, synthesizer: Synthesizer, metrics: ServeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(synthesizer, monkeypatch)
    taken = submitted(worker, *(Listener(synthesizer, ENDLESS_SEC) for _ in range(5)))
    with pytest.raises(ApiError, match="its queue is full; try again in 1 s") as caught:
        worker.submit(Listener(synthesizer).call)
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
    for listener in taken:
        listener.call.give_up()
    gate.open()
    until(lambda: load_of(metrics) == (0, 0))
    assert len(submitted(worker, Listener(synthesizer))[0].wave()) == 3200
    assert outcomes(metrics) == {"done": 1, "refused": 1, "failed": 0, "given_up": 5}


def test_without_a_queue_free_slots_are_filled_all_the_same(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, gate = Worker(synthesizer, ServeMetrics(), max_waiting=0), Gate(synthesizer, monkeypatch)
    worker.start()
    taken = submitted(worker, *(Listener(synthesizer) for _ in range(2)))
    with pytest.raises(ApiError, match="its queue is full"):
        worker.submit(Listener(synthesizer).call)
    gate.open()
    assert all(len(listener.wave()) for listener in taken)
    worker.close(0)


def test_a_request_that_does_not_fit_leaves_the_slot_free(
    worker: Worker, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(synthesizer.engine, "num_positions", 5)
        (error,) = submitted(worker, Listener(synthesizer))[0].wait()
    assert error.status == 400
    assert "the prompt leaves no room for an answer; got" in error.message
    assert len(submitted(worker, Listener(synthesizer))[0].wave())


def fail_for(synthesizer: Synthesizer, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step with a request of this seed in a slot fails, once it has spoken a little."""
    engine, step = synthesizer.engine, synthesizer.engine.step

    def failing_step() -> list:
        if any(a.request.seed == seed and len(a.grammar.frames) > 60 for a in engine._active.values()):
            raise torch.OutOfMemoryError("a detail")
        return step()

    monkeypatch.setattr(engine, "step", failing_step)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_row_that_fails_fails_alone(
    is_streamed: bool,
    worker: Worker,
    synthesizer: Synthesizer,
    metrics: ServeMetrics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """**law**: its neighbours' answers are those that they would have got without it, also what was sent already."""
    alone = [submitted(worker, Listener(synthesizer, 1.5, seed=seed))[0].wave() for seed in (1, 2, 3)]
    fail_for(synthesizer, 13, monkeypatch)
    made = [Listener(synthesizer, 1.5, is_streamed=is_streamed, seed=seed) for seed in (1, 13, 2, 3)]
    good, bad, *more = submitted(worker, *made)
    for listener, wave in zip((good, *more), alone, strict=True):
        assert np.abs(listener.wave() - wave).max() <= (JOINED_BOUND if is_streamed else 0)
    assert bad.wait()[-1].code == "internal_error"
    assert outcomes(metrics) == {"done": 6, "refused": 0, "failed": 1, "given_up": 0}
    assert synthesizer.engine.num_free == 2


def test_a_long_text_has_company_again_once_its_sentence_is_done(
    worker: Worker, synthesizer: Synthesizer, metrics: ServeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one bad step; the other that was in it is computed between two of its sentences."""
    step, fails, companies = synthesizer.engine.step, iter([True]), []

    def failing_step() -> list:
        companies.append(synthesizer.engine.num_slots - synthesizer.engine.num_free)
        if companies[-1] == 2 and next(fails, False):
            raise torch.OutOfMemoryError("a detail")
        return step()

    first, second = Listener(synthesizer), Listener(synthesizer, 0.5, seed=3)
    speaker = first.call.speaker
    passage = synthesizer.passage(" ".join([f"{TEXT}."] * 4), speaker, max_sec=0.5)
    first.call = Call(passage, speaker, is_streamed=False, deliver=first.events.put)
    alone = [listener.wave() for listener in submitted(worker, Listener(synthesizer, 0.5, seed=3))]
    monkeypatch.setattr(synthesizer.engine, "step", failing_step)
    submitted(worker, first, second)
    assert np.array_equal(second.wave(), alone[0])
    assert load_of(metrics)[0] + load_of(metrics)[1] == 1, "the long text is not done yet"
    third = submitted(worker, Listener(synthesizer))[0]
    assert len(third.wave())
    assert len(first.wave())
    failed = companies.index(2)
    assert 2 in companies[failed + 1 :]


@pytest.mark.parametrize("name", ["step", "admit"])
def test_an_engine_that_fails_at_everything_ends_the_worker(
    name: str, synthesizer: Synthesizer, metrics: ServeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any) -> None:
        raise torch.OutOfMemoryError("a detail")

    worker = Worker(synthesizer, metrics, max_waiting=99)
    worker.start()
    good = submitted(worker, *(Listener(synthesizer, 0.1) for _ in range(3)))
    assert all(len(listener.wave()) for listener in good)
    monkeypatch.setattr(synthesizer.engine, name, fails)
    listeners = [Listener(synthesizer) for _ in range(MAX_LONE_FAILURES)]
    for listener in listeners:
        assert worker.is_open
        assert submitted(worker, listener)[0].wait()[-1].code == "internal_error"
    until(lambda: not worker.is_open)
    with pytest.raises(UserError, match=f"the engine failed at {MAX_LONE_FAILURES} requests in a row"):
        worker.close(0)


def test_an_answer_of_numbers_that_are_not_finite_is_an_error(
    worker: Worker, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, step = synthesizer.engine, synthesizer.engine.step

    def step_to_nowhere() -> list:
        return [(number, replace(output, reason="limit", limit="not_finite")) for number, output in step()]

    monkeypatch.setattr(engine, "step", step_to_nowhere)
    error = submitted(worker, Listener(synthesizer))[0].wait()[-1]
    assert (error.status, error.code) == (500, "not_finite")
    assert engine.num_free == 2


def test_a_prompt_that_fails_fails_alone(
    worker: Worker, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit, fails = synthesizer.engine.admit, iter([True, False])

    def admit_or_fail(*args: Any) -> None:
        if next(fails):
            raise RuntimeError("a detail")
        admit(*args)

    monkeypatch.setattr(synthesizer.engine, "admit", admit_or_fail)
    bad, good = submitted(worker, Listener(synthesizer), Listener(synthesizer))
    (error,) = bad.wait()
    assert (error.status, error.code) == (500, "internal_error")
    assert "detail" not in error.message
    assert len(good.wave())


@pytest.mark.parametrize("is_streamed", [False, True])
def test_codes_that_cannot_be_decoded_fail_one_answer_alone(
    is_streamed: bool, worker: Worker, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = synthesizer.codec.decode

    def fail_on_request(codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        if speaker[0, 0] == 7:
            raise ValueError("codes are outside the codebooks")
        return decode(codes, speaker)

    monkeypatch.setattr(synthesizer.codec, "decode", fail_on_request)
    made = [Listener(synthesizer, 1.3, is_streamed=is_streamed) for _ in range(2)]
    made[0].call.speaker[0] = 7
    bad, good = submitted(worker, *made)
    assert [event.code for event in bad.wait()] == ["internal_error"]
    assert len(good.wave())
    assert synthesizer.engine.num_free == 2


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_sound_that_is_not_finite_is_an_error_alone(
    is_streamed: bool, worker: Worker, synthesizer: Synthesizer, metrics: ServeMetrics
) -> None:
    """Of a voice so loud that the codec's wave overflows."""
    made = [Listener(synthesizer, 1.3, is_streamed=is_streamed) for _ in range(2)]
    made[0].call.speaker[:] = 200
    bad, good = submitted(worker, *made)
    (error,) = bad.wait()
    assert (error.status, error.code) == (500, "not_finite")
    assert "the codec made a sound that is not finite" in error.message
    assert len(good.wave())
    assert outcomes(metrics) == {"done": 1, "refused": 0, "failed": 1, "given_up": 0}


def test_an_engine_that_cannot_be_made_is_named(synthesizer: Synthesizer) -> None:
    none = Synthesizer(synthesizer.model, synthesizer.tokenizer, synthesizer.codec, num_slots=0)
    worker = Worker(none, ServeMetrics(), max_waiting=0)
    with pytest.raises(UserError, match="the engine has no slots"):
        worker.start()
    assert not worker.is_alive


def test_a_worker_told_to_stop_lets_answers_end(
    synthesizer: Synthesizer, metrics: ServeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, gate = Worker(synthesizer, metrics, max_waiting=3), Gate(synthesizer, monkeypatch)
    worker.start()
    running, waiting = submitted(worker, Listener(synthesizer, 0.5), Listener(synthesizer))
    until(lambda: load_of(metrics) == (1, 1))
    closing = threading.Thread(target=worker.close, args=(WAIT_SEC,))
    closing.start()
    until(lambda: not worker.is_open)
    with pytest.raises(ApiError, match="the server is shutting down"):
        worker.submit(Listener(synthesizer).call)
    gate.open()
    closing.join(WAIT_SEC)
    assert not worker.is_alive
    assert len(running.wave()) == 8000
    assert [event.code for event in waiting.wait()] == ["shutting_down"]


def test_what_does_not_end_in_time_is_cut(worker: Worker, synthesizer: Synthesizer) -> None:
    endless = submitted(worker, Listener(synthesizer, ENDLESS_SEC, is_streamed=True))[0]
    assert len(endless.events.get(timeout=WAIT_SEC).wave)
    worker.close(0, WAIT_SEC)
    assert not worker.is_alive
    assert endless.wait()[-1].code == "shutting_down"
    assert synthesizer.engine.num_free == 2


def test_a_turn_that_takes_long_is_not_waited_for(
    synthesizer: Synthesizer, metrics: ServeMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, gate = Worker(synthesizer, metrics, max_waiting=0), Gate(synthesizer, monkeypatch)
    worker.start()
    listener = submitted(worker, Listener(synthesizer, ENDLESS_SEC))[0]
    until(lambda: synthesizer.engine.num_free < 2)
    worker.close(0, 0.01)
    assert worker.is_alive
    gate.open()
    assert listener.wait()[-1].code == "shutting_down"
    until(lambda: not worker.is_alive)


def test_a_defect_ends_the_worker_and_everybody_hears_of_it(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(synthesizer, ServeMetrics(), max_waiting=3)
    worker.start()

    def defect() -> None:
        raise AssertionError("a defect")

    monkeypatch.setattr(synthesizer.engine, "step", defect)
    (error,) = submitted(worker, Listener(synthesizer))[0].wait()
    assert error.code == "internal_error"
    until(lambda: not worker.is_alive)
    with pytest.raises(ApiError, match="the server is shutting down"):
        worker.submit(Listener(synthesizer).call)
    with pytest.raises(AssertionError, match="a defect"):
        worker.close(0)
    assert synthesizer.engine.num_free == 2
