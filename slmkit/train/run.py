"""Everything a run is decided by before the first process starts DeepSpeed: examples, vocabulary, batch, length.

All of it comes from files every process sees, so each finds the same values and the same errors by itself.

Invariant: `facts` hold all that a checkpoint's meaning depends on; a run continues only a checkpoint with equal facts,
but for the number of processes.

Example:
    run = prepare(config, World.from_env())
    run.total_steps, run.position(total_steps=250)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmkit.codec.base import CodecSpec
from slmkit.config.load import to_dict
from slmkit.config.run_dir import CACHE
from slmkit.config.train import TrainConfig
from slmkit.data.index import Corpus
from slmkit.data.loader import ExampleFormat, TrainingData, report_too_long
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.log import get_logger
from slmkit.model.pretrained import base_layout
from slmkit.train.metrics import term_names
from slmkit.train.settings import deepspeed_settings, precision
from slmkit.world import BatchSplit, World

logger = get_logger(__name__)
FIXED = ("seed", "global_rows")  # options of the run that a resumed run must share, besides all of `model`
ELASTIC = ("processes",)  # facts that may change: `elastic` bridges them
FIXED_DATA = ("task", "row_tokens", "max_samples", "eval_share")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A checked run."""

    config: TrainConfig
    world: World
    split: BatchSplit
    settings: dict[str, Any]  # for DeepSpeed
    layout: VocabLayout
    codec: CodecSpec
    data: TrainingData
    held_out: TrainingData | None
    total_steps: int
    facts: dict[str, Any]

    @property
    def directory(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def terms(self) -> list[str]:
        """Names of the loss terms."""
        return term_names([letter for letter, _, _ in self.layout.streams], self.config.model.group)

    def epochs(self, done_steps: int) -> Iterator[tuple[int, int]]:
        """(epoch, first step in it) of all epochs a run that has taken `done_steps` still goes through."""
        epoch, passed = 0, 0
        while passed < self.total_steps:
            in_epoch = steps_of_epoch(self.config, self.data, epoch)
            if done_steps < passed + in_epoch:
                yield epoch, max(0, done_steps - passed)
            passed += in_epoch
            epoch += 1


def prepare(config: TrainConfig, world: World) -> Run:
    """Check the configuration against files and world. Raises UserError naming what does not fit."""
    split = BatchSplit(global_rows=config.global_rows, micro_rows=config.micro_rows, world_size=world.size)
    settings = deepspeed_settings(config, split)
    tokenizer = TextTokenizer.load(config.base)
    corpus = Corpus.open(config.data.all_sources[0].path)
    layout = run_layout(config, tokenizer, corpus)
    data, held_out = _examples(config, corpus, tokenizer, layout)
    if config.steps is None:
        total_steps = sum(steps_of_epoch(config, data, epoch) for epoch in range(config.epochs or 0))
    else:
        total_steps = config.steps
    return Run(
        config=config,
        world=world,
        split=split,
        settings=settings,
        layout=layout,
        codec=corpus.codec,
        data=data,
        held_out=held_out,
        total_steps=total_steps,
        facts={**known_facts(config, settings, corpus, layout), "processes": world.size},
    )


def run_layout(config: TrainConfig, tokenizer: TextTokenizer, corpus: Corpus) -> VocabLayout:
    """The vocabulary of the run's model. Raises UserError when its group size does not fit the codec."""
    layout = base_layout(tokenizer, corpus.codec, config.model.group)
    if config.model.group % layout.num_streams:
        raise UserError(
            "model.group does not fit the codec",
            got=config.model.group,
            expected=f"0 or a multiple of its {layout.num_streams} streams",
        )
    return layout


def known_facts(config: TrainConfig, settings: dict[str, Any], corpus: Corpus, layout: VocabLayout) -> dict[str, Any]:
    """The facts of a run but for those of its processes."""
    return {
        "vocabulary": layout.sha256,
        "codec": corpus.codec.sha256,
        "corpus": corpus.fingerprint,
        "precision": precision(settings),
        **{name: getattr(config, name) for name in FIXED},
        **{f"data.{name}": getattr(config.data, name) for name in FIXED_DATA},
        **{f"model.{name}": value for name, value in to_dict(config.model).items()},
    }


def check_facts(facts: dict[str, Any], saved: dict[str, Any], checkpoint: Path) -> None:
    """Raise UserError naming the first fact in which a run differs from the checkpoint it would continue.

    Those in ELASTIC only have to be recorded.
    """
    for name in facts:
        if facts[name] != saved.get(name) and not (name in ELASTIC and name in saved):
            raise UserError(
                f"the run cannot continue {checkpoint}: {name} has changed",
                got=facts[name],
                expected=saved.get(name, "not recorded"),
                next_step=f"restore {name}, or start a new run with another run_dir",
            )


def steps_of_epoch(config: TrainConfig, data: TrainingData, epoch: int) -> int:
    """Optimizer steps of an epoch."""
    plan = data.plan(seed=config.seed, epoch=epoch, row_tokens=config.data.row_tokens)
    return plan.num_steps(config.global_rows)


def _examples(
    config: TrainConfig, corpus: Corpus, tokenizer: TextTokenizer, layout: VocabLayout
) -> tuple[TrainingData, TrainingData | None]:
    """Training and held-out examples."""
    form = ExampleFormat(task=config.data.task, group=config.model.group, speaker=config.model.speaker)
    cache = Path(config.run_dir) / CACHE
    data = TrainingData.open(corpus, tokenizer, layout, form, cache_dir=cache).first(config.data.max_samples)
    held_out = None
    if config.data.eval_share:
        data, held_out = data.split(config.data.eval_share)
    elif config.data.eval_corpus is not None:
        other = Corpus.open(config.data.eval_corpus)
        corpus.codec.check_compatible(other.codec, this=str(corpus.directory), that=str(other.directory))
        held_out = TrainingData.open(other, tokenizer, layout, form, cache_dir=cache)
    plan = data.plan(seed=config.seed, epoch=0, row_tokens=config.data.row_tokens)
    for part in [data] if held_out is None else [data, held_out]:
        for line in report_too_long(part, part.plan(seed=0, epoch=0, row_tokens=config.data.row_tokens)):
            logger.warning(line)
    if plan.num_rows == 0:
        raise UserError(
            "there is nothing to train on",
            got=f"{len(data)} samples, {len(plan.too_long)} of them longer than a row",
            next_step="raise data.row_tokens, lower data.eval_share, or give a larger corpus",
        )
    return data, held_out
