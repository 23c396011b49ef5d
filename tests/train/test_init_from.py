"""Pre-training, then fine-tuning: real runs, the second from the exported weights of the first."""

import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import write_corpus
from train.place import FRAMES, MODELS, Place

from slmkit.config.load import from_dict
from slmkit.config.train import TrainConfig
from slmkit.data.loader import micro_batches
from slmkit.errors import UserError
from slmkit.files import read_json
from slmkit.model.pretrained import export_sha256, from_base, load
from slmkit.model.trained_on import TrainedOn
from slmkit.train import start
from slmkit.train.run import checkpoint_bytes, parameters, prepare_run
from slmkit.world import World

STEPS = 4


def tuned(place: Place, name: str, **change: Any) -> dict[str, Any]:
    """Fine-tuning of the model of run "first": other data, another task, a constant rate."""
    values = {
        "init_from": str(place.directory / "exported"),
        "data": {"corpus": str(place.directory / "other"), "task": "asr"},
        "schedule": {"kind": "constant", "warmup_steps": 0},
        "steps": STEPS,
        "keep_last": 5,
    }
    return place.config(name, "mtp", **{**values, **change})


@pytest.fixture(scope="module")
def results(place: Place) -> dict[str, Any]:
    """A first run, its export, a run from it, one that is resumed, and attempts to go on with another start."""
    exported = place.directory / "exported"
    first = place.config("first", "mtp", steps=3)
    changes = {"another": {"init_from": str(place.directory / "later")}, "none": {"init_from": None}}
    tasks = [
        {"kind": "train", "config": first},
        {"kind": "consolidate", "config": first, "out": str(exported)},
        {"kind": "train", "config": tuned(place, "whole")},
        {"kind": "consolidate", "config": tuned(place, "whole"), "out": str(place.directory / "later")},
        {"kind": "train", "config": tuned(place, "resumed", steps=2)},
        *({"kind": "error", "config": tuned(place, "resumed", **change)} for change in changes.values()),
        {"kind": "train", "config": tuned(place, "resumed")},
        {"kind": "error", "config": {**first, "steps": 9, "init_from": str(exported)}},
    ]
    done = place.run(1, tasks)
    return {**dict(zip(changes, done[5:7], strict=True)), "begun without": done[8]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place.make(tmp_path_factory.mktemp("init_from"))
    write_corpus(place.directory / "other", 30, frames=FRAMES, seed=1)
    return place


def first_loss(config: TrainConfig, model: torch.nn.Module) -> float:
    """The loss of a model on the first global batch of a run."""
    run = prepare_run(config, World())
    first = itertools.islice(run.walk(0), 1)
    batches = micro_batches(run.data, run.split, first, rank=0, row_tokens=config.data.row_tokens)
    with torch.no_grad():
        return sum(float(model.eval()(batch).loss) for _, _, batch in batches)


@pytest.mark.usefixtures("results")
def test_the_weights_arrive(place: Place) -> None:
    """The first loss is that of the exported model, to float32 rounding, and far from that of a new model."""
    config = from_dict(TrainConfig, tuned(place, "whole"))
    loss = place.metrics("whole")[0]["loss"]
    assert loss == pytest.approx(first_loss(config, load(place.directory / "exported")), rel=1e-6)
    codec = prepare_run(config, World()).codec
    new = from_base(config.base, codec=codec, seed=config.seed, **MODELS["mtp"])
    assert abs(loss - first_loss(config, new)) > 1e-2


@pytest.mark.usefixtures("results")
def test_a_run_from_an_export_resumes_exactly(place: Place) -> None:
    assert len(place.metrics("whole")) == STEPS
    assert place.metrics("resumed") == place.metrics("whole")


@pytest.mark.usefixtures("results")
def test_the_source_is_recorded(place: Place) -> None:
    record = read_json(place.directory / "whole" / "provenance.json")
    assert record["facts"]["init_from"] == export_sha256(place.directory / "exported")
    assert record["config"]["init_from"] == str(place.directory / "exported")
    later = read_json(place.directory / "later" / "provenance.json")
    assert later["config"]["facts"]["init_from"] == record["facts"]["init_from"]
    first, second = (TrainedOn.read(place.directory / name) for name in ("exported", "whole/model"))
    assert first is not None
    assert second is not None
    assert second.is_all
    assert second.sources[:1] == first.sources
    assert second.has_keys(["utterance-0000", "utterance-0029"]).all()


@pytest.mark.parametrize("change", ["another", "none", "begun without"])
def test_a_run_does_not_continue_with_another_start(results: dict[str, Any], change: str) -> None:
    assert "cannot continue" in results[change]
    assert "init_from has changed" in results[change]


@pytest.mark.usefixtures("results")
def test_the_size_of_a_checkpoint_is_foretold(place: Place) -> None:
    """15 %: names, shapes and random states weigh more beside a tiny model."""
    config = from_dict(TrainConfig, tuned(place, "whole"))
    files = read_json(place.directory / "whole" / "checkpoints" / f"step-{STEPS}" / "complete.json")["files"]
    num_parameters = sum(parameters(prepare_run(config, World()).model).values())
    assert checkpoint_bytes(num_parameters, "fp32") == pytest.approx(sum(files.values()), rel=0.15)


@pytest.mark.usefixtures("results")
def test_an_export_may_move_but_not_vanish(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.directory / "exported", tmp_path / "moved")
    here, moved = (
        prepare_run(from_dict(TrainConfig, tuned(place, "resumed", init_from=str(path))), World()).facts["init_from"]
        for path in (place.directory / "exported", tmp_path / "moved")
    )
    assert here == moved
    with pytest.raises(UserError, match="init_from is not the directory of an exported model"):
        prepare_run(from_dict(TrainConfig, tuned(place, "resumed", init_from=str(tmp_path / "gone"))), World())


@pytest.mark.usefixtures("results")
def test_weights_that_are_not_finite_are_blamed_on_the_export(place: Place, tmp_path: Path) -> None:
    spoilt = shutil.copytree(place.directory / "exported", tmp_path / "spoilt")
    weights = load_file(spoilt / "model.safetensors")
    name = min(weights)
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, spoilt / "model.safetensors", metadata={"format": "pt"})
    run = prepare_run(from_dict(TrainConfig, tuned(place, "spoilt", init_from=str(spoilt))), World())
    said = rf"the weights in init_from \(.*spoilt\) are not finite\n  got: +1 of [0-9]+ numbers of {re.escape(name)}"
    with pytest.raises(UserError, match=said):
        start.start_engine(run, None)
