"""LibriTTS and folders laid out like it: audio files at any depth, each beside its transcript.

`19_198_000000_000000.wav` stands beside `19_198_000000_000000.normalized.txt` (or, where that is missing, `.txt`). The
key is the file name without its suffix, the speaker its first part.

Invariant: the order is that of the keys, whatever the file system's.

Example:
    next(read_folder("LibriTTS/dev-clean")).speaker       # "1272"
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from slmkit.data.importers.base import Audio, Utterance
from slmkit.data.ledger import Failure, printable
from slmkit.errors import UserError

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".w64", ".rf64", ".au", ".caf"})
TRANSCRIPT_SUFFIXES = (".normalized.txt", ".txt")
SPEAKER = re.compile(r"(\d+)[_-]\d+[_-]")


def read_folder(root: str | Path, language: str = "") -> Iterator[Utterance | Failure]:
    """Every audio file under `root`, in the order of the keys. Raises UserError when a folder cannot be listed."""
    root = Path(root)
    found = sorted((path.stem, path.relative_to(root).as_posix()) for path in _audio_files(root))
    if not found:
        raise UserError(f"no audio files under {root}", expected=" ".join(sorted(AUDIO_SUFFIXES)))
    for key, name in found:
        if printable(name) != name:
            yield Failure(printable(key), "bad_key", f"{printable(name)}: the name is not valid UTF-8")
            continue
        path = root / name
        speaker = SPEAKER.match(key)
        yield Utterance(
            key=key,
            audio=Audio(str(path)),
            text=_transcript(path),
            source=name,
            speaker=speaker[1] if speaker else "",
            language=language,
        )


def _transcript(path: Path) -> Path:
    """The first transcript that exists beside `path`, else the one that was expected."""
    candidates = [path.with_suffix(suffix) for suffix in TRANSCRIPT_SUFFIXES]
    return next((candidate for candidate in candidates if candidate.exists()), candidates[0])


def _audio_files(root: Path) -> Iterator[Path]:
    """Audio files under `root`; links to folders are followed, each folder is entered once."""
    entered: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_cannot_list):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        subfolders.sort()
        for name in names:
            if Path(name).suffix.lower() in AUDIO_SUFFIXES and not name.startswith("."):
                yield Path(folder, name)


def _cannot_list(error: OSError) -> None:
    raise UserError(f"cannot list {error.filename}: {error.strerror}", next_step="check the path and its permissions")
