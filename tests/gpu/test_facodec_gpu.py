"""FACodec on a GPU: the golden numbers, and the batch law where batches share kernels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from seeded_facodec import make_codec
from seeded_weights import wave

GOLDEN = Path(__file__).parent.parent / "golden" / "facodec"
ORDER = [1, 2, 0, 3, 4, 5]
EQUAL_FRAMES = 0.995  # a near tie may fall either way with another kernel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def codec():
    return make_codec("cuda")


@pytest.mark.parametrize("number", range(3))
def test_golden_numbers(codec, number):
    with np.load(GOLDEN / f"golden_{number}.npz", allow_pickle=False) as golden:
        waves = torch.from_numpy(golden["wave_int16"].astype(np.float32) / 32768)[None]
        codes, _, speaker = codec.encode(waves, torch.tensor([waves.shape[1]]))
        assert codes.is_cuda
        assert ((codes[0].cpu().numpy() == golden["codes"][ORDER]).mean(axis=1) >= EQUAL_FRAMES).all()
        np.testing.assert_allclose(speaker[0].cpu().numpy(), golden["speaker"], atol=1e-3)
        for field, streams in (("decoded_no_residual", 3), ("decoded_full", 6)):
            given = torch.from_numpy(golden["codes"][ORDER[:streams]])[None]
            decoded = codec.decode(given, torch.from_numpy(golden["speaker"])[None])
            np.testing.assert_allclose(decoded[0].cpu().numpy(), golden[field], atol=2e-3)


def test_a_mixed_batch_gives_the_codes_of_each_alone(codec):
    lengths = torch.tensor([16000, 413, 7999, 12345, 4000, 9999])
    waves = torch.randn(len(lengths), 16500, generator=torch.Generator().manual_seed(0))
    for i, length in enumerate(lengths):
        waves[i, :length] = torch.from_numpy(wave(1.0, i)[:length].astype(np.float32) / 32768)
    together = codec.encode(waves, lengths)
    equal, total = 0, 0
    for i, length in enumerate(lengths):
        alone = codec.encode(waves[i : i + 1, :length], lengths[i : i + 1])
        found = together.codes[i, :, : alone.codes.shape[2]]
        equal, total = equal + int((found == alone.codes[0]).sum()), total + found.numel()
        torch.testing.assert_close(together.speaker[i], alone.speaker[0], atol=1e-4, rtol=0)
    assert equal >= EQUAL_FRAMES * total
