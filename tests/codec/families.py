"""A tiny random codec of every kind, as a directory that `slmkit codec add` has written.

FAMILIES is a registry: the name of a codec -> a function that writes the published form of it to a directory. To add a
kind, write such a function in a file `tiny_*.py` beside this one and decorate it with `family`. The codebooks must be
drawn from the codec's own latents over `audio` (`fit_residual` helps): random ones collapse to a few codes, which hides
every failure.

Example:
    @family("mine")
    def mine(directory: Path) -> Path:
        ...  # writes weights and settings
        return directory  # the source for `codec add`
    codec = open_family("mine")
"""

import atexit
import functools
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from seeded_weights import wave

from slmkit.codec.added import add_codec
from slmkit.codec.open import open_codec

Write = Callable[[Path], Path]
FAMILIES: dict[str, Write] = {}
TRAINING_SEC = 6.0


def family(name: str) -> Callable[[Write], Write]:
    """Register the writer of a tiny codec."""

    def registered(write: Write) -> Write:
        FAMILIES[name] = write
        return write

    return registered


def family_names() -> list[str]:
    """Of all kinds, in the order of the files that write them."""
    for file in sorted(Path(__file__).parent.glob("tiny_*.py")):
        importlib.import_module(f"codec.{file.stem}")
    return list(FAMILIES)


@functools.cache
def audio(rate: int, seconds: float = TRAINING_SEC, seed: int = 5) -> torch.Tensor:
    """A hum of changing pitch and loudness with noise, float32 [N]."""
    return torch.from_numpy(wave(seconds, seed, rate)).float() / 32768


@functools.cache
def published(name: str) -> Path:
    """The published form of the codec `name`. Made once per process."""
    place = tempfile.TemporaryDirectory(prefix=f"codec-{name}-")
    atexit.register(place.cleanup)
    directory = Path(place.name) / "published"
    directory.mkdir()
    assert name in family_names()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return FAMILIES[name](directory)


@functools.cache
def family_directory(name: str) -> Path:
    """The codec `name` as `codec add` writes it. Made once per process."""
    source = published(name)
    add_codec(source, source.parent / "codec")
    return source.parent / "codec"


@functools.cache
def open_family(name: str) -> Any:
    """The codec `name`, opened once per process."""
    return open_codec(family_directory(name))


def draw(vectors: torch.Tensor, number: int) -> torch.Tensor:
    """`number` entries [number, D] drawn from `vectors` [T, D], with a little noise so that no two are equal."""
    picked = vectors[torch.randint(len(vectors), (number,))]
    return picked + 0.05 * vectors.std(dim=0) * torch.randn(number, vectors.shape[1])


def fit_residual(latents: torch.Tensor, books: list[torch.Tensor]) -> None:
    """Fill `books`, each [E, D], from `latents` [T, D]: each from what the ones before leave."""
    residual = latents.clone()
    for book in books:
        book.copy_(draw(residual, len(book)))
        residual -= book[torch.cdist(residual, book).argmin(dim=1)]
