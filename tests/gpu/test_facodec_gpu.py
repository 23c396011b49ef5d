"""FACodec on a GPU: the golden numbers, the batch law where batches share kernels, the fused activation."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from seeded_facodec import make_codec
from seeded_weights import wave

from slmkit.codec.snake import activation
from slmkit.codec.snake.activation import Ends

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


@pytest.fixture
def fused():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    module = activation.fused_on(torch.device("cuda:0"))
    assert module is not None, "triton is there, but its kernel does not run: see the warning"
    return module


@pytest.mark.parametrize("counts", [[4000], [4000, 1, 2777, 512], [1037] * 3], ids=str)
@pytest.mark.parametrize("margin", [0, 3, 27])
def test_the_fused_activation_equals_its_twin(codec, fused, counts, margin):
    """They add the same float32 products in another order: the tolerance is some roundings of values of order one."""
    for stage in codec._encoder.stages:
        channels, device = len(stage.activation.alpha), torch.device("cuda:0")
        x = torch.randn(len(counts), channels, max(counts), generator=torch.Generator().manual_seed(0)).to(device)
        ends = Ends(counts, device)
        twin, got = stage.activation.plain(x, ends, margin), stage.activation.fused(fused, x, ends, margin)
        for row, count in enumerate(counts):
            here = slice(count + 2 * margin)
            torch.testing.assert_close(got[row, :, here], twin[row, :, here], atol=2e-5, rtol=1e-5)
            alone = stage.activation.fused(fused, x[row : row + 1, :, :count], Ends([count], device), margin)
            assert torch.equal(got[row, :, here], alone[0])


def test_the_fused_activation_gives_the_codes_of_its_twin(codec, fused, monkeypatch):
    lengths = torch.tensor([16000, 12345])
    waves = torch.stack([torch.from_numpy(wave(1.0, i)[:16000].astype(np.float32) / 32768) for i in range(2)])
    fast = codec.encode(waves, lengths)
    monkeypatch.setattr(activation, "fused_on", lambda device: None)
    plain = codec.encode(waves, lengths)
    assert (fast.codes == plain.codes).float().mean() >= EQUAL_FRAMES
    torch.testing.assert_close(fast.speaker, plain.speaker, atol=1e-4, rtol=0)
