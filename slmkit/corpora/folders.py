"""The files of a folder at any depth, in an order that depends on their names alone.

Hidden files and folders (also macOS's `._NAME`) and `__MACOSX` are passed over. Links to folders are followed.

Every command that looks for files walks with this one: tokenize, codec fit, the voices of serve. What a reader of
corpora does not know (an archive, a link that leads nowhere) gets its ledger line from `unread`.

Invariant: each folder is entered once, however it is linked; a folder's files come before its folders, both by name.
Memory: the names of one folder, and two numbers for every folder entered.

Example:
    for folder in walk("LibriTTS"): folder.name, folder.names       # "dev-clean/84/121123", ["84_...wav", ...]
    dict(files_under("Emilia", (".tar",)))                          # {"Emilia/EN/EN-B000000.tar": "EN/EN-B000000.tar"}
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn

from slmkit.audio import AUDIO_SUFFIXES
from slmkit.data.ledger import Failure, printable
from slmkit.errors import UserError

# tar.gz, tgz, zip and their kin, the parts of one (tar.gz.0, tar.gz.aa, zip.001, z01), and downloads that did not end.
ARCHIVE = re.compile(
    r"\.(?:tar|tgz|tbz2?|txz|tzst|zip|rar|7z|gz|bz2|xz|zst|lz4)(?:\.(?:gz|bz2|xz|zst|lz4|z))?"
    r"(?:[._-]?(?:\d{1,4}|[a-z]{2}|part[._-]?\w{0,3}|crdownload|incomplete|download|tmp))?$|\.z\d\d$",
    re.IGNORECASE,
)
# Of files that lie beside recordings and are none, so that a transcript beside one of them lacks its recording.
NO_RECORDING = re.compile(
    r"\.(?:txt|jsonl?|[tc]sv|xml|html|md|pdf|lab|textgrid|ctm|srt|vtt|np[yz]|pt|png|jpg|md5|log|bak)", re.IGNORECASE
)


class Folder(NamedTuple):
    """A folder and its files, sorted."""

    path: str
    name: str  # relative to the root, "" for the root
    names: list[str]

    def relative(self, name: str) -> str:
        """`name` as the root sees it."""
        return f"{self.name}/{name}" if self.name else name


def walk(root: str | Path) -> Iterator[Folder]:
    """`root` and the folders below it. Raises UserError when one cannot be listed."""
    entered: set[tuple[int, int]] = set()
    for path, subfolders, names in os.walk(root, followlinks=True, onerror=_cannot_list):
        try:
            status = os.stat(path)
        except OSError as error:
            _cannot_list(error)
        if (status.st_dev, status.st_ino) in entered:
            subfolders.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        relative = os.path.relpath(path, root)
        shown = sorted(name for name in names if not is_hidden(name))
        yield Folder(path, "" if relative == "." else relative, shown)


def files_under(source: str | Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(path, name to show) of every file whose name ends in one of `suffixes`; of `source` itself when it is a file."""
    if os.path.isfile(source):
        if str(source).lower().endswith(suffixes):
            yield str(source), os.path.basename(source)
        return
    for folder in walk(source):
        for name in folder.names:
            if name.lower().endswith(suffixes):
                yield os.path.join(folder.path, name), folder.relative(name)


def is_audio(name: str) -> bool:
    """Whether a file of this name is taken for audio."""
    return name.lower().endswith(AUDIO_SUFFIXES)


def is_archive(name: str) -> bool:
    """Whether a file of this name holds others, packed, or is a part of such a file."""
    return ARCHIVE.search(name) is not None


def unread(folder: Folder, name: str) -> Failure | None:
    """The ledger line of a file that a reader does not know: an archive, or a link that leads nowhere, behind which a
    folder may have been. None where it is no item of a corpus."""
    where = printable(folder.relative(name))
    if is_archive(name):
        what = "is an archive, or a part of one, which is not read where it lies; unpack it, and move it elsewhere"
        return Failure(where, "unsupported", f"{where} {what}")
    path = os.path.join(folder.path, name)
    if os.path.islink(path) and not os.path.exists(path):
        target = printable(os.readlink(path))
        return Failure(where, "missing", f"{where} is a link to {target}, and nothing is there; mend or remove it")
    return None


def unread_under(source: str | Path) -> tuple[Failure, ...]:
    """The ledger lines of `unread` of a whole folder, for a reader that looks for files of one suffix."""
    if not os.path.isdir(source):
        return ()
    found = (unread(folder, name) for folder in walk(source) for name in folder.names)
    return tuple(failure for failure in found if failure is not None)


def no_file(folder: Folder, name: str) -> Failure | None:
    """The ledger line of what is there and is no file: opening a pipe could wait for ever. None where it is a file."""
    path = os.path.join(folder.path, name)
    if not os.path.exists(path) or os.path.isfile(path):
        return None
    where = printable(folder.relative(name))
    return Failure(
        where, "unsupported", f"{where} is not a file; remove it, or put the file that is meant in its place"
    )


def maybe_recordings(names: Iterable[str]) -> dict[str, str]:
    """Stem (in NFC) -> the file of that name that may be a recording and is not known as one."""
    found = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if not (is_audio(name) or is_archive(name) or NO_RECORDING.fullmatch(suffix)):
            found[composed(stem)] = name
    return found


def no_recording(where: str, stem: str, maybe: Mapping[str, str]) -> Failure:
    """The ledger line of a transcript without audio; `maybe` as of `maybe_recordings`."""
    key, where, other = printable(stem), printable(where), maybe.get(composed(stem))
    if other is None:
        return Failure(key, "missing", f"{where}: there is no audio of this name")
    what = f"{where}: beside it lies {printable(other)}, which is not known as audio; convert it to WAV or FLAC"
    return Failure(key, "unsupported", what)


def composed(name: str) -> str:
    """The name in one Unicode normalization (NFC), to compare: macOS and others write "e" and its accent apart."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def as_spelled(path: str | Path) -> Path:
    """The path as the file system spells it, where that has a name in another Unicode normalization; else as it is."""
    path = Path(path)
    if str(path).isascii() or os.path.lexists(path):
        return path
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        spellings = (part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD")))
        found /= next((name for name in spellings if os.path.lexists(found / name)), part)
    return found


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is passed over."""
    return name.startswith(".") or name == "__MACOSX"


def _cannot_list(error: OSError) -> NoReturn:
    raise UserError(f"cannot list {error.filename}: {error.strerror}", next_step="check the path and its permissions")
