"""Speech that repeats itself or would not end: repeated words, repeated codes, runaways.

The repetition rate of a sequence is the share of its n-grams that stand in it before: 1 - different n-grams / n-grams
(seq-rep-n of Welleck et al. 2020, arXiv 1908.04319). Of words n is 4, of frames it is as many as last a quarter of a
second. Codes of a pause repeat in every recording, so the rate of the true codes is given beside.

Invariant: a sequence without equal n-grams has the rate 0.

Example:
    repeated_share("on the mat on the mat on the mat".split(), 4)       # (3, 6): half of six 4-grams
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy.typing as npt

from slmkit.evaluate.metrics import Metric, Score, Scores, measures, single
from slmkit.evaluate.metrics.words import normalized
from slmkit.evaluate.spoken import Spoken

WORDS_N = 4
FRAMES_SEC = 0.25


@measures(
    Metric(
        name="word_repetition",
        label="words repeated",
        unit="%",
        better="lower",
        digits=1,
        order=23,
        note="Share of four words in a row that the recognizer heard before in the same utterance.",
    ),
    needs=["recognizer"],
)
def word_repetition(spoken: Spoken) -> Scores:
    assert spoken.tools.recognizer is not None, "the registry asks for it"
    words = normalized(spoken.heard, spoken.tools.recognizer.spellings).split()
    return {"word_repetition": repeated_share(words, WORDS_N)}


@measures(
    Metric(
        name="code_repetition",
        label="codes repeated",
        unit="%",
        better="lower",
        digits=1,
        order=82,
        note="Share of quarters of a second whose codes stand in the same utterance before; pauses do so, too.",
    )
)
def code_repetition(spoken: Spoken) -> Scores:
    codec = spoken.truths.codec.spec
    length = max(2, round(FRAMES_SEC * codec.sample_rate / codec.hop_samples))
    return {
        "code_repetition": repeated_share(_frames(spoken.codes), length),
        "code_repetition:corpus": repeated_share(_frames(spoken.truths.codes(spoken.record.number)), length),
    }


@measures(
    Metric(
        name="runaway",
        label="runaways",
        unit="%",
        better="lower",
        digits=1,
        order=11,
        note="Answers that would not have ended and were stopped, also the last of their tries.",
    ),
    Metric(
        name="attempts",
        label="tries",
        digits=2,
        order=12,
        is_detail=True,
        note="Tries of an utterance; the best one is scored.",
    ),
)
def runaways(spoken: Spoken) -> Scores:
    if spoken.is_copy:
        return {}
    record = spoken.record
    return {"runaway": single(record.reason == "runaway"), "attempts": single(record.attempts)}


def repeated_share(sequence: Sequence[Hashable], n: int) -> Score:
    """How many n-grams of a sequence stand in it before, and how many there are."""
    grams = [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]
    return float(len(grams) - len(set(grams))), float(len(grams))


def _frames(codes: npt.NDArray[Any]) -> list[tuple[int, ...]]:
    """The codes [K, T] of each frame."""
    return list(map(tuple, codes.T.tolist()))
