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
    """Before a loop that makes cycles, which may hold a device's memory: look for them as often as usual, among new
    objects alone. A full collection of all others would make the processes of a world wait for each other."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_USUAL)
