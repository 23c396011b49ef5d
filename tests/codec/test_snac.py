"""SNAC against numbers of the published code, and what its streams of several rates and its noise need.

What it shares with other codecs is tested in `test_families`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codec import tiny_snac
from seeded_weights import wave

from slmkit.codec.added import add_codec
from slmkit.codec.open import open_codec
from slmkit.codec.snac.codec import Snac, SnacConfig
from slmkit.codec.snac.network import normal_noise, stream_places
from slmkit.codec.stream import JOINED_BOUND
from slmkit.errors import UserError

GOLDEN = Path(__file__).parent.parent / "golden" / "snac"
KINDS = list(tiny_snac.CONFIGS)
PUBLISHED_BOUND = 1e-5  # of a wave, kernels adding in another order
NO_VOICE = torch.zeros(1, 0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of published files."""
    place = tmp_path_factory.mktemp("published")
    return {kind: tiny_snac.write_published(place / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def codecs(published: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Snac]:
    return {kind: added(published[kind], tmp_path_factory.mktemp("added") / kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def codec(codecs: dict[str, Snac], request: pytest.FixtureRequest) -> Snac:
    return codecs[request.param]


def added(source: Path, out: Path, num_streams: int | None = None) -> Snac:
    add_codec(source, out, num_streams=num_streams)
    codec = open_codec(out)
    assert isinstance(codec, Snac)
    return codec


def heard(codec: Snac, seconds: float, seed: int = 5) -> torch.Tensor:
    """A voice, float32 [N]."""
    return torch.from_numpy(wave(seconds, seed, codec.spec.sample_rate).astype(np.float32) / 32768)


def encoded(codec: Snac, one: torch.Tensor) -> torch.Tensor:
    """Codes [K, T]."""
    return codec.encode(one[None], torch.tensor([len(one)])).codes[0]


def random_codes(codec: Snac, num_frames: int) -> torch.Tensor:
    """int32 [K, T]."""
    size = codec.spec.streams[0].size
    shape = len(codec.spec.streams), num_frames
    return torch.randint(size, shape, generator=torch.Generator().manual_seed(num_frames), dtype=torch.int32)


def level_by_level(codec: Snac, codes: torch.Tensor) -> list[list[int]]:
    """The codes of each level in the order of time, of codes [K, T] of streams named "level.place"."""
    levels: dict[int, list[torch.Tensor]] = {}
    named = sorted((*(int(part) for part in s.name.split(".")), i) for i, s in enumerate(codec.spec.streams))
    for level, _, i in named:
        levels.setdefault(level, []).append(codes[i])
    return [torch.stack(rows, dim=1).flatten().tolist() for rows in levels.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_waves_are_those_of_the_published_code(kind: str, tmp_path: Path) -> None:
    with np.load(GOLDEN / f"{kind}.npz", allow_pickle=False) as file:
        golden = dict(file)
    source = tiny_snac.write_published(tmp_path / "published", kind)
    state = torch.load(source / "pytorch_model.bin", weights_only=True)
    state |= {name: torch.from_numpy(value) for name, value in golden.items() if name in state}
    torch.save(state, source / "pytorch_model.bin")
    codec = added(source, tmp_path / "added")
    codes = encoded(codec, torch.from_numpy(golden["wave_int16"].astype(np.float32) / 32768))
    levels = [golden[f"codes_{i}"].tolist() for i in range(len(tiny_snac.CONFIGS[kind]["vq_strides"]))]
    assert level_by_level(codec, codes) == levels
    decoded = codec.decode(codes[None], NO_VOICE)[0].numpy()
    np.testing.assert_allclose(decoded, golden["decoded"], rtol=0, atol=PUBLISHED_BOUND)


def test_streams_are_in_the_order_of_time() -> None:
    """That of the models that speak SNAC today: each level's code where its time begins."""
    assert stream_places([4, 2, 1], 3) == [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (2, 2), (2, 3)]
    assert len(stream_places([8, 4, 2, 1], 4)) == 15


@pytest.mark.parametrize(
    ("published_config", "hop_samples", "streams"),
    [
        ({"sampling_rate": 24000, "encoder_rates": [2, 4, 8, 8], "vq_strides": [4, 2, 1]}, 2048, [1, 3, 7]),
        ({"sampling_rate": 44100, "encoder_rates": [2, 3, 8, 8], "vq_strides": [8, 4, 2, 1]}, 3072, [1, 3, 7, 15]),
    ],
)
def test_published_sizes(published_config: dict[str, Any], hop_samples: int, streams: list[int]) -> None:
    config = SnacConfig(**published_config, decoder_rates=published_config["encoder_rates"])
    assert (config.hop_samples, config.stream_numbers) == (hop_samples, streams)


def test_pieces_are_the_whole(codec: Snac, monkeypatch: pytest.MonkeyPatch) -> None:
    one = heard(codec, 0.2)
    codes = encoded(codec, one)
    decoded = codec.decode(codes[None], NO_VOICE)
    for piece_frames in (1, 7, 16):
        monkeypatch.setattr(Snac, "piece_frames", piece_frames)
        assert torch.equal(encoded(codec, one), codes), piece_frames
        torch.testing.assert_close(codec.decode(codes[None], NO_VOICE), decoded, rtol=0, atol=JOINED_BOUND)


def test_reach_is_exact(codec: Snac) -> None:
    """What a changed code changes lies within the reach, and somewhere at its end."""
    codes, hop = random_codes(codec, 24), codec.spec.hop_samples
    before = codec.decode(codes[None], NO_VOICE)[0]
    seen = set()
    for frame in range(8, 16):
        other = codes.clone()
        other[:, frame] = (other[:, frame] + 1) % codec.spec.streams[0].size
        changed = (codec.decode(other[None], NO_VOICE)[0] != before).unflatten(0, (-1, hop)).any(1).nonzero()[:, 0]
        seen |= {int(changed[0]) - frame, int(changed[-1]) - frame}
    reach = codec.reach_frames
    assert (-min(seen), max(seen)) == (reach.after, reach.before)


def test_decoding_again_gives_the_same_whatever_was_drawn_before(codec: Snac) -> None:
    codes = random_codes(codec, 9)[None]
    torch.manual_seed(0)
    first = codec.decode(codes, NO_VOICE)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(codec.decode(codes, NO_VOICE), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_a_function_of_layer_and_place() -> None:
    whole = normal_noise(2, 0, 50_000)
    for first in (1, 4, 4099):
        assert torch.equal(normal_noise(2, first, 100), whole[first : first + 100])
    assert abs(float(whole.mean())) < 0.02
    assert abs(float(whole.std()) - 1) < 0.02
    assert abs(float((whole[:-1] * whole[1:]).mean())) < 0.02
    assert abs(float((whole * normal_noise(1, 0, 50_000)).mean())) < 0.02


def test_the_decoder_adds_noise(codecs: dict[str, Snac], published: dict[str, Path], tmp_path: Path) -> None:
    """Without it, as config.json may say, the wave is another."""
    config = {**tiny_snac.CONFIGS["convolutions"], "noise": False}
    state = torch.load(published["convolutions"] / "pytorch_model.bin", weights_only=True)
    renamed = {}
    for name, value in state.items():
        block, _, rest = name.partition(".block.")
        place = rest.partition(".")[0]
        if not name.startswith("decoder") or not place:
            renamed[name] = value
        elif place != "2":  # where the noise is; what follows moves up
            moved = int(place) - (int(place) > 2)
            renamed[f"{block}.block.{moved}.{rest.partition('.')[2]}"] = value
    source = tmp_path / "silent"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    torch.save(renamed, source / "pytorch_model.bin")
    silent = added(source, tmp_path / "added")
    codes = random_codes(silent, 9)[None]
    assert float((silent.decode(codes, NO_VOICE) - codecs["convolutions"].decode(codes, NO_VOICE)).abs().max()) > 1e-3


@pytest.mark.parametrize(("kind", "number"), [("convolutions", 1), ("convolutions", 3), ("windows", 7)])
def test_fewer_streams_are_the_first_levels(
    codecs: dict[str, Snac], published: dict[str, Path], tmp_path: Path, kind: str, number: int
) -> None:
    fewer, full = added(published[kind], tmp_path / "added", number), codecs[kind]
    one = heard(full, 0.2)
    codes = encoded(fewer, one)
    assert len(codes) == len(fewer.spec.streams) == number
    assert fewer.spec.hop_samples == full.spec.hop_samples
    levels = level_by_level(fewer, codes)
    assert levels == level_by_level(full, encoded(full, one))[: len(levels)]
    assert float(fewer.decode(codes[None], NO_VOICE).std()) > 0.01


def test_streams_that_are_no_levels_are_refused(published: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"come in levels\n.*--streams 4\n.*1, 3, 7"):
        add_codec(published["convolutions"], tmp_path / "added", num_streams=4)
    with pytest.raises(UserError, match=r"so many streams.*\n.*--streams 8\n.*1 to 7"):
        add_codec(published["convolutions"], tmp_path / "added", num_streams=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_rates": [5, 3, 3]}, "encoder_rates, decoder_rates: their products are 30 and 45"),
        ({"vq_strides": [4, 3, 1]}, "vq_strides: the first is no multiple of each of the others"),
        ({"latent_dim": 96}, "latent_dim: got 96, expected the 48 that the encoder gives"),
        ({"decoder_dim": 44}, "decoder_dim: got 44, expected a multiple of 8"),
        ({"attn_window_size": 16}, "attn_window_size: attention needs widths that are multiples of 64"),
        ({"codebook_size": 2**17}, "codebook_size"),
        ({"lstm": 2}, "lstm"),
        ({"encoder_dim": 7}, "(?s)does not hold the SNAC model of its config.*wrong shape: encoder.block.0.weight_v"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    published: dict[str, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    source = tmp_path / "published"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({**tiny_snac.CONFIGS["convolutions"], **change}))
    (source / "pytorch_model.bin").write_bytes((published["convolutions"] / "pytorch_model.bin").read_bytes())
    with pytest.raises(UserError, match=message):
        add_codec(source, tmp_path / "added")
    assert not (tmp_path / "added").exists()
