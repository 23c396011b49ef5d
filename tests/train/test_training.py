"""The laws of training, with the real DeepSpeed engine in several processes.

Starting processes takes longer than the training itself, so those of one world size share one start.
"""

import re
from typing import Any

import pytest
from synthetic import codec_spec, write_corpus
from train.place import FRAMES, MODELS, STEPS, Place
from train.ranks import ROOT

from slmkit.train.metrics import read_metrics

Splits = dict[int, tuple[int, ...]]  # processes -> rows of a micro-batch; 4 rows in a global batch
SPLITS: Splits = {1: (4, 1), 2: (1,)}
MORE_SPLITS: Splits = {1: (2,), 2: (2,), 4: (1,)}


def run_name(model: str, world_size: int, micro_rows: int) -> str:
    return f"{model}-{world_size}x{micro_rows}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place.make(tmp_path_factory.mktemp("training"))
    write_corpus(place.directory / "other", 30, frames=FRAMES, seed=1)
    write_corpus(place.directory / "wider", 30, frames=FRAMES, spec=codec_spec((16, 16, 32)))
    return place


def split_tasks(place: Place, world_size: int, splits: Splits = SPLITS) -> list[dict[str, Any]]:
    evaluated = {"data": {"eval_corpus": str(place.directory / "other")}, "eval_every_steps": STEPS // 2}
    return [
        {
            "kind": "train",
            "config": place.config(run_name(model, world_size, rows), model, micro_rows=rows, **evaluated),
        }
        for model in MODELS
        for rows in splits[world_size]
    ]


@pytest.fixture(scope="module")
def one_process(place: Place) -> dict[str, Any]:
    """All splits of one process, then attempts to continue their last run with something changed."""
    name = run_name("ntp", 1, 1)
    short = place.config(name, micro_rows=1, data={"eval_corpus": str(place.directory / "other")})
    changes: dict[str, Any] = {
        "corpus": {"data": {"corpus": str(place.directory / "other")}},
        "vocabulary": {"data": {"corpus": str(place.directory / "wider"), "eval_corpus": None}},
        "eval_corpus": {"data": {"eval_corpus": str(place.directory / "wider")}},
        "model.group": {"model": {"group": 3}},
        "model.text_loss_weight": {"model": {"group": 0, "text_loss_weight": 0.5}},
        "seed": {"seed": 5},
        "global_rows": {"global_rows": 3},
        "data.row_tokens": {"data": {**short["data"], "row_tokens": 161}},
        "not finite": {
            "run_dir": str(place.directory / "wild"),
            "optimizer": {"lr": 1e9, "weight_decay": 1e9, "clip_norm": 0},
        },
    }
    tasks = split_tasks(place, 1)
    for change in changes.values():
        merged = {**short, **change}
        merged["data"] = {**short["data"], **change.get("data", {})}
        tasks.append({"kind": "error", "config": merged})
    tasks.append({"kind": "disk_error", "config": {**short, "run_dir": str(place.directory / "full"), "steps": 1}})
    tasks.append({"kind": "damaged", "config": {**short, "steps": STEPS + 1}, "at": f"step-{STEPS}"})
    tasks.append({"kind": "reads", "config": place.config("reads", micro_rows=2)})
    results = place.run(1, tasks)
    first = len(split_tasks(place, 1))
    last = dict(zip(("disk", "damaged", "reads"), results[-3:], strict=True))
    return {**dict(zip(changes, results[first:], strict=False)), **last}


@pytest.fixture(scope="module")
def two_processes(place: Place) -> dict[str, Any]:
    """All splits of two processes, then plain steps beside DeepSpeed's, an uninterrupted run, and one to continue."""
    whole = place.config("whole", "mtp", steps=12, save_every_steps=4)
    narrow = place.config("bf16", deepspeed=str(ROOT / "ds_configs" / "zero2_bf16.json"), steps=6, save_every_steps=4)
    tasks = [
        *split_tasks(place, 2),
        {"kind": "train", "config": {**narrow, "steps": 5}},
        {"kind": "train", "config": narrow},
        {"kind": "parity", "config": place.config("parity", steps=4, micro_rows=1)},
        {"kind": "train", "config": whole},
    ]
    patient = {**whole, "run_dir": str(place.directory / "patient"), "on_save_error": "continue", "keep_last": 3}
    tasks.append({"kind": "disk_full_for_a_while", "config": patient, "at": "step-8"})
    tasks.append({"kind": "files", "config": place.config("files")})
    *_, parity, _, patience, files = place.run(2, tasks)
    return {"parity": parity, "patience": patience, "files": files}


@pytest.fixture(scope="module")
def more_splits(place: Place) -> None:
    for world_size in MORE_SPLITS:
        place.run(world_size, split_tasks(place, world_size, MORE_SPLITS))


@pytest.mark.usefixtures("one_process", "two_processes")
@pytest.mark.parametrize("model", MODELS)
def test_every_split_of_the_batch_gives_the_same_curve(place: Place, model: str) -> None:
    check_splits(place, model, SPLITS)


@pytest.mark.full
@pytest.mark.usefixtures("one_process", "more_splits")
@pytest.mark.parametrize("model", MODELS)
def test_more_splits_of_the_batch_give_the_same_curve(place: Place, model: str) -> None:
    check_splits(place, model, MORE_SPLITS)


def check_splits(place: Place, model: str, splits: Splits) -> None:
    """Law. 1e-4: float32 sums over all steps, taken in another order."""
    curves = {(world, rows): place.metrics(run_name(model, world, rows)) for world in splits for rows in splits[world]}
    expected = place.metrics(run_name(model, 1, 4))
    train_steps = [record["step"] for record in expected if "loss" in record]
    assert train_steps == list(range(1, STEPS + 1))
    assert [record["step"] for record in expected if "eval/loss" in record] == [STEPS // 2, STEPS]
    assert [record["eval/samples"] for record in expected if "eval/loss" in record] == [30, 30]
    assert expected[STEPS - 1]["loss"] < expected[0]["loss"] - 0.05
    for split, curve in curves.items():
        for got, want in zip(curve, expected, strict=True):
            assert got.keys() == want.keys()
            for name, value in want.items():
                tolerance = {"rel": 1e-3} if "perplexity" in name else {"abs": 1e-4}
                if "accuracy" in name:  # one answer may change sides
                    tolerance = {"abs": 0.1}
                assert got[name] == pytest.approx(value, **tolerance), (split, want["step"], name)


@pytest.mark.usefixtures("one_process", "two_processes")
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_record_tells_speeds_and_the_slowest_process(place: Place, world_size: int) -> None:
    lines = read_metrics(place.directory / run_name("mtp", world_size, 1) / "metrics.jsonl")
    assert lines[0]["processes"] == world_size
    for record in (line for line in lines if "loss" in line):
        assert record["speed/tokens_per_sec"] > 0
        assert record["speed/tflops_per_device"] > 0
        assert record["speed/mfu"] is None
        assert record["speed/slowest_rank"] in ([None] if world_size == 1 else [0, 1])


def test_gradients_equal_those_of_plain_steps_alone(two_processes: dict[str, Any]) -> None:
    """ZeRO-2, accumulation 2, tied embeddings used twice a step: what DeepSpeed 0.17.6 to 0.19.3 got wrong."""
    parity = two_processes["parity"]
    assert parity["tied"]
    assert parity["accumulation"] == 2
    assert parity["moved"] > 1e-3
    assert parity["worst"] < 1e-5
    for ours, plain in parity["norms"]:
        assert ours == pytest.approx(plain, rel=1e-5)
    assert max(plain for _, plain in parity["norms"]) > 0.3, "the gradient is clipped in no step"


@pytest.mark.usefixtures("one_process", "two_processes")
def test_bf16_follows_float32_and_continues(place: Place) -> None:
    """0.02: bf16 keeps 8 bits of the weights that the forward pass sees; the float32 weights behind it keep all."""
    narrow, wide = place.metrics("bf16"), place.metrics(run_name("ntp", 1, 1))
    assert [record["step"] for record in narrow] == [1, 2, 3, 4, 5, 6]
    for got, want in zip(narrow, wide[:4], strict=False):
        assert got["loss"] == pytest.approx(want["loss"], abs=0.02)
        assert got["loss"] != want["loss"]


@pytest.mark.usefixtures("two_processes")
def test_interrupted_equals_uninterrupted(place: Place) -> None:
    """Law. Killed between two checkpoints, killed again inside a save, then run to the end: not a bit differs."""
    config = place.config("killed", "mtp", steps=12, save_every_steps=4)
    checkpoints = place.directory / "killed" / "checkpoints"
    speaks = {**config, "speak_every_steps": 6, "codec": "none"}
    place.kill(2, {"kind": "train_killed_between_checkpoints", "config": speaks, "saved": 4})
    assert [record["step"] for record in place.metrics("killed")] == list(range(1, 7))
    assert [path.name for path in checkpoints.glob("step-*")] == ["step-4"]
    place.kill(2, {"kind": "train_killed_in_save", "config": config, "at": 8})
    assert (checkpoints / "step-8" / "mp_rank_00_model_states.pt").is_file()
    assert not (checkpoints / "step-8" / "complete.json").exists()
    place.run(2, [{"kind": "train", "config": config}])
    assert place.metrics("killed") == place.metrics("whole")
    assert sorted(path.name for path in checkpoints.glob("step-*")) == ["step-12", "step-8"]
    starts = sorted(path.name for path in (place.directory / "killed").glob("provenance*.json"))
    assert starts == ["provenance-4.json", "provenance.json"]


def test_only_deepspeed_asks_for_numbers_and_only_at_the_end_of_a_step(one_process: dict[str, Any]) -> None:
    """Two steps of two micro-batches: whether the norm is finite, and again for each of two groups that it clips.
    torch's optimizer asks too on a CPU, once for each group; the fused one of a GPU does not."""
    assert one_process["reads"] == [[], ["deepspeed", *["deepspeed", "torch/optim"] * 2]] * 2


@pytest.mark.parametrize(
    "name", ["corpus", "vocabulary", "model.group", "model.text_loss_weight", "seed", "global_rows", "data.row_tokens"]
)
def test_a_run_continues_only_its_own_kind(one_process: dict[str, str], name: str) -> None:
    # Another corpus is another source; another group is another vocabulary first.
    changed = {"corpus": "data.sources", "model.group": "vocabulary, model.group"}.get(name, name)
    assert "cannot continue" in one_process[name]
    assert re.search(rf"{changed}(, .*)? ha(s|ve) changed", one_process[name])


def test_evaluation_data_of_another_codec_is_refused(one_process: dict[str, str]) -> None:
    assert "wider is not the codec of" in one_process["eval_corpus"]


def test_a_loss_that_is_not_finite_ends_the_run(one_process: dict[str, str]) -> None:
    """The weights are spoilt for good, so every step after the first is skipped."""
    assert "is not finite at step 12, and 10 steps were skipped before" in one_process["not finite"]


def test_a_damaged_checkpoint_is_named(one_process: dict[str, Any]) -> None:
    assert len(one_process["damaged"]) == 4
    for message in one_process["damaged"]:
        assert message.startswith("cannot load")
        assert f"checkpoints/step-{STEPS}" in message


def test_a_full_disk_is_named_and_a_bug_is_not_hidden(one_process: dict[str, Any]) -> None:
    system, archive, bug = one_process["disk"]
    assert system.startswith("UserError: cannot write")
    assert "No space left on device" in system
    assert archive.startswith("UserError: cannot write")
    assert "PytorchStreamWriter failed" in archive
    assert bug == "ValueError: a bug"


def test_training_goes_on_without_a_checkpoint(place: Place, two_processes: dict[str, Any]) -> None:
    assert two_processes["patience"] == ["step-12", "step-4"]
    assert place.metrics("patient") == place.metrics("whole")


def test_the_files_are_those_of_deepspeed(two_processes: dict[str, Any]) -> None:
    """Of ZeRO-2: the weights once, the rest by process."""
    ours, theirs = two_processes["files"]["names"]
    assert ours == theirs
    assert len(ours) == 3
    assert two_processes["files"]["same"] == [True, True]
