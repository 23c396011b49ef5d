"""Python's garbage collector beside many objects that stay: those of imported modules, or the utterances of a corpus.

It walks through all of them again and again while they are made, and once more at the end of a process. Importing torch
and transformers makes 370 000: 1.2 of 5 seconds, and one second of each command's end.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

OBJECTS_PER_COLLECTION = 200_000
_USUAL = gc.get_threshold()


@contextmanager
def rare_collections() -> Iterator[None]:
    """Inside, cycles are looked for after many more new objects than usual."""
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS_PER_COLLECTION, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def settle() -> None:
    """Before a long loop: look for cycles, which may hold a device's memory, as often as usual, in new objects alone.
    A walk through all others takes 0.2 s, in which a stream stands still, or the other processes of a world wait."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_USUAL)
