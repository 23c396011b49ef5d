"""LibriTTS and folders laid out like it: audio files at any depth, each beside its transcript.

`19_198_000000_000000.wav` stands beside `19_198_000000_000000.normalized.txt` (or, where that is missing, `.txt`). The
key is the file name without its suffix, the speaker its first part.

Invariant: the order is that of the source's folders, then of the names, whatever the file system's; no more than one
folder's names are held.

Example:
    next(read_libritts("LibriTTS/dev-clean")).speaker       # "1272"
"""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from slmkit.audio import AUDIO_SUFFIXES
from slmkit.corpora.base import Audio, SourcePart, Utterance
from slmkit.corpora.folders import is_audio, walk
from slmkit.corpora.layouts import ReadOptions, layout
from slmkit.data.ledger import Failure, printable
from slmkit.errors import UserError

TRANSCRIPT_SUFFIXES = (".normalized.txt", ".txt")
SPEAKER = re.compile(r"(\d+)[_-]\d+[_-]")


@layout("libritts", files="DIR/19/198/19_198_000000_000000.wav beside .normalized.txt or .txt, at any depth")
def libritts_parts(source: Path, options: ReadOptions) -> list[SourcePart]:
    """One part."""
    return [partial(read_libritts, source, options.language)]


def read_libritts(root: str | Path, language: str = "") -> Iterator[Utterance | Failure]:
    """Every audio file under `root`. Raises UserError when a folder cannot be listed, or there is no audio at all."""
    found = False
    for folder in walk(root):
        names = frozenset(folder.names)
        for name in filter(is_audio, folder.names):
            found = True
            key, source = os.path.splitext(name)[0], folder.relative(name)
            if printable(source) != source:
                yield Failure(printable(key), "bad_key", f"{printable(source)}: the name is not valid UTF-8")
                continue
            yield Utterance(
                key=key,
                audio=Audio(os.path.join(folder.path, name)),
                text=Path(folder.path, _transcript(key, names)),
                source=source,
                speaker=speaker_of(key),
                language=language,
            )
    if not found:
        raise no_audio(root)


def speaker_of(key: str) -> str:
    """The first part of a key such as 19_198_000000_000000 or 84-121123-0000, "" for keys of another kind."""
    found = SPEAKER.match(key)
    return found[1] if found else ""


def no_audio(root: str | Path) -> UserError:
    """For a source in which nothing was found."""
    return UserError(
        f"no audio files under {root}",
        expected=" ".join(sorted(AUDIO_SUFFIXES)),
        next_step="check the path, and `kind`, the layout of the source",
    )


def _transcript(key: str, names: frozenset[str]) -> str:
    """The first transcript that is there, else the one that was expected."""
    candidates = [key + suffix for suffix in TRANSCRIPT_SUFFIXES]
    return next((candidate for candidate in candidates if candidate in names), candidates[0])
