"""The voices of a server: their names and sources. Needs no torch, so errors are reported before torch is imported.

Example:
    find_voices(["voices/", "shards/train:LJ-0001"])  # {"anna": "voices/anna.wav", "LJ-0001": "shards/train:LJ-0001"}
"""

import os
from collections.abc import Sequence
from pathlib import Path

from slmkit.errors import UserError
from slmkit.model.companions import VOICE_SUFFIXES, voices_by_name, voices_in


def find_voices(sources: Sequence[str]) -> dict[str, str]:
    """What `Synthesizer.read_speaker` reads, by name, in the order of `sources` and in a folder by name.

    A folder gives one voice for each audio or .npy file in it that is not hidden, named as the file; a file gives one;
    `CORPUS:KEY` one named KEY. Raises UserError when a source gives none, or two have the same name.
    """
    voices: list[tuple[str, str]] = []
    for source in sources:
        path, (corpus, colon, key) = Path(source), source.rpartition(":")
        if os.path.isdir(source):  # and not Path, which takes a name that is too long for an error
            found = voices_in(path)
            if not found:
                expected = f"files ending in {', '.join(VOICE_SUFFIXES)}"
                raise UserError("the folder holds no voices", got=path, expected=expected)
        elif os.path.isfile(source):
            found = [(path.stem, source)]
        elif colon and os.path.isdir(corpus):
            found = [(key, source)]
        else:
            raise UserError("no such voice", got=source, expected="a folder, an audio or .npy file, or CORPUS:KEY")
        voices += found
    return voices_by_name(voices)
