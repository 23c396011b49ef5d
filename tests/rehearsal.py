"""A rehearsal of the code of a GPU without one: torch's device "meta", whose tensors have no content, stands in for it.

Inside `rehearsal()` a tensor on DEVICE says that it is on a GPU (`is_cuda`), so that the code takes the branches of a
GPU, and every operation of torch is watched, in backward passes too. These raise `Slip`:

- What reads from the device, and so waits for all that was computed before: `.item()`, `.tolist()`, `.cpu()`,
  `if tensor`, `torch.equal`, a copy into host memory; and every shape that depends on content: a boolean mask as an
  index, `nonzero`, `repeat_interleave` by a tensor.
- A copy to the device that waits: `torch.tensor(numbers, device=...)`, and `.to(device)` without `non_blocking`.
- A tensor left in host memory beside one on the device, also as an index, which a GPU would copy silently. One number
  (a tensor without dimensions) may be anywhere, as on a GPU.

With `answers`, reads and copies do not raise but are noted, so that a test can count them; a read gives zeros. Shapes
that depend on content, and mixed devices, raise all the same. What is not seen: kernels that are called by other ways
than torch's operators, and calls of `torch.cuda`, for which a test needs a stand-in of its own.

Example:
    model, batch = on_device(tiny_config(6)), tiny_batch(config, (9, 4)).to(DEVICE)
    with rehearsal() as watch:
        model(batch).loss.backward()
    assert watch.operators["aten.mm.dtype_out"]
"""

import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import slmkit
from slmkit.model.config import SpeechLMConfig
from slmkit.model.slm import SpeechLM

DEVICE = torch.device("meta")
PACKAGE = str(Path(slmkit.__file__).parent)
TORCH = str(Path(torch.__file__).parent)
SHAPED_BY_CONTENT = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
# What makes a tensor of Python's numbers: in host memory first, but on "meta" without a copy that could be seen.
MAKERS: tuple[Any, ...] = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)


class Slip(AssertionError):
    """Something that a GPU would wait for, or refuse."""


class Watch(TorchDispatchMode):
    """What was done in a rehearsal, and the judge of it."""

    def __init__(self, *, answers: bool) -> None:
        super().__init__()
        self.answers = answers
        self.reads: list[str] = []  # from the device to the host: operator and place
        self.uploads: list[str] = []  # from the host to the device, of those that wait
        self.operators: Counter[str] = Counter()  # by full name, "aten.mm.default"

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.operators[str(func)] += 1
        name = func.overloadpacket.__name__
        tensors = _tensors((*args, *kwargs.values()))
        here = [tensor for tensor in tensors if tensor.device == DEVICE]
        if name == "_to_copy":
            return self._copied(func, args[0], torch.device(kwargs.get("device") or args[0].device), args, kwargs)
        if not here:
            return func(*args, **kwargs)
        if name == "copy_":
            return self._copied(func, args[1], args[0].device, args, kwargs)
        if name in ("_local_scalar_dense", "equal"):
            self._read(func)
            return False if name == "equal" else torch.zeros((), dtype=args[0].dtype).item()
        indices = _tensors(args[1]) if name in INDEXING else []
        if (
            name in SHAPED_BY_CONTENT
            or any(index.dtype in (torch.bool, torch.uint8) for index in indices)
            or (name == "repeat_interleave" and kwargs.get("output_size") is None)
        ):
            raise Slip(f"{func} gives a shape that depends on content: {_place()}")
        if any(tensor.device != DEVICE and tensor.ndim for tensor in tensors):
            devices = ", ".join(f"{tuple(tensor.shape)} on {tensor.device.type}" for tensor in tensors)
            raise Slip(f"{func} has tensors on several devices ({devices}): {_place()}")
        return func(*args, **kwargs)

    def _copied(self, func: Any, source: torch.Tensor, device: torch.device, args: Any, kwargs: Any) -> Any:
        """A copy of `source` to `device`, by `_to_copy` or into the first of `args`."""
        if source.device == DEVICE != device:
            self._read(func)
            if func.overloadpacket.__name__ == "copy_":
                return args[0].zero_()
            return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=device)
        waits = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        if waits and device == DEVICE != source.device:
            self.upload(func)
        return func(*args, **kwargs)

    def upload(self, func: Any) -> None:
        """Note a copy to the device that is waited for."""
        self.uploads.append(f"{func}: {_place()}")
        if not self.answers:
            raise Slip(f"a copy to the device is waited for by {self.uploads[-1]}")

    def _read(self, func: Any) -> None:
        self.reads.append(f"{func}: {_place()}")
        if not self.answers:
            raise Slip(f"the device is waited for by {self.reads[-1]}")


class _Makers(TorchFunctionMode):
    """Tells `watch` of tensors that are made of Python's numbers."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in MAKERS and made.device == DEVICE and not any(isinstance(given, torch.Tensor) for given in args[:1]):
            self._watch.upload(func.__name__)
        return made


@contextmanager
def rehearsal(*, answers: bool = False) -> Iterator[Watch]:
    """See the module."""
    on_gpu = property(lambda tensor: tensor.device.type in ("cuda", DEVICE.type))
    with (
        mock.patch.object(torch.Tensor, "is_cuda", on_gpu, create=True),
        Watch(answers=answers) as watch,
        _Makers(watch),
    ):
        yield watch


def on_device(config: SpeechLMConfig, dtype: torch.dtype = torch.bfloat16) -> SpeechLM:
    """A model in training mode on DEVICE, as `dtype`; without weights, nothing is drawn."""
    with DEVICE:
        model = SpeechLM(config)
    nn.Module.to(model, dtype=dtype)
    return model.train()


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    """The tensors in arguments of an operator, also those in lists."""
    found = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [one for one in value if isinstance(one, torch.Tensor)]
    return found


def _place() -> str:
    """Where this package calls torch; in a backward pass, where that began."""
    calls = [frame for frame in traceback.extract_stack() if not frame.filename.startswith((TORCH, __file__))]
    ours = [frame for frame in calls if frame.filename.startswith(PACKAGE)]
    last = (ours or calls)[-1]
    return f"{last.filename}, line {last.lineno}: {last.line}"
