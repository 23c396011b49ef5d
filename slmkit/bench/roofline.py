"""What bounds a training step and a decoding step on a GPU, from arithmetic alone: no GPU is needed or used.

A training step of the real model runs on torch's device "meta", in bfloat16, without memory or numbers. Every operation
that would start a kernel is counted with the bytes that it reads and writes, by part of the model, in the forward and
the backward pass; so are the tensors that the forward pass keeps. Attention is one kernel forward and three backward,
as flash-attention has them. What DeepSpeed does around it (float32 sums of gradients, AdamW, exchange) is bytes per
parameter.

A part takes as long as its float operations or its bytes at the device's ceilings, whichever is longer; a step as long
as all parts together, or as the host needs to start the kernels. That is the best that these kernels can do, not a
forecast: kernels reach their ceilings on large inputs alone.

`eager` are the operations as torch starts them; `fused` has norms, rotary positions and SwiGLU as one kernel each, of
which every input is read once and every result written once.

Invariant: the float operations are those of `model.flops`, in three passes.

Example:
    slmkit bench roofline --groups 0 12 --positions 16384 --gpus 8
"""

import argparse
import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker
from transformers import AttentionInterface

from slmkit.bench.batches import make_batch
from slmkit.bench.synthetic import ANSWER_TOKENS, FRAME_RATE, NUM_STREAMS, PROMPT_TOKENS, QWEN, TEXT_RATE, model_config
from slmkit.bench.train import batch_seconds
from slmkit.data.batch import Batch
from slmkit.model.architecture import head_width, num_key_value_heads
from slmkit.model.config import SpeechLMConfig
from slmkit.model.flops import TRAINING_PASSES, BatchSizes, Flops
from slmkit.model.heads.base import linear_weights
from slmkit.model.slm import SpeechLM
from slmkit.texts import natural, positive

SUMMARY = "what bounds training and decoding on a GPU, from arithmetic"
GROUPS, POSITIONS, SLOTS = (0, 3, 12), (1024, 16_384, 65_536), (1, 8, 64)
CACHE_POSITIONS = 1024  # of a slot's memory, all of which a step reads on a GPU (infer/decoder.py)
PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "addmm_": 1, "baddbmm": 1}  # which argument is the left factor
WITHOUT_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "detach"}
LOOKUPS = {"embedding", "index", "gather", "scatter_add_", "index_put_", "index_select", "_index_put_impl_"}
COUNTED_ATTENTION = "slmkit_counted"
ATTENTION_LAUNCHES = 1 + 3  # forward; backward: sums along rows, the gradients, those of the queries to bfloat16
ATTENTION_BYTES = 2 + 4  # of each number of queries, keys, values and results: forward, backward
ATTENTION_SHARE = 0.4  # of the speed of matrix products that attention reaches, with heads of 64
WEIGHT, MASTER = 2, 4  # bytes of a parameter: bfloat16, float32
SUM_BYTES = 2 + 4, 4 + 4 + 4  # of gradients, each micro-batch: to float32, of all; added up, of a process's share
ADAMW_BYTES = 4 + 8 + 4 * 4 + 3 * 4 + 2  # norm, clipping; gradient, weight, moments read; three written; bfloat16
SUM_LAUNCHES = 4  # for each parameter and micro-batch
ADAMW_LAUNCHES = 50
# The parts of a step: matrix products, and what else runs in the same modules.
PROJECTIONS, ATTENTION, MLP, ELEMENTWISE = "attention projections", "attention", "mlp", "norms, rotary, activations"
TEXT, TEXT_LOSS, HEADS, HEAD_LOSS = "text logits", "text loss", "head logits", "losses of heads"
FUSION, EMBEDDING = "fusion", "embedding, gathers, sums"
SUMS, ADAMW = "float32 sums of gradients", "AdamW"
FUSED_LAUNCHES = 16  # of a layer: 2 norms of 3, 2 for rotary positions, 2 for SwiGLU, 6 sums


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What a device gives at best. The defaults are those of an H200 SXM, measured; the data sheet has 989 and 4.8."""

    tflops: float = 790.0  # of a large matrix product in bfloat16
    tb_per_sec: float = 4.3  # of a copy
    link_gb_per_sec: float = 450.0  # between GPUs, one way
    launch_us: float = 4.5  # of the host, to start a kernel from Python
    graph_us: float = 1.3  # of the device, from one kernel of a CUDA graph to the next
    sheet_tflops: float = 989.0  # what MFU is measured by


@dataclass
class Part:
    """What a part of a step takes, added up."""

    flops: float = 0.0
    bytes: float = 0.0
    launches: float = 0.0

    def seconds(self, at: Ceilings, share: float = 1.0) -> float:
        """On the device, with `share` of its speed in matrix products."""
        return max(self.flops / share / at.tflops / 1e12, self.bytes / at.tb_per_sec / 1e12)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A training step of one micro-batch, by part."""

    group: int
    positions: int
    parts: dict[str, Part]
    exchange_sec: float  # between GPUs, part of which may run beside the backward pass
    useful_flops: int  # by `model.flops`
    kept_bytes: int  # by the forward pass for the backward

    def gpu_sec(self, at: Ceilings) -> float:
        return sum(self.part_sec(name, at) for name in self.parts) + self.exchange_sec

    def part_sec(self, name: str, at: Ceilings) -> float:
        return self.parts[name].seconds(at, ATTENTION_SHARE if name == ATTENTION else 1.0)

    def host_sec(self, at: Ceilings) -> float:
        return sum(part.launches for part in self.parts.values()) * at.launch_us / 1e6

    def mfu(self, at: Ceilings) -> float:
        return self.useful_flops / max(self.gpu_sec(at), self.host_sec(at)) / at.sheet_tflops / 1e12


class OpCounter(TorchDispatchMode):
    """Counts what runs inside by part of the model. `kept` are tensors that autograd saved, by their memory."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
        self.parts: dict[str, Part] = defaultdict(Part)
        self.forward_launches = 0  # inside decoder layers
        self.kept: dict[int, int] = {}
        self.tracker = ModuleTracker()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view or name in WITHOUT_KERNEL:
            return result
        given = {key: value for key, value in (kwargs or {}).items() if key != "out"}  # `out` is the result
        tensors = [x for x in tree_leaves((args, given, result)) if isinstance(x, torch.Tensor)]
        if not tensors:
            return result
        sizes = [tensor_bytes(tensor) for tensor in tensors]
        largest = max(sizes) if name in LOOKUPS else -1  # of which some rows are touched, as many as are in the others
        part = self.parts[self.part_of(is_product=name in PRODUCTS)]
        part.launches += 1
        part.bytes += (2 if name in LOOKUPS else 1) * sum(size for size in sizes if size != largest)
        if name in PRODUCTS:
            part.flops += 2 * result.numel() * args[PRODUCTS[name]].shape[-1]
        if not self.tracker.is_bw and self.is_in("layers"):
            self.forward_launches += 1
        return result

    def is_in(self, word: str) -> bool:
        """Whether a pass of such modules is running.

        The attention itself takes its tensors by name, so that the tracker never sees the end of its backward pass.
        """
        return any(f".{word}" in parent and not parent.endswith(".self_attn") for parent in self.tracker.parents)

    def part_of(self, *, is_product: bool) -> str:
        """The part that an operation belongs to, by the modules whose pass is running."""
        if self.is_in("speech_heads"):
            return HEADS if is_product else HEAD_LOSS
        if self.is_in("lm_head"):
            return TEXT if is_product else TEXT_LOSS
        if not self.is_in("layers"):
            return FUSION if is_product else EMBEDDING
        if not is_product:
            return ELEMENTWISE
        return PROJECTIONS if any(".self_attn." in parent for parent in self.tracker.parents) else MLP

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note a tensor that autograd saves."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.kept[storage._cdata] = storage.nbytes()
        return tensor


def tensor_bytes(tensor: torch.Tensor) -> int:
    """Bytes that a tensor has in memory; one that is expanded has those of what it repeats."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class _Attention(torch.autograd.Function):
    """Stands for the kernels of the attention, which are counted by themselves."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _counted_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    result: Any = _Attention.apply(query, key, value)
    return result.transpose(1, 2), None


def new_model(config: SpeechLMConfig) -> SpeechLM:
    """A model without memory, in bfloat16, whose attention is only counted."""
    AttentionInterface.register(COUNTED_ATTENTION, _counted_attention)
    with torch.device("meta"):
        model = SpeechLM(config)
    torch.nn.Module.to(model, dtype=torch.bfloat16)
    model.backbone.config._attn_implementation = COUNTED_ATTENTION
    return model.train()


def counted(model: SpeechLM, batch: Batch) -> OpCounter:
    """A forward and a backward pass of `model`, from `new_model`, with a batch in host memory."""
    batch = batch.to("meta")
    counter = OpCounter(model)
    on_gpu = property(lambda tensor: tensor.device.type in ("cuda", "meta"))  # so that a GPU's branches are taken
    keeping = torch.autograd.graph.saved_tensors_hooks(counter.keep, lambda tensor: tensor)
    with mock.patch.object(torch.Tensor, "is_cuda", on_gpu, create=True), counter.tracker, keeping, counter:
        model(batch).loss.backward()
    return counter


def training_step(config: SpeechLMConfig, positions: int, *, gpus: int = 1) -> Step:
    """A step of one micro-batch of about so many positions, of utterances as in `synthetic`, under ZeRO-2."""
    model = new_model(config)
    batch = filled_batch(model, positions)
    sizes, counter = BatchSizes.of(batch), counted(model, batch)
    backbone, parts = config.backbone_config, dict(counter.parts)
    num_layers = backbone.num_hidden_layers
    queries = backbone.num_attention_heads * head_width(backbone)
    keys = num_key_value_heads(backbone) * head_width(backbone)
    touched = sizes.positions * num_layers * (2 * queries + 2 * keys)
    flops = TRAINING_PASSES * Flops(model).parts(sizes)["attention scores"]
    parts[ATTENTION] = Part(flops=flops, bytes=touched * ATTENTION_BYTES, launches=num_layers * ATTENTION_LAUNCHES)
    number = sum(parameter.numel() for parameter in model.parameters())
    sums = number * (SUM_BYTES[0] + SUM_BYTES[1] / gpus)
    parts[SUMS] = Part(bytes=sums, launches=SUM_LAUNCHES * len(list(model.parameters())))
    parts[ADAMW] = Part(bytes=ADAMW_BYTES * number / gpus, launches=ADAMW_LAUNCHES)
    exchanged = number * (MASTER + WEIGHT) * (gpus - 1) / gpus  # gradients scattered in float32, weights gathered
    return Step(
        group=config.group,
        positions=sizes.positions,
        parts=parts,
        exchange_sec=exchanged / Ceilings().link_gb_per_sec / 1e9,
        useful_flops=Flops(model).training(sizes),
        kept_bytes=sum(counter.kept.values()),
    )


def with_fused_kernels(step: Step, config: SpeechLMConfig) -> Step:
    """The step with norms, rotary positions and SwiGLU as one kernel each."""
    backbone = config.backbone_config
    heads = backbone.num_attention_heads + num_key_value_heads(backbone)
    # Numbers of 2 bytes, forward and backward: a norm reads and writes 5 of its width, the sums where branches meet 21,
    # rotary positions 4 of queries and keys, SwiGLU 8 of its own.
    numbers = (2 * 5 + 21) * backbone.hidden_size + 4 * heads * head_width(backbone) + 8 * backbone.intermediate_size
    layers = backbone.num_hidden_layers
    fused = Part(bytes=2.0 * numbers * step.positions * layers, launches=FUSED_LAUNCHES * layers)
    return dataclasses.replace(step, parts={**step.parts, ELEMENTWISE: fused})


def filled_batch(model: SpeechLM, positions: int) -> Batch:
    """About so many positions: utterances with lengths as in `synthetic`, made longer or shorter by one factor."""
    per_sec = TEXT_RATE + FRAME_RATE * NUM_STREAMS / max(1, model.group)
    around = PROMPT_TOKENS + ANSWER_TOKENS + 1
    count = max(1, round(positions / (around + 7.0 * per_sec)))  # 7.0 s is the mean
    seconds = batch_seconds(1, count, 0)[0]
    factor = max(0.0, positions - count * around) / per_sec / sum(seconds)
    return make_batch(model, [factor * length for length in seconds], 0)


@dataclass(frozen=True, kw_only=True)
class DecodingStep:
    """One position of so many answers at once."""

    group: int
    slots: int
    weight_bytes: int
    cache_bytes: int
    flops: int
    launches: int

    def sheet_ms(self, tb_per_sec: float = 4.8) -> float:
        """The least that reading takes, milliseconds."""
        return (self.weight_bytes + self.cache_bytes) / tb_per_sec / 1e9


def decoding_step(config: SpeechLMConfig, slots: int, forward_launches: int) -> DecodingStep:
    """A step of the engine: the layers, the rows of one stream or the heads, the whole memory of every slot.

    `forward_launches`: those of the layers in a forward pass.
    """
    with torch.device("meta"):
        model = SpeechLM(config)
    backbone, layout = config.backbone_config, config.vocab_layout
    rows = 0 if config.group else max(layout.codebook_sizes) * backbone.hidden_size
    heads = sum(head.weights_per_step() for head in model.heads) + (linear_weights(model.fusion) if model.fusion else 0)
    weights = sum(map(linear_weights, model.backbone.layers)) + heads + rows
    cache = 2 * num_key_value_heads(backbone) * head_width(backbone) * backbone.num_hidden_layers
    added = backbone.num_hidden_layers * 6 + 4 * max(1, config.group)  # cache, mask and attention; logits and choices
    return DecodingStep(
        group=config.group,
        slots=slots,
        weight_bytes=WEIGHT * weights,
        cache_bytes=WEIGHT * cache * CACHE_POSITIONS * slots,
        flops=2 * weights * slots,
        launches=forward_launches + added,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--groups", type=natural, nargs="+", default=GROUPS, help="0: NTP (default: 0 3 12)")
    parser.add_argument(
        "--positions", type=positive, nargs="+", default=POSITIONS, help="of a step (default: %(default)s)"
    )
    parser.add_argument(
        "--gpus", type=positive, default=1, help="that share the optimizer, ZeRO-2 (default: %(default)s)"
    )
    parser.add_argument("--fused", action="store_true", help="the table of parts with fused kernels")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    steps, decoding = list[tuple[Step, Step]](), list[DecodingStep]()
    for group in args.groups:
        config = config_of(group)
        for positions in args.positions:
            step = training_step(config, positions, gpus=args.gpus)
            steps.append((step, with_fused_kernels(step, config)))
        model = new_model(config)
        launches = counted(model, filled_batch(model, min(args.positions))).forward_launches
        decoding += [decoding_step(config, slots, launches) for slots in SLOTS]
    if args.json:
        values: Any = {
            "training": [[dataclasses.asdict(step) for step in pair] for pair in steps],
            "decoding": [dataclasses.asdict(step) for step in decoding],
        }
        print(json.dumps(values, indent=2))
    else:
        print("\n".join([*describe(steps, fused=args.fused), "", *describe_decoding(decoding)]))
    return 0


def config_of(group: int) -> SpeechLMConfig:
    """Qwen2.5-0.5B's shape with the paper's best fusion."""
    config = model_config(QWEN, group)
    config.fusion = "mlp" if group else "mean"
    return config


def describe(steps: Sequence[tuple[Step, Step]], *, fused: bool) -> list[str]:
    """Markdown: a row for each step, then the parts of the middle one of each kind. `steps` are (eager, fused) each."""
    at = Ceilings()
    names = ("", "positions", "TFLOP", "GB", "kernels", "GPU ms", "host ms", "MFU", "GPU ms, fused", "MFU", "GB kept")
    lines = [row(*names), "|---" * len(names) + "|"]
    for eager, better in steps:
        moved, launches = (sum(getattr(part, of) for part in eager.parts.values()) for of in ("bytes", "launches"))
        times = f"{1e3 * eager.gpu_sec(at):.0f}", f"{1e3 * eager.host_sec(at):.0f}", f"{eager.mfu(at):.0%}"
        fewer = f"{1e3 * better.gpu_sec(at):.0f}", f"{better.mfu(at):.0%}", f"{eager.kept_bytes / 1e9:.1f}"
        sizes = f"{eager.useful_flops / 1e12:.1f}", f"{moved / 1e9:.0f}", f"{launches:,.0f}"
        lines.append(row(kind(eager.group), f"{eager.positions:,}", *sizes, *times, *fewer))
    for group in dict.fromkeys(pair[0].group for pair in steps):
        alike = [pair[fused] for pair in steps if pair[0].group == group]
        step = alike[len(alike) // 2]
        lines += ["", f"{kind(group)}, {step.positions:,} positions{', fused' if fused else ''}", ""]
        lines += [row("part", "TFLOP", "GB", "kernels", "GPU ms", "bound by"), "|---" * 6 + "|"]
        for name, part in step.parts.items():
            seconds = step.part_sec(name, at)
            bound = "memory" if part.bytes / at.tb_per_sec / 1e12 >= seconds else "arithmetic"
            sizes = f"{part.flops / 1e12:.2f}", f"{part.bytes / 1e9:.1f}", f"{part.launches:,.0f}"
            lines.append(row(name, *sizes, f"{1e3 * seconds:.1f}", bound))
        if step.exchange_sec:
            lines.append(row("exchange between GPUs", "", "", "", f"{1e3 * step.exchange_sec:.1f}", "links"))
    return lines


def describe_decoding(steps: Sequence[DecodingStep]) -> list[str]:
    """Markdown, a row for each step."""
    at = Ceilings()
    names = ("decoding", "slots", "weights GB", "cache GB", "ms at 4.8 TB/s", "kernels", "host ms", "in a graph, ms")
    lines = [row(*names), "|---" * len(names) + "|"]
    for step in steps:
        read = f"{step.weight_bytes / 1e9:.2f}", f"{step.cache_bytes / 1e9:.2f}", f"{step.sheet_ms():.2f}"
        host, graph = step.launches * at.launch_us / 1e3, step.launches * at.graph_us / 1e3
        times = f"{step.launches:,}", f"{host:.1f}", f"{max(step.sheet_ms(), graph):.2f}"
        lines.append(row(kind(step.group), f"{step.slots}", *read, *times))
    return lines


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def kind(group: int) -> str:
    return f"MTP-{group}" if group else "NTP"
