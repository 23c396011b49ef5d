"""Copies of a training state in host memory, so that training may go on while the state is written.

A copy is what pickle makes of a value, with the memory of each tensor replaced by a buffer of our own: tensors that
share memory still do, a tensor that occurs twice is one tensor, everything else is copied deeply. So torch.save writes
the copy as it would have written the value. On a GPU the buffers are pinned.

The buffers are used again by the next copy of the same shape: fresh memory costs several times as much as the copying,
because the system hands it out page by page.

Invariant: after `begin`, earlier copies are void; until then no change of the values reaches them.

Example:
    copy = HostCopy()
    copy.begin()
    mine = copy(state)
    copy.wait()
"""

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch

Memory = torch.UntypedStorage


class HostCopy:
    """Copies values, one after the other, into the same buffers in every round."""

    def __init__(self) -> None:
        self._buffers: list[torch.Tensor] = []
        self._num_used = 0

    @property
    def num_bytes(self) -> int:
        """Host memory held."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def begin(self) -> None:
        """Start a round: the copies of the last one are no longer needed."""
        self._num_used = 0

    def __call__(self, value: Any) -> Any:
        """A copy of `value`, once `wait` has returned. It must be fit for torch.save."""
        stream = io.BytesIO()
        pickler = _Pickler(stream, self._of)
        pickler.dump(value)
        stream.seek(0)
        return _Unpickler(stream, pickler.copies).load()

    def wait(self) -> None:
        """Wait for the device to have made the copies of this round, and give back buffers it did not need."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        del self._buffers[self._num_used :]

    def _of(self, memory: Memory) -> Memory:
        """A copy of `memory` in the next buffer."""
        index, num_bytes = self._num_used, memory.nbytes()
        self._num_used += 1
        if index == len(self._buffers) or self._buffers[index].nbytes != num_bytes:
            self._buffers[index : index + 1] = []  # free the old one first
            self._buffers.insert(index, torch.empty(num_bytes, dtype=torch.uint8, pin_memory=memory.is_cuda))
        source = torch.empty(0, dtype=torch.uint8, device=memory.device).set_(memory)
        return self._buffers[index].copy_(source, non_blocking=True).untyped_storage()


class _Pickler(pickle.Pickler):
    """Leaves the memory of tensors out of the stream and copies it, each piece once."""

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
