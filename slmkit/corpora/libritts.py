"""LibriTTS and folders laid out like it: audio files at any depth, each beside its transcript.

`19_198_000000_000000.wav` stands beside `19_198_000000_000000.normalized.txt` (or, where that is missing, `.txt`). The
key is the file name without its suffix, the speaker its first part.

Invariant: an item is an audio file, a transcript without one, or what `folders.unread` names. The order is that of the
source's folders, then of the names, whatever the file system's; no more than one folder's names are held.

Example:
    next(read_libritts("LibriTTS/dev-clean")).speaker       # "1272"
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from slmkit.audio import AUDIO_SUFFIXES
from slmkit.corpora.base import Audio, SourcePart, Utterance
from slmkit.corpora.folders import Folder, composed, is_audio, maybe_recordings, no_recording, unread, walk
from slmkit.corpora.layouts import ReadOptions, layout
from slmkit.data.ledger import Failure, printable
from slmkit.errors import UserError

TRANSCRIPT_SUFFIXES = (".normalized.txt", ".txt")
NO_TRANSCRIPT = re.compile(r"(?i)\.original\.txt$|^(?:readme|licen[cs]e|copying|copyright|changelog)\b")
SPEAKER = re.compile(r"(\d+)[_-]\d+[_-]")


@layout("libritts", files="DIR/19/198/19_198_000000_000000.wav beside .normalized.txt or .txt, at any depth")
def libritts_parts(source: Path, options: ReadOptions) -> list[SourcePart]:
    """One part."""
    return [partial(read_libritts, source, options.language)]


def read_libritts(root: str | Path, language: str = "") -> Iterator[Utterance | Failure]:
    """Every audio file under `root`, and a failure for everything else that may have been one.

    Raises UserError when a folder cannot be listed, or there is no audio at all.
    """
    found = False
    for folder in walk(root):
        audio = {name: os.path.splitext(name)[0] for name in folder.names if is_audio(name)}
        found = found or bool(audio)
        for failure in _without_audio(folder, audio):
            found = found or failure.reason == "unsupported"
            yield failure
        transcripts = [(*split, name) for name in folder.names if (split := _split(name))]
        spelled = {composed(stem) + suffix: name for stem, suffix, name in transcripts}
        spelled |= {stem + suffix: name for stem, suffix, name in transcripts}
        spelled |= {name: name for name in folder.names}
        stems: set[str] = set()
        for name, key in audio.items():
            source = folder.relative(name)
            if printable(source) != source:
                yield Failure(printable(key), "bad_key", f"{printable(source)}: the name is not valid UTF-8")
                continue
            if key in stems:
                yield Failure(key, "duplicate_key", f"{source}: an earlier file of the folder has this name too")
                continue
            stems.add(key)
            wanted = (stem + suffix for suffix in TRANSCRIPT_SUFFIXES for stem in (key, composed(key)))
            transcript = next((spelled[name] for name in wanted if name in spelled), None)
            if transcript is None:
                what = f"{source}: beside it lies no {key}{' and no '.join(TRANSCRIPT_SUFFIXES)}"
                yield Failure(key, "missing_transcript", what)
                continue
            yield Utterance(
                key=key,
                audio=Audio(os.path.join(folder.path, name)),
                text=Path(folder.path, transcript),
                source=source,
                speaker=speaker_of(key),
                language=language,
                named_by_file=True,
            )
    if not found:
        raise no_audio(root)


def _without_audio(folder: Folder, audio: Mapping[str, str]) -> Iterator[Failure]:
    """A failure for every transcript of a folder without audio, and for every file that no reader knows.

    `audio` gives the stem of each audio file. A file that ends in no more than `.txt` may be another text where the
    folder holds no recordings.
    """
    told = set(map(composed, audio.values()))
    alone: dict[str, str] = {}  # stem -> transcript
    for name in folder.names:
        if split := _split(name):
            stem = composed(split[0])
            if stem not in told and not NO_TRANSCRIPT.search(name):
                alone.setdefault(stem, name)
        elif name not in audio and (failure := unread(folder, name)) is not None:
            told.add(composed(os.path.splitext(name)[0]))
            yield failure
    maybe = maybe_recordings(folder.names) if alone else {}
    for stem, name in alone.items():
        if stem not in told and (stem in maybe or audio or name.lower().endswith(TRANSCRIPT_SUFFIXES[0])):
            yield no_recording(folder.relative(name), stem, maybe)


def _split(name: str) -> tuple[str, str] | None:
    """Stem and suffix of a transcript, the suffix in small letters; None for other files."""
    suffix = next((suffix for suffix in TRANSCRIPT_SUFFIXES if name.lower().endswith(suffix)), None)
    return (name[: -len(suffix)], suffix) if suffix else None


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
