"""Speaker vectors by the name of their source, each source read once.

Invariant: equal names give equal vectors, or the same error.

Example:
    voices = Voices(synthesizer.read_speaker)
    voices.vector("corpora/libritts:19_198_000000_000000")
"""

from collections.abc import Callable
from pathlib import Path

from slmkit.data.index import Corpus
from slmkit.data.shards import ShardReader
from slmkit.errors import UserError
from slmkit.infer.synthesizer import Vector


class Voices:
    """See the module."""

    def __init__(self, read: Callable[[str], Vector]) -> None:
        """`read` gives the vector of a source that is no corpus, as `Synthesizer.read_speaker`."""
        self._read = read
        self._known: dict[str, Vector | UserError] = {}
        self._corpora: dict[str, tuple[ShardReader, dict[str, int]]] = {}

    def vector(self, source: str) -> Vector:
        """Speaker vector float32 [D] of an audio file, a `.npy` file or CORPUS:KEY. Raises UserError as `read`."""
        if source not in self._known:
            try:
                self._known[source] = self._look_up(source)
            except UserError as error:
                self._known[source] = error
        found = self._known[source]
        if isinstance(found, UserError):
            raise found
        return found

    def _look_up(self, source: str) -> Vector:
        directory, colon, key = source.rpartition(":")
        if not colon or source.endswith(".npy") or not Path(directory).is_dir():
            return self._read(source)
        if directory not in self._corpora:
            corpus = Corpus.open(directory)
            self._corpora[directory] = ShardReader(corpus), {corpus.key(i): i for i in range(len(corpus))}
        reader, numbers = self._corpora[directory]
        vector = reader.read(numbers[key]).speaker if key in numbers else None
        return self._read(source) if vector is None else vector  # which says what is wrong
