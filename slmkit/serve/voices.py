"""The voices of a server: names and speaker vectors, all read before it starts.

Example:
    voices = read_voices(["voices/", "shards/train:LJ-0001"], synthesizer.read_speaker)
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from slmkit.errors import UserError

SUFFIXES = (".wav", ".flac", ".npy")
Vector = npt.NDArray[np.float32]


def read_voices(sources: Sequence[str], read: Callable[[str], Vector]) -> dict[str, Vector]:
    """Vectors float32 [D] by name, in the order of `sources` and in a folder by name; `read` is given one voice.

    A folder gives one voice for each WAV, FLAC or .npy file in it, named as the file; a file gives one; `CORPUS:KEY`
    one named KEY. Raises UserError when a source gives none, two have the same name, or as `read` does.
    """
    voices: dict[str, Vector] = {}
    for name, place in (found for source in sources for found in _places(source)):
        if name in voices:
            raise UserError("two voices have the same name", got=name, next_step=f"rename one; the second is {place}")
        voices[name] = read(place)
    return voices


def _places(source: str) -> list[tuple[str, str]]:
    """(name, what to read) of each voice of a source."""
    path = Path(source)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise UserError("the folder holds no voices", got=path, expected=f"files ending in {', '.join(SUFFIXES)}")
        return [(file.stem, str(file)) for file in files]
    corpus, colon, key = source.rpartition(":")
    if colon and Path(corpus).is_dir():
        return [(key, source)]
    return [(path.stem, source)]
