"""Times training steps as `slmkit train` takes them: through DeepSpeed, as large as a recipe makes them for one GPU.

The model has the shape of Qwen2.5-0.5B and random weights. Heads, fusion, softmax, precision, ZeRO stage, rows,
clipping and optimizer are the recipe's. Recipes are written for 8 GPUs, so one has an eighth of `global_rows`. The rows
are full of random codes and text (`batches.py`), a few steps of different lengths in turns; nothing is read from a
disk.

Each --variant changes options of the recipe. All have the same weights and see the same batches; the first one is what
the others are compared with.

Figures are of one process:

    positions/s     what the backbone reads: text tokens and speech steps
    tokens/s        text tokens and codes; a position of MTP-12 holds 12 codes, for NTP the two are equal
    MFU             float operations of the model (`model/flops.py`) per second, over the peak of the device in bfloat16

Of one further step it is told how long each kernel ran, how many were launched, and for which share of the step the
device had nothing to do. On a CPU these are the operators of torch.

Invariant: a speed is printed with the largest difference between the losses of the variant and those of the first.

Example:
    slmkit bench steps libritts_mtp12 --variant compile=false --variant compile=true
    slmkit bench steps libritts_ntp --quick --variant model.softmax=full --variant model.softmax=stream
"""

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from slmkit.assets import config_file
from slmkit.bench.batches import full_batches, num_tokens
from slmkit.bench.race import clock
from slmkit.bench.synthetic import QWEN, ModelShape, model_config
from slmkit.bench.train import TOY, TOY_LOAD
from slmkit.config.load import to_dict
from slmkit.config.train import TrainConfig, load_run
from slmkit.data.batch import Batch
from slmkit.model.flops import BatchSizes, Flops, known_peak
from slmkit.model.pretrained import seeded
from slmkit.model.slm import SpeechLM
from slmkit.texts import positive
from slmkit.train.engine import TrainEngine, process_group
from slmkit.train.settings import deepspeed_settings, precision
from slmkit.train.start import choose_execution
from slmkit.world import BatchSplit, World

SUMMARY = "training steps through DeepSpeed at the size of a real run: tokens/s, MFU, kernels"
GPUS = 8  # that the recipes are written for
STEPS = 4  # of different lengths; a lap takes each of them once
QUICK = ("data.row_tokens=1024", "micro_rows=1", f"global_rows={GPUS}")
UNUSED = ("speaker",)  # options of the recipe's model that the benchmark's has not
SHOWN_KERNELS, KEPT_KERNELS = 5, 40
NAME_COLUMNS, NAME_CHARS = 60, 300
NOTE = "## "


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", nargs="?", default="libritts_ntp", help="recipe or run config (default: %(default)s)")
    parser.add_argument(
        "--variant",
        action="append",
        metavar="KEY=VALUE,...",
        help="options to change, as in model.group=6; may be repeated; the first is what the others are compared with",
    )
    parser.add_argument("--laps", type=positive, default=3, help=f"of {STEPS} steps; the median counts (default: 3)")
    parser.add_argument("--no-profile", action="store_true", help="do not look at the kernels of a step")
    parser.add_argument("--quick", action="store_true", help="a toy shape that takes seconds; its figures mean little")
    parser.add_argument("--json", action="store_true", help="print a JSON object for each variant when it is done")


def run(args: argparse.Namespace) -> int:
    path, world = config_file(args.recipe, "train"), World.from_env()
    variants = args.variant or [""]
    configs = [
        share_of_one(path, [*(QUICK if args.quick else ()), *filter(None, variant.split(","))], world)
        for variant in variants
    ]
    first: dict[str, Any] | None = None
    with process_group(world) as device:
        for variant, config in zip(variants, configs, strict=True):
            result = {"recipe": args.recipe, "variant": variant, "shape": "quick" if args.quick else "Qwen2.5-0.5B"}
            result |= bench_steps(config, world, device, quick=args.quick, laps=args.laps, look=not args.no_profile)
            first = first or result
            result["ratio"] = result["tokens_per_sec"] / first["tokens_per_sec"]
            result["loss_difference"] = max(abs(a - b) for a, b in zip(result["loss"], first["loss"], strict=False))
            if world.is_first:
                print(json.dumps(result) if args.json else describe(result, heading=result is first), flush=True)
    return 0


def share_of_one(path: str, overrides: Sequence[str], world: World) -> TrainConfig:
    """The run config with the part of the global batch that one of `GPUS` has, times the processes there are."""
    config = load_run(path, overrides)
    accumulation = max(1, config.global_rows // (config.micro_rows * GPUS))
    return config.model_copy(update={"global_rows": accumulation * config.micro_rows * world.size})


def bench_steps(
    config: TrainConfig, world: World, device: torch.device, *, quick: bool, laps: int, look: bool
) -> dict[str, Any]:
    """Speeds, losses and memory of one variant; with `look` a profile of one more step. Every process calls it."""
    split = BatchSplit(global_rows=config.global_rows, micro_rows=config.micro_rows, world_size=world.size)
    settings = deepspeed_settings(config, split)
    before = allocated(device)
    model = make_model(TOY if quick else QWEN, config, device)
    steps = [
        full_batches(
            model,
            micro_batches=split.accumulation,
            micro_rows=config.micro_rows,
            row_tokens=config.data.row_tokens,
            time_scale=TOY_LOAD.time_scale if quick else 1.0,
            seed=world.size * number + world.rank,
        )
        for number in range(STEPS)
    ]
    if device.type == "cuda":
        steps = [[batch.pin_memory() for batch in step] for step in steps]
    costs, group = Flops(model), config.model.group
    choose_execution(model, config, settings)
    flops = sum(costs.training(BatchSizes.of(batch)) for step in steps for batch in step)
    positions = sum(batch.num_tokens for step in steps for batch in step)
    tokens = sum(num_tokens(batch, group) for step in steps for batch in step)
    trainer = TrainEngine.create(model, settings, config.optimizer, world)
    lr, losses = config.optimizer.lr, list[torch.Tensor]()

    def take(step: list[Batch]) -> None:
        parts = [trainer.micro_step(batch.to(device), lr=lr).loss.detach() for batch in step]
        losses.append(torch.stack(parts).sum())

    seconds = []
    for _ in range(1 + laps):  # the first one allocates, and compiles what is to be compiled
        start = clock(device)
        for step in steps:
            take(step)
        seconds.append(clock(device) - start)
    peak_bytes = allocated(device, peak=True) - before
    lap_sec = statistics.median(seconds[1:])
    peak = config.peak_tflops or known_peak(device, in_bf16=precision(settings) == "bf16")
    tflops = flops / lap_sec / 1e12
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "precision": precision(settings),
        "processes": world.size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "positions_per_step": positions / STEPS,
        "sec_per_step": lap_sec / STEPS,
        "positions_per_sec": positions / lap_sec,
        "tokens_per_sec": tokens / lap_sec,
        "tflops": tflops,
        "mfu": tflops / peak if peak else None,
        "memory_gib": peak_bytes / 2**30 if device.type == "cuda" else None,
        "first_lap_sec": seconds[0],
        "lap_sec": seconds[1:],
        "loss": torch.stack(losses).tolist(),
        "profile": look_at(lambda: take(steps[0]), device) if look else None,
    }


def make_model(shape: ModelShape, config: TrainConfig, device: torch.device) -> SpeechLM:
    """The recipe's model in this shape, with random weights made on `device`."""
    options = {name: value for name, value in to_dict(config.model).items() if name not in UNUSED}
    with seeded(config.seed), device:
        return SpeechLM(model_config(shape, **options))


def allocated(device: torch.device, *, peak: bool = False) -> int:
    """Bytes in tensors on a GPU, now or at most since the last call without `peak`; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    if peak:
        return torch.cuda.max_memory_allocated(device)
    gc.collect()  # of the variant before
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def look_at(work: Callable[[], None], device: torch.device) -> dict[str, Any]:
    """What runs on the device during `work`: kernels by their time, their number, and how long none ran."""
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        start = clock(device)
        work()
        wall_sec = clock(device) - start
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in profiler.events() if event.device_type == wanted and not event.is_user_annotation]
    if on_gpu:  # without what torch.compile notes around its kernels
        events = [event for event in events if not event.name.startswith(NOTE)]
    spent: dict[str, list[float]] = {}
    for event in events:
        # The operators of a CPU lie within one another.
        microseconds = event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
        spent.setdefault(event.name[:NAME_CHARS], []).append(microseconds / 1e6)
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    busy_sec = sum(end - start for start, end in merged(spans)) / 1e6
    span_sec = (max(end for _, end in spans) - spans[0][0]) / 1e6 if spans else 0.0
    kernels = sorted(spent.items(), key=lambda item: -sum(item[1]))
    return {
        "wall_sec": wall_sec,
        "span_sec": span_sec,  # from the start of the first kernel to the end of the last
        "busy_sec": busy_sec,
        "idle_share": 1 - busy_sec / span_sec if span_sec else None,
        "launches": len(events),
        "kernels": [
            {"name": name, "sec": sum(times), "calls": len(times), "share": sum(times) / busy_sec if busy_sec else 0.0}
            for name, times in kernels[:KEPT_KERNELS]
        ],
    }


def merged(spans: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """Sorted (start, end) with those that overlap made one."""
    if not spans:
        return
    start, end = spans[0]
    for next_start, next_end in spans[1:]:
        if next_start > end:
            yield start, end
            start, end = next_start, next_end
        end = max(end, next_end)
    yield start, end


def describe(result: dict[str, Any], *, heading: bool = True) -> str:
    """The result of a variant as lines for a reader."""
    lines = []
    if heading:
        lines += [
            f"{result['recipe']}, {result['shape']} shape, {result['parameters'] / 1e6:.1f} M parameters, "
            f"{result['precision']}: {result['processes']} processes, each on {result['device']}",
            f"{'':28}{'positions':>10}{'ms/step':>9}{'positions/s':>13}{'tokens/s':>12}{'TFLOP/s':>9}{'MFU':>8}"
            f"{'ratio':>7}{'GiB':>7}   loss difference",
        ]
    mfu = "-" if result["mfu"] is None else f"{100 * result['mfu']:.1f} %"
    memory = "-" if result["memory_gib"] is None else f"{result['memory_gib']:.1f}"
    lines.append(
        f"{result['variant'] or 'as it is':28}{result['positions_per_step']:10.0f}{1000 * result['sec_per_step']:9.1f}"
        f"{result['positions_per_sec']:13.0f}{result['tokens_per_sec']:12.0f}{result['tflops']:9.2f}{mfu:>8}"
        f"{result['ratio']:7.2f}{memory:>7}   {result['loss_difference']:.1e}"
    )
    look = result["profile"]
    if look is not None:
        idle = "-" if look["idle_share"] is None else f"{100 * look['idle_share']:.1f} %"
        lines.append(f"  a step has {look['launches']} launches; the device has nothing to do for {idle} of it")
        lines += [
            f"  {1000 * kernel['sec']:9.2f} ms {100 * kernel['share']:5.1f} % {kernel['calls']:6} x  "
            f"{kernel['name'][:NAME_COLUMNS]}"
            for kernel in look["kernels"][:SHOWN_KERNELS]
        ]
    return "\n".join(lines)
