"""CUDA graphs without a GPU: a stand-in for what `GraphReplay` takes from torch.cuda.

What runs inside `torch.cuda.graph` is recorded operation by operation, with the very tensors and numbers that it was
called with. A replay runs these operations again and puts their results into the tensors of the recording. So, as with
a real graph, content alone is new: a number of the host stays what it was, and a tensor that was put in the place of
another is not seen. What a recording cannot hold raises: a read of the device.

Not seen: operations outside torch's dispatcher, such as the compiled product of `infer/product.py`, and other streams'
work at the wrong time; but streams must wait for each other in the order that `GraphReplay` needs.

Example:
    graphs = stand_in(monkeypatch)
    replay = GraphReplay(compute, torch.device("cpu"))
    replay(x)
    assert graphs[0].num_replays == 1
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "equal", "nonzero")
NO_NUMBER = 255  # a byte: floats made of it are not numbers


class Graph:
    """In place of `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []  # operator, arguments, result
        self.num_replays = 0

    def replay(self) -> None:
        self.num_replays += 1
        if self.is_empty:
            return
        for func, args, kwargs, result in self.calls:
            for held, new in zip(_tensors(result), _tensors(func(*args, **kwargs)), strict=True):
                if _memory(held) != _memory(new):  # else a view, or written in place
                    held.copy_(new)

    @functools.cached_property
    def is_empty(self) -> bool:
        """Whether its tensors have no content, so that playing it changes nothing."""
        return all(tensor.is_meta for *_, result in self.calls for tensor in _tensors(result))

    def memory_read(self) -> set[int]:
        """Addresses of the memory that the operations find and do not make themselves, single numbers aside."""
        found: set[int] = set()
        made: set[int] = set()
        for _, args, kwargs, result in self.calls:
            found |= {_memory(tensor) for tensor in _tensors((args, kwargs)) if tensor.ndim} - made
            made |= {_memory(tensor) for tensor in _tensors(result)} - found
        return found


class _Recording(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode an operator that is made of others comes whole
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        assert func.overloadpacket.__name__ not in READS, f"a graph was recorded across a read of the device: {func}"
        result = func(*args, **kwargs)
        self._graph.calls.append((func, args, kwargs, result))
        return result


class Stream:
    """In place of `torch.cuda.Stream`; knows the streams that it has waited for."""

    def __init__(self) -> None:
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: "Stream") -> None:
        self.waited_for.append(other)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """Let `GraphReplay` work with tensors of any device; the graphs that are recorded from now on."""
    graphs: list[Graph] = []
    devices: list[torch.device] = []  # the current one last
    streams = [Stream()]

    class OnDevice(Stream):  # a class, since others have it in their annotations
        def __init__(self) -> None:
            assert devices, "a stream was made on whatever device is the current one"
            super().__init__()

    @contextmanager
    def on_device(device: torch.device) -> Iterator[None]:
        devices.append(device)
        try:
            yield
        finally:
            devices.pop()

    @contextmanager
    def on_stream(stream: Stream) -> Iterator[None]:
        assert streams[-1] in stream.waited_for, "work begins before its inputs are there"
        streams.append(stream)
        try:
            yield
        finally:
            streams.pop()

    @contextmanager
    def record(graph: Graph, *, stream: Stream) -> Iterator[None]:
        assert stream is not streams[-1], "a graph cannot be recorded on the stream that waits for it"
        assert stream in streams[-1].waited_for, "recording begins before warming up is done"
        graphs.append(graph)
        with _Recording(graph):
            yield
        _spoil(graph)

    for name, value in (
        ("CUDAGraph", Graph),
        ("Stream", OnDevice),
        ("current_stream", lambda: streams[-1]),
        ("device", on_device),
        ("stream", on_stream),
        ("graph", record),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    return graphs


def _spoil(graph: Graph) -> None:
    """A recording computes nothing: what is made in it has no content before the first replay."""
    found = graph.memory_read()
    for *_, result in graph.calls:
        for tensor in _tensors(result):
            if tensor.device.type == "cpu" and _memory(tensor) not in found:
                tensor.untyped_storage().fill_(NO_NUMBER)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
