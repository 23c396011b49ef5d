"""Repetition, pace, runaways and drift, against numbers counted out by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from slmkit.evaluate.metrics.decoding import success
from slmkit.evaluate.metrics.loops import code_repetition, repeated_share, runaways, word_repetition
from slmkit.evaluate.metrics.pace import speech_rate
from slmkit.evaluate.metrics.voices import wavlm_similarity
from slmkit.evaluate.metrics.words import word_errors


def spoken(**values: Any) -> Any:
    """What metrics look at of an utterance of 8 letters, which takes the corpus 2 s: 160 frames of 80 Hz."""
    record = {"text": "Ab cd, efgh!", "question": "", "answer": "", "number": 0, "frames": 80, "warning": None}
    record |= {"reason": "end", "attempts": 1, "voice_number": 0} | values.pop("record", {})
    spec = SimpleNamespace(sample_rate=16_000, hop_samples=200)
    truths = SimpleNamespace(codec=SimpleNamespace(spec=spec), codes=lambda number: np.arange(320).reshape(2, 160))
    return SimpleNamespace(record=SimpleNamespace(**record), truths=truths, is_copy=False, **values)


def test_the_share_of_n_grams_that_stand_before() -> None:
    """Of "on the mat" three times, 4-grams begin at six places with three different words."""
    assert repeated_share(["on", "the", "mat", "on", "the", "mat", "on", "the", "mat"], 4) == (3, 6)
    assert repeated_share(["one", "two", "three", "four", "five"], 4) == (0, 2)
    assert repeated_share(["to", "be", "or"], 4) == (0, 0)
    assert repeated_share([7] * 10, 4) == (6, 7)


def test_words_and_codes_that_repeat() -> None:
    tools = SimpleNamespace(recognizer=SimpleNamespace(spellings={}))
    heard = spoken(tools=tools, heard="On the mat, on the mat, on the mat.")
    assert word_repetition(heard) == {"word_repetition": (3, 6)}
    codes = np.tile(np.arange(25), (2, 3))  # 75 frames that repeat after 25; a quarter of a second is 20
    found = code_repetition(spoken(codes=codes))
    assert found["code_repetition"] == (56 - 25, 56)
    assert found["code_repetition:corpus"] == (0, 141)


def test_kinds_of_word_errors_are_counted_apart() -> None:
    """One word is added, one is another, one is lost."""
    tools = SimpleNamespace(recognizer=SimpleNamespace(spellings={}))
    said = spoken(tools=tools, record={"text": "the boat left a harbour"}, heard="again the coat left harbour")
    scores = word_errors(said)
    assert scores["wer"] == (3, 5)
    assert scores["wer:substitutions"] == (1, 5)
    assert scores["wer:deletions"] == (1, 5)
    assert scores["wer:insertions"] == (1, 5)


def test_pace_is_that_of_the_sentence() -> None:
    assert speech_rate(spoken(seconds=1.0)) == {
        "speech_rate": (8, 1.0),
        "relative_rate": (2.0, 1.0),
        "speech_rate:corpus": (8, 2.0),
    }
    silent = speech_rate(spoken(seconds=0.0, record={"frames": 0}))
    assert (silent["speech_rate"], silent["relative_rate"]) == (None, None)
    assert speech_rate(spoken(seconds=1.0, record={"question": "Who?"})) == {}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({}, 1.0),
        ({"frames": 40}, 1.0),  # a quarter of the corpus's
        ({"frames": 39}, 0.0),
        ({"frames": 6}, 0.0),  # 0.075 s for a sentence
        ({"frames": 6, "question": "Who?"}, 1.0),
        ({"frames": 0, "question": "Who?"}, 0.0),
        ({"warning": "short"}, 0.0),
        ({"reason": "limit"}, 0.0),
        ({"reason": "runaway"}, 0.0),
    ],
)
def test_success_is_to_end_and_not_too_soon(record: dict[str, Any], expected: float) -> None:
    assert success(spoken(record=record)) == {"success": (expected, 1.0)}


def test_runaways_are_told_with_their_tries() -> None:
    assert runaways(spoken(record={"reason": "runaway", "attempts": 3})) == {"runaway": (1, 1), "attempts": (3, 1)}
    assert runaways(spoken(record={"attempts": 2})) == {"runaway": (0, 1), "attempts": (2, 1)}


def test_a_voice_that_drifts_away_is_found_in_the_last_third() -> None:
    """The vector turns from (1, 0) over (0.8, 0.6) to (0, 1): cosines 1, 0.8 and 0 to the voice that was asked for."""
    wave = np.concatenate([np.full(100, 0.0), np.full(100, 0.6), np.full(100, 1.0)])
    told = SimpleNamespace(vector=lambda part, rate: np.array([np.sqrt(1 - part.mean() ** 2), part.mean()]))
    tools = SimpleNamespace(wavlm=told, recorded_voices={0: np.array([1.0, 0.0])})

    def measured(measure: Any, wave_: Any = None) -> Any:
        return measure(wave if wave_ is None else wave_, 100)

    drifting = spoken(wave=wave, seconds=3.0, tools=tools, measured=measured, is_voice_asked=True)
    found = wavlm_similarity(drifting)
    thirds = [found[f"wavlm_similarity:{name} third"] for name in ("1st", "2nd", "3rd")]
    assert [round(score[0], 6) for score in thirds if score] == [1.0, 0.8, 0.0]
    assert found["wavlm_drift"] == pytest.approx((-1.0, 1.0))
    drifting.seconds = 2.9
    short = wavlm_similarity(drifting)
    assert short["wavlm_drift"] is None
    assert short.keys() == {"wavlm_similarity", "wavlm_drift"}
