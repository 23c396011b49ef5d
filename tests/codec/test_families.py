"""What every converted codec keeps, each as a tiny random model (`families`)."""

import functools
import itertools
import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from codec.families import FAMILIES, audio, family_directory, family_names, open_family
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_codec import make_config

from slmkit.codec.added import CODEC_JSON, WEIGHTS
from slmkit.codec.base import CodecSpec, Reach, check_codes
from slmkit.codec.open import open_codec
from slmkit.codec.stages import reach_of
from slmkit.codec.stream import JOINED_BOUND, StreamDecoder
from slmkit.data.index import Corpus
from slmkit.data.shards import ShardReader
from slmkit.errors import UserError
from slmkit.files import sha256_file
from slmkit.tokenization.job import tokenize

NAMES = family_names()
# Of the default run: transformers' networks, own ones, one that decodes whole utterances, streams of different rates.
FEW = ("encodec", "speechtokenizer", "wavtokenizer", "snac_24khz")
# Their encoders look at the whole utterance: a long one is encoded in pieces, with codes near those of the whole.
ENCODED_APPROXIMATELY = ("xcodec", "xcodec2")
# Their filters fade out: in float32 nothing is left of what is furthest (test_bigcodec.py looks at it otherwise).
REACHES_FADING = ("bigcodec",)
LEAST_VARIETY = 0.3  # share of the entries that can occur: fewer would hide failures
PIECE_FRAMES = 40
VOICE = torch.zeros(0)


@pytest.fixture(params=[name if name in FEW else pytest.param(name, marks=pytest.mark.full) for name in NAMES])
def name(request):
    return request.param


@pytest.fixture
def codec(name):
    return open_family(name)


@functools.cache
def encoded(name: str) -> torch.Tensor:
    """Codes [K, T] of all of `audio`."""
    codec = open_family(name)
    wave = audio(codec.spec.sample_rate)
    return codec.encode(wave[None], torch.tensor([len(wave)])).codes[0]


def some_codes(name: str, num_frames: int, seed: int = 0) -> torch.Tensor:
    """Random codes [1, K, T], as a language model might make them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [stream.size for stream in open_family(name).spec.streams]
    return torch.stack([torch.randint(size, (num_frames,), generator=generator) for size in sizes])[None]


def test_codes_are_many(name, codec):
    codes = encoded(name)
    assert codes.dtype == torch.int32
    check_codes(codes[None], codec.spec)
    for row, stream in zip(codes, codec.spec.streams, strict=True):
        assert len(row.unique()) > LEAST_VARIETY * min(stream.size, len(row))


def test_the_spec_survives_its_file(codec):
    assert CodecSpec.from_dict(codec.spec.to_dict()) == codec.spec
    assert len(codec.spec.weights_sha256) == 64


def test_law_codes_do_not_depend_on_batch_place_or_padding(name, codec):
    wave = audio(codec.spec.sample_rate)
    hop = codec.spec.hop_samples
    counts = [len(wave) // 3 + 11, hop, 7 * hop + 1, len(wave) // 4]
    rows = torch.full((len(counts), max(counts) + 500), 0.7)
    for row, count in zip(rows, counts, strict=True):
        row[:count] = wave[:count]
    together = codec.encode(rows, torch.tensor(counts))
    for place, count in enumerate(counts):
        alone = codec.encode(wave[None, :count], torch.tensor([count]))
        frames = int(alone.num_frames)
        assert frames == int(together.num_frames[place]) == codec.num_frames(count)
        assert torch.equal(together.codes[place, :, :frames], alone.codes[0])
        assert not together.codes[place, :, frames:].any()
    waves = codec.decode(together.codes[:2, :, : codec.num_frames(counts[1])], torch.zeros(2, 0))
    assert torch.equal(waves[1], codec.decode(together.codes[1:2, :, : waves.shape[1] // hop], torch.zeros(1, 0))[0])


def test_any_length_gives_whole_frames(codec):
    hop = codec.spec.hop_samples
    wave = audio(codec.spec.sample_rate)
    for count in (1, hop // 2, hop - 1, hop, hop + 1, 2 * hop, 5 * hop - 1):
        frames = codec.num_frames(count)
        assert frames >= 1
        codes = codec.encode(wave[None, :count], torch.tensor([count])).codes
        assert codes.shape == (1, len(codec.spec.streams), frames)
        found = codec.decode(codes, torch.zeros(1, 0))
        assert found.shape == (1, frames * hop)
        assert found.isfinite().all()
        assert found.abs().max() <= 1
    assert codec.num_frames(0) == 0
    with pytest.raises(ValueError, match="too short"):
        codec.encode(wave[None], torch.tensor([0]))
    assert codec.decode(torch.zeros(1, len(codec.spec.streams), 0, dtype=torch.int64), VOICE[None]).shape == (1, 0)


def test_equal_opened_twice_and_called_twice(name, codec):
    before = torch.random.get_rng_state()
    again = open_codec(family_directory(name))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.spec == codec.spec
    wave = audio(codec.spec.sample_rate)[None, : codec.spec.sample_rate]
    codes = again.encode(wave, torch.tensor([wave.shape[1]])).codes
    assert torch.equal(codes, codec.encode(wave, torch.tensor([wave.shape[1]])).codes)
    decoded = codec.decode(codes, VOICE[None])
    assert torch.equal(decoded, codec.decode(codes, VOICE[None]))
    assert torch.equal(decoded, again.decode(codes, VOICE[None]))


def test_a_code_outside_its_codebook_is_refused(name, codec):
    codes = some_codes(name, 3)
    codes[0, -1, 1] = codec.spec.streams[-1].size
    with pytest.raises(ValueError, match="codes of stream"):
        codec.decode(codes, VOICE[None])


def test_samples_depend_on_the_frames_within_reach_and_no_others(name, codec):
    """Extents that are found are those promised; what depends on everything is changed everywhere."""
    reach, hop = codec.reach_frames, codec.spec.hop_samples
    before, after = (30 if side is None else side for side in reach)
    num_frames = before + after + 12
    codes = some_codes(name, num_frames)
    plain = codec.decode(codes, VOICE[None])
    found = Reach(0, 0)
    for frame in {0, 1, 2, after, after + 1, num_frames // 2, num_frames - 2, num_frames - 1}:
        for seed in range(1, 4):
            changed = codes.clone()
            changed[..., frame] = some_codes(name, num_frames, seed)[..., frame]
            frames = (codec.decode(changed, VOICE[None]) != plain).view(num_frames, hop).any(dim=1).nonzero()
            if len(frames):
                found = Reach(max(found[0], int(frames.max()) - frame), max(found[1], frame - int(frames.min())))
    assert found.before <= before or reach.before is None
    assert found.after <= after or reach.after is None
    assert (
        name in REACHES_FADING
        or found
        == (
            num_frames - 1 if reach.before is None else reach.before,
            num_frames - 1 if reach.after is None else reach.after,
        )
        or (reach.after is not None and reach.before is None and found.after == reach.after)
    )


def streamed(codec, codes, cuts, **pieces):
    stream = StreamDecoder(codec, VOICE, **pieces)
    edges = [0, *sorted(cuts), codes.shape[1]]
    parts = [stream.push(codes[:, start:stop]) for start, stop in itertools.pairwise(edges)]
    return torch.cat([*parts, stream.finish()])


@settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_stream_is_the_whole_however_it_is_cut(name, data):
    codec = open_family(name)
    if codec.reach_frames.after is None:
        with pytest.raises(UserError, match="cannot decode a stream"):
            StreamDecoder(codec, VOICE)
        return
    num_frames = data.draw(st.integers(1, 90))
    codes = some_codes(name, num_frames)[0]
    whole = codec.decode(codes[None], VOICE[None])[0]
    cuts = data.draw(st.lists(st.integers(0, num_frames), max_size=6))
    first = data.draw(st.integers(1, 8))
    joined = streamed(codec, codes, cuts, first_frames=first, most_frames=32)
    assert joined.shape == whole.shape
    assert (joined - whole).abs().max() <= JOINED_BOUND
    assert torch.equal(joined, streamed(codec, codes, [], first_frames=first, most_frames=32))


def test_the_shortest_answers_give_all_their_sound(name):
    """Fewer frames than a first piece, or than a codec waits for; handed over one by one."""
    codec = open_family(name)
    hop, is_streaming = codec.spec.hop_samples, codec.reach_frames.after is not None
    for num_frames in range(1, 8):
        codes = some_codes(name, num_frames)
        whole = codec.decode(codes, VOICE[None])[0]
        assert whole.view(num_frames, hop).abs().amax(dim=1).min() > 0
        if is_streaming:
            joined = streamed(codec, codes[0], range(1, num_frames))
            assert joined.shape == whole.shape
            assert (joined - whole).abs().max() <= JOINED_BOUND


@pytest.mark.full
def test_a_long_utterance_goes_in_pieces(name, codec, monkeypatch):
    wave = audio(codec.spec.sample_rate)[None]
    count = torch.tensor([wave.shape[1]])
    whole = encoded(name)
    monkeypatch.setattr(type(codec), "piece_frames", property(lambda _: PIECE_FRAMES))
    codes = codec.encode(wave, count).codes[0]
    assert codes.shape == whole.shape
    # A near tie may fall either way where kernels add in another order, and changes all residual streams behind it.
    least = 0.2 if name.startswith(ENCODED_APPROXIMATELY) else 0.995
    assert (codes == whole)[:8].float().mean() >= least
    in_pieces = codec.decode(whole[None], VOICE[None])
    monkeypatch.undo()
    assert (in_pieces - codec.decode(whole[None], VOICE[None])).abs().max() <= JOINED_BOUND


def test_to_shards_and_back(name, codec, tmp_path):
    rate = codec.spec.sample_rate
    waves = {f"19_7_{i:06d}_000000": audio(rate)[: rate + 777 * i] for i in range(2)}
    (tmp_path / "source/19/7").mkdir(parents=True)
    for key, wave in waves.items():
        soundfile.write(tmp_path / f"source/19/7/{key}.wav", wave.numpy(), rate, subtype="FLOAT")
        (tmp_path / f"source/19/7/{key}.normalized.txt").write_text("Some words.")
    tokenize(codec, make_config(tmp_path / "source", tmp_path / "out"), show=False)
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.codec == codec.spec
    for sample in (ShardReader(corpus).read(i) for i in range(len(corpus))):
        wave = waves[sample.key]
        codes = codec.encode(wave[None], torch.tensor([len(wave)])).codes
        np.testing.assert_array_equal(sample.codes, codes[0].numpy())
        read = torch.from_numpy(sample.codes.astype(np.int32))[None]
        assert torch.equal(codec.decode(read, VOICE[None]), codec.decode(codes, VOICE[None]))


def damaged(name, tmp_path, change):
    """A copy of the codec whose weights or codec.json `change` has changed, with hashes that fit."""
    directory = shutil.copytree(family_directory(name), tmp_path / "damaged")
    weights = safetensors.torch.load_file(directory / WEIGHTS)
    described = json.loads((directory / CODEC_JSON).read_text())
    change(weights, described)
    safetensors.torch.save_file(weights, directory / WEIGHTS)
    described["weights_sha256"] = sha256_file(directory / WEIGHTS)
    (directory / CODEC_JSON).write_text(json.dumps(described))
    return directory


def test_other_weights_than_those_that_were_written_are_refused(name, tmp_path):
    directory = shutil.copytree(family_directory(name), tmp_path / "damaged")
    content = bytearray((directory / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (directory / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"is not the file that codec\.json names"):
        open_codec(directory)


def remove_one(weights, _):
    del weights[sorted(weights)[len(weights) // 2]]


def add_one(weights, _):
    weights["another.weight"] = torch.zeros(3)


def reshape_one(weights, _):
    name = max(weights, key=lambda name: weights[name].numel())
    weights[name] = weights[name].flatten()


def spoil_one(weights, _):
    weights[sorted(weights)[-1]].view(-1)[0] = float("nan")


@pytest.mark.parametrize("change", [remove_one, add_one, reshape_one, spoil_one])
def test_missing_foreign_misshapen_and_infinite_weights_are_refused(name, tmp_path, change):
    with pytest.raises(UserError):
        open_codec(damaged(name, tmp_path, change))


def places_of(values, place=()):
    """The places of all settings."""
    for key, value in values.items():
        yield from places_of(value, (*place, key)) if isinstance(value, dict) else [(*place, key)]


@pytest.mark.full
@pytest.mark.parametrize("first", [0, 3])
def test_nonsense_in_the_config_is_refused_or_means_nothing(name, tmp_path, first):
    """No setting costs time or memory, or is an error without a name. Each setting in turn is another nonsense."""
    nonsense = [-1, 0, 2**40, "many", None, [], [2**30] * 9, 0.5]
    described = json.loads((family_directory(name) / CODEC_JSON).read_text())
    spec = open_family(name).spec
    places = sorted(places_of(described["config"]))
    for number, place in enumerate(places, start=first):
        values = json.loads(json.dumps(described))
        inner = values["config"]
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = nonsense[number % len(nonsense)]
        directory = shutil.copytree(family_directory(name), tmp_path / "-".join(place))
        (directory / CODEC_JSON).write_text(json.dumps(values))
        try:
            opened = open_codec(directory)
        except UserError:
            continue
        assert opened.spec.streams == spec.streams, place


@pytest.mark.parametrize("streams", [0, 33, 2**40, "many", None])
def test_streams_that_there_are_not_are_refused(name, tmp_path, streams):
    def change(_, described):
        described["streams"] = streams

    with pytest.raises(UserError):
        open_codec(damaged(name, tmp_path, change))


def test_reach_is_that_of_the_stages(codec):
    assert codec.reach_frames == reach_of(codec.decoding_stages())


@pytest.mark.full
def test_every_family_that_adds_codecs_is_tested():
    from slmkit.codec.open import codec_families

    kinds = {json.loads((family_directory(name) / CODEC_JSON).read_text())["kind"] for name in FAMILIES}
    ours = {family.name for family in codec_families().values() if "slmkit" in getattr(family.build, "__module__", "")}
    assert kinds == ours  # and none that another test registers
