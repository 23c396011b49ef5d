"""Times training steps against the padded formulation, in codec frames per second of forward and backward pass.

Ours: utterances packed without padding, logits only where there are targets, sliced cross-entropy. Baseline: the usual
way, written out here in a few lines on transformers' own model: a padded batch with an attention mask, and logits over
the whole vocabulary at every position, padding and prompt included (for MTP those of the heads as well). The baseline
takes the logits slice by slice too, in its favour: whole, they would not fit into memory.

Both have the same weights and see the same batches, in turns. Utterances: seconds log-normal around 5.5 (sigma 0.7,
limited to 0.5 to 20), 80 frames a second, 15 text tokens a second, 25 tokens around them: about what LibriTTS has. The
lengths of a run are evenly spaced quantiles of that distribution, in random order.

Invariant: where both compute the same loss (all but the stream softmax) it is compared, and printed as a difference.

Example:
    slmkit bench train --batches 2
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from slmkit.codec.base import CodecSpec, Stream
from slmkit.data.batch import Batch
from slmkit.data.examples import ExampleFormat
from slmkit.data.loader import collate
from slmkit.data.sequence import Piece, build
from slmkit.data.shards import Sample
from slmkit.data.vocab import VocabLayout
from slmkit.model.config import SpeechLMConfig
from slmkit.model.losses import coefficients
from slmkit.model.pretrained import seeded
from slmkit.model.slm import SpeechLM

M = TypeVar("M", bound=nn.Module)
SUMMARY = "training speed, packed against padded with full logits"
FRAME_RATE, TEXT_RATE = 80, 15  # per second of speech
PROMPT_TOKENS, ANSWER_TOKENS = 18, 7  # around the text; the answer's are labelled
MEDIAN_SEC, SIGMA, SHORTEST_SEC, LONGEST_SEC = 5.5, 0.7, 0.5, 20.0
BASELINE_SLICE = 512  # positions whose logits the baseline holds at a time
IGNORED = -100
WARM_UP_SEC = 0.2
LR = 1e-4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of the model and of the work."""

    base_tokens: int = 151_665  # Qwen2.5
    codebook: int = 1024
    hidden_size: int = 256
    num_layers: int = 6
    num_heads: int = 4
    utterances: int = 5  # a batch
    time_scale: float = 1.0  # shortens every utterance

    @property
    def spec(self) -> CodecSpec:
        streams = tuple(Stream(f"stream_{i}", self.codebook, "coupled") for i in range(3))
        hop, rate = 200, 16_000
        return CodecSpec(
            name="bench", sample_rate=rate, hop_samples=hop, streams=streams, speaker_dim=0, weights_sha256=""
        )


QUICK = Shape(base_tokens=2000, codebook=64, hidden_size=64, num_layers=2, num_heads=2, utterances=4, time_scale=0.2)


@dataclass(frozen=True)
class Case:
    """A kind of model, and how many times the baseline's speed it should reach at the full shape."""

    name: str
    group: int
    softmax: Literal["full", "stream"]
    required: float


CASES = (Case("NTP", 0, "full", 2.0), Case("NTP, stream softmax", 0, "stream", 6.0), Case("MTP-3", 3, "full", 4.0))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batches", type=int, default=2, help="timed batches of 5 utterances (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a toy shape that takes seconds; its ratios mean little")
    parser.add_argument("--optimizer", action="store_true", help="add an AdamW step on both sides")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of lengths, codes and weights (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    shape = QUICK if args.quick else Shape()
    place = {"device": torch.device(args.device), "dtype": getattr(torch, args.dtype)}
    cases = bench_training(shape, batches=args.batches, seed=args.seed, optimizer=args.optimizer, **place)
    result = {
        "device": args.device,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "optimizer": args.optimizer,
        "shape": "quick" if args.quick else "full",
        "cases": cases,
    }
    print(json.dumps(result, indent=2) if args.json else describe(result))
    return 0


def bench_training(
    shape: Shape, *, batches: int, seed: int, optimizer: bool, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """One record per case: frames/s of both sides, their ratio, the largest difference between their losses.

    The stream softmax is set against the padded next-token baseline with the whole vocabulary.
    """
    seconds = shape.time_scale * np.array(batch_seconds(batches, shape.utterances, seed))
    records = []
    for group in sorted({case.group for case in CASES}):
        cases = [case for case in CASES if case.group == group]
        models = []
        for case in cases:
            with seeded(seed):
                models.append(moved(SpeechLM(model_config(shape, case)), device, dtype))
        padded = Padded(models[0])
        sides = [Side(model, partial(packed_step, model), optimizer) for model in models]
        sides.append(Side(padded, padded.step, optimizer))
        work = [make_batch(shape, models[0], lengths, seed).to(device) for lengths in seconds]
        race(sides, work, warm_up=make_batch(shape, models[0], [WARM_UP_SEC] * shape.utterances, seed).to(device))
        records += [record(case, side, sides[-1]) for case, side in zip(cases, sides, strict=False)]
    return records


def record(case: Case, ours: "Side", theirs: "Side") -> dict[str, Any]:
    same = case.softmax == "full"
    return {
        "case": case.name,
        "packed_frames_per_sec": ours.frames / ours.seconds,
        "padded_frames_per_sec": theirs.frames / theirs.seconds,
        "ratio": theirs.seconds / ours.seconds,
        "required": case.required,
        "loss": ours.losses,
        "loss_difference": max(abs(a - b) for a, b in zip(ours.losses, theirs.losses, strict=True)) if same else None,
    }


class Side:
    """One way to train, with the time it took."""

    def __init__(self, model: nn.Module, step: Callable[[Batch], torch.Tensor], optimizer: bool) -> None:
        """`step` makes the forward and the backward pass of a batch and returns the loss."""
        self.model, self.step = model, step
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LR) if optimizer else None
        self.seconds, self.frames = 0.0, 0
        self.losses: list[float] = []

    def train(self, batch: Batch) -> float:
        """One step. Returns the loss, which waits for the device."""
        loss = self.step(batch)
        if self.optimizer is not None:
            self.optimizer.step()
        self.model.zero_grad(set_to_none=True)
        if loss.is_cuda:
            torch.cuda.synchronize(loss.device)
        return loss.item()

    def time(self, batch: Batch) -> None:
        start = time.perf_counter()
        self.losses.append(self.train(batch))
        self.seconds += time.perf_counter() - start
        self.frames += batch.num_frames


def race(sides: Sequence[Side], work: Sequence[Batch], *, warm_up: Batch) -> None:
    """Every side on every batch, in turns, so that a busy machine weighs on all alike."""
    for side in sides:
        side.train(warm_up)
    for batch in work:
        for side in sides:
            side.time(batch)


def packed_step(model: SpeechLM, batch: Batch) -> torch.Tensor:
    """Forward and backward pass as in training."""
    loss = model(batch).loss
    loss.backward()
    return loss.detach()


class Padded(nn.Module):
    """The baseline: the same weights on a padded batch, all logits at every position."""

    def __init__(self, ours: SpeechLM) -> None:
        super().__init__()
        values = {**ours.lm_model.config.to_dict(), "attn_implementation": "sdpa"}
        self.lm = moved(Qwen2ForCausalLM(Qwen2Config(**values)), ours.device, ours.dtype)
        self.lm.load_state_dict(ours.lm_model.state_dict())
        self.heads = nn.ModuleList(copy.deepcopy(head.output) for head in ours.heads)
        self.text_weight = ours.config.text_loss_weight

    def step(self, batch: Batch) -> torch.Tensor:
        """Forward and backward pass. Returns the loss."""
        tokens, mask, places = pad(batch)
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        embedded = self.lm.model.embed_tokens(tokens).mean(dim=2)
        output = self.lm.model(inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False)
        hidden = output.last_hidden_state.flatten(0, 1)
        shares = coefficients(batch.global_counts, group=len(self.heads), text_weight=self.text_weight)
        wanted = [(self.lm.lm_head, batch.lm_positions, batch.lm_targets, shares[0])]
        for i, head in enumerate(self.heads):
            wanted.append((head, batch.head_positions, batch.head_targets[:, i], shares[1 + i]))
        pieces = [piece.detach().requires_grad_() for piece in hidden.split(BASELINE_SLICE)]
        total = torch.zeros((), device=hidden.device)
        for layer, where, targets, share in wanted:
            labels = torch.full((len(hidden),), IGNORED, device=hidden.device)
            labels[places[where]] = targets
            for piece, label in zip(pieces, labels.split(BASELINE_SLICE), strict=True):
                loss = share * F.cross_entropy(layer(piece).float(), label, ignore_index=IGNORED, reduction="sum")
                loss.backward()
                total += loss.detach()
        hidden.backward(torch.cat([piece.grad for piece in pieces if piece.grad is not None]))
        return total


def pad(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens [U, S, G] and mask bool [U, S] of the padded batch, and where in U * S each packed position went [N]."""
    lengths = torch.diff(batch.cu_seqlens)
    count, longest = len(lengths), int(lengths.max())
    places = torch.repeat_interleave(torch.arange(count, device=lengths.device) * longest, lengths) + batch.position_ids
    tokens = batch.tokens.new_zeros(count * longest, batch.tokens.shape[1])
    tokens[places] = batch.tokens
    mask = torch.zeros(count * longest, dtype=torch.bool, device=lengths.device)
    mask[places] = True
    return tokens.unflatten(0, (count, longest)), mask.unflatten(0, (count, longest)), places


def moved(model: M, device: torch.device, dtype: torch.dtype) -> M:
    """The model on `device`, as `dtype`, in training mode."""
    nn.Module.to(model, device=device, dtype=dtype)
    return model.train()


def model_config(shape: Shape, case: Case) -> SpeechLMConfig:
    layout = VocabLayout.published(
        "mtp" if case.group else "ntp",
        base_size=shape.base_tokens,
        bos_id=0,
        eos_id=1,
        codebook_sizes=(shape.codebook,) * 3,
    )
    backbone = {
        "vocab_size": layout.size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": 4 * shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_heads // 2,
        "tie_word_embeddings": True,
    }
    return SpeechLMConfig(
        backbone=backbone,
        layout=layout.to_dict(),
        codec=shape.spec.to_dict(),
        group=case.group,
        softmax=case.softmax,
    )


def batch_seconds(batches: int, utterances: int, seed: int) -> list[list[float]]:
    """Lengths of the utterances of each batch: evenly spaced quantiles of the distribution, shuffled."""
    count = batches * utterances
    normal = NormalDist(math.log(MEDIAN_SEC), SIGMA)
    quantiles = [math.exp(normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
    lengths = np.clip(quantiles, SHORTEST_SEC, LONGEST_SEC)
    return np.random.default_rng(seed).permutation(lengths).reshape(batches, utterances).tolist()


def make_batch(shape: Shape, model: SpeechLM, lengths: Sequence[float], seed: int) -> Batch:
    """Utterances of so many seconds as a packed batch of random codes and text; a global batch of its own."""
    rng, layout, group = np.random.default_rng(seed), model.layout, model.group
    examples, total = [], 0
    for seconds in lengths:
        num_frames, num_words = max(1, round(seconds * FRAME_RATE)), round(seconds * TEXT_RATE)
        codes = rng.integers(0, shape.codebook, (layout.num_streams, num_frames))
        prompt = tuple(rng.integers(0, shape.base_tokens, PROMPT_TOKENS + num_words).tolist())
        answer = tuple(rng.integers(0, shape.base_tokens, ANSWER_TOKENS).tolist())
        pieces = [Piece(prompt, "text", False), Piece(answer, "text", True), Piece((), "speech", True)]
        examples.append((build(pieces, codes, layout, group), Sample("", codes.astype(np.int16), None, {})))
        total += num_frames
    terms = np.concatenate([example.lm_groups for example, _ in examples])
    counts = np.bincount(terms, minlength=model.config.num_terms).astype(np.float64)
    if group:
        counts[1:] = sum(len(example.head_positions) for example, _ in examples)
    form = ExampleFormat(task="tts", group=group, speaker=False)
    return collate(examples, layout, form, speaker_dim=0, global_counts=counts, num_frames=total)


def describe(result: dict[str, Any]) -> str:
    """The result as lines for a reader."""
    lines = [
        f"codec frames per second of forward and backward{' and AdamW' if result['optimizer'] else ''}: "
        f"{result['device']}, {result['dtype']}, {result['threads']} threads, {result['shape']} shape",
        f"{'':22}{'packed':>10}{'padded':>10}{'ratio':>8}{'required':>10}   loss difference",
    ]
    for case in result["cases"]:
        same = "another loss" if case["loss_difference"] is None else f"{case['loss_difference']:.1e}"
        lines.append(
            f"{case['case']:22}{case['packed_frames_per_sec']:10.1f}{case['padded_frames_per_sec']:10.1f}"
            f"{case['ratio']:8.2f}{case['required']:10.1f}   {same}"
        )
    return "\n".join(lines)
