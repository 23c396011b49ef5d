"""The loop beside a device, which it lets run ahead."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rehearsal import DEVICE, on_device, rehearsal
from train.ranks import ROOT
from train.tiny_run import make_tiny, tiny_config

from slmkit.data.batch import Batch
from slmkit.errors import UserError
from slmkit.model.slm import SpeechLM
from slmkit.train import evaluation, loop
from slmkit.train import pace as pace_module
from slmkit.train.loop import Training, planned_batches
from slmkit.train.pace import Pace
from slmkit.train.peers import Peers
from slmkit.train.run import prepare_run
from slmkit.world import World

READS, UPLOADS = 3, 1  # of a logged step: losses and accuracies, norm, speeds; and the speeds of this process


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("loop"))


def test_a_device_without_room_for_the_next_batch_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(batch: Batch, device: Any) -> Batch:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    monkeypatch.setattr(Batch, "to", full)
    run = prepare_run(tiny_config(place), World())
    with pytest.raises(UserError, match=r"out of memory at step 8: CUDA out of memory(.|\n)*lower micro_rows"):
        next(planned_batches(run, 7, Pace(), None, "cuda"))


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
