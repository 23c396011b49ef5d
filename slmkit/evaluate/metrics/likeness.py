"""Codes and sound against the true ones, where the sentence was spoken in its own voice, or no voice was asked for."""

from typing import Any

import numpy as np
import numpy.typing as npt

from slmkit.evaluate.metrics import Metric, Scores, measures, single
from slmkit.evaluate.selection import DEFAULT, OWN
from slmkit.evaluate.spoken import Spoken


@measures(
    Metric(
        name="log_mel_distance_db",
        label="mel distance",
        unit="dB",
        better="lower",
        digits=2,
        order=60,
        note="Log-mel distance to the codec's decoding of the true codes, in the corpus's own voice; no speech counts "
        "as silence.",
    ),
    Metric(
        name="frame_agreement",
        label="frames equal",
        unit="%",
        better="higher",
        digits=1,
        order=80,
        note="Frames with the true codes, over all streams; frames that only one of the two has count as different.",
    ),
)
def likeness(spoken: Spoken) -> Scores:
    if spoken.record.voice not in (OWN, DEFAULT):
        return {}
    truths, number = spoken.truths, spoken.record.number
    shares = frame_agreement(truths.codes(number), spoken.codes)
    streams = [stream.name for stream in truths.corpus.codec.lm_streams]
    by_stream = {f"frame_agreement:{name}": single(share) for name, share in zip(streams, shares, strict=True)}
    distance_db = spoken.distance_db(truths.copy(number))
    return {"log_mel_distance_db": distance_db, "frame_agreement": single(float(shares.mean())), **by_stream}


def frame_agreement(reference: npt.NDArray[Any], generated: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Share of frames with equal codes, float64 [K], of int [K, T] and int [K, U].

    Frames that only one of the two has count as different, so 1.0 means equal in every frame and in length.
    Raises ValueError when the numbers of streams differ.
    """
    if reference.shape[0] != generated.shape[0]:
        raise ValueError(f"{reference.shape[0]} streams against {generated.shape[0]}")
    shared = min(reference.shape[1], generated.shape[1])
    longest = max(reference.shape[1], generated.shape[1])
    equal = (reference[:, :shared] == generated[:, :shared]).sum(axis=1)
    return equal / longest if longest else np.ones(len(reference))
