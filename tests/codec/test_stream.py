"""Streamed decoding: pieces joined are the whole decode, for every codec and however the codes come."""

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seeded_facodec import make_codec, make_plain

from slmkit.codec.base import CodecSpec, Reach, Stream
from slmkit.codec.melvq import NUM_BANDS, MelVQ
from slmkit.codec.stream import JOINED_BOUND, StreamDecoder
from slmkit.infer.playback import PlaybackClock

HOP = 200


class WindowSum:
    """Sample i of frame t: the sum of the codes from `before` frames back to `after` ahead, times i + 1."""

    device = torch.device("cpu")

    def __init__(self, reach: Reach, num_streams: int) -> None:
        streams = tuple(Stream(f"stream_{i}", 1024, "coupled") for i in range(num_streams))
        self.spec = CodecSpec(
            name="sum", sample_rate=160, hop_samples=2, streams=streams, speaker_dim=1, weights_sha256=""
        )
        self.reach_frames = reach
        self.windows: list[list] = []  # what it decoded

    def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        self.windows.append(codes.tolist())
        before, after = self.reach_frames
        padded = torch.nn.functional.pad(codes.sum(1).float(), (before, after))
        sums = padded.unfold(1, before + after + 1, 1).sum(2)
        return (sums[..., None] * torch.arange(1, 3) + speaker[:, None]).flatten(1) / 2**15


def stream(codec, codes: torch.Tensor, speaker: torch.Tensor, cuts: list[int], **sizes: int) -> list[torch.Tensor]:
    """The pieces when `codes` [K, T] come in parts that end at `cuts`."""
    decoder = StreamDecoder(codec, speaker, **sizes)
    ends = sorted({min(cut, codes.shape[1]) for cut in cuts})
    parts = [codes[:, a:b] for a, b in zip([0, *ends], [*ends, codes.shape[1]], strict=True)]
    waves = [decoder.push(part) for part in parts]
    assert decoder.num_frames == codes.shape[1]
    return [*waves, decoder.finish()]


@given(st.data())
def test_any_split_gives_the_whole_wave(data: st.DataObject) -> None:
    reach = Reach(data.draw(st.integers(0, 7)), data.draw(st.integers(0, 7)))
    num_streams, num_frames = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 60))
    first = data.draw(st.integers(1, 5))
    sizes = {"first_frames": first, "most_frames": data.draw(st.integers(first, 12))}
    cuts = data.draw(st.lists(st.integers(0, num_frames), max_size=12))
    codec, speaker = WindowSum(reach, num_streams), torch.tensor([0.5])
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 99, (num_streams, num_frames)).astype(np.int32))
    joined, windows = torch.cat(stream(codec, codes, speaker, cuts, **sizes)), codec.windows
    assert joined.dtype == torch.float32
    assert torch.equal(joined, codec.decode(codes[None], speaker[None])[0])
    at_once = WindowSum(reach, num_streams)
    stream(at_once, codes, speaker, [], **sizes)
    assert at_once.windows == windows[:-1]  # so a codec that rounds gives the same to the bit


def test_a_context_too_short_by_one_frame_shows() -> None:
    """The property above can fail: a codec that reaches further than it says."""
    codec, codes, speaker = WindowSum(Reach(3, 4), 2), torch.ones(2, 40, dtype=torch.int32), torch.zeros(1)
    whole = codec.decode(codes[None], speaker[None])[0]
    for reach in (Reach(2, 4), Reach(3, 3)):
        codec.decode = functools.partial(WindowSum.decode, WindowSum(Reach(3, 4), 2))
        codec.reach_frames = reach
        assert not torch.equal(torch.cat(stream(codec, codes, speaker, [])), whole)


@pytest.mark.parametrize(("reach", "first_cost", "cost"), [(28, 40 / 12, 184 / 128), (75, 87 / 12, 278 / 128)])
def test_sound_begins_early_and_context_costs_less_and_less(reach: int, first_cost: float, cost: float) -> None:
    codec = WindowSum(Reach(reach, reach), 1)
    decoder = StreamDecoder(codec, torch.zeros(1))
    given, spent = [], []
    for _ in range(3000):
        codec.windows.clear()
        wave = decoder.push(torch.zeros(1, 1, dtype=torch.int32))
        if len(wave):
            given.append(len(wave) // 2)
            spent.append(sum(len(window[0][0]) for window in codec.windows))
            assert decoder.num_frames == sum(given) + reach
    assert given[:5] == [12, 13, 14, 15, 16]
    assert given == sorted(given)
    assert given[-3:] == [128] * 3
    assert spent[0] / given[0] == first_cost
    assert spent[-1] / given[-1] == cost


def listened(pieces: list[int], reach: int, *, frame_sec: float, window_frame_sec: float) -> PlaybackClock:
    """What is heard of pieces of so many frames at 80 a second, by a clock of our own: model and codec take turns."""
    now, made, given, clock = 0.0, 0, 0, PlaybackClock(0.0)
    for piece in pieces:
        now += (min(sum(pieces), given + piece + reach) - made) * frame_sec
        made = min(sum(pieces), given + piece + reach)
        now += (made - max(0, given - reach)) * window_frame_sec
        clock.hear(now, piece / 80)
        given += piece
    return clock


@functools.cache
def pieces_of(num_frames: int, reach: int) -> list[int]:
    """As the decoder gives them out."""
    codec = WindowSum(Reach(reach, reach), 1)
    decoder = StreamDecoder(codec, torch.zeros(1))
    waves = [decoder.push(torch.zeros(1, 1, dtype=torch.int32)) for _ in range(num_frames)]
    return [len(wave) // 2 for wave in [*waves, decoder.finish()] if len(wave)]


NEEDED = {  # the table of the module: by reach, the speed of the codec and that of everything
    28: {math.inf: 1.09, 200: 1.10, 100: 1.12, 50: 1.16, 20: 1.30},
    75: {math.inf: 1.09, 200: 1.13, 100: 1.17, 50: 1.26, 20: 1.68},
}


@pytest.mark.parametrize("reach", NEEDED)
def test_a_stream_has_no_gap_from_the_stated_speed_on(reach: int) -> None:
    """For answers of any length; and the statement is sharp: a little slower, some have gaps."""
    answers = [pieces_of(number, reach) for number in (1, 7, 12, 13, 40, 90, 250, 700, 2500)]
    for codec_speed, least in NEEDED[reach].items():
        window_frame_sec = 1 / codec_speed / 80
        for speed in (least - 0.03, least, least + 0.05, 1.3 * least, 2.0 * least):
            frame_sec = 1 / speed / 80 - window_frame_sec * (1 + 2 * reach / 128)  # of the model alone
            assert frame_sec > 0
            costs = {"frame_sec": frame_sec, "window_frame_sec": window_frame_sec}
            num_gaps = sum(listened(pieces, reach, **costs).num_gaps for pieces in answers)
            assert (num_gaps > 0) == (speed < least), (codec_speed, speed)


def test_pieces_that_double_have_gaps_below_twice_real_time() -> None:
    """The clock, against figures worked out by hand: at 1.3, frames 240 / 1.3 are there when 120 are played."""
    doubling = [8, 16, 32, 64, 128, 128, 128]
    clock = listened(doubling, 28, frame_sec=1 / 1.3 / 80, window_frame_sec=0.0)
    assert clock.num_gaps == 4
    assert clock.gap_sec == pytest.approx((240 / 1.3 - 120) / 80)  # 0.81 s
    assert listened(doubling, 28, frame_sec=1 / 1.95 / 80, window_frame_sec=0.0).num_gaps > 0
    assert listened(doubling, 28, frame_sec=1 / 2.0 / 80, window_frame_sec=0.0).num_gaps == 0


def test_what_does_not_continue_a_stream_is_refused() -> None:
    codec = WindowSum(Reach(1, 1), 2)
    with pytest.raises(ValueError, match="got pieces of 9 to 8 frames"):
        StreamDecoder(codec, torch.zeros(1), first_frames=9, most_frames=8)
    decoder = StreamDecoder(codec, torch.zeros(1))
    assert len(StreamDecoder(codec, torch.zeros(1)).finish()) == 0
    decoder.push(torch.zeros(2, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"codes \[3, 1\] do not continue a stream of 2"):
        decoder.push(torch.zeros(3, 1, dtype=torch.int32))
    assert len(decoder.finish()) == 2
    for again in (decoder.finish, lambda: decoder.push(torch.zeros(2, 1, dtype=torch.int32))):
        with pytest.raises(ValueError, match="the stream is finished"):
            again()


@functools.cache
def melvq() -> MelVQ:
    """Random entries: frames jump far more than in speech."""
    generator = torch.Generator().manual_seed(0)
    return MelVQ(torch.randn(3, 1024, NUM_BANDS, generator=generator), torch.full((NUM_BANDS,), -3.0))


def random_codes(num_frames: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 1024, (3, num_frames)).astype(np.int32))


def frames_changed_by_one(codec, num_frames: int, at: int) -> tuple[int, int]:
    """How far before and after frame `at` samples change, to the bit, when its codes do."""
    codes = random_codes(num_frames)
    other = codes.clone()
    other[:, at] = (other[:, at] + 500) % 1024
    speaker = torch.zeros(1, codec.spec.speaker_dim)
    difference = (codec.decode(codes[None], speaker) != codec.decode(other[None], speaker))[0].view(-1, HOP).any(1)
    changed = difference.nonzero()[:, 0]
    return at - int(changed[0]), int(changed[-1]) - at


def test_codes_of_melvq_matter_as_far_as_it_says() -> None:
    assert melvq().reach_frames == (75, 75)
    before, after = frames_changed_by_one(melvq(), 170, 85)
    assert 55 <= before <= 75
    assert 55 <= after <= 75


@pytest.mark.full
def test_codes_of_facodec_matter_as_far_as_it_says() -> None:
    codec = make_codec(detail=False)
    assert codec.reach_frames == (28, 28)
    before, after = frames_changed_by_one(codec, 62, 31)
    assert 15 <= before <= 28
    assert 15 <= after <= 28


@pytest.mark.full
def test_no_weights_of_facodec_reach_further() -> None:
    """What is not a number spreads as far as there is an arrow, in the network as published."""
    latents = torch.randn(1, 256, 58, generator=torch.Generator().manual_seed(0))
    latents[:, :, 29] = torch.nan
    with torch.inference_mode():
        reached = make_plain().decoder.model(latents)[0, 0].isnan().view(-1, HOP).any(1)
    assert reached.nonzero()[:, 0].tolist() == list(range(29 - 28, 29 + 28 + 1))


def test_streamed_facodec_is_the_whole_decode() -> None:
    codec, codes = make_codec(detail=False), random_codes(62)
    speaker = torch.from_numpy(np.random.default_rng(1).standard_normal(256).astype(np.float32))
    waves = stream(codec, codes, speaker, [35, 41, 55])
    assert [len(wave) // HOP for wave in waves] == [0, 12, 13, 0, 37]
    whole = codec.decode(codes[None], speaker[None])[0]
    assert whole.std() > 0.1
    assert (torch.cat(waves) - whole).abs().max() <= JOINED_BOUND


STEADY = torch.full((3, 260), 20, dtype=torch.int32)  # equal frames: what happens at the ends spreads as far as it can


@pytest.mark.parametrize(
    "codes",
    [
        pytest.param(random_codes(260), marks=pytest.mark.full),
        pytest.param(STEADY, marks=pytest.mark.full),
        torch.cat([STEADY[:, :150], STEADY[:, :110] + 1], 1),
    ],
    ids=["random", "steady", "one change"],
)
def test_streamed_melvq_is_the_whole_decode(codes: torch.Tensor) -> None:
    codec, speaker = melvq(), torch.linspace(-0.5, 0.5, NUM_BANDS)
    waves = stream(codec, codes, speaker, [7, 90, 91, 200])
    whole = codec.decode(codes[None], speaker[None])[0]
    assert whole.std() > 0.01
    assert (torch.cat(waves) - whole).abs().max() <= JOINED_BOUND


def test_with_less_context_melvq_would_not_be() -> None:
    """Nine tenths of the context do not do: where frames are equal, Griffin-Lim carries the ends all the way."""
    codec, speaker = melvq(), torch.linspace(-0.5, 0.5, NUM_BANDS)
    whole, window = (codec.decode(STEADY[None, :, :n], speaker[None])[0] for n in (260, 190))
    difference = (whole[: len(window)] - window).abs()
    assert difference[: (190 - 68) * HOP].max() > 0.01
    assert difference[: (190 - 75) * HOP].max() <= JOINED_BOUND
