"""Optimizer steps of the installed DeepSpeed beside the same steps of plain torch, on a tiny model of random weights.

DeepSpeed takes its steps as training does: a ZeRO stage, the micro-batches spread over processes and accumulation, tied
embeddings, clipping. Every process also takes each step alone, with the whole global batch as one micro-batch. AdamW
without moments and with an `eps` above every gradient is nearly gradient descent, so a gradient that is wrong, even by
a factor only, shows in the weights: where the step is not clipped. Where it is, factors show in the norm alone.

Invariant: with a DeepSpeed that adds gradients up rightly, `compare_steps` gives differences of float32 rounding.

Example:
    with process_group(world) as device:
        for step in compare_steps(world, device):
            step.is_clipped, step.worst()      # ("lm_model.model.embed_tokens.weight", 3e-7)
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from slmkit.codec.base import CodecSpec, Stream, to_codes
from slmkit.config.train import OptimizerConfig
from slmkit.data.batch import Batch
from slmkit.data.examples import ExampleFormat
from slmkit.data.loader import collate
from slmkit.data.sequence import Example, Piece, build
from slmkit.data.shards import Sample
from slmkit.data.vocab import VocabLayout
from slmkit.group import sum_over_ranks
from slmkit.model.config import SpeechLMConfig
from slmkit.model.pretrained import seeded
from slmkit.model.slm import SpeechLM
from slmkit.train.engine import TrainEngine, parameter_groups
from slmkit.world import BatchSplit, World

ACCUMULATION = 2
# The second step's loss is divided by so much that its gradient is not clipped; the first step's is.
LOSS_DIVISORS = (1.0, 16.0)
GROUP = 3
OPTIMIZER = OptimizerConfig(lr=1.0, betas=(0.0, 0.0), eps=1.0, weight_decay=0.0, clip_norm=0.25)
NOISE_FLOOR = 1e-3  # share of the whole update below which a parameter's own part counts as rounding
BASE_SIZE = 40
BACKBONE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, kw_only=True)
class StepComparison:
    """One optimizer step, of which every number is the worst over all processes."""

    norm: float  # of the gradient before clipping, DeepSpeed's
    plain_norm: float
    differences: dict[str, float]  # parameter -> difference of its two updates, relative to the plain one

    @property
    def is_clipped(self) -> bool:
        return self.plain_norm > OPTIMIZER.clip_norm

    @property
    def norm_difference(self) -> float:
        """Difference of the two norms, relative to the plain one."""
        return abs(self.norm - self.plain_norm) / self.plain_norm

    def worst(self) -> tuple[str, float]:
        """The parameter that differs most, and by how much."""
        return max(self.differences.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])

    def above(self, tolerance: float) -> list[str]:
        """Parameters that differ by more, NaN included."""
        return [name for name, difference in self.differences.items() if not difference <= tolerance]


def compare_steps(world: World, device: torch.device, stage: int = 2) -> list[StepComparison]:
    """Take every step on both sides, with this ZeRO stage; a collective operation, to be called in `process_group`."""
    split = BatchSplit(global_rows=ACCUMULATION * world.size, micro_rows=1, world_size=world.size)
    model = tiny_model().to(device)  # type: ignore[arg-type]  # its stub wants a string
    plain = copy.deepcopy(model)
    adamw = torch.optim.AdamW(
        parameter_groups(plain, OPTIMIZER.weight_decay),
        lr=OPTIMIZER.lr,
        betas=(OPTIMIZER.betas[0], OPTIMIZER.betas[1]),
        eps=OPTIMIZER.eps,
    )
    settings = {
        "train_batch_size": split.global_rows,
        "train_micro_batch_size_per_gpu": split.micro_rows,
        "gradient_accumulation_steps": split.accumulation,
        "gradient_clipping": OPTIMIZER.clip_norm,
        "zero_optimization": {
            "stage": stage,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_scatter": True,
            **({"stage3_param_persistence_threshold": 0} if stage == 3 else {}),  # or so small a model is not spread
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine = TrainEngine.create(model, settings, OPTIMIZER, world)
    return [_compare_step(engine, plain, adamw, split, world, device, divisor) for divisor in LOSS_DIVISORS]


def tiny_model() -> SpeechLM:
    """A multi-token model with tied embeddings and speaker input, always with the same weights."""
    streams = tuple(Stream(f"stream_{i}", 8, "coupled") for i in range(GROUP))
    codec = CodecSpec(
        name="random", sample_rate=16000, hop_samples=200, streams=streams, speaker_dim=4, weights_sha256=""
    )
    layout = VocabLayout.published(
        "mtp",
        base_size=BASE_SIZE,
        bos_id=BASE_SIZE - 2,
        eos_id=BASE_SIZE - 1,
        codebook_sizes=tuple(stream.size for stream in streams),
    )
    config = SpeechLMConfig(
        backbone={**BACKBONE, "vocab_size": layout.size},
        layout=layout.to_dict(),
        codec=codec.to_dict(),
        group=GROUP,
        speaker_dim=codec.speaker_dim,
    )
    with seeded(0):
        return SpeechLM(config)


def utterances(config: SpeechLMConfig, number: int) -> list[tuple[Example, Sample]]:
    """Random utterances with text and speech targets; utterance i is the same whatever their number."""
    layout = config.vocab_layout
    speaker, start = layout.id_of("<|placeholder|>"), layout.id_of("<sosp>")
    made = []
    for i in range(number):
        rng = np.random.default_rng(i)
        text = [tuple(int(token) for token in rng.integers(0, BASE_SIZE, 4 + i % 3)) for _ in range(2)]
        codes = rng.integers(0, np.array(layout.codebook_sizes)[:, None], (layout.num_streams, 5 + 2 * (i % 4)))
        pieces = [
            Piece(text[0], "text", False),
            Piece((speaker,), "speaker", False),
            Piece((start,), "text", True),
            Piece((), "speech", True),
            Piece(text[1], "text", True),
        ]
        vector = rng.standard_normal(config.speaker_dim).astype(np.float32)
        made.append((build(pieces, codes, layout, config.group), Sample(f"u{i}", to_codes(codes), vector, {})))
    return made


def micro_batch(config: SpeechLMConfig, chosen: Sequence[tuple[Example, Sample]], counts: torch.Tensor) -> Batch:
    """The chosen utterances, as a part of a global batch with `counts` targets per term."""
    form = ExampleFormat(task="tts", group=config.group, speaker=True)
    return collate(
        chosen, config.vocab_layout, form, speaker_dim=config.speaker_dim, global_counts=counts.double().numpy()
    )


def target_counts(config: SpeechLMConfig, examples: Sequence[tuple[Example, Sample]]) -> torch.Tensor:
    """Targets per term of all `examples` together, float64 [1 + T]."""
    whole = micro_batch(config, examples, torch.zeros(config.num_terms))
    counts = torch.full((config.num_terms,), float(len(whole.head_positions)), dtype=torch.float64)
    counts[0] = len(whole.lm_positions)
    return counts


def _compare_step(
    engine: TrainEngine,
    plain: SpeechLM,
    adamw: torch.optim.Optimizer,
    split: BatchSplit,
    world: World,
    device: torch.device,
    divisor: float,
) -> StepComparison:
    """One step of both, each from its own weights."""
    config: SpeechLMConfig = plain.config
    examples = utterances(config, split.global_rows)
    counts = divisor * target_counts(config, examples)
    before = [_copied(engine.weights()), _copied(plain.named_parameters())]
    for micro in range(split.accumulation):
        rows = split.rows(world.rank, micro)
        batch = micro_batch(config, examples[rows.start : rows.stop], counts)
        engine.micro_step(batch.to(device), lr=OPTIMIZER.lr)
    adamw.zero_grad()
    plain(micro_batch(config, examples, counts).to(device)).loss.backward()
    plain_norm = float(torch.nn.utils.clip_grad_norm_(plain.parameters(), OPTIMIZER.clip_norm))
    adamw.step()
    ours, theirs = (
        {name: value - old[name] for name, value in _copied(weights).items()}
        for weights, old in zip((engine.weights(), plain.named_parameters()), before, strict=True)
    )
    floor = NOISE_FLOOR * float(torch.stack([update.norm() for update in theirs.values()]).norm())
    differences = [float((ours[name] - update).norm() / (update.norm() + floor)) for name, update in theirs.items()]
    # The largest of each over all processes; NaN is the largest of all.
    table = torch.zeros(world.size, len(differences), dtype=torch.float64, device=device)
    table[world.rank] = torch.tensor(differences, dtype=torch.float64)
    worst = sum_over_ranks(table).amax(dim=0).tolist()
    return StepComparison(
        norm=engine.grad_norm, plain_norm=plain_norm, differences=dict(zip(theirs, worst, strict=True))
    )


def _copied(weights: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in weights}
