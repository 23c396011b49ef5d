"""What is fixed before the first step of a run: examples, vocabulary, batch, length.

All of it comes from files every process sees, so each finds the same values and the same errors by itself. What takes
long to compute from them (lengths of examples, steps of an epoch) lies in a cache. `slmkit train --dry-run` prints it,
in one process and for any number of them: no weights are read then, no device is needed, and nothing is written but
that cache.

Invariant: `facts` hold all that a checkpoint's meaning depends on; a run continues only a checkpoint with equal facts,
but for the number of processes.

Example:
    run = prepare_run(config, World.from_env())
    for step in run.walk(done_steps=250, cursor=saved):
        ...
"""

import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from slmkit.codec.base import CodecSpec
from slmkit.config import run_dir
from slmkit.config.load import to_dict
from slmkit.config.run_dir import CACHE
from slmkit.config.train import TrainConfig
from slmkit.data.examples import SCANNED, ExampleFormat, TrainingData, describe_left_out
from slmkit.data.prompt import prompt_sha256
from slmkit.data.remote import ShardCache
from slmkit.data.sources import Source, common_codec, open_source
from slmkit.data.steps import Cursor, PlannedStep, Steps
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.files import code_sha256, read_json, versions, write_json
from slmkit.group import check_equal, in_first
from slmkit.log import get_logger
from slmkit.model.config import SpeechLMConfig
from slmkit.model.pretrained import base_layout, check_export, config_on_base, export_sha256
from slmkit.model.slm import SpeechLM
from slmkit.train.changes import by_name, changes_since
from slmkit.train.evaluation import term_names
from slmkit.train.settings import Attempts, deepspeed_settings, precision
from slmkit.world import BatchSplit, World

if TYPE_CHECKING:
    from slmkit.infer.samples import SpeechSamples

logger = get_logger(__name__)
FIXED = ("seed", "global_rows")  # options of the run that a resumed run must share, besides all of `model`
ADDED = ("prompts",)  # facts that checkpoints of earlier versions do not have
ELASTIC = ("processes",)  # facts that may change: a checkpoint can be loaded by any number of processes
FIXED_DATA = ("row_tokens", "eval_share", "shuffle_shards")
PARTS = {  # the first prefix that fits a parameter names its part
    "lm_model.model.embed_tokens.": "embeddings",
    "lm_model.lm_head.": "embeddings",
    "lm_model.": "backbone",
    "fusion.": "fusion",
    "speech_heads.": "heads",
    "spk_emb_proj.": "projector",
}
OPTIMIZER_BYTES = 12  # of a parameter in a checkpoint: float32 weight and two moments
WEIGHT_BYTES = {"bf16": 2, "fp32": 4}  # of a parameter in a checkpoint, beside the optimizer's
T = TypeVar("T")


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
    speech: "SpeechSamples | None"  # what speaks for TensorBoard; in the first process
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
        return itertools.islice(self.steps.walk(done_steps, cursor), max(0, self.total_steps - done_steps))

    def cursor(self, done_steps: int) -> Cursor:
        """What `walk` finds the step after `done_steps` with; JSON. Known for the steps that `walk` has passed."""
        return self.steps.cursor(done_steps)


def prepare_run(config: TrainConfig, world: World) -> Run:
    """Check the configuration against files and world. All processes call it; the first one fills the cache.

    Raises UserError naming what does not fit, ConfigError where several things do not.
    """
    tried = Attempts()
    split = tried(BatchSplit, global_rows=config.global_rows, micro_rows=config.micro_rows, world_size=world.size)
    settings = tried(deepspeed_settings, config, split)
    tokenizer = tried(TextTokenizer.load, config.base_path)
    sources, eval_source = open_sources(config, tried)
    codec = tried(common_codec, sources) if sources else None
    model, changes, layout = None, None, None
    if codec is not None and tokenizer is not None:
        layout = base_layout(tokenizer, codec, config.model.group)
        model = tried(config_on_base, config.base_path, codec=codec, **to_dict(config.model))
    if model is not None:
        changes = tried(check_export, config.init_path, model, base_dir=config.base_path) if config.init_from else []
    speech = tried(speech_samples, config, world, sources)
    tried.finish()
    assert split is not None
    assert settings is not None
    assert tokenizer is not None
    assert codec is not None
    assert layout is not None
    assert model is not None
    assert changes is not None

    decide = functools.partial(_decide, config, sources, eval_source, tokenizer, layout)
    in_first(lambda: _report(config, *decide()[:2]))
    data, held_out, steps, total_steps = decide()
    warmup = config.schedule.num_warmup(total_steps)
    if warmup > total_steps and world.is_first:
        short = "the learning rate does not reach optimizer.lr: the run has %d steps, and %d of warm-up"
        logger.warning(short, total_steps, warmup)
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
        speech=speech,
        steps=steps,
        total_steps=total_steps,
        facts={**known_facts(config, settings, sources, layout), "processes": world.size},
    )


def check_agreement(config: TrainConfig, run: Run | None = None) -> None:
    """Raise UserError, in every process, when one of them was started for another run than the first one.

    Without `run` its options and its code are compared; with it what was found on its disk, too. (law)
    """
    step = "start every process with the same command, config files, data and installation of slmkit"
    if run is None:
        code = {"versions": versions(), "code": code_sha256()}
        check_equal("options", {**by_name(to_dict(config)), **by_name(code)}, step)
        return
    found = {
        "facts": run.facts,
        "deepspeed": run.settings,
        "model": run.model.to_dict(),
        "data": run.data.fingerprint,
        "held out": None if run.held_out is None else run.held_out.fingerprint,
        "plan": run.steps.name,
        "total steps": run.total_steps,
    }
    check_equal("files or sources", by_name(found), step)


def open_sources(config: TrainConfig, tried: Attempts) -> tuple[list[Source], Source | None]:
    """The sources of the run and that of its evaluation, if it has a corpus of its own; none when one is missing.

    Their codecs agree, or `tried` knows it.
    """
    data = config.data
    sources = [tried(open_configured, config, source.path, source.task) for source in data.all_sources]
    found = [source for source in sources if source is not None]
    eval_source = None
    if data.eval_corpus is not None:
        eval_source = tried(open_configured, config, data.eval_corpus, data.all_sources[0].task)
        if eval_source is not None and len(found) == len(sources):
            tried(common_codec, [*found, eval_source])
    if len(found) < len(sources):
        return [], None
    return found, eval_source


def open_configured(config: TrainConfig, path: str, task: str) -> Source:
    """A source, read as the config says. Raises UserError when it is missing or of another kind."""
    data = config.data
    cache = ShardCache(Path(data.shard_cache), int(data.shard_cache_gib * 2**30)) if data.shard_cache else None
    return open_source(path, task, cache)


def speech_samples(config: TrainConfig, world: World, sources: Sequence[Source]) -> "SpeechSamples | None":
    """What makes speech samples, in the first process of a run that wants them. Raises UserError as it does."""
    from slmkit.infer.samples import SpeechSamples

    spoken = [(source, given.task) for source, given in zip(sources, config.data.all_sources, strict=False)]
    spoken = [(source, task) for source, task in spoken if task != "text"]
    if config.codec is None or not config.speak_every_steps or not world.is_first or not spoken:
        return None
    source, task = spoken[0]
    return SpeechSamples(codec=config.codec_path, tokenizer=config.base_path, source=source, task=task)


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
        "prompts": {
            task: prompt_sha256(task, speaker=config.model.speaker)
            for task in sorted({given.task for given in config.data.all_sources})
        },
        "precision": precision(settings),
        "init_from": None if config.init_from is None else export_sha256(config.init_path),
        **{name: getattr(config, name) for name in FIXED},
        **{f"data.{name}": getattr(config.data, name) for name in FIXED_DATA},
        **{f"model.{name}": value for name, value in to_dict(config.model).items()},
    }


def check_facts(facts: dict[str, Any], saved: dict[str, Any], checkpoint: Path) -> None:
    """Raise UserError naming the facts in which a run differs from the checkpoint it would continue.

    Those in ELASTIC only have to be recorded, those in ADDED only to be equal where they are. The weights of sources
    may change: what that does is said by `changes_since`.
    """
    changed = [name for name in facts if _fixed(facts[name]) != _fixed(saved.get(name))]
    changed = [name for name in changed if not (name in ELASTIC and name in saved)]
    changed = [name for name in changed if name in saved or name not in ADDED]
    if changed:
        names = ", ".join(changed)
        raise UserError(
            f"the run cannot continue {checkpoint}: {names} {'has' if len(changed) == 1 else 'have'} changed",
            got="; ".join(str(facts[name]) for name in changed),
            expected="; ".join(str(saved.get(name, "not recorded")) for name in changed),
            next_step=f"restore {names}, or start a new run with another run_dir",
        )


def _fixed(fact: Any) -> Any:
    """A fact without the weights of its sources."""
    if not isinstance(fact, list):
        return fact
    return [{**part, "weight": None} if isinstance(part, dict) else part for part in fact]


def run_table(run: Run) -> list[tuple[str, str]]:
    """The run as rows of (name, value). Raises UserError when it cannot continue the checkpoint it finds."""
    config, split = run.config, run.split
    found = run_dir.newest(run.directory, skip_damaged=config.on_damaged_checkpoint == "previous")
    if found is not None:
        check_facts(run.facts, found.state["facts"], found.path)
    where = "starts at step 0" if found is None else f"continues at step {found.step}"
    rows = [("run_dir", f"{run.directory}, {where}"), ("base", config.base)]
    if found is not None:
        changes = changes_since(found.state, config, done_steps=found.step, total_steps=run.total_steps)
        rows += [("changed" if index == 0 else "", change) for index, change in enumerate(changes)]
        if found.step >= run.total_steps:
            rows.append(("", "the run is complete"))
    if config.init_from is not None:
        rows.append(("init_from", f"{config.init_from}, sha256 {run.facts['init_from'][:12]}"))
        rows += [("", change) for change in run.changes]
    number_format = precision(run.settings)
    stage = run.settings["zero_optimization"]["stage"]
    rows.append(("deepspeed", f"{config.deepspeed}: ZeRO-{stage}, {number_format}"))
    batch = f"{split.micro_rows} rows * {split.accumulation} micro-batches * {split.world_size} processes"
    rows.append(("batch", f"{batch} = {split.global_rows} rows of {config.data.row_tokens} positions"))

    model, parts = config.model, parameters(run.model)
    kind = f"MTP-{model.group}, {model.head} heads, {model.fusion} fusion" if model.group else f"NTP, {model.softmax}"
    voice = "with" if model.speaker else "without"
    rows.append(("model", f"{kind}, {voice} speaker input: {sum(parts.values()):,} parameters"))
    rows += [(f"  {part}", f"{number:,}") for part, number in parts.items() if number]

    rows += _data_rows(run)
    # The first epoch, step by step as training plans it.
    num_rows, num_positions, targets = 0, 0, np.zeros(len(run.terms))
    for step in itertools.takewhile(lambda step: step.epoch == 0, run.steps.walk(0)):
        samples = np.concatenate(step.rows)
        num_rows += sum(len(row) > 0 for row in step.rows)
        num_positions += int(run.data.lengths(samples).sum())
        targets += run.data.counts(samples)
    num_steps = -(-num_rows // config.global_rows)
    empty = 1 - num_positions / (num_rows * config.data.row_tokens)
    rows.append(("epoch", f"{num_rows} rows, {num_steps} steps, {empty:.1%} of the positions stay empty"))
    warmup = config.schedule.num_warmup(run.total_steps)
    rows.append(("steps", f"{run.total_steps} ({run.total_steps / num_steps:.2f} epochs), of them {warmup} of warm-up"))
    text, speech = targets[0] / num_steps, targets[1:].sum() / num_steps
    rows.append(("targets", f"text {text:.0f}, speech {speech:.0f} a step"))

    size_mb = checkpoint_bytes(sum(parts.values()), number_format) / 1e6
    kept = config.keep_last + (run.total_steps // config.keep_every_steps if config.keep_every_steps else 0)
    rows.append(("checkpoints", f"about {size_mb:,.1f} MB each, at most {kept} kept: {kept * size_mb:,.1f} MB"))
    return rows


def parameters(config: SpeechLMConfig) -> dict[str, int]:
    """Parameters of a model by part, counted without making them; a tied one counts once."""
    with torch.device("meta"):
        model = SpeechLM(config)
    counts = dict.fromkeys(PARTS.values(), 0)
    for name, parameter in model.named_parameters():
        counts[next(part for prefix, part in PARTS.items() if name.startswith(prefix))] += parameter.numel()
    return counts


def checkpoint_bytes(num_parameters: int, number_format: str) -> int:
    """Size of one checkpoint, of all processes together, but for DeepSpeed's bookkeeping."""
    return num_parameters * (OPTIMIZER_BYTES + WEIGHT_BYTES[number_format])


def _data_rows(run: Run) -> list[tuple[str, str]]:
    """What is trained on, held out and left out."""
    config, rows = run.config.data, []
    for name, data in [("data", run.data), ("held out", run.held_out)]:
        for part in () if data is None else data.parts:
            task = part.wording.task if part.weight == 1 else f"{part.wording.task}, weight {float(part.weight):g}"
            frames = 0
            for start in range(0, part.count, SCANNED):  # so many in memory at a time
                some = part.numbers(np.arange(start, min(start + SCANNED, part.count)))
                frames += int(part.table["frames"][some].sum(dtype=np.int64))
            hours = frames / run.codec.frame_rate / 3600
            rows.append((name, f"{part.source.path} ({task}): {part.count} examples, {hours:.2f} h"))
            name = ""
    if config.eval_speakers:
        rows.append(("", f"the voices {', '.join(config.eval_speakers)}"))
    if config.exclude_speakers:
        given = zip(run.data.parts, config.all_sources, strict=True)
        num_left_out = sum(min(len(part.source), source.max_samples or len(part.source)) for part, source in given)
        num_left_out -= len(run.data)
        if run.held_out is not None and config.eval_corpus is None:
            num_left_out -= len(run.held_out)
        rows.append(("left out", f"{num_left_out} examples of the voices {', '.join(config.exclude_speakers)}"))
    return rows


def _decide(
    config: TrainConfig,
    sources: Sequence[Source],
    eval_source: Source | None,
    tokenizer: TextTokenizer,
    layout: VocabLayout,
) -> tuple[TrainingData, TrainingData | None, Steps, int]:
    """Training and held-out examples, steps, and how many of them the run has."""
    cache = config.data.length_cache or Path(config.run_dir) / CACHE

    def opened(source: Source, task: str, **options: Any) -> TrainingData:
        form = ExampleFormat(task=task, group=config.model.group, speaker=config.model.speaker)
        options = {"cache_dir": cache, "on_damage": config.data.on_damage, **options}
        return TrainingData.open(source, tokenizer, layout, form, **options)

    given = config.data.all_sources
    data = TrainingData.joined(
        [
            opened(source, g.task, weight=g.weight, max_samples=g.max_samples)
            for source, g in zip(sources, given, strict=True)
        ]
    )
    held_out = None if eval_source is None else opened(eval_source, given[0].task)
    if config.data.exclude_speakers:
        data, _ = data.split_speakers(config.data.exclude_speakers)
    if config.data.eval_speakers:
        data, held_out = data.split_speakers(config.data.eval_speakers)
    elif config.data.eval_share:
        data, held_out = data.split(config.data.eval_share)

    row_tokens, shuffle_shards = config.data.row_tokens, config.data.shuffle_shards
    plan = data.plan(seed=config.seed, row_tokens=row_tokens, shuffle_shards=shuffle_shards)
    decisive = repr((data.fingerprint, config.seed, row_tokens, shuffle_shards))
    steps = Steps(plan, config.global_rows, hashlib.sha256(decisive.encode()).hexdigest())
    if config.steps is not None:
        return data, held_out, steps, config.steps
    assert config.epochs is not None, "one of the two is given"
    num_rows = [  # counted by planning the epochs, once
        _cached(config, f"rows-{steps.name[:24]}-{epoch}", functools.partial(plan.num_rows, epoch))
        for epoch in range(config.epochs)
    ]
    return data, held_out, steps, sum(-(-number // config.global_rows) for number in num_rows)


def _report(config: TrainConfig, data: TrainingData, held_out: TrainingData | None) -> None:
    """Warn of the samples that are left out. Raises UserError when nothing is left to train on."""
    for remark in (part.source.remark for part in data.parts):
        if remark:
            logger.warning(remark)
    row_tokens = config.data.row_tokens
    for examples in (held_out, data):
        if examples is not None:
            name = f"left-out-{examples.fingerprint[:24]}-{row_tokens}"
            left_out = _cached(config, name, functools.partial(examples.left_out, row_tokens))
            for line in describe_left_out(left_out):
                logger.warning(line)
    if sum(left_out["counts"].values()) == len(data):
        raise UserError(
            "there is nothing to train on",
            got=f"{len(data)} samples, {left_out['counts']['too long']} of them longer than a row",
            next_step="raise data.row_tokens, lower data.eval_share, or give a larger corpus",
        )


def _cached(config: TrainConfig, name: str, make: Callable[[], T]) -> T:
    """What `make` gives, JSON, kept under `name` in the run's cache; a damaged file is made again."""
    path = Path(config.run_dir) / CACHE / f"{name}.json"

    def digest(value: Any) -> str:
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "backslashreplace")).hexdigest()

    with contextlib.suppress(UserError):  # there is none, or it is not JSON
        kept = read_json(path)
        if isinstance(kept, dict) and kept.keys() == {"value", "sha256"} and kept["sha256"] == digest(kept["value"]):
            found: T = kept["value"]
            return found
    value = make()
    write_json(path, {"value": value, "sha256": digest(value)}, replace=True)
    return value
