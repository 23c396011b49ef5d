"""Figures add up, also when many threads count."""

import threading

from slmkit.serve.counts import KEPT_TIMES, Counts


def test_figures_of_a_server_that_did_nothing() -> None:
    values = Counts().values()
    assert set(values["requests"].values()) == {0}
    assert values["real_time_factor"] is values["time_to_first_audio_sec"] is values["answer_sec"] is None


def test_the_real_time_factor_is_work_per_sound() -> None:
    counts = Counts()
    counts.worked(3.0)
    for seconds in (1.0, 2.0, 9.0):
        counts.first_audio(seconds / 10)
        counts.answered(seconds, audio_sec=4.0)
    values = counts.values()
    assert values["real_time_factor"] == 0.25
    assert values["answer_sec"] == {"median": 2.0, "max": 9.0, "of": 3}
    assert values["time_to_first_audio_sec"]["median"] == 0.2
    assert counts.answer_sec == 2.0


def test_nothing_is_lost_between_threads() -> None:
    counts = Counts()

    def count() -> None:
        for _ in range(500):
            counts.add("asked")
            counts.answered(0.1, 1.0)

    threads = [threading.Thread(target=count) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    values = counts.values()
    assert values["requests"]["asked"] == values["requests"]["done"] == values["audio_sec"] == 4000
    assert values["answer_sec"]["of"] == KEPT_TIMES
