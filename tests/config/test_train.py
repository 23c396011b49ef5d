"""The run config: every impossible value is reported, all of them at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from slmkit.config.load import Config, describe_options, from_dict
from slmkit.config.tokenize import ImportConfig, TokenizeConfig
from slmkit.config.train import ScheduleConfig, TrainConfig, load_run
from slmkit.errors import ConfigError

MINIMAL: dict[str, Any] = {"run_dir": "r", "base": "b", "deepspeed": "d.json", "data": {"corpus": "c"}, "steps": 10}

WRONG = [
    ({"model": {"group": 999_999_999}}, "model.group: got 999999999, expected a whole number, 0 to 1024"),
    ({"steps": None, "epochs": 10**9}, "epochs: got 1000000000, expected a whole number, 1 to 100000"),
    ({"data": {"row_tokens": 0}}, "data.row_tokens: got 0, expected a whole number, at least 1"),
    ({"data": {"num_workers": -1}}, "data.num_workers: got -1, expected a whole number, 0 to 1024"),
    ({"data": {"num_workers": 10**6}}, "data.num_workers: got 1000000, expected a whole number, 0 to 1024"),
    ({"data": {"eval_share": 1.0}}, "data.eval_share: got 1.0, expected a number, 0 to below 1"),
    ({"data": {"eval_share": 0.1, "eval_corpus": "e"}}, "data.eval_corpus, eval_share: got a corpus and a share"),
    ({"data": {"eval_share": 0.1, "eval_speakers": ["v"]}}, "data.eval_speakers: got voices and an eval_share"),
    ({"data": {"eval_corpus": "e", "eval_speakers": ["v"]}}, "data.eval_speakers: got voices and an eval_share or"),
    (
        {"data": {"eval_speakers": ["v", "w"], "exclude_speakers": ["w"]}},
        "data.eval_speakers, exclude_speakers: got ['w'] in both",
    ),
    ({"data": {"exclude_speakers": [""]}}, "data.exclude_speakers[0]: got '', expected a name"),
    ({"data": {"task": "sing"}}, "data.task: got 'sing', expected one of 'tts', 'asr'"),
    ({"data": {"corpus": None}}, "data.corpus, sources: got neither, expected one of the two"),
    ({"data": {"sources": [{"path": "p"}]}}, "data.corpus, sources: got both, expected one of the two"),
    ({"data": {"corpus": None, "sources": [{"path": "p"}], "task": "asr"}}, "data.sources, task, max_samples: got"),
    ({"data": {"corpus": None, "sources": [{"path": "p"}], "max_samples": 9}}, "data.sources, task, max_samples: got"),
    ({"data": {"sources": [{"path": "p", "weight": 0}]}}, "data.sources[0].weight: got 0, expected a number, more"),
    ({"data": {"sources": [{"path": "p", "max_samples": 0}]}}, "data.sources[0].max_samples: got 0"),
    ({"data": {"shard_cache_gib": 0}}, "data.shard_cache_gib: got 0, expected a number of GiB, more than 0"),
    ({"data": {"shuffle_shards": 0}}, "data.shuffle_shards: got 0, expected a whole number, at least 1, or null"),
    ({"model": {"group": -3}}, "model.group: got -3, expected a whole number, 0 to 1024"),
    ({"model": {"text_loss_weight": 2}}, "model.text_loss_weight: got 2, expected a number, 0 to 1"),
    ({"model": {"group": 3, "softmax": "stream"}}, "model.softmax, group: got 'stream' with group > 0"),
    ({"optimizer": {"lr": 0}}, "optimizer.lr: got 0, expected a number, more than 0"),
    ({"optimizer": {"lr": float("nan")}}, "optimizer.lr: got nan, expected a number, more than 0"),
    ({"optimizer": {"betas": [0.9]}}, "optimizer.betas: got [0.9], expected a list of two numbers"),
    ({"optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas[1]: got 1.0, expected a number, 0 to below 1"),
    ({"optimizer": {"eps": 0}}, "optimizer.eps: got 0, expected a number, more than 0"),
    ({"optimizer": {"weight_decay": -1}}, "optimizer.weight_decay: got -1, expected a number, at least 0"),
    ({"optimizer": {"clip_norm": -1}}, "optimizer.clip_norm: got -1, expected a number, at least 0"),
    ({"schedule": {"kind": "square"}}, "schedule.kind: got 'square'"),
    ({"schedule": {"warmup_share": 2}}, "schedule.warmup_share: got 2, expected a number, 0 to 1"),
    ({"schedule": {"warmup_steps": -1}}, "schedule.warmup_steps: got -1, expected a whole number, at least 0"),
    ({"schedule": {"min_lr_share": 2}}, "schedule.min_lr_share: got 2, expected a number, 0 to 1"),
    ({"seed": -1}, "seed: got -1, expected a whole number, at least 0"),
    ({"steps": 0}, "steps: got 0, expected a whole number, at least 1"),
    ({"steps": None}, "steps, epochs: got neither, expected one of the two"),
    ({"epochs": 1}, "steps, epochs: got both, expected one of the two"),
    ({"speak_every_steps": 5}, "codec, speak_every_steps: got no codec"),
    ({"global_rows": 0}, "global_rows: got 0, expected a whole number, at least 1"),
    ({"micro_rows": 0}, "micro_rows: got 0, expected a whole number, at least 1"),
    ({"keep_last": 0}, "keep_last: got 0, expected a whole number, at least 1"),
    ({"log_every_steps": 0}, "log_every_steps: got 0, expected a whole number, at least 1"),
    ({"save_every_steps": 0}, "save_every_steps: got 0, expected a whole number, at least 1"),
    ({"eval_every_steps": 0}, "eval_every_steps: got 0, expected a whole number, at least 1"),
    ({"speak_every_steps": -1}, "speak_every_steps: got -1, expected a whole number, at least 0"),
    ({"save_every_minutes": 0}, "save_every_minutes: got 0, expected a number of minutes, more than 0"),
    ({"keep_every_steps": -1}, "keep_every_steps: got -1, expected a whole number, at least 0"),
    ({"on_save_error": "cry"}, "on_save_error: got 'cry', expected one of 'stop', 'continue'"),
    ({"max_skipped_steps": -1}, "max_skipped_steps: got -1, expected a whole number, at least 0"),
    ({"hang_timeout_sec": -1}, "hang_timeout_sec: got -1, expected a number of seconds, at least 0"),
    ({"peak_tflops": 0}, "peak_tflops: got 0, expected a number of TFLOP/s, more than 0"),
    ({"compile": 1}, "compile: got 1, expected true or false"),
    ({"compile": True, "fused_kernels": True}, "compile, fused_kernels: got both, expected one"),
    ({"lr": 1}, "lr: unknown key; did you mean optimizer.lr?"),
]


def merged(change: dict[str, Any]) -> dict[str, Any]:
    nested = {key: {**MINIMAL.get(key, {}), **value} for key, value in change.items() if isinstance(value, dict)}
    return {**MINIMAL, **change, **nested}


@pytest.mark.parametrize(("change", "line"), WRONG, ids=[line.split(",")[0] for _, line in WRONG])
def test_an_impossible_value_is_named(change: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(TrainConfig, merged(change))
    assert any(problem.startswith(line) for problem in caught.value.problems), caught.value.problems


def test_all_problems_come_at_once() -> None:
    """Those of single values and those of values that do not fit together."""
    wrong = {"optimizer": {"lr": 0, "eps": 0}, "schedule": {"warmup_share": -1}, "epochs": 1, "data": {"corpus": None}}
    with pytest.raises(ConfigError, match="5 problems"):
        from_dict(TrainConfig, merged(wrong))


def test_the_minimal_config_is_enough() -> None:
    assert from_dict(TrainConfig, MINIMAL).optimizer.lr == 5e-4


def test_what_else_is_wrong_is_said_where_required_options_are_missing() -> None:
    with pytest.raises(ConfigError, match="6 problems"):
        from_dict(TrainConfig, {"epochs": 1, "steps": 2, "model": {"group": 3, "softmax": "stream"}, "data": 3})
    with pytest.raises(ConfigError, match="3 problems"):
        from_dict(ImportConfig, {"source": 3})


@pytest.mark.parametrize("kind", [TrainConfig, TokenizeConfig, ImportConfig])
def test_every_option_has_a_meaning(kind: type[Config]) -> None:
    assert [line for line in describe_options(kind) if line.startswith(" ") and "  None [" in line] == []


@pytest.mark.parametrize(
    ("given", "expected"), [((0.03, None), 3), ((0.025, None), 3), ((0.5, 7), 7), ((0.0, None), 0)]
)
def test_warmup_is_a_share_or_steps(given: tuple[float, int | None], expected: int) -> None:
    assert ScheduleConfig(warmup_share=given[0], warmup_steps=given[1]).num_warmup(100) == expected


def test_a_deepspeed_file_is_found_beside_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory comes first; a name stays a name."""
    (tmp_path / "site" / "ds").mkdir(parents=True)
    (tmp_path / "site" / "ds" / "own.json").write_text("{}")
    config = tmp_path / "site" / "run.yaml"
    config.write_text(yaml.safe_dump({**MINIMAL, "deepspeed": "ds/own.json"}))
    monkeypatch.chdir(tmp_path)
    assert load_run(config).deepspeed == str(tmp_path / "site" / "ds" / "own.json")
    monkeypatch.chdir(tmp_path / "site")
    assert load_run("run.yaml").deepspeed == "ds/own.json"
    assert load_run("run.yaml", ["deepspeed=zero2_bf16"]).deepspeed == "zero2_bf16"
