"""Training: from a run config to checkpoints, with DeepSpeed, on one process or many.

The run continues from its newest complete checkpoint by itself. Its position is the number of steps taken, from which
epoch and place in the epoch follow.

Invariant (law): interrupted and resumed equals uninterrupted, bit for bit in float32 on a CPU with as many processes;
with another number of processes the steps see the same samples and the losses agree to float rounding.

Example:
    train(load_config(TrainConfig, "launch/quickstart.yaml"))
"""

import itertools
import math
import operator
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch
import yaml

from slmkit.config import run_dir
from slmkit.config.load import to_dict
from slmkit.config.run_dir import Checkpoint
from slmkit.config.train import TrainConfig
from slmkit.data.batch import Batch
from slmkit.data.loader import micro_batches
from slmkit.errors import UserError
from slmkit.files import atomic_write, provenance, write_json
from slmkit.log import get_logger
from slmkit.model.pretrained import CODEC_FILE, LAYOUT_FILE, extended_tokenizer, from_base, new_directory
from slmkit.model.slm import SpeechLM
from slmkit.train import checkpoint, elastic, engine
from slmkit.train.engine import Engine
from slmkit.train.evaluation import evaluate
from slmkit.train.metrics import MetricsLog, Pace, Record, StepMeter
from slmkit.train.run import Run, check_facts, prepare
from slmkit.train.schedule import learning_rate
from slmkit.world import World

logger = get_logger(__name__)
Speak = Callable[[Any, Any, int], None]  # (model, TensorBoard writer, step), in the first process


def train(config: TrainConfig, speak: Speak | None = None) -> None:
    """Run `config` to its last step. `speak`, called every `speak_every_steps`, adds speech samples to TensorBoard.

    Raises UserError for everything a user can mend.
    """
    world = World.from_env()
    run = prepare(config, world)
    with engine.process_group(world) as device:
        found = resume_point(run)
        done_steps = found.step if found else 0
        trainer = start_engine(run, found)
        record_start(run, trainer, done_steps)
        log = MetricsLog(run.directory, done_steps, is_first=world.is_first)
        pace = Pace()
        for epoch, step, batches in steps(run, done_steps, pace):
            record = take_step(run, trainer, device, step, batches, pace)
            if record is not None:
                log.write(step, {"epoch": epoch, **record})
            after_step(run, trainer, device, step, log, speak, pace)
        log.close()


def after_step(
    run: Run, trainer: Engine, device: torch.device, step: int, log: MetricsLog, speak: Speak | None, pace: Pace
) -> None:
    """What happens between steps when it is due: evaluation, speech samples, checkpoint. None of it counts as pace."""
    config, total_steps = run.config, run.total_steps
    evaluates = run.held_out is not None and is_due(step, config.eval_every_steps, total_steps)
    speaks = speak is not None and config.speak_every_steps > 0 and is_due(step, config.speak_every_steps, total_steps)
    saves = is_due(step, config.save_every_steps, total_steps)
    if evaluates:
        log.write(step, held_out_record(run, trainer, device))
    if speaks and speak is not None and run.world.is_first:
        speak(trainer.module, log.tensorboard, step)
    if saves:
        save(run, trainer, step)
    if evaluates or speaks or saves:
        pace.restart()


def is_due(step: int, every: int, total_steps: int) -> bool:
    """Whether something that happens every `every` steps, and in the last step, happens after `step`."""
    return step % every == 0 or step == total_steps


def resume_point(run: Run) -> Checkpoint | None:
    """The checkpoint to continue from, as the first process sees it.

    Debris of interrupted saves and starts is removed. Raises UserError when the checkpoint belongs to another kind of
    run.
    """
    if run.world.is_first:
        for path in checkpoint.clean(run.directory):
            logger.warning("removed %s: it was never finished", path)
    found = engine.from_first(run_dir.newest(run.directory) if run.world.is_first else None)
    if found is not None:
        check_facts(run.facts, found.state["facts"], found.path)
    return found


def record_start(run: Run, trainer: Engine, done_steps: int) -> None:
    """Write config.yaml, provenance of this start, and `model/`: all an export needs besides a checkpoint."""
    if not run.world.is_first:
        return
    logger.info("%s: step %d of %d, %d processes", run.directory, done_steps, run.total_steps, run.world.size)
    config = to_dict(run.config)
    with atomic_write(run.directory / run_dir.CONFIG, replace=True) as file:
        file.write(yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
    name = f"provenance-{done_steps}.json" if done_steps else "provenance.json"
    write_json(run.directory / name, {**provenance(config), "facts": run.facts}, replace=True)
    if done_steps == 0:
        describe_model(run, trainer.module)


def describe_model(run: Run, model: SpeechLM) -> None:
    """Write `model/`, in place of what a start that got no checkpoint may have left."""
    shutil.rmtree(run.directory / run_dir.MODEL, ignore_errors=True)
    with new_directory(run.directory / run_dir.MODEL) as directory:
        model.config.save_pretrained(directory)
        extended_tokenizer(run.config.base, run.layout).save_pretrained(directory)
        write_json(directory / LAYOUT_FILE, run.layout.to_dict())
        write_json(directory / CODEC_FILE, run.codec.to_dict())


def start_engine(run: Run, found: Checkpoint | None) -> Engine:
    """Model and optimizer, new or as the checkpoint left them.

    The random states are those of as many processes as wrote the checkpoint; further processes take them in turn.
    """
    torch.manual_seed(run.config.seed)
    model = from_base(run.config.base, codec=run.codec, seed=run.config.seed, **to_dict(run.config.model))
    universal = found is not None and elastic.is_needed(found, run.world)
    trainer = Engine.create(model, run.settings, run.config.optimizer, run.world, universal=universal)
    if found is not None:
        with elastic.loadable(run.directory, found, run.world) as root:
            trainer.load(root, found.path.name)
        checkpoint.load_random(found.path, run.world.rank % elastic.num_writers(found))
    return trainer


def steps(run: Run, done_steps: int, pace: Pace) -> Iterator[tuple[int, int, Iterator[Batch]]]:
    """(epoch, step, micro-batches of this rank) from the step after `done_steps` to the last; the first step is 1."""
    step = done_steps
    for epoch, start_step in run.epochs(done_steps):
        batches = micro_batches(
            run.data,
            run.split,
            rank=run.world.rank,
            seed=run.config.seed,
            epoch=epoch,
            row_tokens=run.config.data.row_tokens,
            start_step=start_step,
            num_workers=run.config.data.num_workers,
        )
        for _, of_step in itertools.groupby(pace.timed(batches), key=operator.itemgetter(0)):
            step += 1
            yield epoch, step, (batch for _, _, batch in of_step)
            if step == run.total_steps:
                return


def take_step(
    run: Run, trainer: Engine, device: torch.device, step: int, batches: Iterator[Batch], pace: Pace
) -> Record | None:
    """One optimizer step; its record if it is to be logged. Raises UserError when the loss is no longer a number."""
    optimizer, schedule = run.config.optimizer, run.config.schedule
    lr = learning_rate(
        step - 1,
        lr=optimizer.lr,
        total_steps=run.total_steps,
        num_warmup=schedule.num_warmup(run.total_steps),
        kind=schedule.kind,
        min_lr_share=schedule.min_lr_share,
    )
    meter = StepMeter() if is_due(step, run.config.log_every_steps, run.total_steps) else None
    for batch in batches:
        batch = batch.to(device)
        output = trainer.micro_step(batch, lr=lr)
        pace.add(batch)
        if meter is not None:
            meter.add(output, batch)
    if meter is None:
        return None
    loss, terms = meter.result(run.terms)
    if not (math.isfinite(loss) and math.isfinite(trainer.grad_norm)):
        raise UserError(
            f"the loss or its gradient is not finite at step {step}",
            got=f"loss {loss}, gradient norm {trainer.grad_norm}",
            next_step="lower optimizer.lr or optimizer.clip_norm, or raise schedule.warmup_steps",
        )
    speed = pace.result(run.codec.frame_rate, device, run.world.size)
    return {"loss": loss, **terms, "lr": lr, "grad_norm": trainer.grad_norm, **speed}


def held_out_record(run: Run, trainer: Engine, device: torch.device) -> Record:
    """Evaluation on the held-out examples."""
    assert run.held_out is not None
    return evaluate(
        trainer.module,
        run.held_out,
        run.world,
        device,
        micro_rows=run.config.micro_rows,
        row_tokens=run.config.data.row_tokens,
        names=run.terms,
        text_loss_weight=run.config.model.text_loss_weight,
    )


def save(run: Run, trainer: Engine, step: int) -> None:
    """Write the checkpoint of `step`; its marker comes last, when every process is done."""
    root, name = run_dir.root(run.directory), run_dir.name(step)
    trainer.save(root, name)
    checkpoint.save_random(root / name, run.world.rank)
    checkpoint.sync(root / name)
    engine.barrier()
    if run.world.is_first:
        checkpoint.finish(run.directory, step, {"facts": run.facts})
        checkpoint.prune(run.directory, run.config.keep_last)
        logger.info("saved %s", root / name)
