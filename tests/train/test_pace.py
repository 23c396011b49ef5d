"""Speeds, waiting, stalls and the slowest process."""

import time
from typing import Any

import pytest
import torch
from tiny_models import tiny_batch, tiny_config

from slmkit.model.flops import BatchSizes, Flops
from slmkit.model.slm import SpeechLM
from slmkit.train import pace as pace_module
from slmkit.train.engine import process_group
from slmkit.train.pace import Pace, slowest
from slmkit.world import World

CONFIG = tiny_config(3)
CPU = torch.device("cpu")


def batch_of(frames: tuple[int, ...], room: int) -> Any:
    batch = tiny_batch(CONFIG, frames)
    object.__setattr__(batch, "num_frames", sum(frames))
    object.__setattr__(batch, "row_tokens", room)
    return batch


def alone(pace: Pace, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The result without a process group."""
    monkeypatch.setattr(pace_module, "sum_over_ranks", lambda table: table)
    return pace.result()


def test_waiting_counts_only_the_time_inside_next(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace()
    clock = iter([1.0, 3.0, 10.0, 10.5, 20.0, 20.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert list(pace.timed(iter("xy"))) == ["x", "y"]
    assert pace._counts.wait_sec == pytest.approx(2.0 + 0.5)


def test_speeds_are_sums_over_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of two micro-batches in 4 s, one of them without utterances."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    costs = Flops(SpeechLM(CONFIG))
    pace = Pace(World(), CPU, accumulation=2, frame_rate=80.0, costs=costs, peak_tflops=1e-6)
    filled = batch_of((5, 12), 100)
    empty = tiny_batch(CONFIG, ())
    for batch in (filled, filled, filled, empty):
        pace.add(batch)
    now[0] = 4.0
    pace.stalled(0.5)
    pace.stalled(0.25)
    result = alone(pace, monkeypatch)
    tokens, flops = 3 * filled.num_tokens, 3 * costs.training(BatchSizes.of(filled))
    assert result["speed/tokens_per_sec"] == tokens / 4
    assert result["speed/audio_hours_per_hour"] == pytest.approx(3 * 17 / 80 / 4)
    assert result["speed/sec_per_step"] == 2.0
    assert result["speed/padding_share"] == pytest.approx(1 - tokens / 300)
    assert result["speed/tflops_per_device"] == pytest.approx(flops / 4e12)
    assert result["speed/mfu"] == pytest.approx(flops / 4 / 1e6)
    assert (result["speed/checkpoint_stall_sec"], result["speed/checkpoint_stall_share"]) == (0.75, 0.1875)
    assert result["speed/slowest_rank"] is None
    assert result["memory/device_peak_gib"] is None
    assert 0.01 < result["memory/host_peak_gib"] < 100


def test_a_result_starts_anew_and_a_stall_outlives_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(frame_rate=80.0)
    pace.add(batch_of((5,), 50))
    pace.stalled(1.0)
    pace.restart()
    first, second = alone(pace, monkeypatch), alone(pace, monkeypatch)
    assert first["speed/tokens_per_sec"] == 0
    assert (first["speed/checkpoint_stall_sec"], second["speed/checkpoint_stall_sec"]) == (1.0, 0.0)


def test_without_a_known_peak_there_is_no_mfu(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(costs=Flops(SpeechLM(CONFIG)))
    pace.add(batch_of((5,), 50))
    result = alone(pace, monkeypatch)
    assert result["speed/mfu"] is None
    assert result["speed/tflops_per_device"] > 0


def test_only_forward_passes_of_training_are_own_time() -> None:
    model, pace = SpeechLM(CONFIG), Pace()
    pace.watch(model)
    batch = batch_of((5,), 50)
    model.eval()(batch)
    assert pace._counts.forward_sec == 0
    start = time.perf_counter()
    model.train()(batch)
    assert 0 < pace._counts.forward_sec <= time.perf_counter() - start


def test_the_slowest_process_is_named() -> None:
    assert slowest([2.0, 2.0, 3.0, 1.0]) == {"speed/slowest_rank": 2, "speed/slowest_percent": pytest.approx(50.0)}
    assert slowest([2.0]) == {"speed/slowest_rank": None, "speed/slowest_percent": None}


def test_a_process_sees_its_own_numbers_in_its_column() -> None:
    with process_group(World()):
        assert Pace()._exchange([3.0, 4.0]) == [[3.0], [4.0]]


def test_the_processes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two in turn, the sum of whose tables both would get: the second waits 3 s of 10 for data, the first 1 s."""
    now, tables = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(pace_module, "sum_over_ranks", lambda table: tables.append(table) or sum(tables))
    paces = [Pace(World(rank=rank, size=2), CPU) for rank in (0, 1)]
    for rank, pace in enumerate(paces):
        pace.add(batch_of((5,), 50))
        pace._counts.wait_sec = 1.0 + 2.0 * rank
        pace.stalled(0.5 * rank)
    now[0] = 10.0
    tokens = 2 * batch_of((5,), 50).num_tokens
    _, result = (pace.result() for pace in paces)
    assert result["speed/tokens_per_sec"] == tokens / 10
    assert result["speed/data_wait_share"] == pytest.approx(0.2)
    assert result["speed/checkpoint_stall_sec"] == 0.5
    assert (result["speed/slowest_rank"], result["speed/slowest_percent"]) == (1, pytest.approx(50.0))
