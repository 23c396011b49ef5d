"""Everything a run is decided by before its first step: examples, vocabulary, batch, length.

All of it comes from files every process sees, so each finds the same values and the same errors by itself. What takes
long to compute from them (lengths of examples, steps of an epoch) lies in a cache.

Invariant: `facts` hold all that a checkpoint's meaning depends on; a run continues only a checkpoint with equal facts,
but for the number of processes.

Example:
    run = prepare(config, World.from_env())
    for step in run.walk(done_steps=250, cursor=saved):
        ...
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from slmkit.codec.base import CodecSpec
from slmkit.config.load import to_dict
from slmkit.config.run_dir import CACHE
from slmkit.config.train import TrainConfig
from slmkit.data.examples import ExampleFormat, TrainingData, describe_left_out
from slmkit.data.remote import ShardCache
from slmkit.data.sources import Source, common_codec, open_source
from slmkit.data.steps import Cursor, PlannedStep, Steps
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.files import read_json, write_json
from slmkit.log import get_logger
from slmkit.model.config import SpeechLMConfig
from slmkit.model.pretrained import base_layout, check_export, config_on_base, weights_sha256
from slmkit.train.metrics import term_names
from slmkit.train.settings import deepspeed_settings, precision
from slmkit.world import BatchSplit, World

logger = get_logger(__name__)
FIXED = ("seed", "global_rows")  # options of the run that a resumed run must share, besides all of `model`
ELASTIC = ("processes",)  # facts that may change: `elastic` bridges them
FIXED_DATA = ("row_tokens", "eval_share", "shuffle_shards")
T = TypeVar("T")
InFirst = Callable[[Callable[[], None]], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A checked run."""

    config: TrainConfig
    world: World
    split: BatchSplit
    settings: dict[str, Any]  # for DeepSpeed
    layout: VocabLayout
    codec: CodecSpec
    model: SpeechLMConfig
    changes: tuple[str, ...]  # what differs from the model of init_from, a sentence each
    data: TrainingData
    held_out: TrainingData | None
    steps: Steps
    total_steps: int
    facts: dict[str, Any]

    @property
    def directory(self) -> Path:
        return Path(self.config.run_dir)

    @property
    def terms(self) -> list[str]:
        """Names of the loss terms."""
        return term_names([letter for letter, _, _ in self.layout.streams], self.config.model.group)

    def walk(self, done_steps: int, cursor: Cursor | None = None) -> Iterator[PlannedStep]:
        """The steps a run that has taken `done_steps` still takes.

        With the `cursor` that was stored beside `done_steps` they are found at once; without, or with a foreign one, by
        planning all steps before.
        """
        return itertools.islice(self.steps.walk(done_steps, cursor), self.total_steps - done_steps)

    def cursor(self, done_steps: int) -> Cursor:
        """What `walk` finds the step after `done_steps` with; JSON. Known for the steps that `walk` has passed."""
        return self.steps.cursor(done_steps)


def prepare(config: TrainConfig, world: World, in_first: InFirst | None = None) -> Run:
    """Check the configuration against files and world. Raises UserError naming what does not fit.

    `in_first`, where several processes call this together, runs work in the first one while the others wait: the tables
    in the cache are built once.
    """
    split = BatchSplit(global_rows=config.global_rows, micro_rows=config.micro_rows, world_size=world.size)
    settings = deepspeed_settings(config, split)
    tokenizer = TextTokenizer.load(config.base)
    sources = open_sources(config)
    codec = common_codec(sources)
    layout = run_layout(config, tokenizer, codec)
    model = config_on_base(config.base, codec=codec, **to_dict(config.model))
    changes = [] if config.init_from is None else check_export(config.init_from, model, base_dir=config.base)

    def decide() -> tuple[TrainingData, TrainingData | None, Steps, int]:
        data, held_out = _examples(config, sources, tokenizer, layout)
        steps = _steps(config, data)
        return data, held_out, steps, _total_steps(config, steps)

    if in_first is not None:
        in_first(lambda: _report(config, decide()))
    decided = decide()
    if in_first is None:
        _report(config, decided)
    data, held_out, steps, total_steps = decided
    return Run(
        config=config,
        world=world,
        split=split,
        settings=settings,
        layout=layout,
        codec=codec,
        model=model,
        changes=tuple(changes),
        data=data,
        held_out=held_out,
        steps=steps,
        total_steps=total_steps,
        facts={**known_facts(config, settings, sources, layout), "processes": world.size},
    )


def open_sources(config: TrainConfig) -> list[Source]:
    """The sources of the run. Raises UserError when one is missing, or their codecs or the eval_corpus's differ."""
    sources = [open_configured(config, source.path, source.task) for source in config.data.all_sources]
    if config.data.eval_corpus is not None:
        common_codec([*sources, open_configured(config, config.data.eval_corpus, config.data.all_sources[0].task)])
    return sources


def open_configured(config: TrainConfig, path: str, task: str) -> Source:
    """A source, read as the config says. Raises UserError when it is missing or of another kind."""
    data = config.data
    cache = ShardCache(Path(data.shard_cache), int(data.shard_cache_gib * 2**30)) if data.shard_cache else None
    return open_source(path, task, cache)


def run_layout(config: TrainConfig, tokenizer: TextTokenizer, codec: CodecSpec) -> VocabLayout:
    """The vocabulary of the run's model. Raises UserError when its group size does not fit the codec."""
    layout = base_layout(tokenizer, codec, config.model.group)
    if config.model.group % layout.num_streams:
        raise UserError(
            "model.group does not fit the codec",
            got=config.model.group,
            expected=f"0 or a multiple of its {layout.num_streams} streams",
        )
    return layout


def known_facts(
    config: TrainConfig, settings: dict[str, Any], sources: Sequence[Source], layout: VocabLayout
) -> dict[str, Any]:
    """The facts of a run but for those of its processes."""
    # Only where there are such voices, so that checkpoints from before they could be named go on.
    unseen = {"unseen_speakers": list(config.data.unseen_speakers)} if config.data.unseen_speakers else {}
    return {
        "vocabulary": layout.sha256,
        "codec": common_codec(sources).sha256,
        "data.sources": [
            {
                "sha256": source.fingerprint,
                "task": given.task,
                "weight": given.weight,
                "max_samples": given.max_samples,
                **unseen,
            }
            for source, given in zip(sources, config.data.all_sources, strict=True)
        ],
        "precision": precision(settings),
        "init_from": None if config.init_from is None else weights_sha256(config.init_from),
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


def steps_of_epoch(run: Run, epoch: int) -> int:
    """Optimizer steps of an epoch, counted by planning it."""
    return -(-run.steps.plan.num_rows(epoch) // run.steps.global_rows)


def _examples(
    config: TrainConfig, sources: Sequence[Source], tokenizer: TextTokenizer, layout: VocabLayout
) -> tuple[TrainingData, TrainingData | None]:
    """Training and held-out examples."""

    def opened(source: Source, task: str, **options: Any) -> TrainingData:
        form = ExampleFormat(task=task, group=config.model.group, speaker=config.model.speaker)
        options = {"cache_dir": cache, "on_damage": config.data.on_damage, **options}
        return TrainingData.open(source, tokenizer, layout, form, **options)

    cache = config.data.length_cache or Path(config.run_dir) / CACHE
    given = config.data.all_sources
    data = TrainingData.joined(
        [
            opened(source, g.task, weight=g.weight, max_samples=g.max_samples)
            for source, g in zip(sources, given, strict=True)
        ]
    )
    if config.data.exclude_speakers:
        data, _ = data.split_speakers(config.data.exclude_speakers)
    if config.data.eval_speakers:
        return data.split_speakers(config.data.eval_speakers)
    if config.data.eval_share:
        return data.split(config.data.eval_share)
    if config.data.eval_corpus is not None:
        return data, opened(open_configured(config, config.data.eval_corpus, given[0].task), given[0].task)
    return data, None


def _steps(config: TrainConfig, data: TrainingData) -> Steps:
    row_tokens, shuffle_shards = config.data.row_tokens, config.data.shuffle_shards
    plan = data.plan(seed=config.seed, row_tokens=row_tokens, shuffle_shards=shuffle_shards)
    facts = repr((data.fingerprint, config.seed, row_tokens, shuffle_shards))
    name = hashlib.sha256(facts.encode()).hexdigest()
    return Steps(plan, config.global_rows, name)


def _total_steps(config: TrainConfig, steps: Steps) -> int:
    """Length of the run. That of epochs is counted by planning them, once: `RUN/cache` keeps it."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None, "one of the two is given"
    rows = [
        _cached(config, f"rows-{steps.name[:24]}-{epoch}", functools.partial(steps.plan.num_rows, epoch))
        for epoch in range(config.epochs)
    ]
    return sum(-(-number // config.global_rows) for number in rows)


def _report(config: TrainConfig, decided: tuple[TrainingData, TrainingData | None, Steps, int]) -> None:
    """Warn of the samples that are left out. Raises UserError when nothing is left to train on."""
    data, held_out, *_ = decided
    for remark in (part.source.remark for part in data.parts):
        if remark:
            logger.warning(remark)
    row_tokens = config.data.row_tokens
    for part in (held_out, data):
        if part is not None:
            name = f"left-out-{part.fingerprint[:24]}-{row_tokens}"
            left_out = _cached(config, name, functools.partial(part.left_out, row_tokens))
            for line in describe_left_out(left_out):
                logger.warning(line)
    if sum(left_out["counts"].values()) == len(data):
        raise UserError(
            "there is nothing to train on",
            got=f"{len(data)} samples, {left_out['counts']['too long']} of them longer than a row",
            next_step="raise data.row_tokens, lower data.eval_share, or give a larger corpus",
        )


def _cached(config: TrainConfig, name: str, make: Callable[[], T]) -> T:
    """What `make` gives, JSON, kept under `name` in the run's cache."""
    path = Path(config.run_dir) / CACHE / f"{name}.json"
    try:
        value: T = read_json(path)
    except UserError:  # there is none, or it is damaged
        value = make()
        write_json(path, value, replace=True)
    return value
