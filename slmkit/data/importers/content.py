"""The bytes of an utterance's audio, wherever they lie.

A part of a file of which only the beginning is known (a WAV in Kaldi's `FILE.ark:123`) ends where its RIFF header says.

Example:
    source = open_audio(Audio("EN-B000000.tar", start_byte=1536, num_bytes=40960))     # a path, or a binary stream
"""

import io
import os
from pathlib import Path
from typing import IO

from slmkit.data.importers.base import Audio
from slmkit.errors import BadSample

RIFF_HEADER_BYTES = 8  # "RIFF", and how many bytes follow
MAX_PART_BYTES = 2**30  # of a part that does not say where it ends


def open_audio(audio: Audio) -> Path | io.BytesIO:
    """The file, or the content of a part of it.

    Raises BadSample "missing" when it is not there, "unreadable" when nothing says where it ends.
    """
    path = Path(audio.path)
    try:
        if not path.is_file():  # opening a pipe could wait for ever
            raise BadSample("missing", f"{path} is not a file")
        if audio.row_group is not None:
            from slmkit.data.importers.parquet import read_cell  # pyarrow is there only where it is wanted

            return read_cell(audio)
        if audio.num_bytes is None and not audio.start_byte:
            return path
        with open(path, "rb") as file:
            file.seek(audio.start_byte)
            num_bytes = _num_bytes(file, path) if audio.num_bytes is None else audio.num_bytes
            content = file.read(num_bytes)
    except OSError as error:
        raise BadSample("missing", f"{path} cannot be opened: {error.strerror}") from error
    if len(content) < num_bytes or not content:
        raise BadSample("missing", f"{path} is cut short", got=f"{len(content)} bytes", expected=num_bytes)
    return io.BytesIO(content)


def _num_bytes(file: IO[bytes], path: Path) -> int:
    """Of the audio that begins where the file stands: by its RIFF header, else all that is left."""
    header, left = file.read(RIFF_HEADER_BYTES), os.fstat(file.fileno()).st_size - file.tell()
    file.seek(-len(header), os.SEEK_CUR)
    if header.startswith(b"RIFF") and (promised := int.from_bytes(header[4:], "little")) <= left:
        return RIFF_HEADER_BYTES + promised
    if left > MAX_PART_BYTES:
        raise BadSample("unreadable", f"the audio at byte {file.tell()} of {path} does not say where it ends")
    return len(header) + left
