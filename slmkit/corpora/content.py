"""The bytes of an utterance's audio: a file, or a part of one.

Where only the beginning of a part is known (a WAV in Kaldi's `FILE.ark:123`), it ends where its RIFF header says.

Example:
    source = open_audio(Audio("EN-B000000.tar", start_byte=1536, num_bytes=40960))     # a path, or a binary stream
"""

import io
import os
from pathlib import Path
from typing import IO

from slmkit.audio.decoding import UNKNOWN_BYTES
from slmkit.corpora.base import Audio
from slmkit.corpora.folders import as_spelled
from slmkit.corpora.parquet import read_cell
from slmkit.errors import BadSample

RIFF_HEADER_BYTES = 8  # "RIFF", and how many bytes follow
MAX_PART_BYTES = 2**30  # of a part, which is read into memory


def open_audio(audio: Audio) -> Path | io.BytesIO:
    """The file, or the content of a part of it.

    Raises BadSample "missing" when it is not there, "unreadable" when nothing says where it ends or it is
    too large, UserError when it is in a parquet file and pyarrow is not installed.
    """
    path = as_spelled(audio.path)
    try:
        if not path.is_file():  # opening a pipe could wait for ever
            raise BadSample("missing", f"{path} is not a file")
        if audio.row_group is not None:
            return read_cell(audio)
        if audio.num_bytes is None and not audio.start_byte:
            return path
        with open(path, "rb") as file:
            file.seek(audio.start_byte)
            num_bytes = _num_bytes(file, path) if audio.num_bytes is None else audio.num_bytes
            if num_bytes > MAX_PART_BYTES:
                raise BadSample(
                    "unreadable", f"{path} holds {num_bytes} bytes of audio", expected=f"at most {MAX_PART_BYTES}"
                )
            content = file.read(num_bytes)
    except OSError as error:
        raise BadSample("missing", f"{path} cannot be opened: {error.strerror}") from error
    if len(content) < num_bytes:
        raise BadSample("missing", f"{path} is cut short", got=f"{len(content)} bytes", expected=num_bytes)
    return io.BytesIO(content)


def _num_bytes(file: IO[bytes], path: Path) -> int:
    """Of the WAV that begins where the file stands; at most what is left, and the decoder finds it cut short."""
    left = os.fstat(file.fileno()).st_size - file.tell()
    header = file.read(RIFF_HEADER_BYTES)
    file.seek(-len(header), os.SEEK_CUR)
    promised = int.from_bytes(header[4:], "little")
    if left <= 0:
        raise BadSample("missing", f"{path} ends before byte {file.tell()}")
    if not header.startswith(b"RIFF") or promised >= UNKNOWN_BYTES:
        raise BadSample("unreadable", f"the audio at byte {file.tell()} of {path} is not a WAV file with a length")
    return min(left, RIFF_HEADER_BYTES + promised)
