"""What `slmkit train --dry-run` tells of a run, against the run itself."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from synthetic import write_corpus
from train.tiny_run import make_tiny, tiny_config

from slmkit.checkpoints import checkpoint
from slmkit.config import run_dir as runs
from slmkit.config.train import TrainConfig
from slmkit.data.loader import micro_batches
from slmkit.errors import UserError
from slmkit.model.pretrained import config_on_base, export_sha256, extended_tokenizer, from_base, save
from slmkit.train.run import parameters, prepare_run, run_table
from slmkit.world import World

PARTS: dict[str, dict[str, Any]] = {
    "plain": {"group": 0},
    "mtp": {"group": 6, "head": "transformer", "fusion": "mlp", "speaker": True},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_tiny(tmp_path_factory.mktemp("dry_run"))
    write_corpus(place / "other", 20, frames=(4, 12), seed=1)
    return place


def shown(config: TrainConfig, num_processes: int = 2) -> dict[str, str]:
    return {name.strip(): value for name, value in run_table(prepare_run(config, World(size=num_processes)))}


@pytest.mark.parametrize("name", PARTS)
def test_parameters_are_those_of_the_model(place: Path, name: str) -> None:
    run = prepare_run(tiny_config(place, model=PARTS[name]), World())
    counts = parameters(run.model)
    model = from_base(place / "base", codec=run.codec, **PARTS[name])
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert counts["embeddings"] == model.lm_model.lm_head.weight.numel()
    assert counts["heads"] == sum(parameter.numel() for parameter in model.speech_heads.parameters())
    has_parts = {part for part, number in counts.items() if number}
    extra = {"fusion", "heads", "projector"} if name == "mtp" else set()
    assert has_parts == {"embeddings", "backbone"} | extra
    lines = shown(run.config)
    assert lines["model"].endswith(f"speaker input: {sum(counts.values()):,} parameters")
    assert lines["embeddings"] == f"{counts['embeddings']:,}"


@pytest.mark.parametrize("group", [0, 6])
def test_an_epoch_is_what_training_reads(place: Path, group: int) -> None:
    """Counted from every batch of the epoch."""
    run = prepare_run(tiny_config(place, data={"row_tokens": 300}, model={"group": group}), World())
    epoch = itertools.takewhile(lambda step: step.epoch == 0, run.walk(0))
    read = list(micro_batches(run.data, run.split, epoch, rank=0, row_tokens=300))
    num_steps = read[-1][0].number + 1
    filled = [batch for _, _, batch in read if batch.keys]
    used = sum(batch.num_tokens for batch in filled)
    lm = sum((batch.lm_groups == 0).sum().item() for batch in filled)
    speech = sum((batch.lm_groups > 0).sum().item() + batch.head_targets.numel() for batch in filled)
    lines = shown(run.config)
    empty = 1 - used / (300 * len(filled))
    assert lines["epoch"] == f"{len(filled)} rows, {num_steps} steps, {empty:.1%} of the positions stay empty"
    assert lines["targets"] == f"text {lm / num_steps:.0f}, speech {speech / num_steps:.0f} a step"
    assert lines["steps"] == f"50 ({50 / num_steps:.2f} epochs), of them 2 of warm-up"


def test_the_batch_and_the_data_are_shown(place: Path) -> None:
    config = tiny_config(place, data={"eval_corpus": str(place / "other")}, keep_every_steps=20)
    lines = shown(config)
    hours = sum(shard.frames.sum() for shard in write_corpus(place / "again", 20, frames=(4, 12)).shards) / 80 / 3600
    assert lines["data"] == f"{place / 'corpus'} (tts): 20 examples, {hours:.2f} h"
    assert lines["held out"].startswith(f"{place / 'other'} (tts): 20 examples")
    assert lines["batch"] == "1 rows * 2 micro-batches * 2 processes = 4 rows of 160 positions"
    assert lines["deepspeed"] == f"{config.deepspeed}: ZeRO-2, fp32"
    assert "at most 4 kept" in lines["checkpoints"]
    assert lines["run_dir"] == f"{place / 'run'}, starts at step 0"


@pytest.mark.parametrize(("warmup_steps", "is_said"), [(50, False), (51, True)])
def test_a_rate_that_is_not_reached_is_said(
    place: Path, caplog: pytest.LogCaptureFixture, warmup_steps: int, is_said: bool
) -> None:
    prepare_run(tiny_config(place, schedule={"warmup_steps": warmup_steps}), World())
    assert ("does not reach optimizer.lr: the run has 50 steps, and 51 of warm-up" in caplog.text) == is_said


def test_only_length_tables_are_written(place: Path, tmp_path: Path) -> None:
    run_table(prepare_run(tiny_config(place, tmp_path / "run"), World(size=1)))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {runs.CACHE}


def test_a_run_from_an_export_is_shown_and_checked(place: Path, tmp_path: Path) -> None:
    codec = prepare_run(tiny_config(place), World()).codec
    model = from_base(place / "base", codec=codec)
    save(model, tmp_path / "out", tokenizer=extended_tokenizer(place / "base", model.layout))
    config = tiny_config(place, init_from=str(tmp_path / "out"), model={"speaker": True})
    lines = shown(config)
    assert lines["init_from"] == f"{tmp_path / 'out'}, sha256 {export_sha256(tmp_path / 'out')[:12]}"
    assert "had no speaker input" in lines[""]
    with pytest.raises(UserError, match=r"is not the model of this run: model\.group differs"):
        run_table(prepare_run(tiny_config(place, init_from=str(tmp_path / "out"), model={"group": 3}), World(size=1)))


def test_a_run_that_has_begun_is_checked_like_its_next_start(place: Path, tmp_path: Path) -> None:
    config = tiny_config(place, tmp_path / "run")
    (runs.root(tmp_path / "run") / runs.name(4)).mkdir(parents=True)
    checkpoint.finish(tmp_path / "run", 4, {"facts": prepare_run(config, World()).facts})
    assert shown(config)["run_dir"] == f"{tmp_path / 'run'}, continues at step 4"
    with pytest.raises(UserError, match="seed has changed"):
        run_table(prepare_run(config.model_copy(update={"seed": 1}), World(size=1)))
    (runs.root(tmp_path / "run") / runs.name(6)).mkdir()
    checkpoint.finish(tmp_path / "run", 6, {})
    with pytest.raises(UserError, match="is not the marker of a checkpoint"):
        shown(config)
    patient = config.model_copy(update={"on_damaged_checkpoint": "previous"})
    assert shown(patient)["run_dir"] == f"{tmp_path / 'run'}, continues at step 4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"global_rows": 5}, "must equal global_rows exactly"),
        ({"base": "nowhere"}, "no such model directory"),
        ({"deepspeed": "nowhere"}, "no file of this name comes with slmkit"),
        ({"data": {"corpus": "nowhere"}}, "holds no finished corpus"),
    ],
)
def test_what_training_refuses_is_refused(place: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_table(prepare_run(tiny_config(place, **change), World(size=2)))


def test_the_model_of_qwen_is_counted_without_its_weights(place: Path) -> None:
    """Qwen2.5-0.5B has 494.03 M parameters, of which 136.13 M are embeddings of 151936 rows."""
    codec = prepare_run(tiny_config(place), World()).codec
    config = config_on_base(place / "base", codec=codec)
    sizes = {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "layer_types": ["full_attention"] * 24,
    }
    config.backbone = {**(config.backbone or {}), **sizes}
    counts = parameters(config)
    assert counts["embeddings"] == 151936 * 896
    assert sum(counts.values()) == 494_032_768
