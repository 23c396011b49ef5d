"""The start of a run, new or continued: what the checkpoint says, model, optimizer and saver, and what is written down.

Invariant: nothing of an earlier start is replaced before it is clear that this one continues it.

Example:
    found = resume_point(run)
    engine = start_engine(run, found)
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from slmkit.checkpoints import checkpoint
from slmkit.checkpoints.saver import Saver
from slmkit.checkpoints.universal import loadable, num_writers
from slmkit.config import run_dir
from slmkit.config.load import to_dict, to_yaml
from slmkit.config.run_dir import Checkpoint
from slmkit.config.train import TrainConfig
from slmkit.data.index import Corpus
from slmkit.data.rates import speech_rates
from slmkit.errors import UserError, is_out_of_memory
from slmkit.files import atomic_write, clean_parts, disk_errors_named, new_directory, provenance, write_json
from slmkit.group import from_all, from_first, in_first
from slmkit.hub import parse, source_of
from slmkit.log import get_logger
from slmkit.model.architecture import head_width
from slmkit.model.attention import Execution
from slmkit.model.companions import choose_voices, write_companions
from slmkit.model.fused import fuse, liger_kernels
from slmkit.model.kernels import attention_kernel
from slmkit.model.pretrained import CODEC_FILE, LAYOUT_FILE, extended_tokenizer, from_base, from_export
from slmkit.model.slm import SpeechLM
from slmkit.model.trained_on import TrainedOn
from slmkit.train.changes import changes_since
from slmkit.train.engine import TrainEngine
from slmkit.train.metrics import MetricsLog
from slmkit.train.run import Run, check_facts
from slmkit.train.settings import precision

logger = get_logger(__name__)


def resume_point(run: Run) -> Checkpoint | None:
    """The checkpoint to continue from: the newest one. Every process reads its share of it.

    Debris of interrupted saves and starts is removed. When the newest is damaged, the run stops, or with
    `on_damaged_checkpoint: previous` it is set aside and the one before is used. Raises UserError naming the damage, or
    when the checkpoint belongs to another kind of run.
    """

    def tidy() -> None:
        for path in checkpoint.clean(run.directory):
            logger.warning("removed %s: it was never finished", path)
        for directory in (run.directory, run.directory / run_dir.CACHE):
            for path in clean_parts(directory):
                logger.warning("removed %s: it was never finished", path)
        for path in run_dir.odd_entries(run.directory):
            logger.warning("%s is not a checkpoint of this run; it is left alone", path)

    in_first(tidy)
    steps = from_first(run_dir.complete_steps(run.directory) if run.world.is_first else None)
    for step in reversed(steps):
        try:
            found = _read_whole(run, step)
        except UserError as error:
            if run.config.on_damaged_checkpoint == "stop" or step == steps[0]:
                raise
            if run.world.is_first:
                aside = checkpoint.set_aside(run.directory, step)
                logger.error("%s\n  the checkpoint before it is used; this one is now %s", error, aside)
            continue
        check_facts(run.facts, found.state["facts"], found.path)
        return found
    return None


def _read_whole(run: Run, step: int) -> Checkpoint:
    """The checkpoint of `step`, whose files the processes look at together. Raises UserError in all, or in none."""
    found: Checkpoint | None = None
    error: UserError | None = None
    try:
        found = run_dir.read(run.directory, step)
        run_dir.check_contents(found, sorted(found.digests)[run.world.rank :: run.world.size])
    except UserError as raised:
        error = raised
    for other in from_all(error):
        if other is not None:
            raise other
    assert found is not None
    return found


def record_start(run: Run, engine: TrainEngine, found: Checkpoint | None, log: MetricsLog) -> None:
    """Write config.yaml, provenance of this start, and `model/`: all an export needs besides a checkpoint.

    What has changed since the checkpoint `found` is said in the log and in the metrics. Raises UserError when the disk
    refuses, unless the run is to go on without (`on_save_error: continue`); `model/` is then written by the next start.
    """
    if not run.world.is_first:
        return
    done_steps, changes = 0, list[str]()
    if found is not None:
        done_steps = found.step
        changes = changes_since(found.state, run.config, done_steps=found.step, total_steps=run.total_steps)
    processes = f"{run.world.size} process{'es' if run.world.size != 1 else ''}"
    logger.info("%s: step %d of %d, %s", run.directory, done_steps, run.total_steps, processes)
    for change in changes:
        logger.warning("changed since %s: %s", found.path if found else "", change)
    config = to_dict(run.config)
    path = run.directory / run_dir.CONFIG
    with log.allowed(path), atomic_write(path, replace=True) as file:
        file.write(to_yaml(run.config).encode())
    name = f"provenance-{done_steps}.json" if done_steps else "provenance.json"
    made = provenance(config)
    with log.allowed(run.directory / name):
        write_json(run.directory / name, {**made, "facts": run.facts}, replace=True)
    log.start(done_steps, processes=run.world.size, total_steps=run.total_steps, made=made, changes=changes)
    model = run.directory / run_dir.MODEL
    if done_steps and os.path.isdir(model):
        if TrainedOn.read(model) is None:  # an earlier version began the run
            with log.allowed(model):
                trained_on(run).write(model)
        return
    tokenizer = extended_tokenizer(run.config.base_path, run.layout)
    with log.allowed(model):
        shutil.rmtree(model, ignore_errors=True)  # what a start that got no checkpoint may have left
        with new_directory(model) as directory, disk_errors_named(model):
            engine.module.config.save_pretrained(directory)
            tokenizer.save_pretrained(directory)
            write_json(directory / LAYOUT_FILE, run.layout.to_dict())
            write_json(directory / CODEC_FILE, run.codec.to_dict())
            _write_companions(run, directory)
            trained_on(run).write(directory)


def trained_on(run: Run) -> TrainedOn:
    """What the model of a run is trained on, with what the export that it starts from was."""
    data = run.config.data
    held_out = [f"{data.eval_share:.4g} of the utterances"] if data.eval_share else []
    if data.unseen_speakers:
        held_out.append(f"the speakers {', '.join(data.unseen_speakers)}")
    found = TrainedOn.of(run.data, " and ".join(held_out))
    return found if run.config.init_from is None else found.after(TrainedOn.read(run.config.init_path))


def _write_companions(run: Run, directory: Path) -> None:
    """Note for exports where the codec is, a few voices of the first source with speech, and how fast all speak."""
    spoken = [part.source for part in run.data.parts if part.source.codec is not None]
    given = [run.config.codec_path] if run.config.codec is not None and run.config.speak_every_steps else []
    places = [source.samples.codec_source for source in spoken if isinstance(source.samples, Corpus)]
    places += [source_of(path) for path in given]
    known = [place for place in places if place]
    usable = [place for place in known if os.path.exists(place) or parse(place) is not None]
    voices = choose_voices(spoken[0], without=run.config.data.unseen_speakers)
    place, rates = next(iter([*usable, *known]), ""), speech_rates(run.data.parts)
    write_companions(directory, run.codec, codec_source=place, voices=voices, rates=rates)


@contextmanager
def out_of_memory_named(
    doing: Callable[[], str],
    *,
    got: Callable[[], str | None] = lambda: None,
    next_step: str = "choose an offload or ZeRO-3 config, take more GPUs, or lower micro_rows, then data.row_tokens",
) -> Iterator[None]:
    """Turns an allocator's complaint into a UserError that says what was done, as in "at step 7"."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or "the host has no more"
        raise UserError(f"out of memory {doing()}: {reason}", got=got(), next_step=next_step) from error


def start_engine(run: Run, found: Checkpoint | None) -> TrainEngine:
    """Model and optimizer, new or as the checkpoint left them.

    The random states are those of as many processes as wrote the checkpoint; further processes take them in turn.
    Raises UserError as `choose_execution`.
    """
    config = run.config
    torch.manual_seed(config.seed)
    if config.init_from is None or found is not None:  # the checkpoint's weights will replace these
        model = from_base(config.base_path, codec=run.codec, seed=config.seed, **to_dict(config.model))
    else:
        logger.info("the weights are those of %s", config.init_from)
        for change in run.changes:
            logger.info(change)
        model = from_export(config.init_path, run.model, seed=config.seed)
    choose_execution(model, config, run.settings)
    universal = found is not None and num_writers(found) != run.world.size
    engine = TrainEngine.create(model, run.settings, config.optimizer, run.world, universal=universal)
    if found is not None:
        with loadable(run.directory, found, run.world) as root:
            engine.load(root, found.path.name)
        checkpoint.load_random(found.path, run.world.rank % num_writers(found))
    return engine


def choose_execution(model: SpeechLM, config: TrainConfig, settings: dict[str, Any]) -> None:
    """Let `model` run its decoder layers as the options of a run say, and log which attention serves.

    `settings` are DeepSpeed's. Raises UserError where compiled layers would compute something else, or fused kernels
    are missing or do not fit the base.
    """
    backbone = model.backbone.config
    if config.compile:
        if getattr(backbone, "attention_dropout", 0.0):
            raise UserError(
                "compile: compiled layers have no dropout in their attention, and the base model has",
                got=f"attention_dropout {backbone.attention_dropout} in its config.json",
                next_step="set attention_dropout to 0 there, or compile to false",
            )
        logger.info(
            "the decoder layers are compiled in the first step, which takes up to some minutes; gradients are summed "
            "behind the backward pass of a micro-batch (overlap_comm is off)"
        )
    if config.fused_kernels:
        fuse(model, liger_kernels())
    model.execution = Execution(compiled=config.compile, recomputed=config.activation_checkpointing)
    if config.tf32:
        torch.set_float32_matmul_precision("high")
    in_half = torch.cuda.is_available() and precision(settings) == "bf16"
    name = attention_kernel(on_cuda=in_half, head_width=head_width(backbone), compiled=config.compile)
    logger.info("attention: %s", name)


def start_saver(run: Run, engine: TrainEngine) -> Saver:
    """What writes the checkpoints, with the memory it needs."""
    config = run.config
    saver = Saver(
        run.directory,
        run.world,
        keep_last=config.keep_last,
        keep_every_steps=config.keep_every_steps,
        asynchronous=config.async_save,
        on_error=config.on_save_error,
    )
    saver.prepare(engine)
    return saver
