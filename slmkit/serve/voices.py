"""The voices of a server: their names and sources. Needs no torch, so errors are reported before torch is imported.

Example:
    find_voices(["voices/", "shards/train:LJ-0001"])  # {"anna": "voices/anna.wav", "LJ-0001": "shards/train:LJ-0001"}
"""

import os
from collections.abc import Sequence
from pathlib import Path

from slmkit.audio import AUDIO_SUFFIXES
from slmkit.corpora.folders import walk
from slmkit.errors import UserError

SUFFIXES = (*AUDIO_SUFFIXES, ".npy")


def find_voices(sources: Sequence[str]) -> dict[str, str]:
    """What `Synthesizer.read_speaker` reads, by name, in the order of `sources` and in a folder by name.

    A folder gives one voice for each audio or .npy file in it that is not hidden, named as the file; a file gives one;
    `CORPUS:KEY` one named KEY. Raises UserError when a source gives none, or two have the same name.
    """
    voices: dict[str, str] = {}
    for source in sources:
        path, (corpus, colon, key) = Path(source), source.rpartition(":")
        if os.path.isdir(source):  # and not Path, which takes a name that is too long for an error
            files = [path / name for name in next(walk(path)).names if Path(name).suffix.lower() in SUFFIXES]
            found = [(file.stem, str(file)) for file in files]
            if not files:
                expected = f"files ending in {', '.join(SUFFIXES)}"
                raise UserError("the folder holds no voices", got=path, expected=expected)
        elif os.path.isfile(source):
            found = [(path.stem, source)]
        elif colon and os.path.isdir(corpus):
            found = [(key, source)]
        else:
            raise UserError("no such voice", got=source, expected="a folder, an audio or .npy file, or CORPUS:KEY")
        for name, place in found:
            if name in voices:
                raise UserError(
                    "two voices have the same name", got=name, next_step=f"rename {voices[name]} or {place}"
                )
            voices[name] = place
    return voices
