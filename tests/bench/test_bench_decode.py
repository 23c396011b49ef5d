"""The generation benchmark at its toy shape: both sides give the same codes, and the figures fit together."""

import argparse
import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from slmkit.bench import decode
from slmkit.bench.tokenize import random_melvq
from slmkit.codec.melvq import NUM_BANDS, MelVQ
from slmkit.errors import UserError
from slmkit.infer.engine import Engine


def run(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    decode.add_arguments(parser)
    assert decode.run(parser.parse_args(["--quick", "--steps", "6", "--repeats", "1", *words])) == 0


@pytest.mark.full
def test_both_sides_give_equal_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    random_melvq().save(tmp_path / "codec")
    run(["--batch", "1", "2", "--plain", "1", "--json", "--codec", str(tmp_path / "codec")])
    result = json.loads(capsys.readouterr().out)
    assert [(case["group"], case["batch"]) for case in result["cases"]] == [
        (g, b) for g in decode.GROUPS for b in (1, 2)
    ]
    assert (result["codec"], result["first_audio_frames"]) == ("melvq", 87)
    for case in result["cases"]:
        assert case["equal_answers"] == case["plain_answers"] == 1
        assert case["steps"] == 7 * case["batch"]  # `<sosp>`, then speech alone
        assert case["frames"] == 6 * case["batch"] * max(1, case["group"]) // 3
        assert case["ratio"] == pytest.approx(case["frames_per_sec"] / case["plain_frames_per_sec"])
        assert case["real_time_factor"] == pytest.approx(decode.FRAME_RATE / case["frames_per_sec"])
        assert case["first_audio_sec"] > 0
        assert case["with_gap"] is case["gap_sec"] is None


@pytest.mark.full
def test_the_table_tells_what_was_timed(capsys: pytest.CaptureFixture[str]) -> None:
    run(["--group", "4", "--batch", "2", "--dtype", "bfloat16"])
    head, columns, row = capsys.readouterr().out.splitlines()
    assert "cpu, bfloat16" in head
    assert "first audio: 40 frames, facodec" in head
    assert columns.split()[:7] == ["batch", "steps/s", "tokens/s", "frames/s", "rtf", "first", "s"]
    assert row.split()[:2] == ["MTP-4", "2"]
    assert row.split()[7] == "-"  # nobody listened for gaps
    assert 0 < float(row.split()[11].rstrip("%")) <= 100  # of the choices of float32


@pytest.mark.parametrize("group", [0, 4])
def test_the_share_of_same_choices_is_of_all_codes(group: int) -> None:
    """All choices of one of four heads are moved to the next class."""
    exact, other = (decode.make_model(decode.QUICK, group, 1) for _ in range(2))
    assert decode.same_choices(other, exact, 8) == 1
    if group:
        weight = other.heads[1].output.weight[: decode.QUICK.codebook]
        with torch.no_grad():
            weight.copy_(weight.roll(1, dims=0).clone())
        assert decode.same_choices(other, exact, 8) == 3 / 4


def test_the_codec_of_every_answer_counts_for_the_first_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, engine = random_melvq(), Engine(decode.make_model(decode.QUICK, 12, 3), num_slots=3, num_positions=128)
    seen: list[int] = []

    def decode_slowly(codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        seen.append(codes.shape[2])
        time.sleep(0.2)
        return torch.zeros(1, codes.shape[2] * codec.spec.hop_samples)

    monkeypatch.setattr(codec, "decode", decode_slowly)
    assert max(clock.first_audio_sec for clock in decode.listen(engine, codec, 0.0)) >= 3 * 0.2
    assert seen == [87] * 4  # one to warm up
    assert engine.num_free == 3


def test_a_codec_slower_than_its_sound_is_heard_with_gaps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of frames that all last longer to make than to play."""
    random_melvq().save(tmp_path / "codec")
    run(["--group", "12", "--batch", "1", "--listen", "1.3", "--codec", str(tmp_path / "codec")])
    assert capsys.readouterr().out.splitlines()[-1].split()[7] in ("0", "1")
    codec, engine = random_melvq(), Engine(decode.make_model(decode.QUICK, 12, 2), num_slots=2, num_positions=256)
    now, made = 0.0, codec.decode

    def decode_slowly(codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += 0.1 * codes.shape[2]
        return made(codes[..., :1], speaker).repeat(1, codes.shape[2])

    monkeypatch.setattr(codec, "decode", decode_slowly)
    monkeypatch.setattr(decode, "time", SimpleNamespace(perf_counter=lambda: now))
    slow = decode.listen(engine, codec, 1.5)
    assert [clock.num_gaps > 0 for clock in slow] == [True, True]
    assert decode.Continuity.of(slow).gap_share == 1.0
    monkeypatch.setattr(codec, "decode", lambda codes, speaker: made(codes[..., :1], speaker).repeat(1, codes.shape[2]))
    assert [clock.num_gaps for clock in decode.listen(engine, codec, 1.5)] == [0, 0]


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_64_answers_begin_at_once_and_do_not_end(dtype: torch.dtype) -> None:
    model = torch.nn.Module.to(decode.make_model(decode.QUICK, 6, 64), dtype)
    outputs = Engine(model, num_slots=64, num_positions=128).generate(decode.make_requests(64, 6))
    assert {(output.num_steps, output.codes.shape) for output in outputs} == {(4, (3, 6))}
    assert len({output.codes.tobytes() for output in outputs}) > 8  # not all alike


def test_what_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MelVQ(torch.zeros(3, 16, NUM_BANDS), torch.zeros(NUM_BANDS)).save(tmp_path)
    with pytest.raises(UserError, match="the codec does not fit the benchmark's model"):
        run(["--codec", str(tmp_path)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="there is no GPU that torch can use"):
        run(["--device", "cuda"])
