"""The loop beside a device, which it lets run ahead."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints.saving import Weights, saver_of
from rehearsal import DEVICE, on_device, rehearsal
from train.ranks import ROOT
from train.tiny_run import make_tiny, tiny_config

from slmkit.checkpoints import checkpoint
from slmkit.data.batch import Batch
from slmkit.errors import UserError
from slmkit.model.slm import SpeechLM
from slmkit.train import evaluation, loop
from slmkit.train import pace as pace_module
from slmkit.train.loop import Training, planned_batches, train
from slmkit.train.metrics import MetricsLog
from slmkit.train.pace import Pace
from slmkit.train.peers import Peers
from slmkit.train.run import prepare_run
from slmkit.world import World

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")
READS, UPLOADS = 3, 1  # of a logged step: losses and accuracies, norm, speeds; and the speeds of this process


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("loop"))


def test_a_device_without_room_for_the_next_batch_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(batch: Batch, device: Any) -> Batch:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(Batch, "to", full)
    run = prepare_run(tiny_config(place), World())
    with pytest.raises(UserError, match=r"out of memory at step 8: CUDA out of memory(.|\n)*lower micro_rows"):
        next(planned_batches(run, 7, Pace(), None, "cuda"))


def test_a_start_without_room_for_the_model_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise OUT_OF_MEMORY

    monkeypatch.setattr(loop, "process_group", lambda world: contextlib.nullcontext(torch.device("cpu")))
    for name in ("check_agreement", "resume_point"):
        monkeypatch.setattr(loop, name, lambda *_: None)
    monkeypatch.setattr(loop, "start_engine", full)
    with pytest.raises(UserError, match="out of memory while loading the model: CUDA out of memory"):
        train(tiny_config(place))


def idle(place: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, **change: Any) -> Training:
    """A training alone whose one step does nothing."""
    monkeypatch.setattr(loop, "largest", lambda values: values)
    monkeypatch.setattr(loop, "from_all", lambda value: [value])
    monkeypatch.setattr(loop, "from_first", lambda value: value)
    monkeypatch.setattr(Training, "take_step", lambda training, epoch, step, batches: setattr(training, "step", step))
    run = prepare_run(tiny_config(place, run_dir, steps=1, data={"num_workers": 0}, **change), World())
    engine: Any = Weights()
    engine.module = torch.nn.Linear(1, 1)
    engine.plain_module = lambda: contextlib.nullcontext(engine.module)
    monkeypatch.setattr(loop, "pace_of", lambda *_: Pace())
    log = MetricsLog(run_dir, 0, is_first=True, on_error=run.config.on_save_error)
    saver = saver_of(run_dir, on_error=run.config.on_save_error)
    return Training(run, engine, saver, log, torch.device("cpu"), Peers(World()), None)


@pytest.mark.parametrize("on_save_error", ["stop", "continue"])
def test_a_run_whose_last_checkpoint_is_not_written_is_not_complete(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_save_error: str
) -> None:
    training = idle(place, tmp_path, monkeypatch, on_save_error=on_save_error)

    def full(path: Path, value: Any) -> Any:
        raise UserError("cannot write: no space left")

    monkeypatch.setattr(checkpoint, "write", full)
    with training.saver, pytest.raises(UserError, match="no space left"):
        training.go()


@pytest.mark.parametrize("error", [None, OSError("no file")])
def test_speech_is_written_when_all_of_it_is_there(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """What fails while the model speaks is raised as it is, and not taken for the disk of TensorBoard."""
    training = idle(place, tmp_path, monkeypatch, on_save_error="continue")
    written: list[Any] = []
    training.log._writer = SimpleNamespace(add_text=lambda *args: written.append(args), flush=lambda: None)

    def speak(model: torch.nn.Module, writer: Any, step: int) -> None:
        writer.add_text("said", "words", step)
        if error is not None:
            raise error

    object.__setattr__(training.run, "speech", speak)
    with training.saver, contextlib.nullcontext() if error is None else pytest.raises(OSError, match="no file"):
        training.speak()
    assert written == ([] if error else [("said", "words", 0)])


class ForwardAndBackward:
    """Takes the place of the engine. As with DeepSpeed, the norm is a number on the device."""

    skipped = False

    def __init__(self, model: SpeechLM) -> None:
        self.module, self.norm = model, torch.zeros((), device=DEVICE)

    @property
    def grad_norm(self) -> float:
        return float(self.norm)

    def micro_step(self, batch: Any, *, lr: float) -> Any:
        output = self.module(batch)
        output.loss.backward()
        return output


@pytest.mark.parametrize("model", [{"group": 0, "softmax": "stream"}, {"group": 3, "head": "mlp", "speaker": True}])
def test_the_device_is_asked_for_numbers_in_logged_steps_alone(
    model: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (evaluation, pace_module):
        monkeypatch.setattr(module, "sum_over_ranks", lambda values: values)
    monkeypatch.setattr(loop, "from_all", lambda value: [value])
    options = {"steps": 4, "log_every_steps": 2, "global_rows": 4, "micro_rows": 2, "model": model}
    bf16 = str(ROOT / "ds_configs" / "zero2_bf16.json")
    run = prepare_run(tiny_config(place, deepspeed=bf16, **options), World())
    logged: list[int] = []
    log: Any = SimpleNamespace(write=lambda step, record: logged.append(step))
    engine: Any = ForwardAndBackward(on_device(run.model))
    saver: Any = SimpleNamespace(stall_sec=0.0)
    training = Training(run, engine, saver, log, DEVICE, Peers(World()), None)
    reads, uploads, micro_batches = [0], [0], 0
    with rehearsal(answers=True) as watch:
        for epoch, step, batches in planned_batches(run, 0, training.pace, None, DEVICE):
            training.take_step(epoch, step, batches)
            micro_batches += run.split.accumulation
            reads.append(len(watch.reads))
            uploads.append(len(watch.uploads))
    assert (micro_batches, logged) == (8, [2, 4])
    assert reads == [0, 0, READS, READS, 2 * READS], watch.reads
    assert uploads == [0, 0, UPLOADS, UPLOADS, 2 * UPLOADS], watch.uploads
