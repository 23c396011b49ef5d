"""The built-in codec: its law, its bytes, its errors, and whether a person stays intelligible through it."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.audio import mel
from slmkit.audio.io import read_audio
from slmkit.codec import melvq
from slmkit.codec.base import Codec
from slmkit.codec.melvq import GRID, NUM_BANDS, SAMPLE_RATE, SPEC_FILE, WEIGHTS_FILE, MelVQ
from slmkit.codec.melvq import _k_means as k_means
from slmkit.codec.melvq import _unseen_residual as unseen_residual
from slmkit.codec.stream import JOINED_BOUND
from slmkit.errors import UserError
from slmkit.files import read_json, sha256_file, write_json

CORPUS = Path(__file__).parents[2] / "tokenize_jobs" / "sample_corpus"
ALSA = Path("/usr/share/sounds/alsa")  # a woman's voice, from Debian's alsa-utils
ENTRIES = 64


def corpus_waves():
    return [read_audio(path, SAMPLE_RATE) for path in sorted(CORPUS.rglob("*.flac"))]


@pytest.fixture(scope="module")
def waves():
    return corpus_waves()


@pytest.fixture(scope="module")
def codec(waves):
    return MelVQ.fit(waves, seed=0)


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, num_samples).astype(np.float32)


def small_codec(seed=0, entries=ENTRIES):
    return MelVQ.fit(
        [noise(9000, i) * np.hanning(9000).astype(np.float32) for i in range(4)], seed, num_entries=entries
    )


def encode_alone(codec, wave):
    return codec.encode(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))


def copy(codec, wave):
    encoded = encode_alone(codec, wave)
    return codec.decode(encoded.codes, encoded.speaker)[0].numpy()


def test_spec(codec):
    as_codec: Codec = codec
    assert as_codec.spec.frame_rate == 80
    assert [(s.name, s.size, s.role) for s in codec.spec.lm_streams] == [(n, 1024, "coupled") for n in "abc"]
    assert codec.spec.speaker_dim == NUM_BANDS
    assert codec.device == torch.device("cpu")


def test_encode_and_decode_shapes(codec, waves):
    batch = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w) for w in waves[:2]], batch_first=True)
    codes, num_frames, speaker = codec.encode(batch, torch.tensor([len(w) for w in waves[:2]]))
    assert num_frames.tolist() == [codec.num_frames(len(w)) for w in waves[:2]]
    assert (codes.dtype, num_frames.dtype, speaker.dtype) == (torch.int32, torch.int64, torch.float32)
    assert codes.shape == (2, 3, num_frames.max())
    assert speaker.shape == (2, NUM_BANDS)
    assert not codes[0, :, num_frames[0] :].any()
    decoded = codec.decode(codes, speaker)
    assert (decoded.shape, decoded.dtype) == ((2, num_frames.max() * GRID.hop), torch.float32)
    assert decoded.abs().max() <= 1


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(6)), extra=st.integers(0, 5000), fill=st.sampled_from([0.0, 0.7, np.nan]))
def test_law_codes_do_not_depend_on_batch_place_or_padding(codec, waves, order, extra, fill):
    chosen = [waves[i][: 8000 + 3777 * i] for i in order]
    lengths = torch.tensor([len(wave) for wave in chosen])
    batch = torch.full((len(chosen), int(lengths.max()) + extra), fill)
    for row, wave in zip(batch, chosen, strict=True):
        row[: len(wave)] = torch.from_numpy(wave)
    codes, num_frames, speaker = codec.encode(batch, lengths)
    for i, wave in enumerate(chosen):
        alone = encode_alone(codec, wave)
        assert torch.equal(codes[i, :, : num_frames[i]], alone.codes[0])
        assert not codes[i, :, num_frames[i] :].any()
        assert torch.equal(speaker[i], alone.speaker[0])


def test_codes_do_not_depend_on_threads(codec, waves):
    long = np.concatenate(waves)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = encode_alone(codec, long)
        torch.set_num_threads(2)
        two = encode_alone(codec, long)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one.codes, two.codes)


def test_codes_are_the_nearest_entries(codec, waves):
    """The plain definition of residual quantization, in float64 and with explicit distances."""
    wave = waves[5]
    frames = codec._log_mel(torch.from_numpy(wave)).double()
    rest = frames - frames.mean(0)
    codes = encode_alone(codec, wave).codes[0].long()
    for book, chosen in zip(codec._codebooks.double(), codes, strict=True):
        distances = torch.cdist(rest, book)
        picked = distances.gather(1, chosen[:, None])[:, 0]
        assert torch.allclose(picked, distances.min(1).values, atol=1e-4)
        rest = rest - book[chosen]


def test_speaker_vector_holds_the_level_and_codes_do_not(codec):
    loud = noise(16000) * 3
    a, b = encode_alone(codec, loud), encode_alone(codec, loud / 2)
    assert torch.allclose(a.speaker - b.speaker, torch.log(torch.tensor(2.0)), atol=1e-3)
    assert (a.codes == b.codes).float().mean() > 0.99  # ties of rounding


def test_speaker_vector_tells_voices_apart(codec, waves):
    vectors = torch.cat([encode_alone(codec, wave).speaker for wave in waves])
    alike = torch.corrcoef(vectors)
    same_voice = torch.arange(len(waves))[:, None] // 4 == torch.arange(len(waves)) // 4
    others = ~torch.eye(len(waves), dtype=torch.bool)
    assert alike[same_voice & others].mean() > alike[~same_voice].mean() + 0.5


def test_equal_input_fits_byte_identical_codecs(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        small_codec(seed).save(tmp_path / name)
    one, two, other = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("one", "two", "other"))
    assert one == two
    assert one != other
    assert (tmp_path / "one" / SPEC_FILE).read_bytes() == (tmp_path / "two" / SPEC_FILE).read_bytes()


def test_save_and_load(tmp_path):
    made = small_codec()
    made.save(tmp_path)
    loaded = MelVQ.load(tmp_path)
    assert loaded.spec == made.spec
    assert loaded.spec.weights_sha256 == sha256_file(tmp_path / WEIGHTS_FILE)
    wave = noise(5000)
    assert torch.equal(encode_alone(loaded, wave).codes, encode_alone(made, wave).codes)
    assert np.array_equal(copy(loaded, wave), copy(made, wave))
    with pytest.raises(UserError, match="already exists"):
        made.save(tmp_path)
    made.save(tmp_path, replace=True)


def test_too_little_audio_to_fit():
    short = [noise(1000), noise(50)]
    with pytest.raises(UserError, match=r"too little audio to fit a codec\n.*0\.1 s\n.*at least 0\.8 s"):
        MelVQ.fit(short, 0, num_entries=ENTRIES)
    with pytest.raises(UserError, match=r"too little audio to fit a codec\n.*0\.0 s"):
        MelVQ.fit([], 0)


def test_as_many_frames_as_entries_is_enough_even_when_alike():
    wave = noise(GRID.hop * ENTRIES)
    wave[3000:] = 0  # most frames are the same silence
    codec = MelVQ.fit([wave], 0, num_entries=ENTRIES)
    assert codec._codebooks.isfinite().all()
    assert np.isfinite(copy(codec, wave)).all()


def test_k_means_moves_entries_nobody_chose():
    points = torch.cat([torch.zeros(100, 2), torch.tensor([[9.0, 0.0], [0.0, 7.0], [-5.0, 0.0], [0.0, -3.0]])])
    book = k_means(points, 5, torch.Generator().manual_seed(0))  # starts with nearly all entries at zero
    assert torch.cdist(points, book).min(1).values.max() == 0


def test_k_means_entries_are_the_means_of_their_points():
    points = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    start = points[torch.randperm(400, generator=torch.Generator().manual_seed(1))[:8]]
    book = k_means(points, 8, torch.Generator().manual_seed(1))
    nearest = torch.cdist(points, book).argmin(1)
    means = torch.stack([points[nearest == i].mean(0) for i in range(8)])
    assert torch.allclose(book, means, atol=0.2)
    assert torch.cdist(points, book).min(1).values.mean() < 0.9 * torch.cdist(points, start).min(1).values.mean()


def test_unseen_residual_is_that_of_a_fit_without_the_point():
    points = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
    book = torch.tensor([[1.0], [9.0]])
    assert torch.allclose(unseen_residual(points, book), torch.tensor([[-1.5], [0.0], [1.5], [8.0]]))


def test_too_short_to_encode(codec):
    assert codec.num_frames(GRID.hop // 2 - 1) == 0
    with pytest.raises(ValueError, match="99 samples is too short"):
        codec.encode(torch.zeros(2, 500), torch.tensor([500, 99]))
    assert codec.encode(torch.zeros(1, 100), torch.tensor([100])).codes.shape == (1, 3, 1)
    with pytest.raises(ValueError, match="utterance 0 has 801 samples in a row of 800"):
        codec.encode(torch.zeros(1, 800), torch.tensor([801]))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 2, 4), r"codes \[1, 2, 4\] are not \[B, 3, T\]"),
        (torch.zeros(3, 4), r"codes \[3, 4\] are not"),
        (torch.full((1, 3, 4), 1024), "codes of stream a are 1024 to 1024, not 0 to 1023"),
        (torch.full((1, 3, 4), -1), "codes of stream a are -1 to -1"),
    ],
)
def test_codes_that_cannot_be_decoded(codec, codes, message):
    with pytest.raises(ValueError, match=message):
        codec.decode(codes.int(), torch.zeros(1, NUM_BANDS))


def test_long_audio_in_pieces_is_the_whole(codec, monkeypatch):
    wave, voice = torch.from_numpy(noise(300 * codec.spec.hop_samples))[None], torch.zeros(1, NUM_BANDS)
    whole = codec.encode(wave, torch.tensor([wave.shape[1]]))
    decoded = codec.decode(whole.codes, voice)
    monkeypatch.setattr(melvq, "PIECE_FRAMES", 40)
    monkeypatch.setattr(mel, "PART_FRAMES", 40)
    in_pieces = codec.encode(wave, torch.tensor([wave.shape[1]]))
    assert (in_pieces.codes == whole.codes).float().mean() > 0.995  # near ties fall either way
    torch.testing.assert_close(in_pieces.speaker, whole.speaker)
    assert (codec.decode(whole.codes, voice) - decoded).abs().max() <= JOINED_BOUND
    assert codec.decode(whole.codes[..., :0], voice).shape == (1, 0)


def change_bytes(folder):
    path = folder / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rewrite(folder, data, **spec_changes):
    """Replace the weights and make the spec's hash agree, so that only deeper checks can notice."""
    (folder / WEIGHTS_FILE).write_bytes(data)
    spec = {**read_json(folder / SPEC_FILE), "weights_sha256": sha256_file(folder / WEIGHTS_FILE), **spec_changes}
    write_json(folder / SPEC_FILE, spec, replace=True)


def weights(**changes):
    tensors = {"average": torch.zeros(NUM_BANDS), "codebooks": torch.zeros(3, ENTRIES, NUM_BANDS), **changes}
    return safetensors.torch.save(tensors)


DAMAGE = {
    "bit flip": (change_bytes, "is not the file its codec_spec.json names"),
    "no weights": (lambda folder: (folder / WEIGHTS_FILE).unlink(), "cannot read"),
    "no spec": (lambda folder: (folder / SPEC_FILE).unlink(), "cannot read"),
    "spec not JSON": (lambda folder: (folder / SPEC_FILE).write_text("{"), "as JSON"),
    "spec of other kind": (lambda folder: (folder / SPEC_FILE).write_text("[]"), "not a codec spec"),
    "not safetensors": (lambda folder: rewrite(folder, b"PK\x03\x04 pickle"), "cannot read"),
    "wrong shape": (lambda folder: rewrite(folder, weights(average=torch.zeros(7))), "does not hold a melvq codec"),
    "wrong type": (
        lambda folder: rewrite(folder, weights(average=torch.zeros(NUM_BANDS, dtype=torch.float64))),
        "does not hold a melvq codec",
    ),
    "not finite": (
        lambda folder: rewrite(folder, weights(average=torch.full((NUM_BANDS,), torch.nan))),
        "does not hold a melvq codec",
    ),
    "no streams": (lambda folder: rewrite(folder, weights(), streams=[]), "not a codec spec"),
    "other rate": (lambda folder: rewrite(folder, weights(), sample_rate=8000), "does not describe this codec"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_codec_is_refused(tmp_path, name):
    damage, message = DAMAGE[name]
    small_codec().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message):
        MelVQ.load(tmp_path)


def intelligibility(clean, heard):
    """Short-time objective intelligibility (Taal et al. 2011) at 16 kHz: the mean correlation of clipped third-octave
    envelopes over 384 ms, pauses left out. About 0.8 and more is easily understood, 0.6 is not."""
    num_samples = min(len(clean), len(heard))
    bins = np.fft.rfftfreq(1024, 1 / SAMPLE_RATE)
    centres = 150 * 2 ** (np.arange(15) / 3)
    bands = (bins >= centres[:, None] * 2 ** (-1 / 6)) & (bins < centres[:, None] * 2 ** (1 / 6))

    frames = [np.lib.stride_tricks.sliding_window_view(w[:num_samples], 410)[::205] for w in (clean, heard)]
    levels = np.linalg.norm(frames[0], axis=1)
    spoken = levels > levels.max() * 10 ** (-40 / 20)
    spectra = [np.abs(np.fft.rfft(f[spoken] * np.hanning(410), 1024)) ** 2 for f in frames]
    envelopes = [np.sqrt(spectrum @ bands.T).T + 1e-9 for spectrum in spectra]
    segments = [np.lib.stride_tricks.sliding_window_view(e, 30, axis=1) for e in envelopes]
    x, y = (s / np.linalg.norm(s, axis=2, keepdims=True) for s in segments)
    y = np.minimum(y, x * (1 + 10 ** (15 / 20)))
    x, y = (s - s.mean(axis=2, keepdims=True) for s in (x, y))
    scores = (x * y).sum(2) / (np.linalg.norm(x, axis=2) * np.linalg.norm(y, axis=2) + 1e-9)
    return float(scores.mean())


@pytest.fixture(scope="module")
def person():
    paths = [path for path in sorted(ALSA.glob("*.wav")) if path.stem != "Noise"]
    if not paths:
        pytest.skip("needs the recordings of Debian's alsa-utils")
    return np.concatenate([read_audio(path, SAMPLE_RATE) for path in paths])


def test_person_stays_intelligible(codec, person):
    assert intelligibility(person, copy(codec, person)) > 0.75


def test_voices_of_the_corpus_stay_intelligible(codec, waves):
    for wave in waves[::6]:
        assert intelligibility(wave, copy(codec, wave)) > 0.85


BREAKS = {
    "codes of other frames": lambda codes: codes.flip(2),
    "half a second late": lambda codes: codes.roll(40, dims=2),
    "first stage lost": lambda codes: codes * torch.tensor([0, 1, 1], dtype=torch.int32)[:, None],
    "streams swapped": lambda codes: codes.flip(1),
    "all codes equal": lambda codes: torch.zeros_like(codes),
}


@pytest.mark.parametrize(
    "name", ["all codes equal", *(pytest.param(name, marks=pytest.mark.full) for name in [*BREAKS][:-1])]
)
def test_broken_codec_is_not_intelligible(codec, person, name):
    """So that the two tests above can fail."""
    encoded = encode_alone(codec, person)
    heard = codec.decode(BREAKS[name](encoded.codes), encoded.speaker)[0].numpy()
    assert intelligibility(person, heard) < 0.65
