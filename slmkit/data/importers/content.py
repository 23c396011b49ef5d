"""The bytes of an utterance's audio, wherever they lie.

Example:
    source = open_audio(Audio("EN-B000000.tar", start_byte=1536, num_bytes=40960))     # a path, or a binary stream
"""

import io
from pathlib import Path

from slmkit.data.importers.base import Audio
from slmkit.errors import BadSample


def open_audio(audio: Audio) -> Path | io.BytesIO:
    """The file, or the content of a part of it. Raises BadSample "missing" when it is not there."""
    path = Path(audio.path)
    try:
        if not path.is_file():  # opening a pipe could wait for ever
            raise BadSample("missing", f"{path} is not a file")
        if audio.num_bytes is None and not audio.start_byte:
            return path
        with open(path, "rb") as file:
            file.seek(audio.start_byte)
            content = file.read(-1 if audio.num_bytes is None else audio.num_bytes)
    except OSError as error:
        raise BadSample("missing", f"{path} cannot be opened: {error.strerror}") from error
    if audio.num_bytes is not None and len(content) < audio.num_bytes:
        raise BadSample("missing", f"{path} is cut short", got=f"{len(content)} bytes", expected=audio.num_bytes)
    return io.BytesIO(content)
