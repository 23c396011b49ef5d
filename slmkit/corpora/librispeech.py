"""LibriSpeech: audio files of a chapter beside `{speaker}-{chapter}.trans.txt`, whose lines are `ID TEXT`.

The key is the ID, the file name without its suffix; the speaker its first part. Any `*.trans.txt` of a folder may name
any audio of that folder.

Invariant: an item is an audio file, a line without audio, or what `folders.unread` names. The lines without audio of a
folder come before its audio.
Memory: the names of one folder, and their texts.

Example:
    next(read_librispeech("LibriSpeech/dev-clean")).key       # "1272-128104-0000"
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from slmkit.corpora.base import MAX_TRANSCRIPT_BYTES, Audio, SourcePart, Utterance, checked_text
from slmkit.corpora.folders import Folder, composed, is_audio, maybe_recordings, no_file, no_recording, unread, walk
from slmkit.corpora.layouts import ReadOptions, layout
from slmkit.corpora.libritts import no_audio, speaker_of
from slmkit.data.ledger import Failure, printable
from slmkit.data.lines import read_lines
from slmkit.errors import BadSample

LINES_SUFFIX = ".trans.txt"


@layout("librispeech", files="DIR/84/121123/84-121123-0000.flac beside 84-121123.trans.txt (84-121123-0000 HELLO)")
def librispeech_parts(source: Path, options: ReadOptions) -> list[SourcePart]:
    """One part."""
    return [partial(read_librispeech, source, options.language)]


def read_librispeech(root: str | Path, language: str = "") -> Iterator[Utterance | Failure]:
    """Every audio file under `root`, and a failure for every line without one.

    Raises UserError when a folder or a transcript cannot be read, or there is no audio at all.
    """
    found = False
    for folder in walk(root):
        audio = [name for name in folder.names if is_audio(name)]
        found = found or bool(audio)
        texts: dict[str, bytes] = {}
        for failure in _read_texts(folder, audio, texts):
            found = found or failure.reason == "unsupported"
            yield failure
        stems: set[str] = set()
        for name in audio:
            yield _utterance(folder, name, stems, texts, language)
    if not found:
        raise no_audio(root)


def _read_texts(folder: Folder, audio: list[str], texts: dict[str, bytes]) -> Iterator[Failure]:
    """Put the texts of these files into `texts`, by stem in NFC; a failure for every other line, and for every file
    that no reader knows."""
    keys = {composed(os.path.splitext(name)[0]) for name in audio}
    maybe: dict[str, str] | None = None
    for name in folder.names:
        if not name.lower().endswith(LINES_SUFFIX):
            if not is_audio(name) and (failure := unread(folder, name)) is not None:
                yield failure
            continue
        if (failure := no_file(folder, name)) is not None:
            yield failure
            continue
        for number, line in read_lines(os.path.join(folder.path, name)):
            where = f"{folder.relative(name)}:{number}"
            if line is None:
                yield Failure(printable(where), "malformed", "the line is too long")
                continue
            words = line.split(maxsplit=1)
            key = composed(os.fsdecode(words[0]))  # as file names are
            if key not in keys:
                maybe = maybe_recordings(folder.names) if maybe is None else maybe
                yield no_recording(where, key, maybe)
            elif key in texts:
                yield Failure(printable(key), "duplicate_key", f"{printable(where)}: an earlier line has this name")
            else:
                texts[key] = words[1] if len(words) > 1 else b""


def _utterance(
    folder: Folder, name: str, stems: set[str], texts: dict[str, bytes], language: str
) -> Utterance | Failure:
    """The utterance of an audio file; `stems` are those of the folder's files before it."""
    key, source = os.path.splitext(name)[0], folder.relative(name)
    try:
        if printable(source) != source:
            raise BadSample("bad_key", f"{source}: the name is not valid UTF-8")
        if key in stems:
            raise BadSample("duplicate_key", f"{source}: an earlier file of the folder has this name too")
        stems.add(key)
        if (spelled := composed(key)) not in texts:
            raise BadSample("missing_transcript", f"no line of {folder.name or 'the folder'} begins with {key}")
        text = _decoded(texts[spelled], key)
    except BadSample as error:
        return Failure.of(key, error)
    path = os.path.join(folder.path, name)
    return Utterance(
        key=key,
        audio=Audio(path),
        text=text,
        source=source,
        speaker=speaker_of(key),
        language=language,
        named_by_file=True,
    )


def _decoded(content: bytes, key: str) -> str:
    if len(content) > MAX_TRANSCRIPT_BYTES:
        raise BadSample("long_transcript", f"the text of {key} is too long")
    try:
        return checked_text(content.decode(), f"the line of {key}")
    except UnicodeDecodeError as error:
        raise BadSample("transcript_not_utf8", f"the text of {key} is not UTF-8: {error}") from error
