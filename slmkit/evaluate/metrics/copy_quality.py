"""How good a copy of a recording is: log-mel distance, STOI and PESQ. The only file that knows pystoi and pesq.

STOI (Taal et al. 2011) is the intelligibility of the copy, about 0 to 1. PESQ is its quality on the scale of opinion
scores, 1.04 to 4.64, wide-band (ITU-T P.862.2, 16 kHz). Both compare a copy with its source moment by moment: they suit
a codec's copy synthesis, not another reading of the same text. Waves are compared as far as both go, at any rate; each
measure resamples to its own.

A measure that a pair does not have is None: one is too short (STOI: 0.4 s, PESQ: 0.25 s) or without speech.

PESQ sees the first 20 s. Its published code has room for 50 stretches of speech and, with more, writes beyond it and
brings the process down; a stretch and the gap behind it last more than 0.4 s, so 20 s cannot hold more.

Invariant: a copy that is its source has STOI 1 and PESQ 4.64.

Example:
    stoi(recorded, copied, 16000), pesq(recorded, copied, 16000)    # 0.93, 3.1
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from slmkit.audio.io import resampled
from slmkit.audio.units import seconds_to_samples
from slmkit.evaluate.metrics import Metric, Scores, measures, missing, single
from slmkit.evaluate.selection import OWN
from slmkit.evaluate.spoken import Spoken

Samples = npt.NDArray[Any]
STOI_SHORTEST_SEC = 0.4  # 30 frames of 25.6 ms, half overlapping
PESQ_SHORTEST_SEC, PESQ_LONGEST_SEC = 0.25, 20.0
PESQ_RATE = 16_000  # Hz


@measures(
    Metric(
        name="source_distance_db",
        label="mel to source",
        unit="dB",
        better="lower",
        digits=2,
        order=70,
        note="Of copy synthesis: log-mel distance to the recording.",
    )
)
def source_distance(spoken: Spoken) -> Scores:
    if not _is_copy(spoken):
        return {}
    source = spoken.truths.source(spoken.record.number)
    return {"source_distance_db": None if source is None else spoken.distance_db(source)}


@measures(
    Metric(
        name="stoi",
        label="STOI",
        better="higher",
        order=71,
        note="Of copy synthesis: intelligibility against the recording.",
    ),
    Metric(
        name="pesq",
        label="PESQ",
        better="higher",
        digits=2,
        order=72,
        note="Of copy synthesis: quality against the recording.",
    ),
    needs=["copy_quality"],
)
def copy_quality(spoken: Spoken) -> Scores:
    if not _is_copy(spoken):
        return {}
    source = spoken.truths.source(spoken.record.number)
    if source is None:
        return {"stoi": None, "pesq": None}
    wave, rate = spoken.wave, spoken.rate
    return {"stoi": single(stoi(source, wave, rate)), "pesq": single(pesq(source, wave, rate))}


def _is_copy(spoken: Spoken) -> bool:
    """Whether it is the codec's copy of a recording, in its own voice."""
    return spoken.is_copy and spoken.record.voice == OWN


def stoi(reference: Samples, degraded: Samples, sample_rate: int) -> float | None:
    """STOI of `degraded` against `reference`, float [samples] at `sample_rate` Hz; None where there is none.

    Raises UserError when pystoi is not installed.
    """
    try:
        from pystoi import stoi as measure
    except ImportError as error:
        raise missing("STOI scores", "pystoi", error) from error
    reference, degraded = _shared(reference, degraded)
    if len(reference) < seconds_to_samples(STOI_SHORTEST_SEC, sample_rate) or _is_flat(reference):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(measure(reference, degraded, sample_rate))
        except RuntimeWarning:  # too little of it is speech
            return None


def pesq(reference: Samples, degraded: Samples, sample_rate: int) -> float | None:
    """Wide-band PESQ of `degraded` against `reference`, float [samples] at `sample_rate` Hz; None where there is none.

    Raises UserError when pesq is not installed.
    """
    try:
        from pesq import BufferTooShortError, NoUtterancesError
        from pesq import pesq as measure
    except ImportError as error:
        raise missing("PESQ scores", "pesq", error) from error
    pair = (resampled(wave, sample_rate, PESQ_RATE) for wave in _shared(reference, degraded))
    longest = seconds_to_samples(PESQ_LONGEST_SEC, PESQ_RATE)
    reference, degraded = (wave[:longest] for wave in pair)
    if len(reference) < seconds_to_samples(PESQ_SHORTEST_SEC, PESQ_RATE) or _is_flat(reference) or _is_flat(degraded):
        return None
    try:
        return float(measure(PESQ_RATE, reference, degraded, "wb"))
    except (BufferTooShortError, NoUtterancesError):
        return None


def _shared(reference: Samples, degraded: Samples) -> tuple[Samples, Samples]:
    shared = min(len(reference), len(degraded))
    return reference[:shared].astype(np.float64), degraded[:shared].astype(np.float64)


def _is_flat(wave: Samples) -> bool:
    """Whether there is no sound at all."""
    return bool(wave.min() == wave.max())
