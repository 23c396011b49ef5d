"""The benchmark of the offline stage at its toy sizes: it measures what it claims to measure."""

import argparse
import json
import os
from pathlib import Path

import pytest
import torch

from slmkit.bench import tokenize
from slmkit.data.index import index_path
from slmkit.errors import UserError
from slmkit.tokenization.job import finalize_corpus


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    tokenize.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.full
def test_figures_of_the_stage(capsys: pytest.CaptureFixture[str]) -> None:
    """The command itself, with one process and two, on the same corpus."""
    assert tokenize.run(arguments("--quick", "--json")) == 0
    stage = json.loads(capsys.readouterr().out)
    assert stage["utterances"] == tokenize.TIMES_MORE * tokenize.QUICK.utterances
    assert stage["processes_ratio"] == pytest.approx(stage["two_audio_sec_per_sec"] / stage["audio_sec_per_sec"])
    assert stage["peak_ratio"] == pytest.approx(stage["peak_mib_of_more"] / stage["peak_mib"])
    assert 50 < stage["peak_mib"] < 5000
    assert sum(stage["shares"].values()) == pytest.approx(1)
    assert min(stage["shares"].values()) > 0
    assert 0 < stage["cpu_sec"] < 60
    assert 0 < stage["wall_sec"] < 120
    assert tokenize.describe(stage).count("required") == 2


def test_the_corpus_is_audio_of_both_kinds_under_new_names(tmp_path: Path) -> None:
    audio = tokenize.find_audio(None)[:3]
    tokenize.link_corpus(audio, tmp_path / "corpus", 7)
    names = sorted(path.name for path in (tmp_path / "corpus").rglob("*"))
    assert len([name for name in names if name.endswith(".flac")]) == 5
    assert len([name for name in names if name.endswith(".wav")]) == 2
    assert len([name for name in names if name.endswith(".normalized.txt")]) == 7


def test_speed_is_of_the_shards_after_the_first(tmp_path: Path) -> None:
    audio, codec = tokenize.find_audio(None)[:2], tmp_path / "codec"
    tokenize.random_melvq().save(codec)
    tokenize.link_corpus(audio, tmp_path / "source", 6)
    sizes = tokenize.StageSizes(utterances=6, shard_samples=2)
    tokenize.time_shares(tmp_path / "source", str(codec), tmp_path / "out", sizes)
    indexes = [index_path(tmp_path / "out", f"bench-{shard:06d}.tar") for shard in range(3)]
    for i, path in enumerate(indexes):
        os.utime(path, (0, 1000 + 5 * i))
    one_sec = sum(tokenize.read_audio(path, 16000).size for path in audio) / 16000
    assert tokenize.speed_of(indexes) == pytest.approx(2 * one_sec / 10)


def test_a_command_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the command to time failed") as caught:
        tokenize.run_stage(tmp_path / "nowhere", str(tmp_path), tmp_path / "out", tokenize.QUICK, 1)
    assert "does not exist" in str(caught.value)


def test_other_shards_of_two_processes_are_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    codecs = [tmp_path / name for name in ("codec", "other")]
    tokenize.random_melvq().save(codecs[0])
    tokenize.MelVQ(tokenize.random_melvq()._codebooks.flip(1), torch.zeros(80)).save(codecs[1])

    def run_in_process(
        source: Path, codec_dir: str, out: Path, sizes: tokenize.StageSizes, processes: int
    ) -> tokenize.StageRun:
        tokenize.time_shares(source, str(codecs[processes - 1]), out, sizes)
        finalize_corpus(out, 0.0)
        return tokenize.StageRun(1.0, 1.0, 1.0, 1.0)

    monkeypatch.setattr(tokenize, "run_stage", run_in_process)
    audio = tokenize.find_audio(None)[:2]
    (tmp_path / "work").mkdir()
    with pytest.raises(AssertionError, match="two processes made other shards than one"):
        tokenize.bench_stage(audio, str(codecs[0]), tmp_path / "work", tokenize.QUICK)


def test_too_few_shards_are_refused() -> None:
    with pytest.raises(UserError, match="too few shards to time the stage"):
        tokenize.run(arguments("--quick", "--utterances", "3"))


def test_a_folder_without_audio_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no FLAC files below"):
        tokenize.run(arguments("--quick", "--audio", str(tmp_path)))
