"""How clean speech sounds, without a reference: DNSMOS P.835 (arXiv 2110.01763), on the scale of opinion scores 1 to 5.

The network and its weights come with the PyPI package speechmos, so nothing is downloaded; onnxruntime runs it. Of
that package only the file of the network is used: its Python code needs librosa.

The network hears 9.01 s at 16 kHz. A shorter wave is doubled until it is as long; a longer one is heard in windows that
start a second apart, whose scores are averaged. The polynomials that turn its three numbers into opinion scores are
those of the published evaluation script.

DNSMOS hears noise and distortion. It does not tell a person from a clean synthesizer.

Invariant: the scores of a wave depend on its own samples only.

Example:
    dnsmos = Dnsmos.load()
    dnsmos.scores(wave, 24000).overall      # 2.9
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slmkit.audio.io import resampled
from slmkit.audio.packaged import packaged_network
from slmkit.errors import BadSample

DNSMOS_RATE = 16_000  # Hz
WINDOW_SAMPLES = int(9.01 * DNSMOS_RATE)
SHORTEST_SEC = 0.1  # less is not worth repeating ninety times
# Of a raw number x: a x^2 + b x + c.
SIGNAL = (-0.08397278, 1.22083953, 0.0052439)
BACKGROUND = (-0.13166888, 1.60915514, -0.39604546)
OVERALL = (-0.06766283, 1.11546468, 0.04602535)


class DnsmosScores(NamedTuple):
    """Opinion scores, about 1 (bad) to 5 (excellent)."""

    signal: float  # how little the speech is distorted
    background: float  # how little noise there is
    overall: float  # the one that corpora call "dnsmos"


class Dnsmos:
    """See the module."""

    NETWORK = ("speechmos", "dnsmos_models/sig_bak_ovr.onnx")

    def __init__(self, session: Any) -> None:
        """Of an onnxruntime.InferenceSession."""
        self._session = session

    @staticmethod
    def load() -> "Dnsmos":
        """The network of the installed package. Raises UserError when speechmos or onnxruntime is not installed."""
        return Dnsmos(packaged_network(*Dnsmos.NETWORK, what="DNSMOS"))

    def scores(self, wave: npt.NDArray[Any], sample_rate: int) -> DnsmosScores:
        """Of `wave`, float [samples] at `sample_rate` Hz, clipped to [-1, 1].

        Raises BadSample "too_short" below 0.1 s.
        """
        if len(wave) < SHORTEST_SEC * sample_rate:
            raise BadSample("too_short", "the wave is too short for DNSMOS", got=f"{len(wave) / sample_rate:.3f} s")
        heard = np.clip(resampled(wave, sample_rate, DNSMOS_RATE), -1, 1)
        while len(heard) < WINDOW_SAMPLES:
            heard = np.concatenate([heard, heard])
        num_windows = max(1, len(heard) // DNSMOS_RATE - 9)  # as the published script counts them
        raw = [
            self._session.run(None, {"input_1": heard[None, start : start + WINDOW_SAMPLES]})[0][0]
            for start in range(0, num_windows * DNSMOS_RATE, DNSMOS_RATE)
        ]
        signal, background, overall = np.array(raw, dtype=np.float64).T
        return DnsmosScores(
            *(
                float(np.polyval(factors, numbers).mean())
                for factors, numbers in ((SIGNAL, signal), (BACKGROUND, background), (OVERALL, overall))
            )
        )

    def score(self, wave: npt.NDArray[Any], sample_rate: int) -> float:
        """The overall score. See `scores`."""
        return self.scores(wave, sample_rate).overall
