"""The five made-up utterances that the published losses in tests/golden/slm were computed on."""

import numpy as np

FRAMES = (37, 50, 23, 81, 64)
TEXTS = (
    "The river froze before the last boat could leave.",
    "She counted eleven lanterns along the harbour wall.",
    "Nobody had told him that the clock was wrong.",
    "A small brown dog slept under the bakery table.",
    '"Wait," said the pilot, "we are not alone up here."',
)


def published_codes(i: int) -> np.ndarray:
    """Codes int64 [3, T] of utterance `i`."""
    return np.random.Generator(np.random.PCG64(500 + i)).integers(0, 1024, (3, FRAMES[i]))


def published_speaker(i: int) -> np.ndarray:
    """Speaker vector float32 [256] of utterance `i`."""
    return np.random.Generator(np.random.PCG64(9000 + i)).standard_normal(256).astype(np.float32)
