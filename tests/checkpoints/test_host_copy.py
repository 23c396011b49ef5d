"""Copies for the background writer: what torch.save makes of them is what it makes of the original."""

import io
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from slmkit.checkpoints.host_copy import HostCopy


def state() -> dict[str, Any]:
    """Views of one flat buffer, a tensor that occurs twice, one with attributes, strides, kinds, and plain values."""
    flat = torch.arange(24, dtype=torch.float32)
    tied = flat[:6].view(2, 3)
    marked = torch.ones(3, dtype=torch.bfloat16)
    marked.note = "kept"  # type: ignore[attr-defined]
    return {
        "module": OrderedDict(a=tied, b=tied, c=flat[6:12].view(3, 2).t(), scalar=torch.tensor(5)),
        "parameter": nn.Parameter(torch.randn(4)),
        "nested": [(flat, {"x": torch.zeros(0), "y": torch.zeros(0)}), marked, {"z": [True, None, 2.5, 7]}],
    }


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def copied(copy: HostCopy, *values: Any) -> list[Any]:
    copy.begin()
    copies = [copy(value) for value in values]
    copy.make()
    copy.wait()
    return copies


def test_it_is_saved_as_the_original_is() -> None:
    value = state()
    expected = torch.load(io.BytesIO(saved(value)), weights_only=True)
    (mine,) = copied(HostCopy(), value)
    assert len(saved(mine)) == len(saved(value))
    read = torch.load(io.BytesIO(saved(mine)), weights_only=True)
    for found in (mine, read):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert found["module"]["a"] is found["module"]["b"]
        assert found["module"]["a"].untyped_storage().data_ptr() == found["nested"][0][0].data_ptr()
        assert found["module"]["c"].stride() == (1, 2)
        assert isinstance(found["parameter"], nn.Parameter)
        assert found["nested"][1].note == "kept"


def test_no_change_reaches_it() -> None:
    value = state()
    (mine,) = copied(HostCopy(), value)
    expected = saved(mine)
    for tensor in (value["nested"][0][0], value["parameter"].data, value["nested"][1]):
        tensor.zero_()
    value["nested"][2]["z"].append("more")
    assert saved(mine) == expected


def test_memory_is_used_again_and_given_back() -> None:
    copy, values = HostCopy(), [torch.randn(100), torch.randn(50)]
    first = copied(copy, *values)
    places = [tensor.data_ptr() for tensor in first]
    assert sum(buffer.nbytes for buffer in copy._buffers) == 600
    again = copied(copy, *[value + 1 for value in values])
    assert [tensor.data_ptr() for tensor in again] == places
    torch.testing.assert_close(again, [value + 1 for value in values])
    grown = copied(copy, torch.ones(200), values[1])
    assert (grown[0].sum(), grown[1].data_ptr()) == (200, places[1])
    copied(copy, values[0])
    assert sum(buffer.nbytes for buffer in copy._buffers) == 400
