"""Every recipe and every DeepSpeed file, dry-run as shipped: tiny data lies under the names that the recipes give."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import WORDS, codec_spec, write_corpus, write_samples

from slmkit.cli.main import main
from slmkit.config.load import load_config, read_yaml, to_dict
from slmkit.config.train import TrainConfig
from slmkit.data.shards import Sample
from slmkit.model.init_base import init_base
from slmkit.model.pretrained import extended_tokenizer, from_base, save

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.yaml"))
DS_CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))
PROCESSES = 8
WITHOUT_CODEC = ["codec=null", "speak_every_steps=0"]
LONG_FRAMES, LONG_WORDS = 30 * 80, 90  # 30 s of fast speech


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with `data` and `models`."""
    site = tmp_path_factory.mktemp("site")
    init_base([" ".join(WORDS)] * 3, site / "models" / "Qwen2.5-0.5B", hidden_size=16, num_layers=1, vocab_size=400)
    for seed, name in enumerate(("libritts_dev", "emilia")):
        write_corpus(site / "data" / name, 8, seed=seed)
    write_samples(site / "data" / "libritts", [sample(0, LONG_FRAMES, LONG_WORDS), sample(1, 30, 4)], codec_spec())
    for name in ("roletriviaqa", "roletriviaqa_validation"):
        write_samples(site / "data" / name, [sample(i, 30, 4, question="Who froze?") for i in range(8)], codec_spec())
    turns = [{"from": "human", "value": "Who froze?"}, {"from": "gpt", "value": "The river."}]
    lines = [json.dumps({"id": str(i), "conversations": turns}) for i in range(8)]
    (site / "data" / "conversations.jsonl").write_text("\n".join(lines) + "\n")
    pretrain = load_config(TrainConfig, ROOT / "launch" / "recipes" / "emilia_libritts_pretrain.yaml")
    base = site / pretrain.base
    model = from_base(base, codec=codec_spec(), **to_dict(pretrain.model))
    save(model, site / "models" / "pretrained", tokenizer=extended_tokenizer(base, model.layout))
    return site


def sample(number: int, num_frames: int, num_words: int, **columns: str) -> Sample:
    rng = np.random.default_rng(number)
    codes = rng.integers(0, 16, (3, num_frames)).astype(np.uint16)
    text = " ".join(rng.choice(WORDS, num_words))
    meta = {"text": text, "speaker": "s", "language": "en", "seconds": num_frames / 80, "source": "", **columns}
    return Sample(f"utterance-{number:04d}", codes, rng.standard_normal(8).astype(np.float32), meta)


def dry_run(recipe: Path, *changes: str) -> int:
    command = ["train", "--config", str(recipe), "--dry-run", "--processes", str(PROCESSES)]
    return main([*command, *WITHOUT_CODEC, *changes])


def test_there_are_recipes_and_deepspeed_files() -> None:
    names = {path.stem for path in RECIPES}
    assert {f"libritts_{kind}" for kind in ("ntp", "mtp3", "mtp6", "mtp12", "mtp12_speaker")} < names
    assert {"emilia_libritts_pretrain", "roletriviaqa_finetune"} < names
    assert {"zero1_fp32", "zero2_bf16", "zero2_offload_bf16"} < {path.stem for path in DS_CONFIGS}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_dry_run(
    site: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """30 s of speech fit a row, too."""
    monkeypatch.chdir(site)
    code = dry_run(recipe)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "longer than a row" not in shown.err
    for source in load_config(TrainConfig, recipe).data.all_sources:
        assert f"{source.path} ({source.task}" in shown.out
    rows = (line.split(maxsplit=1) for line in shown.out.splitlines())
    lines = {row[0]: row[1] for row in rows if len(row) == 2}  # a wrapped line may hold one word
    assert lines["run_dir"] == f"runs/{recipe.stem}, starts at step 0"
    assert f"* {PROCESSES} processes =" in lines["batch"]
    assert lines["deepspeed"] == "zero2_bf16: ZeRO-2, bf16"
    assert ("init_from" in lines) == (recipe.stem == "roletriviaqa_finetune")


@pytest.mark.parametrize("ds_config", DS_CONFIGS, ids=lambda path: path.stem)
def test_every_deepspeed_file_is_dry_run(
    site: Path, ds_config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(site)
    assert dry_run(ROOT / "launch" / "recipes" / "libritts_mtp12.yaml", f"deepspeed={ds_config}") == 0
    stage, number_format = ds_config.stem[len("zero")], ds_config.stem.rsplit("_")[-1]
    assert f"{ds_config}: ZeRO-{stage}, {number_format}" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_how_to_start_it(recipe: Path) -> None:
    head = recipe.read_text().split("\nrun_dir:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    for start in ("--dry-run", "launch/train.sh", "launch/train.sbatch"):
        assert start in head
    named = [word for word in head.split() if word.startswith(("launch/", "CONFIG="))]
    assert all(word.removeprefix("CONFIG=") in (path_of(recipe), *SCRIPTS) for word in named), named
    values: dict[str, Any] = read_yaml(recipe)
    assert values["run_dir"] == f"runs/{recipe.stem}"


SCRIPTS = ("launch/train.sh", "launch/train.sbatch")


def path_of(recipe: Path) -> str:
    return recipe.relative_to(ROOT).as_posix()
