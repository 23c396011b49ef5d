"""What a run would be, before any process starts: `slmkit train --dry-run`.

It goes the way of training up to DeepSpeed's engine, in one process and for any number of them, so it refuses what
training would refuse. No weights are read and no device is needed.

Invariant: nothing is written but the length tables of the data, where the run itself would put them and find them.

Example:
    for name, value in describe(config, num_processes=8):
        print(name, value)
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from slmkit.codec.base import CodecSpec
from slmkit.config import run_dir
from slmkit.config.run_dir import Checkpoint
from slmkit.config.train import TrainConfig
from slmkit.data.examples import SCANNED, Part
from slmkit.model.config import SpeechLMConfig
from slmkit.model.slm import SpeechLM
from slmkit.train.run import Run, check_facts, prepare
from slmkit.train.settings import precision
from slmkit.world import World

Line = tuple[str, str]  # name and value
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


def describe(config: TrainConfig, num_processes: int) -> list[Line]:
    """The lines of the table. Raises UserError for everything that training would refuse before its first step."""
    run = prepare(config, World(size=num_processes))
    found = run_dir.newest(run.directory)
    if found is not None:
        check_facts(run.facts, found.state["facts"], found.path)
    parts = parameters(run.model)
    return [
        *_start_lines(run, found),
        *_model_lines(run, parts),
        *_data_lines(run),
        *_epoch_lines(run),
        _checkpoint_line(run, sum(parts.values())),
    ]


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


def _start_lines(run: Run, found: Checkpoint | None) -> Iterator[Line]:
    config, split = run.config, run.split
    where = "starts at step 0" if found is None else f"continues at step {found.step}"
    yield "run_dir", f"{run.directory}, {where}"
    yield "base", config.base
    if config.init_from is not None:
        yield "init_from", f"{config.init_from}, sha256 {run.facts['init_from'][:12]}"
        for change in run.changes:
            yield "", change
    stage = run.settings["zero_optimization"]["stage"]
    yield "deepspeed", f"{config.deepspeed}: ZeRO-{stage}, {precision(run.settings)}"
    yield (
        "batch",
        f"{split.micro_rows} rows * {split.accumulation} micro-batches * {split.world_size} processes"
        f" = {split.global_rows} rows of {config.data.row_tokens} positions",
    )


def _model_lines(run: Run, parts: dict[str, int]) -> Iterator[Line]:
    model = run.config.model
    kind = f"MTP-{model.group}, {model.head} heads, {model.fusion} fusion" if model.group else f"NTP, {model.softmax}"
    voice = "with" if model.speaker else "without"
    yield "model", f"{kind}, {voice} speaker input: {sum(parts.values()):,} parameters"
    for part, number in parts.items():
        if number:
            yield f"  {part}", f"{number:,}"


def _data_lines(run: Run) -> Iterator[Line]:
    for name, data in [("data", run.data), ("held out", run.held_out)]:
        for part in () if data is None else data.parts:
            kind = part.wording.task if part.weight == 1 else f"{part.wording.task}, weight {float(part.weight):g}"
            yield name, f"{part.source.path} ({kind}): {part.count} examples, {_hours(part, run.codec):.2f} h"
            name = ""
    config = run.config.data
    if config.eval_speakers:
        yield "", f"the voices {', '.join(config.eval_speakers)}"
    if config.exclude_speakers:
        yield "left out", f"{_num_excluded(run)} examples of the voices {', '.join(config.exclude_speakers)}"


def _num_excluded(run: Run) -> int:
    """Samples of the sources that are neither trained on nor held out."""
    config = run.config.data
    given = zip(run.data.parts, config.all_sources, strict=True)
    num_given = sum(min(len(part.source), source.max_samples or len(part.source)) for part, source in given)
    from_sources = [run.data, *([run.held_out] if run.held_out is not None and config.eval_corpus is None else [])]
    return num_given - sum(map(len, from_sources))


def _hours(part: Part, codec: CodecSpec) -> float:
    """Speech of the chosen samples, a part of them in memory at a time."""
    starts = range(0, part.count, SCANNED)
    numbers = (part.numbers(np.arange(start, min(start + SCANNED, part.count))) for start in starts)
    frames = sum(int(part.table["frames"][some].sum(dtype=np.int64)) for some in numbers)
    return frames / codec.frame_rate / 3600


def _epoch_lines(run: Run) -> Iterator[Line]:
    config = run.config
    num_rows, num_positions, counts = _first_epoch(run)
    num_steps = -(-num_rows // config.global_rows)
    empty = 1 - num_positions / (num_rows * config.data.row_tokens)
    yield "epoch", f"{num_rows} rows, {num_steps} steps, {empty:.1%} of the positions stay empty"
    warmup = config.schedule.num_warmup(run.total_steps)
    yield "steps", f"{run.total_steps} ({run.total_steps / num_steps:.2f} epochs), of them {warmup} of warm-up"
    yield "targets", f"text {counts[0] / num_steps:.0f}, speech {sum(counts[1:]) / num_steps:.0f} a step"


def _first_epoch(run: Run) -> tuple[int, int, list[float]]:
    """Rows, positions in use, and targets by loss term of epoch 0, step by step as training plans them."""
    num_rows, num_positions, counts = 0, 0, np.zeros(len(run.terms))
    for step in itertools.takewhile(lambda step: step.epoch == 0, run.steps.walk(0)):
        samples = np.concatenate(step.rows)
        num_rows += sum(len(row) > 0 for row in step.rows)
        num_positions += int(run.data.lengths(samples).sum())
        counts += run.data.counts(samples)
    return num_rows, num_positions, counts.tolist()


def _checkpoint_line(run: Run, num_parameters: int) -> Line:
    config = run.config
    size = checkpoint_bytes(num_parameters, precision(run.settings))
    kept = config.keep_last
    if config.keep_every_steps:
        kept += run.total_steps // config.keep_every_steps
    return "checkpoints", f"about {_mb(size)} each, at most {kept} kept: {_mb(size * kept)}"


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
