"""The files of a folder at any depth, in an order that depends on their names alone.

Hidden files and folders (also macOS's `._NAME`) and `__MACOSX` are passed over. Links to folders are followed.

Invariant: each folder is entered once, however it is linked; a folder's files come before its folders, both by name.
Memory: the names of one folder, and two numbers for every folder entered.

Example:
    for folder in walk("LibriTTS"): folder.name, folder.names       # "dev-clean/84/121123", ["84_...wav", ...]
    dict(files_under("Emilia", (".tar",)))                          # {"Emilia/EN/EN-B000000.tar": "EN/EN-B000000.tar"}
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from slmkit.audio import AUDIO_SUFFIXES
from slmkit.errors import UserError


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
        subfolders[:] = sorted(name for name in subfolders if not _is_hidden(name))
        relative = os.path.relpath(path, root)
        shown = sorted(name for name in names if not _is_hidden(name))
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
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _cannot_list(error: OSError) -> NoReturn:
    raise UserError(f"cannot list {error.filename}: {error.strerror}", next_step="check the path and its permissions")
