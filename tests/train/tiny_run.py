"""A directory with a tiny base model and corpus, and run configs on them, for tests that start no training."""

from pathlib import Path
from typing import Any

from synthetic import WORDS, write_corpus
from train.ranks import ROOT

from slmkit.config.load import from_dict
from slmkit.config.train import TrainConfig
from slmkit.model.init_base import init_base


def make_tiny(directory: Path) -> Path:
    """`directory` with `corpus` and `base` in it."""
    write_corpus(directory / "corpus", 20, frames=(4, 12))
    init_base(WORDS, directory / "base", hidden_size=16, num_layers=1, vocab_size=280)
    return directory


def tiny_config(place: Path, run_dir: Path | None = None, **change: Any) -> TrainConfig:
    """A run in `run_dir` (default: place/run) on what `make_tiny` made in `place`, with other options changed."""
    values: dict[str, Any] = {
        "run_dir": str(run_dir or place / "run"),
        "base": str(place / "base"),
        "deepspeed": str(ROOT / "ds_configs" / "zero2_fp32.json"),
        "data": {"corpus": str(place / "corpus"), "row_tokens": 160, **change.pop("data", {})},
        "steps": 50,
        "global_rows": 4,
    }
    return from_dict(TrainConfig, {**values, **change})
