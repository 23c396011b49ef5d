"""`rehearsal` for what runs in torch's inference mode, which is how answers and codes are made.

There an operator that is made of others (`.to`, `.item`, an LSTM) reaches a watch whole, and what it does inside would
not be seen. So it is taken apart. Reads are answered with zeros and noted, copies to the device noted; all that waits
is to be judged by the test.

Example:
    with inference_rehearsal() as watch:
        engine.step()
    assert (len(watch.reads), len(watch.uploads), watch.num_sent) == (1, 0, 2)
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import rehearsal
import torch
from rehearsal import DEVICE, Watch


@functools.cache
def _is_made_of_others(func: Any) -> bool:
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return key in func.py_kernels or func.has_kernel_for_dispatch_key(key)


class InferenceWatch(Watch):
    """See the module."""

    num_sent = 0  # tensors copied to the device, waited for or not

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_made_of_others(func):
            with self:
                return func.decompose(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and args[0].device != DEVICE == kwargs.get("device"):
            self.num_sent += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def inference_rehearsal() -> Iterator[InferenceWatch]:
    """See the module."""
    with mock.patch.object(rehearsal, "Watch", InferenceWatch), rehearsal.rehearsal(answers=True) as watch:
        assert isinstance(watch, InferenceWatch)
        yield watch
