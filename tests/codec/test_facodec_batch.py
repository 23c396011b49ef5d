"""Law: codes and speaker vector do not depend on the batch, the place in it, or the padding.

Codes are compared for equality in every frame. Speaker vectors and waves may differ by float32 rounding, since matrix
products add in another order for another batch shape.
"""

import functools

import numpy as np
import pytest
import torch
from seeded_facodec import make_codec
from seeded_weights import wave
from twins.facodec import Activation as PlainActivation

from slmkit.codec.facodec.network import Transformer
from slmkit.codec.snake import fused_cpu
from slmkit.codec.snake.activation import Activation, Ends
from slmkit.codec.weights import Weights

LENGTHS = (413, 414, 700, 1592, 1600, 2777, 3999, 4000, 4160, 6001, 8000, 9999)
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def codec():
    return make_codec()


@pytest.fixture(scope="module")
def waves():
    return [
        torch.from_numpy(wave(1.0, seed)[:length].astype(np.float32) / 32768) for seed, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def alone(codec, waves):
    codec.items_at_once = 1
    return [codec.encode(one[None], torch.tensor([len(one)])) for one in waves]


def padded(waves, extra, draw):
    """A batch with noise as padding, and its lengths."""
    lengths = torch.tensor([len(one) for one in waves])
    batch = torch.from_numpy(draw.standard_normal((len(waves), max(lengths) + extra)).astype(np.float32))
    for row, one in zip(batch, waves, strict=True):
        row[: len(one)] = one
    return batch, lengths


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in (1, 2, 3))])
@pytest.mark.parametrize("items_at_once", [pytest.param(None, marks=pytest.mark.full), 3])
def test_batches_of_any_mix_give_the_codes_of_each_alone(codec, waves, alone, seed, items_at_once):
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(waves))[: draw.integers(2, len(waves) + 1)]
    codec.items_at_once = items_at_once
    out = codec.encode(*padded([waves[i] for i in order], int(draw.integers(0, 900)), draw))
    assert out.codes.shape[2] == max(out.num_frames)
    for row, i in enumerate(order):
        frames = alone[i].codes.shape[2]
        assert out.num_frames[row] == frames
        assert torch.equal(out.codes[row, :, :frames], alone[i].codes[0])
        assert not out.codes[row, :, frames:].any()
        torch.testing.assert_close(out.speaker[row], alone[i].speaker[0], atol=ROUNDING, rtol=0)


def test_every_place_in_a_batch_of_copies_gives_the_same(codec, waves, alone):
    codec.items_at_once = None
    out = codec.encode(waves[8].repeat(5, 1), torch.full((5,), len(waves[8])))
    assert torch.equal(out.codes, alone[8].codes.expand(5, -1, -1))


def test_decoding_a_batch_gives_the_waves_of_each_alone(codec, alone):
    codes = torch.stack([one.codes[0, :, :2] for one in alone[:4]])
    speaker = torch.cat([one.speaker for one in alone[:4]])
    codec.items_at_once = None
    together = codec.decode(codes, speaker)
    codec.items_at_once = 1
    torch.testing.assert_close(together, codec.decode(codes, speaker), atol=ROUNDING, rtol=0)


def make_activation() -> tuple[PlainActivation, Activation]:
    """Of three channels, as published and as the codec computes it."""
    plain = PlainActivation(3)
    plain.act.alpha.data.normal_()
    plain.act.beta.data.normal_()
    return plain, Activation(Weights({key: value.detach() for key, value in plain.state_dict().items()}))


RUN = 250  # outputs that `fused_cpu.c` computes at a time


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 100, RUN, RUN + 1, RUN + 4, 2 * RUN + 3])
@pytest.mark.parametrize("is_fused", [False, True])
def test_activation_equals_its_plain_twin_at_every_utterance_end(length, is_fused):
    torch.manual_seed(length)
    plain, fast = make_activation()
    way = functools.partial(fast.fused, fused_cpu) if is_fused else fast.plain
    x, counts, margin = torch.randn(5, 3, length), [length, max(1, length // 2), max(1, length - 1), 1, length], 5
    out = way(x, Ends(counts, x.device), margin)
    for row, count in enumerate(counts):
        expected = torch.nn.functional.pad(plain(x[row : row + 1, :, :count])[0], (margin, margin))
        torch.testing.assert_close(out[row, :, : count + 2 * margin], expected, atol=1e-5, rtol=1e-5)


def test_the_fused_activation_is_the_same_to_the_bit_in_every_batch_place_and_padding():
    torch.manual_seed(0)
    _, activation = make_activation()
    counts, margin, before = [2 * RUN + 40, RUN + 1, 3, 1, RUN + 6], 3, torch.get_num_threads()
    x = torch.randn(len(counts), 5, 700)[:, 1:4, 9:]  # a view: rows are apart
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = activation.fused(fused_cpu, x, Ends(counts, x.device), margin)
            for row, count in enumerate(counts):
                one = x[row : row + 1, :, :count].clone()
                alone = activation.fused(fused_cpu, one, Ends([count], x.device), margin)
                assert torch.equal(out[row, :, : count + 2 * margin], alone[0])
                assert not out[row, :, margin + count :].any()
    finally:
        torch.set_num_threads(before)


def test_the_fused_activation_of_angles_of_any_size_is_that_of_exact_numbers():
    """Of equal inputs, whose filtered values are themselves: y + height * sin(y)^2, for y up to thousands of turns."""
    torch.manual_seed(0)
    _, activation = make_activation()
    x = torch.linspace(-2e4, 2e4, 4001)[:, None, None].expand(-1, 3, 20)
    out = activation.fused(fused_cpu, x, Ends([20] * len(x), x.device), 0)[:, :, 10].double()
    alpha, height, x = activation.alpha[:, 0].double(), activation.height[:, 0].double(), x[:, :, 0].double()
    exact = x + height / alpha * (alpha * x).sin() ** 2
    roundings = 2e-6 * (1 + height) * (1 + x.abs())
    assert ((out - exact).abs() <= roundings).all()
    for odd in (torch.inf, torch.nan):
        spoilt = activation.fused(fused_cpu, torch.full((1, 3, 9), odd), Ends([9], x.device), 0)
        assert not spoilt.isfinite().any()


def test_ends_are_computed_on_the_device_as_on_the_host():
    for stride in (1, 2, 3, 4, 5, 8):
        ends = Ends([1, 2, 9, 16, 17, 1000], torch.device("cpu"))
        for _ in range(3):
            ends = ends.strided(stride)
            assert ends.on_device() is None or ends.on_device().tolist() == ends.counts
        assert max(ends.counts) > 0


def test_transformer_gives_every_place_the_first_positional_term(codec):
    transformer: Transformer = codec._mel_encoder
    x = torch.randn(1, 7, 256)
    torch.testing.assert_close(transformer(x.expand(3, -1, -1), None)[2:], transformer(x, None), atol=1e-5, rtol=0)
    term = transformer.position
    assert torch.equal(term, torch.tensor([0.0, 1.0]).repeat(128)[None])
