"""Every recipe and every DeepSpeed file, dry-run as shipped: tiny data lies under the names that the recipes give."""

import dataclasses
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codec.families import family_directory
from synthetic import WORDS, codec_spec, write_corpus, write_samples

from slmkit.cli.main import main
from slmkit.codec.open import codec_families
from slmkit.config.load import load_config, read_yaml, to_dict
from slmkit.config.train import TrainConfig
from slmkit.data.shards import Sample
from slmkit.model.init_base import init_base
from slmkit.model.pretrained import extended_tokenizer, from_base, save
from slmkit.world import BatchSplit

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "launch" / "recipes").glob("*.yaml"))
STREAMS = re.compile(r"with \w+ \((\d+) streams? at (\d+) Hz\)")
TOKENIZERS = [path for path in RECIPES if STREAMS.search(path.read_text())]  # those of one codec and any group
DS_CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))
PROCESSES = 8
POSITIONS = 16_384  # that a step gives each GPU at least
PUBLISHED_LR, HIGHEST_LR, PUBLISHED_UTTERANCES = 5e-4, 1.5e-3, 32
MEAN_SEC, TEXT_POSITIONS, FILLED = 5.94, 46, 0.98  # of LibriTTS's utterances; of rows that are packed
WITHOUT_CODEC = ["codec=null", "speak_every_steps=0"]
LONG_SEC, LONG_WORDS = 30, 90  # fast speech


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with `data` and `models`."""
    site = tmp_path_factory.mktemp("site")
    init_base([" ".join(WORDS)] * 3, site / "models" / "Qwen2.5-0.5B", hidden_size=16, num_layers=1, vocab_size=400)
    for seed, name in enumerate(("libritts_dev", "emilia")):
        write_corpus(site / "data" / name, 8, seed=seed)
    write_samples(site / "data" / "libritts", [sample(0, LONG_SEC * 80, LONG_WORDS), sample(1, 30, 4)], codec_spec())
    for recipe in TOKENIZERS:
        num_streams, rate = streams_and_rate(recipe)
        samples = [sample(0, LONG_SEC * rate, LONG_WORDS, num_streams), sample(1, 30, 4, num_streams)]
        spec = codec_spec((16,) * num_streams, speaker_dim=0)
        for name in (recipe.stem, f"{recipe.stem}_dev"):
            write_samples(site / "data" / name, [dataclasses.replace(one, speaker=None) for one in samples], spec)
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


def streams_and_rate(recipe: Path) -> tuple[int, int]:
    """What the first line of a tokenizer's recipe says."""
    found = STREAMS.search(recipe.read_text())
    assert found
    return int(found[1]), int(found[2])


def sample(number: int, num_frames: int, num_words: int, num_streams: int = 3, **columns: str) -> Sample:
    rng = np.random.default_rng(number)
    codes = rng.integers(0, 16, (num_streams, num_frames)).astype(np.uint16)
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
    tokenizers = {"encodec4", "encodec8", "wavtokenizer40", "wavtokenizer75", "bigcodec"}
    tokenizers |= {"speechtokenizer5", "speechtokenizer8"}
    assert {f"libritts_{tokenizer}" for tokenizer in tokenizers} == {path.stem for path in TOKENIZERS}
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


@pytest.mark.parametrize("recipe", TOKENIZERS, ids=lambda path: path.stem)
def test_a_tokenizer_is_dry_run_with_every_group_that_its_recipe_names(
    site: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As its comments say. 30 s of speech fit a row, and fill most of it where they are many steps."""
    monkeypatch.chdir(site)
    num_streams, rate = streams_and_rate(recipe)
    groups = {"3": "mtp3", "6": "mtp6", "0": "ntp"}
    named = other_groups(recipe)
    assert [changes[0].removeprefix("model.group=") for changes in named] == sorted(groups)
    for group, changes in zip(sorted(groups), named, strict=True):
        assert changes[2] == f"run_dir=runs/{recipe.stem}_{groups[group]}"
        code = dry_run(recipe, *changes)
        shown = capsys.readouterr()
        assert code == 0, shown.err
        assert "longer than a row" not in shown.err
        steps = LONG_SEC * rate * num_streams / max(1, int(group))
        assert steps < int(changes[1].removeprefix("data.row_tokens=")) < steps + 768


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_step_fills_the_gpus_and_is_the_same_on_fewer(recipe: Path) -> None:
    """With the rate that belongs to the batch (slmkit/model/README.md), and the published ones in a comment."""
    streams, rate = streams_and_rate(recipe) if recipe in TOKENIZERS else (3, 80)
    for changes in ([], *other_groups(recipe)):
        config = load_config(TrainConfig, recipe, changes)
        rows, row_tokens, group = config.global_rows, config.data.row_tokens, max(1, config.model.group)
        for processes in (8, 4, 2, 1):
            split = BatchSplit(global_rows=rows, micro_rows=config.micro_rows, world_size=processes)
            assert split.micro_rows * split.accumulation * row_tokens >= POSITIONS * PROCESSES // processes
        assert config.micro_rows * row_tokens < 2 * POSITIONS, "more than 80 GB may not hold"
        if recipe.stem.startswith("libritts"):
            per_utterance = TEXT_POSITIONS + MEAN_SEC * streams * rate / group
            batch = FILLED * rows * row_tokens / per_utterance / PUBLISHED_UTTERANCES
            lr = min(HIGHEST_LR, PUBLISHED_LR * math.sqrt(batch))
            assert config.optimizer.lr == pytest.approx(lr, abs=0.6e-4), changes
    assert "global_rows=8 micro_rows=1 optimizer.lr=" in " ".join(recipe.read_text().replace("\n# ", " ").split())
    assert config.save_every_minutes == 30


def other_groups(recipe: Path) -> list[list[str]]:
    """The options that a tokenizer's recipe names for other numbers of tokens a step."""
    lines = recipe.read_text().splitlines()
    return [shlex.split(line[1:]) for line in lines if line.startswith("#   model.group=")]


@pytest.mark.parametrize("recipe", TOKENIZERS, ids=lambda path: path.stem)
def test_a_tokenizer_is_added_from_where_it_is_published(recipe: Path) -> None:
    num_streams, rate = streams_and_rate(recipe)
    presets = [preset for family in codec_families().values() for preset in family.presets]
    lines = [line for line in recipe.read_text().splitlines() if line.startswith("#   slmkit codec add")]
    rates, readme = set(), (ROOT / "README.md").read_text()
    for line in lines:
        _, _, source, out, *more = shlex.split(line[1:], comments=True)[1:]
        repository = source.split(":")[0]
        known = [preset for preset in presets if preset.name.split()[0] == repository]
        assert known, f"slmkit codec list has no {repository}"
        rates |= {preset.sample_rate / preset.hop_samples for preset in known}
        assert out == read_yaml(recipe)["codec"]
        assert f"`{' '.join([source, out, *more])}` | {num_streams} x {rate} | `{recipe.stem}` |" in readme
        assert more == (["--streams", str(num_streams)] if num_streams > 1 else [])
    assert rate in rates
    assert f"LIBRITTS {out} {read_yaml(recipe)['data']['corpus']}\n" in recipe.read_text()


@pytest.mark.full
@pytest.mark.parametrize(
    ("tokenizer", "kind"),
    [
        ("encodec4", "encodec"),
        ("wavtokenizer75", "wavtokenizer"),
        ("bigcodec", "bigcodec"),
        ("speechtokenizer5", "speechtokenizer"),
    ],
)
def test_recordings_become_shards_that_the_recipe_takes(
    site: Path, tmp_path: Path, tokenizer: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tiny codec of the kind, by the commands in the recipe's comments."""
    monkeypatch.chdir(site)
    recipe = next(path for path in TOKENIZERS if path.stem == f"libritts_{tokenizer}")
    recordings, corpus = ROOT / "tokenize_jobs" / "sample_corpus" / "11", tmp_path / "corpus"
    command = ["tokenize", "run", "--config", str(ROOT / "tokenize_jobs" / "libritts.yaml")]
    assert main([*command, str(recordings), str(family_directory(kind)), str(corpus)]) == 0
    changes = f"data.corpus={corpus}", f"data.eval_corpus={corpus}"
    assert dry_run(recipe, *changes) == 0
    assert dry_run(recipe, *changes, "model.group=0", "data.row_tokens=8192") == 0


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
