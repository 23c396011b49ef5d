"""The thread that computes: every request has its end, and whatever befalls one, the next is answered."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from serve.serving import TEXT, stand_still_when_full

from slmkit.codec.stream import JOINED_BOUND
from slmkit.errors import UserError
from slmkit.infer.synthesizer import Synthesizer
from slmkit.serve.counts import Counts
from slmkit.serve.problem import Problem
from slmkit.serve.worker import Answer, Done, Failed, Job, Piece, Worker

ENDLESS_SEC = 60.0


@pytest.fixture
def counts() -> Counts:
    return Counts()


@pytest.fixture
def worker(synthesizer: Synthesizer, counts: Counts) -> Iterator[Worker]:
    made = Worker(synthesizer, counts, max_waiting=3)
    made.start()
    yield made
    made.close(0)


def job(synthesizer: Synthesizer, max_sec: float = 0.2, *, is_streamed: bool = False, **options: Any) -> Job:
    speaker = np.zeros(80, np.float32)
    request = synthesizer.reading(TEXT, speaker, max_sec=max_sec, **options)
    return Job(request=request, speaker=speaker, is_streamed=is_streamed)


def events_of(answer: Answer) -> list:
    events = []
    while not events or isinstance(events[-1], Piece):
        events.append(answer.next(30))
    assert answer.next(0) is None
    return events


def wave_of(answer: Answer) -> np.ndarray:
    return np.concatenate([event.wave for event in events_of(answer)])


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_whole_answers_are_what_the_synthesizer_speaks(worker: Worker, synthesizer: Synthesizer) -> None:
    """Of more requests than slots at once, whole and streamed ones mixed."""
    jobs = [job(synthesizer, 1.2, is_streamed=number % 2 == 1, seed=number) for number in range(4)]
    found = [wave_of(answer) for answer in [worker.submit(one) for one in jobs]]
    outputs = synthesizer.engine.generate([one.request for one in jobs])
    for number, (one, wave, output) in enumerate(zip(jobs, found, outputs, strict=True)):
        spoken = synthesizer.decode(output.codes, torch.from_numpy(one.speaker))
        assert len(spoken) == 19_200
        assert np.abs(wave - spoken).max() <= (JOINED_BOUND if number % 2 else 0)


def test_a_stream_has_sound_before_its_end_and_the_same_codes(worker: Worker, synthesizer: Synthesizer) -> None:
    events = events_of(worker.submit(job(synthesizer, 1.5, is_streamed=True)))
    assert len(events) > 2
    assert all(len(event.wave) for event in events[:-1])
    whole = events_of(worker.submit(job(synthesizer, 1.5)))
    assert len(whole) == 1
    assert np.array_equal(events[-1].output.codes, whole[0].output.codes)
    assert events[-1].output.limit == "seconds"


def test_requests_beyond_the_room_are_refused(worker: Worker, synthesizer: Synthesizer, counts: Counts) -> None:
    answers = [worker.submit(job(synthesizer, ENDLESS_SEC)) for _ in range(5)]
    until(lambda: worker.load() == (2, 3))
    with pytest.raises(Problem, match="all places are taken; try again in 1 s") as caught:
        worker.submit(job(synthesizer))
    assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
    for answer in answers:
        answer.give_up()
    until(lambda: worker.load() == (0, 0))
    assert len(wave_of(worker.submit(job(synthesizer)))) == 3200
    requests = counts.values()["requests"]
    assert (requests["refused"], requests["given_up"], requests["done"]) == (1, 5, 1)


def test_without_a_queue_free_slots_are_filled_all_the_same(synthesizer: Synthesizer) -> None:
    worker = Worker(synthesizer, Counts(), max_waiting=0)
    worker.start()
    answers = [worker.submit(job(synthesizer, ENDLESS_SEC)) for _ in range(2)]
    with pytest.raises(Problem, match="all places are taken"):
        worker.submit(job(synthesizer))
    worker.close(0)
    assert all(isinstance(event, Failed) for answer in answers for event in events_of(answer))


def test_a_request_that_does_not_fit_leaves_the_slot_free(worker: Worker, synthesizer: Synthesizer) -> None:
    unfit = Job(request=synthesizer.reading("word " * 390, np.zeros(80, np.float32)), speaker=None, is_streamed=False)
    engine, most = synthesizer.engine, synthesizer.engine.num_positions
    engine.num_positions = 100
    try:
        (event,) = events_of(worker.submit(unfit))
    finally:
        engine.num_positions = most
    assert (event.problem.status, worker.load()) == (400, (0, 0))
    assert "the prompt leaves no room for an answer" in event.problem.message
    assert isinstance(events_of(worker.submit(job(synthesizer)))[-1], Done)


@pytest.mark.parametrize("where", ["step", "admit"])
def test_a_failing_step_fails_its_answers_alone(
    where: str, worker: Worker, synthesizer: Synthesizer, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, broken = getattr(synthesizer.engine, where), threading.Event()

    def fail_once(*args: Any) -> Any:
        if not broken.is_set():
            broken.set()
            raise torch.OutOfMemoryError("a detail")
        return works(*args)

    monkeypatch.setattr(synthesizer.engine, where, fail_once)
    (event,) = events_of(worker.submit(job(synthesizer)))
    assert (event.problem.status, event.problem.code) == (500, "internal_error")
    assert "detail" not in event.problem.message
    assert synthesizer.engine.num_free == 2
    assert isinstance(events_of(worker.submit(job(synthesizer)))[-1], Done)
    assert counts.values()["requests"]["failed"] == 1


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
    speaker = np.zeros(80, np.float32)
    speaker[0] = 7
    request = synthesizer.reading(TEXT, np.zeros(80, np.float32), max_sec=1.3)
    bad = worker.submit(Job(request=request, speaker=speaker, is_streamed=is_streamed))
    good = worker.submit(job(synthesizer, 1.3, is_streamed=is_streamed))
    assert [type(event) for event in events_of(bad)] == [Failed]
    assert isinstance(events_of(good)[-1], Done)
    assert worker.load() == (0, 0)
    assert synthesizer.engine.num_free == 2


def test_an_engine_that_cannot_be_made_is_named(synthesizer: Synthesizer) -> None:
    none = Synthesizer(synthesizer.model, synthesizer.tokenizer, synthesizer.codec, num_slots=0)
    worker = Worker(none, Counts(), max_waiting=0)
    with pytest.raises(UserError, match="the engine has no slots"):
        worker.start()
    assert not worker.is_alive


def test_a_worker_told_to_stop_lets_answers_end(synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(synthesizer, Counts(), max_waiting=3)
    worker.start()
    stand_still_when_full(worker, monkeypatch)
    running = [worker.submit(job(synthesizer, 0.5)), worker.submit(job(synthesizer, ENDLESS_SEC, is_streamed=True))]
    waiting = worker.submit(job(synthesizer))
    until(lambda: worker.load() == (2, 1))
    began = time.monotonic()
    worker.close(2.0)
    assert time.monotonic() - began < 6.2
    assert not worker.is_alive
    assert isinstance(events_of(running[0])[-1], Done)
    for answer in (running[1], waiting):
        assert events_of(answer)[-1].problem.code == "shutting_down"
    with pytest.raises(Problem, match="the server is shutting down"):
        worker.submit(job(synthesizer))
    assert synthesizer.engine.num_free == 2


def test_a_defect_ends_the_worker_and_everybody_hears_of_it(
    synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(synthesizer, Counts(), max_waiting=3)
    worker.start()

    def defect() -> None:
        raise AssertionError("a defect")

    monkeypatch.setattr(synthesizer.engine, "step", defect)
    (event,) = events_of(worker.submit(job(synthesizer)))
    assert event.problem.code == "internal_error"
    until(lambda: not worker.is_alive)
    with pytest.raises(AssertionError, match="a defect"):
        worker.close(0)
    assert synthesizer.engine.num_free == 2
