"""The spec of a codec as files have it."""

from typing import Any

import numpy as np
import pytest
import torch

from slmkit.codec.base import CodecSpec, Stream, to_codes, to_tensor
from slmkit.errors import UserError

SPEC = CodecSpec(
    name="tiny",
    sample_rate=16000,
    hop_samples=200,
    streams=(Stream("a", 1024, "coupled"), Stream("b", 1024, "detail")),
    speaker_dim=80,
    weights_sha256="",
)


def with_streams(number: int, role: str) -> dict[str, Any]:
    return {**SPEC.to_dict(), "streams": [{"name": f"s{i}", "size": 8, "role": role} for i in range(number)]}


def test_what_was_written_is_read() -> None:
    assert CodecSpec.from_dict(SPEC.to_dict()) == SPEC


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_rate": "16000"}, "sample_rate: got '16000', expected a whole number, 1 to 1000000"),
        ({"hop_samples": 0}, "hop_samples: got 0"),
        ({"speaker_dim": 10**12}, "speaker_dim: got 1000000000000"),
        ({"speaker_dim": float("inf")}, "speaker_dim: got inf"),
        ({"streams": []}, r"streams: got \[\], expected a list of 1 to 256 streams"),
        ({"streams": [{"name": "a", "size": 10**9, "role": "content"}]}, r"streams\[0\].size: got 1000000000"),
        ({"streams": [{"name": "a", "size": 8, "role": "wild"}]}, r"streams\[0\].role: got 'wild'"),
        ({"streams": [{"name": "a", "size": 8, "role": "detail", "rate": 1}]}, r"streams\[0\].rate: unknown key"),
        ({"extra": 1}, "extra: unknown key"),
        ({"weights_sha256": None}, "weights_sha256: got None"),
    ],
)
def test_a_damaged_spec_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"(?s)not a codec spec.*{message}"):
        CodecSpec.from_dict({**SPEC.to_dict(), **change})


def test_what_is_no_mapping_is_refused() -> None:
    values: Any = [1]
    with pytest.raises(UserError, match="not a codec spec"):
        CodecSpec.from_dict(values)


def test_more_streams_than_the_vocabulary_has_letters_for_are_refused() -> None:
    assert len(CodecSpec.from_dict(with_streams(32, "content")).lm_streams) == 32
    assert len(CodecSpec.from_dict(with_streams(64, "detail")).streams) == 64  # the language model sees none of them
    with pytest.raises(UserError, match=r"the codec tiny has too many streams.*\n.*33 streams\n.*at most 32"):
        CodecSpec.from_dict(with_streams(33, "content"))


def test_codes_are_whole_numbers_of_16_bits_without_sign() -> None:
    codes = to_codes([[0, 40_000], [65_535, 1]])
    assert codes.dtype == np.uint16
    assert codes.tolist() == [[0, 40_000], [65_535, 1]]
    assert to_tensor(codes).dtype == torch.int32
    assert to_tensor(codes).tolist() == codes.tolist()
    assert to_codes(np.zeros((3, 0))).shape == (3, 0)
    for wrong in (-1, 65_536):
        with pytest.raises(ValueError, match=f"codes are .*{wrong}.*, not 0 to 65535"):
            to_codes([[0, wrong]])
