"""`slmkit bench codec`: figures of both twins, agreement beside them, refusals."""

import json

import pytest
import torch
from seeded_facodec import write_files

from slmkit.bench.codec import bench_codec, equal_share, make_codec, make_waves, race, random_states
from slmkit.bench.codec_parts import bare, clocked, convolve_waves, count_gflop
from slmkit.cli.main import main
from slmkit.codec.facodec.dimensions import ENCODER_STRIDES, LATENT
from slmkit.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def states():
    return random_states()


def test_the_twins_agree_with_random_weights_on_a_mixed_batch(states):
    result = bench_codec(states, CPU, 0.2, batch=2, repeats=1)
    assert result["equal_codes"] > 0.995
    assert result["wave_difference"] < 2e-3
    assert result["audio_sec"] == pytest.approx(0.38, abs=0.001)
    for task in ("encode", "decode"):
        speed = result[task]
        fast = speed["audio_sec_per_sec"]
        assert speed["ratio"] == pytest.approx(fast / speed["plain_audio_sec_per_sec"])
        assert speed["times_floor"] == pytest.approx(speed["floor_audio_sec_per_sec"] / fast)
        shares = speed["shares"]
        assert sum(shares.values()) == pytest.approx(1)
        assert 0 < min(shares["activations"], shares["convolutions"]) < 1
    assert {"quantizers", "spectrogram", "transformers"} < result["encode"]["shares"].keys()


def test_the_floor_is_the_arithmetic_of_the_convolutions(states):
    """Counted by hand from the sizes: residual units, shrinking convolutions, the first and the last."""
    codec, num_frames = bare(make_codec(states, CPU)), 40
    macs, width, positions = 7 * 32 * 200 * num_frames, 32, 200 * num_frames
    for stride in ENCODER_STRIDES:
        macs += 3 * (7 + 1) * width**2 * positions
        positions //= stride
        macs += 2 * stride * width * 2 * width * positions
        width *= 2
    macs += 3 * width * LATENT * positions
    waves = torch.zeros(1, 200 * num_frames)
    gflop = count_gflop(lambda: convolve_waves(codec, waves, torch.tensor([waves.shape[1]])))
    assert gflop == pytest.approx(2e-9 * macs, rel=0.01)


def test_clocks_change_no_code(states):
    codec, observed = make_codec(states, CPU), make_codec(states, CPU)
    spent = clocked(observed)
    waves, num_samples = make_waves(codec, 0.2, 2)
    assert torch.equal(codec.encode(waves, num_samples).codes, observed.encode(waves, num_samples).codes)
    assert min(spent.values()) > 0


def test_the_command_reads_published_files_and_prints_json(tmp_path, capsys):
    write_files(tmp_path)
    words = ["bench", "codec", "--codec", str(tmp_path), "--seconds", "0.1", "--repeats", "1", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"] == str(tmp_path)
    assert main(words) == 0
    assert "ratio" in capsys.readouterr().out


def test_the_command_shows_the_chosen_benchmarks_help(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "codec", "--help"])
    assert "--seconds" in capsys.readouterr().out


@pytest.mark.parametrize(("seconds", "batch"), [(0.01, 1), (1.0, 40), (1.0, 0)])
def test_too_short_utterances_are_refused(states, seconds, batch):
    with pytest.raises(UserError, match="the utterances are too short to encode"):
        bench_codec(states, CPU, seconds, batch=batch)


def test_no_repeats_are_refused(states):
    with pytest.raises(UserError, match="nothing would be timed"):
        bench_codec(states, CPU, 0.1, repeats=0)


def test_a_race_counts_the_best_timed_round_of_each():
    calls = []
    seconds = race([lambda: calls.append("fast"), lambda: calls.append("plain")], 2, CPU)
    assert calls == ["fast", "plain"] * 3
    assert all(0 < value < 1 for value in seconds)


def test_equal_share_reorders_streams_and_ignores_padding():
    plain = torch.arange(6)[:, None].expand(-1, 2)
    codes = torch.full((1, 6, 3), 9)
    codes[0, :, :2] = plain[[1, 2, 0, 3, 4, 5]]
    assert equal_share(codes, [plain]) == 1
    codes[0, 4, 1] += 1
    assert equal_share(codes, [plain]) == pytest.approx(11 / 12)
