"""Training: from a run config to checkpoints, with DeepSpeed, on one process or many.

The run continues from its newest complete checkpoint by itself. Its position is the number of steps taken, from which
epoch and place in the epoch follow.

Waiting for the device: between two logged steps the loop itself never does, so that its launches run ahead. A logged
step reads three tensors: losses and accuracies, the norm of the gradient, and the speeds of all processes. DeepSpeed
(0.19.8) reads that norm at the end of every optimizer step: whether it is finite, for only then is the step taken, and
again for each group of parameters that it clips. `TrainEngine.skipped` is what it found; the loop asks which samples
spoilt a step only where one was skipped.

Invariant (law): interrupted and resumed equals uninterrupted, bit for bit in float32 on a CPU with as many processes;
with another number of processes the steps see the same samples and the losses agree to float rounding.

Example:
    train(load_config(TrainConfig, "launch/quickstart.yaml"))
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch

from slmkit.checkpoints.saver import Saver
from slmkit.config import run_dir
from slmkit.config.run_dir import Checkpoint
from slmkit.config.train import TrainConfig
from slmkit.data.batch import Batch
from slmkit.data.loader import ahead, micro_batches
from slmkit.data.steps import Cursor
from slmkit.errors import UserError
from slmkit.garbage import settle
from slmkit.group import from_all, from_first, largest
from slmkit.log import get_logger
from slmkit.train.changes import rate_of, written_by
from slmkit.train.engine import TrainEngine, process_group
from slmkit.train.evaluation import StepMeter, held_out_losses
from slmkit.train.metrics import MetricsLog, Record, RunProgress
from slmkit.train.names import with_commits
from slmkit.train.owner import owned
from slmkit.train.pace import Pace, pace_of
from slmkit.train.peers import Peers
from slmkit.train.run import Run, check_agreement, prepare_run
from slmkit.train.start import out_of_memory_named, record_start, resume_point, start_engine, start_saver
from slmkit.world import World

logger = get_logger(__name__)
EVALUATION = "evaluation"  # what a checkpoint may have left pending


def train(config: TrainConfig, peers: Peers | None = None) -> bool:
    """Run `config` to its last step; False when a stopping signal ended it before, with a checkpoint.

    Raises UserError for everything that a user can fix.
    """
    world = World.from_env()
    peers = peers or Peers(world)
    with process_group(world) as device, contextlib.ExitStack() as stack:
        stack.enter_context(out_of_memory_named(lambda: f"while {peers.activity}"))
        check_agreement(config)
        stack.enter_context(owned(config.run_dir, world))
        config = with_commits(config, world)
        run = prepare_run(config, world)
        check_agreement(config, run)
        found = resume_point(run)
        if found is not None and found.step >= run.total_steps and not found.state.get("pending"):
            option = "epochs" if config.steps is None else "steps"
            done = f"step {found.step} of {run.total_steps}"
            logger.info("the run is complete: %s; raise %s to train longer", done, option)
            return True
        peers.at("loading the model", found.step if found else 0)
        engine = start_engine(run, found)
        resumed = found.step if found else 0
        log = MetricsLog(run.directory, resumed, is_first=world.is_first, on_error=config.on_save_error)
        record_start(run, engine, found, log)
        with start_saver(run, engine) as saver:
            training = Training(run, engine, saver, log, device, peers, found)
            settle()
            return training.go()


class Training:
    """One start of a run, from its first step to its last or to a signal. All processes call the same verbs in turn."""

    def __init__(
        self,
        run: Run,
        engine: TrainEngine,
        saver: Saver,
        log: MetricsLog,
        device: torch.device,
        peers: Peers,
        found: Checkpoint | None,
    ) -> None:
        self.run, self.engine, self.saver, self.log = run, engine, saver, log
        self.device, self.peers = device, peers
        self.step = found.step if found else 0
        state = found.state if found else {}
        self.saved_step = self.step
        self.saved_at = time.monotonic()
        self.pending: list[str] = list(state.get("pending", []))  # what a signal kept from being done after this step
        if self.pending and (run.held_out is None or from_first(log.has(self.step, "eval/loss"))):  # it is done
            self.pending.clear()
        self.cursor = state.get("cursor")  # finds the step in the plan of the data
        self.skipped_steps = int(state.get("skipped_steps", 0))
        self.damaged_samples = int(state.get("damaged_samples", 0))
        self.new_damage = 0  # of those, the ones that only this process knows of
        self.pace = pace_of(run, engine.module, device)
        self.stall_sec = 0.0  # of the saver, as far as it is logged
        self.progress = RunProgress(total_steps=run.total_steps, done_steps=self.step)

    def go(self) -> bool:
        """All steps that are left; whether the run is complete.

        Raises UserError when the checkpoint of the last step could not be written: nothing would be left of it.
        """
        run = self.run
        with self.peers.watched(run.config.hang_timeout_sec):
            agreed = self.agree()
            if EVALUATION in self.pending and not agreed.stop:
                agreed = self.evaluate()
            self.peers.at("reading data", self.step + 1)
            if not agreed.stop:
                for epoch, step, batches in planned_batches(run, self.step, self.pace, self.cursor, self.device):
                    self.take_step(epoch, step, batches)
                    agreed = self.after_step(self.agree())
                    if agreed.stop:
                        break
                    self.peers.at("reading data", step + 1)
            if self.saved_step != self.step:
                self.save()
            self.peers.at("finishing the checkpoint", self.step, is_timed=False)
            self.saver.wait()
            self.log.close()
            if agreed.stop and run.world.is_first:
                newest = run_dir.newest(run.directory)
                where = newest.path if newest else "the beginning"
                stopped = f"stopped at step {self.step} of {run.total_steps}"
                logger.warning("%s; the same command continues from %s", stopped, where)
        is_complete = self.step >= run.total_steps and not self.pending
        if is_complete and self.saver.last_error is not None:
            raise self.saver.last_error
        return is_complete

    def agree(self) -> "Agreement":
        """What all processes do next, since one of them was signalled or the first one's clock says so."""
        self.peers.at("meeting the other processes", self.step)
        minutes, signal = self.run.config.save_every_minutes, self.peers.signal
        is_time = minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes
        stop, save = largest([signal is not None, is_time and self.run.world.is_first])
        if stop and signal is not None:
            logger.warning("rank %d got %s: the run stops after step %d", self.run.world.rank, signal, self.step)
        return Agreement(stop=bool(stop), save=bool(save))

    def take_step(self, epoch: int, step: int, batches: Iterator[Batch]) -> None:
        """One optimizer step, logged if it is due.

        Raises UserError after too many steps whose loss or gradient was no number.
        """
        run, engine = self.run, self.engine
        lr = rate_of(run.config.optimizer, run.config.schedule, step, run.total_steps)
        meter = StepMeter() if is_due(step, run.config.log_every_steps, run.total_steps) else None
        losses: list[tuple[tuple[str, ...], torch.Tensor]] = []
        for number, batch in enumerate(batches):
            self.peers.at(f"computing micro-batch {number}", step)
            self.pace.add(batch)
            with with_batch_named(run.config, batch, step):
                output = engine.micro_step(batch, lr=lr)
            losses.append((batch.keys, output.loss.detach()))
            for what in batch.skipped:
                logger.warning("a damaged sample is skipped: %s", what)
            self.new_damage += len(batch.skipped)
            if meter is not None:
                meter.add(output, batch)
            self.peers.at("reading data", step)
        self.step = step
        if engine.skipped:
            self.note_skipped_step(losses)
        if meter is None:
            return
        self.peers.at("logging", step)
        loss, terms = meter.result(run.terms)
        self.pace.stalled(self.saver.stall_sec - self.stall_sec)
        self.stall_sec = self.saver.stall_sec
        optimizer = {"optimizer/lr": lr, "optimizer/grad_norm": engine.grad_norm}
        faults = {"faults/skipped_steps": self.skipped_steps, "faults/damaged_samples": self.count_damaged()}
        record = finite({"loss": loss, **terms, **optimizer, **faults, **self.pace.result()})
        self.log.write(step, {"epoch": epoch, **record})
        logger.info(self.progress.line(step, record))

    def count_damaged(self) -> int:
        """Damaged samples that all processes have skipped in this run."""
        self.damaged_samples += sum(from_all(self.new_damage))
        self.new_damage = 0
        return self.damaged_samples

    def note_skipped_step(self, losses: list[tuple[tuple[str, ...], torch.Tensor]]) -> None:
        """Count a step that changed nothing. Raises UserError when the run has had too many of them."""
        self.skipped_steps += 1
        mine = [key for keys, loss in losses if not torch.isfinite(loss) for key in keys]
        keys = [key for of_rank in from_all(mine) for key in of_rank]
        where = "the loss" if keys else "the gradient"
        if not keys:
            keys = [key for of_rank in from_all([k for ks, _ in losses for k in ks]) for key in of_rank]
        limit = self.run.config.max_skipped_steps
        if self.run.world.is_first:
            logger.warning("step %d is skipped: %s is not finite; samples: %s", self.step, where, ", ".join(keys))
        if self.skipped_steps > limit:
            raise UserError(
                f"{where} is not finite at step {self.step}, and {limit} steps were skipped before",
                got=f"samples {', '.join(keys)}",
                expected=f"at most max_skipped_steps = {limit} such steps in a run",
                next_step="look at these samples; lower optimizer.lr or optimizer.clip_norm, or warm up for longer",
            )

    def after_step(self, agreed: "Agreement") -> "Agreement":
        """What happens between steps when it is due: evaluation, speech samples, checkpoint. None of it counts as pace.

        When the run is to stop, evaluation is left for the next start.
        """
        run, config, step = self.run, self.run.config, self.step
        if run.held_out is not None and is_due(step, config.eval_every_steps, run.total_steps):
            self.pending.append(EVALUATION)
            if not agreed.stop:
                agreed = self.evaluate()
        if config.speak_every_steps and is_due(step, config.speak_every_steps, run.total_steps) and not agreed.stop:
            self.speak()
        if agreed.save or is_due(step, config.save_every_steps, run.total_steps):
            self.save()
        return agreed

    def speak(self) -> None:
        """Speech samples of the first process in TensorBoard; the others wait."""
        self.peers.at("speaking", self.step)
        shown = Calls()
        with self.engine.plain_module() as model:
            if model is not None and self.run.speech is not None:
                self.run.speech(model, shown, self.step)
        self.log.plot(shown.again)  # which takes what fails in it for TensorBoard's disk
        self.pace.restart()

    def evaluate(self) -> "Agreement":
        """Losses on the held-out examples, unless the run is to stop meanwhile."""
        run = self.run
        assert run.held_out is not None
        agreed = Agreement()

        def is_stopped() -> bool:
            nonlocal agreed
            agreed = self.agree()
            self.peers.at("evaluating", self.step)
            return agreed.stop

        record = held_out_losses(
            self.engine.module,
            run.held_out,
            run.world,
            self.device,
            micro_rows=run.config.micro_rows,
            row_tokens=run.config.data.row_tokens,
            names=run.terms,
            text_loss_weight=run.config.model.text_loss_weight,
            num_workers=run.config.data.num_workers,
            is_stopped=is_stopped,
        )
        if record is not None:
            self.log.write(self.step, finite(record))
            self.pending.remove(EVALUATION)
        self.pace.restart()
        return agreed

    def save(self) -> None:
        """Begin the checkpoint of this step."""
        state = {
            "facts": self.run.facts,
            **written_by(self.run.config, self.run.total_steps),
            "pending": list(self.pending),
            "skipped_steps": self.skipped_steps,
            "damaged_samples": self.count_damaged(),
            "cursor": self.run.cursor(self.step),
        }
        self.peers.at("saving", self.step, is_timed=False)
        self.saver.save(self.engine, self.step, state)
        self.saved_step, self.saved_at = self.step, time.monotonic()
        self.pace.restart()


class Calls:
    """Takes the place of an object, and notes which methods are called, to call them of it later."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: self.noted.append((name, args, options))

    def again(self, owner: Any) -> None:
        """Call the same methods of `owner`, in the same order."""
        for name, args, options in self.noted:
            getattr(owner, name)(*args, **options)


class Agreement(NamedTuple):
    """What all processes have agreed upon between two steps."""

    stop: bool = False  # one of them got a signal
    save: bool = False  # it is time for a checkpoint


def is_due(step: int, every: int, total_steps: int) -> bool:
    """Whether something that happens every `every` steps, and in the last step, happens after `step`."""
    return step % every == 0 or step == total_steps


def planned_batches(
    run: Run, done_steps: int, pace: Pace, cursor: Cursor | None = None, device: torch.device | str = "cpu"
) -> Iterator[tuple[int, int, Iterator[Batch]]]:
    """(epoch, step, micro-batches of this rank on `device`) from the step after `done_steps` to the last; the first
    step is 1. Each is copied before the one before it is handed out."""
    batches = micro_batches(
        run.data,
        run.split,
        run.walk(done_steps, cursor),
        rank=run.world.rank,
        row_tokens=run.config.data.row_tokens,
        num_workers=run.config.data.num_workers,
    )
    step = done_steps + 1

    def copied(batch: Batch) -> Batch:
        with with_batch_named(run.config, batch, step):
            return batch.to(device)

    by_step = itertools.groupby(ahead(pace.timed(batches), copied), key=lambda item: (item[0].epoch, item[0].number))
    for step, ((epoch, _), of_step) in enumerate(by_step, done_steps + 1):
        yield epoch, step, (batch for _, _, batch in of_step)


def finite(record: Record) -> Record:
    """`record` with null for what is no number: the loss of a step that was skipped."""
    return {name: None if value is None or not math.isfinite(value) else value for name, value in record.items()}


def with_batch_named(config: TrainConfig, batch: Batch, step: int) -> AbstractContextManager[None]:
    """`out_of_memory_named`, with what the memory was for."""
    return out_of_memory_named(
        lambda: f"at step {step}",
        got=lambda: (
            f"a micro-batch of {config.micro_rows} rows of data.row_tokens = {config.data.row_tokens}: "
            f"{batch.num_tokens} positions in {len(batch.lengths)} utterances, the longest of {max(batch.lengths)}"
        ),
        next_step="lower micro_rows (the steps stay the same), then data.row_tokens, or choose an offload config",
    )
