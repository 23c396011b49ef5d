"""How much of a wave is speech: the network of Silero VAD, 32 ms at a time.

The network and its weights come with the PyPI package silero-vad, so nothing is downloaded; onnxruntime runs it. Of
that package only the file of the network is used: its Python code needs torch, and torchaudio for files.

A window of 512 samples at 16 kHz counts as speech where the network gives it a probability of at least 0.5, the
package's own threshold. Pauses are no speech: the sentences of tokenize_jobs/sample_corpus have shares of 0.81 to 0.95.

Invariant: the share depends on the wave alone. Beside the wave, memory is bounded: blocks of 16 s are heard in turn,
and the network remembers what came before.

Example:
    detector = SpeechDetector.load()
    detector.score(wave, 24000)         # 0.83
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from slmkit.audio.io import resampled
from slmkit.audio.packaged import packaged_network
from slmkit.errors import BadSample

SPEECH_RATE = 16_000  # Hz
SPEECH_WINDOW = 512  # samples
BEFORE_WINDOW = 64  # samples before a window that the network hears with it
WINDOWS_AT_A_TIME = 512
STATE_SHAPE = (1, 1, 128)  # of both states of the network's LSTM
SPEECH_PROBABILITY = 0.5


class SpeechDetector:
    """See the module."""

    NETWORK = ("silero_vad", "data/silero_vad_16k_sequence.onnx")

    def __init__(self, session: Any) -> None:
        """Of an onnxruntime.InferenceSession."""
        self._session = session

    @staticmethod
    def load() -> "SpeechDetector":
        """The network of the installed package. Raises UserError when silero-vad or onnxruntime is not installed."""
        return SpeechDetector(packaged_network(*SpeechDetector.NETWORK, what="the share of speech"))

    def score(self, wave: npt.NDArray[Any], sample_rate: int) -> float:
        """The share of `wave`, float [samples] at `sample_rate` Hz, that is speech: 0 to 1.

        Raises BadSample "too_short" where not even one sample is left at 16 kHz.
        """
        heard = resampled(wave, sample_rate, SPEECH_RATE)
        if len(heard) == 0:
            raise BadSample("too_short", "the wave is too short to look for speech", got=f"{len(wave)} samples")
        is_speech = self.probabilities(heard) >= SPEECH_PROBABILITY
        lengths = np.full(len(is_speech), SPEECH_WINDOW)
        lengths[-1] = len(heard) - SPEECH_WINDOW * (len(is_speech) - 1)
        return float(lengths[is_speech].sum() / len(heard))

    def probabilities(self, heard: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """That a window is speech, float32 [windows], of `heard`, float32 [samples] at 16 kHz, clipped to [-1, 1]; the
        last window is filled up with zeros."""
        h, c = np.zeros(STATE_SHAPE, np.float32), np.zeros(STATE_SHAPE, np.float32)
        before = np.zeros(BEFORE_WINDOW, np.float32)
        block_samples = SPEECH_WINDOW * WINDOWS_AT_A_TIME
        found = []
        for start in range(0, len(heard), block_samples):
            block = np.clip(heard[start : start + block_samples], -1, 1)
            block = np.pad(block, (0, -len(block) % SPEECH_WINDOW))
            # Each window behind the end of the one before it.
            windows = np.lib.stride_tricks.sliding_window_view(
                np.concatenate([before, block]), BEFORE_WINDOW + SPEECH_WINDOW
            )[::SPEECH_WINDOW]
            values, h, c = self._session.run(
                ["speech_probs", "hn", "cn"], {"input": np.ascontiguousarray(windows), "h": h, "c": c}
            )
            found.append(values.reshape(-1))
            before = block[-BEFORE_WINDOW:]
        return np.concatenate(found)
