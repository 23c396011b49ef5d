"""How alike two code sequences are.

Example:
    frame_agreement(reference, generated)      # one share per stream
"""

from typing import Any

import numpy as np
import numpy.typing as npt


def frame_agreement(reference: npt.NDArray[Any], generated: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Share of frames with equal codes, float64 [K], of int [K, T] and int [K, U].

    Frames that only one of the two has count as unequal, so 1.0 means equal in every frame and in length.
    Raises ValueError when the numbers of streams differ.
    """
    if reference.shape[0] != generated.shape[0]:
        raise ValueError(f"{reference.shape[0]} streams against {generated.shape[0]}")
    shared = min(reference.shape[1], generated.shape[1])
    longest = max(reference.shape[1], generated.shape[1])
    equal = (reference[:, :shared] == generated[:, :shared]).sum(axis=1)
    return equal / longest if longest else np.ones(len(reference))
