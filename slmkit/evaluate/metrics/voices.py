"""How alike two voices are: the cosine of their speaker vectors.

Two measures give vectors: the codec (its own, or those of the voice encoder beside it; the model is given the same, so
it flatters a model that obeys it), and WavLM with an x-vector head (`slmkit.voice.wavlm`), which knows nothing of the
codec. Vectors of different measures, or of different codecs, cannot be compared. Where no voice was asked for, there is
nothing to compare with.

The thirds of an utterance are also compared, each by itself, where they are a second or longer: a voice that drifts
away is less like the one that was asked for at the end than at the start.

Invariant: the vector of an utterance depends on its own samples only.

Example:
    voice = open_voice("wavlm-base-plus-sv")
    cosine(voice.vector(prompt, 16000), voice.vector(spoken, 16000))    # its authors' threshold for one voice is 0.86
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from slmkit.evaluate.metrics import Metric, Score, Scores, measures, single
from slmkit.evaluate.selection import OWN
from slmkit.evaluate.spoken import Spoken, Vector
from slmkit.infer.synthesizer import voice_of

THIRDS = ("1st third", "2nd third", "3rd third")
SHORTEST_THIRD_SEC = 1.0


@measures(
    Metric(
        name="codec_similarity",
        label="SIM codec",
        better="higher",
        order=40,
        note="Cosine of the codec's speaker vectors of the speech and of the voice that was asked for; no speech: left "
        "out.",
    ),
    Metric(
        name="other_voice_similarity",
        label="SIM other",
        better="lower",
        order=41,
        note="The same to the voice in which the corpus says the sentence, where another was asked for.",
    ),
    Metric(
        name="codec_drift",
        label="SIM codec drift",
        better="higher",
        order=43,
        note="SIM codec of the last third less that of the first: below 0 the voice drifts away. Short speech: left "
        "out.",
    ),
)
def codec_similarity(spoken: Spoken) -> Scores:
    record, truths = spoken.record, spoken.truths
    if not spoken.is_voice_asked or not truths.codec.spec.speaker_dim:
        return {}

    def vector_of(wave: npt.NDArray[np.float32], rate: int) -> Vector:
        return voice_of(truths.codec, wave)  # whose rate it is

    vector = spoken.measured(vector_of)
    scores = {"codec_similarity": _similarity(vector, spoken.asked_vector)}
    if record.voice != OWN:
        scores["other_voice_similarity"] = _similarity(vector, truths.vector(record.number))
    return scores | _by_third("codec", spoken, vector_of, spoken.asked_vector)


@measures(
    Metric(
        name="wavlm_similarity",
        label="SIM WavLM",
        better="higher",
        order=42,
        note="Cosine of WavLM speaker vectors of the speech and of a recording of the voice (or the codec's copy where "
        "there is none); no speech: left out.",
    ),
    Metric(
        name="wavlm_drift",
        label="SIM WavLM drift",
        better="higher",
        order=44,
        note="SIM WavLM of the last third less that of the first. Short speech: left out.",
    ),
    needs=["wavlm"],
)
def wavlm_similarity(spoken: Spoken) -> Scores:
    wavlm, number = spoken.tools.wavlm, spoken.record.voice_number
    assert wavlm is not None, "the registry asks for it"
    if not spoken.is_voice_asked:
        return {}
    if number is None:  # a voice from outside the corpus: there is no recording of it
        return {"wavlm_similarity": None}
    known = spoken.tools.recorded_voices
    if number not in known:
        source = spoken.truths.source(number)
        known[number] = spoken.measured(wavlm.vector, spoken.truths.copy(number) if source is None else source)
    whole = {"wavlm_similarity": _similarity(spoken.measured(wavlm.vector), known[number])}
    return whole | _by_third("wavlm", spoken, wavlm.vector, known[number])


def _by_third(
    kind: str, spoken: Spoken, vector_of: Callable[[npt.NDArray[Any], int], Vector], asked: Vector | None
) -> Scores:
    """Similarity of each third, and how much it changes from the first to the last."""
    wave = spoken.wave
    if asked is None or spoken.seconds < len(THIRDS) * SHORTEST_THIRD_SEC:
        return {f"{kind}_drift": None}
    parts = np.array_split(wave, len(THIRDS))
    found = [_similarity(spoken.measured(vector_of, part), asked) for part in parts]
    first, last = found[0], found[-1]
    drift = None if first is None or last is None else single(last[0] - first[0])
    return {f"{kind}_drift": drift} | {
        f"{kind}_similarity:{name}": score for name, score in zip(THIRDS, found, strict=True)
    }


def _similarity(a: Vector | None, b: Vector | None) -> Score | None:
    return None if a is None or b is None else single(cosine(a, b))


def cosine(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    """Cosine of the angle between vectors [D], -1 to 1; 0 where one of them is all zeros.

    Raises ValueError when they are not of one width.
    """
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"vectors of shapes {a.shape} and {b.shape} cannot be compared")
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / lengths, -1, 1)) if lengths else 0.0
