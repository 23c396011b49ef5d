"""Streamed decoding on a GPU, whose kernels choose their order of adding by the length of the window."""

import numpy as np
import pytest
import torch
from seeded_facodec import make_codec

from slmkit.codec.stream import JOINED_BOUND, StreamDecoder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_streamed_facodec_is_the_whole_decode() -> None:
    codec, rng = make_codec("cuda", detail=False), np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(0, 1024, (3, 700)).astype(np.int32))
    speaker = torch.from_numpy(rng.standard_normal(256).astype(np.float32))
    stream = StreamDecoder(codec, speaker)
    joined = torch.cat([*[stream.push(part) for part in codes.split(7, dim=1)], stream.finish()])
    assert joined.is_cuda
    whole = codec.decode(codes[None], speaker[None])[0]
    assert (joined - whole).abs().max() <= JOINED_BOUND
