"""Copies of a training state in host memory, so that training may go on while the state is written.

A copy is what pickle makes of a value, with the memory of each tensor replaced by a buffer of our own: tensors that
share memory still do, a tensor that occurs twice is one tensor, everything else is copied deeply. So torch.save writes
the copy as it would have written the value. On a GPU the buffers are pinned.

The buffers are used again by the next copy of the same shape: fresh memory costs several times as much as the copying,
because the system hands it out page by page.

Pickling is quick; the copying itself, `make`, may run in another thread while the values only are read. Who is about
to change them calls `wait` first. On a GPU it runs beside the work of the device.

Invariant: after `wait`, and until the next `begin`, no change of the values reaches their copies.

Example:
    copy = HostCopy()
    copy.begin()
    mine = copy(state)
    copy.make()                             # in a thread; then, where the state is about to change:
    copy.wait()
"""

import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import torch

Memory = torch.UntypedStorage


class HostCopy:
    """Copies values, one after the other, into the same buffers in every round."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._sources: list[torch.Tensor] = []  # of the first buffers, not yet copied
        self._made = threading.Event()
        self._made.set()
        self._stream = torch.cuda.Stream() if torch.cuda.is_available() else None

    def begin(self) -> None:
        """Start a round: the copies of the last one are no longer needed."""
        self._made.clear()
        self._sources.clear()

    def __call__(self, value: Any) -> Any:
        """What will be a copy of `value` when `make` has run. It must be fit for torch.save."""
        stream = io.BytesIO()
        pickler = _Pickler(stream, self._of)
        pickler.dump(value)
        stream.seek(0)
        copies = _Unpickler(stream, pickler.copies).load()
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())  # the value is that of now
        return copies

    def make(self) -> None:
        """Copy, and give back buffers that this round does not need."""
        try:
            with torch.cuda.stream(self._stream):
                for source, buffer in zip(self._sources, self._buffers, strict=False):
                    buffer.copy_(source, non_blocking=True)
            if self._stream is not None:
                self._stream.synchronize()
            del self._buffers[len(self._sources) :]
            self._sources.clear()
        finally:
            self._made.set()

    def wait(self) -> None:
        """Wait for `make`, if a round has begun."""
        self._made.wait()

    def _of(self, memory: Memory) -> Memory:
        """The next buffer, for a copy of `memory`."""
        index, num_bytes = len(self._sources), memory.nbytes()
        if index == len(self._buffers) or self._buffers[index].nbytes != num_bytes:
            del self._buffers[index : index + 1]  # first, so that both are never held
            self._buffers.insert(index, torch.empty(num_bytes, dtype=torch.uint8, pin_memory=memory.is_cuda))
        self._sources.append(torch.empty(0, dtype=torch.uint8, device=memory.device).set_(memory))
        return self._buffers[index].untyped_storage()


class _Pickler(pickle.Pickler):
    """Leaves the memory of tensors out of the stream and has it copied, each piece once."""

    def __init__(self, stream: io.BytesIO, copy: Callable[[Memory], Memory]) -> None:
        super().__init__(stream)
        self.copies: list[Memory] = []
        self._copy = copy
        self._index_of: dict[int, int] = {}

    def persistent_id(self, item: Any) -> tuple[int, torch.dtype] | None:
        if isinstance(item, torch.storage.TypedStorage):
            memory, dtype = item._untyped_storage, item.dtype
        elif isinstance(item, Memory):
            memory, dtype = item, torch.uint8
        else:
            return None
        key = memory._cdata  # as torch.save tells one piece from another
        if key not in self._index_of:
            self._index_of[key] = len(self.copies)
            self.copies.append(self._copy(memory))
        return self._index_of[key], dtype


class _Unpickler(pickle.Unpickler):
    """Puts the copies in."""

    def __init__(self, stream: io.BytesIO, copies: list[Memory]) -> None:
        super().__init__(stream)
        self._copies = copies

    def persistent_load(self, item: Any) -> Any:
        index, dtype = item
        return torch.storage.TypedStorage(wrap_storage=self._copies[index], dtype=dtype, _internal=True)
