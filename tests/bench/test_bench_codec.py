"""`slmkit bench codec`: figures of both twins, agreement beside them, refusals."""

import json

import pytest
import torch
from seeded_facodec import write_files

from slmkit.bench import race as races
from slmkit.bench.codec import bench_codec, equal_share, random_states
from slmkit.bench.codec import write_files as write_random
from slmkit.bench.race import race, twin
from slmkit.cli.main import main
from slmkit.codec.open import open_codec
from slmkit.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def states():
    return random_states()


@pytest.mark.full
def test_the_twins_agree_with_random_weights_on_a_mixed_batch(states):
    result = bench_codec(states, CPU, 0.2, batch=2, rounds=1)
    assert result["equal_codes"] > 0.995
    assert result["wave_difference"] < 2e-3
    assert result["audio_sec"] == pytest.approx(0.38, abs=0.001)
    for task in ("encode", "decode"):
        speed = result[task]
        fast = speed["audio_sec_per_sec"]
        assert speed["ratio"] == pytest.approx(fast / speed["plain_audio_sec_per_sec"])


@pytest.mark.full
def test_the_command_reads_published_files_and_prints_json(tmp_path, capsys):
    write_files(tmp_path)
    words = ["bench", "codec", "--codec", str(tmp_path), "--seconds", "0.1", "--repeats", "1", "--device", "cpu"]
    assert main([*words, "--json", "--batch", "1", "2", "--shorter", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["weights"] == str(tmp_path)
    assert [case["batch"] for case in result["cases"]] == [1, 2]
    assert result["cases"][1]["audio_sec"] == pytest.approx(2 * result["cases"][0]["audio_sec"])
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


@pytest.mark.full
def test_random_weights_are_files_of_a_codec(states, tmp_path):
    write_random(states, tmp_path)
    assert open_codec(tmp_path).spec.name == "facodec"


@pytest.mark.parametrize("shorter", ["0", "1.1"])
def test_longer_and_longer_utterances_are_refused(shorter):
    assert main(["bench", "codec", "--device", "cpu", "--shorter", shorter]) == 2


def test_no_repeats_are_refused(states):
    with pytest.raises(UserError, match="nothing would be timed"):
        bench_codec(states, CPU, 0.1, rounds=0)


def test_a_race_counts_the_best_timed_round_of_each(monkeypatch):
    calls, times = [], iter([0, 5, 5, 8, 10, 12, 20, 29])  # rounds of 5, 3, 2 and 9 seconds
    monkeypatch.setattr(races, "clock", lambda device: next(times))
    laps = race([lambda: calls.append("fast"), lambda: calls.append("plain") or 7], rounds=2)
    assert calls == ["fast", "plain"] * 3
    assert laps == [(None, 2), (7, 3)]


def test_a_twin_without_a_checkout_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(races, "TWINS", tmp_path)
    with pytest.raises(UserError, match="plain implementation that lies in the tests"):
        twin("facodec")


def test_equal_share_reorders_streams_and_ignores_padding():
    plain = torch.arange(6)[:, None].expand(-1, 2)
    codes = torch.full((1, 6, 3), 9)
    codes[0, :, :2] = plain[[1, 2, 0, 3, 4, 5]]
    assert equal_share(codes, [plain]) == 1
    codes[0, 4, 1] += 1
    assert equal_share(codes, [plain]) == pytest.approx(11 / 12)
