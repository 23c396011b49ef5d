"""Floating-point operations of the model, from sizes alone: what throughput in TFLOP/s and MFU are computed from.

Counted is what the mathematics of a step needs, two operations per multiply-add of every matrix product; norms,
activations, softmax and rotations are not (below 1 % in models of a usual width), nor is anything a kernel
does beyond that (recomputation, the masked half of causal attention). The backward pass needs twice the forward pass:
one product for the inputs and one for the weights of each. For a backbone of width D with H query heads and J key-value
heads of E each, inner width I and L layers, N positions of utterances n_u, M text or next-token targets, Q speech steps
to predict, group G:

    attention projections   L * 2 N D (2 H E + 2 J E)
    attention scores        L * 4 H E * pairs,  pairs = sum of n_u (n_u + 1) / 2: each position with itself and before
    MLP                     L * 6 N D I
    text logits             2 D * sum over targets of the rows they choose among (all V, or those of their stream)
    speech heads, each      linear 2 Q D C;  mlp 2 Q D 2D + 2 Q 2D C;  transformer 2 layers at N positions + 2 Q D C
    mlp fusion              2 N (G D D + D D): it runs at every position
    speaker projector       2 P (S 4S + 4S D) for P speaker slots of width S
    embeddings              none, they are lookups

It sees sizes that the host knows; it never touches a tensor on a device.

Invariant: with pairs = sum of n_u^2 the parts add up to what torch's FlopCounterMode counts in a forward pass.

Example:
    costs = Flops(model.config)
    costs.training(BatchSizes.of(batch))        # of one micro-batch, before `batch.to(device)`
"""

from dataclasses import dataclass

import torch

from slmkit.data.batch import Batch
from slmkit.model import losses
from slmkit.model.config import SpeechLMConfig
from slmkit.model.heads import HEAD_LAYERS, MLP_FACTOR, class_token_ids
from slmkit.model.slm import SPEAKER_FACTOR

TRAINING_PASSES = 3  # forward, and backward for inputs and for weights
# Dense bf16 TFLOP/s by the name CUDA gives a device, from the maker's data sheets. What is not here has no MFU.
PEAK_BF16_TFLOPS = {
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100-PCIE-80GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H200": 989.0,
    "NVIDIA GH200 480GB": 989.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L40": 181.0,
    "NVIDIA L4": 121.0,
    "NVIDIA A40": 150.0,
    "NVIDIA A30": 165.0,
    "NVIDIA A10": 125.0,
    "NVIDIA GeForce RTX 4090": 165.0,
    "NVIDIA GeForce RTX 3090": 71.0,
}


@dataclass(frozen=True, kw_only=True)
class BatchSizes:
    """What the cost of a micro-batch depends on."""

    positions: int
    attention_pairs: int  # (position, position it sees), itself included, over all utterances
    lm_targets: tuple[int, ...]  # per loss term: text, then one per stream (none but text for MTP)
    speech_steps: int  # positions whose next speech step is predicted
    speakers: int  # speaker slots

    @staticmethod
    def of(batch: Batch) -> "BatchSizes":
        """Sizes of a batch that is still in host memory, where counting waits for nothing."""
        assert batch.cu_seqlens.device.type == "cpu", "sizes are counted before a batch goes to its device"
        lengths = torch.diff(batch.cu_seqlens.long())
        return BatchSizes(
            positions=batch.num_tokens,
            attention_pairs=int((lengths * (lengths + 1)).sum()) // 2,
            lm_targets=tuple(batch.lm_groups.bincount().tolist()),
            speech_steps=len(batch.head_positions),
            speakers=len(batch.speaker_positions),
        )


class Flops:
    """The cost of a model of `config`, float operations by part."""

    def __init__(self, config: SpeechLMConfig) -> None:
        self._config, qwen2, layout = config, config.qwen2, config.vocab_layout
        self._width, self._inner, self._layers = qwen2.hidden_size, qwen2.intermediate_size, qwen2.num_hidden_layers
        head_width = getattr(qwen2, "head_dim", None) or qwen2.hidden_size // qwen2.num_attention_heads
        self._queries = qwen2.num_attention_heads * head_width
        self._keys = (qwen2.num_key_value_heads or qwen2.num_attention_heads) * head_width
        ranges = losses.candidates(layout, qwen2.vocab_size, config.softmax)
        self._choices = [sum(stop - start for start, stop in pairs) for pairs in ranges]  # rows, per loss term
        self._classes = [len(class_token_ids(layout, head)) for head in range(config.group)]

    def parts(self, sizes: BatchSizes) -> dict[str, int]:
        """Forward pass of one micro-batch, by part."""
        width, positions = self._width, sizes.positions
        layers = self._layers + (HEAD_LAYERS * len(self._classes) if self._config.head == "transformer" else 0)
        speaker = self._config.speaker_dim
        return {
            "attention projections": layers * 4 * positions * width * (self._queries + self._keys),
            "attention scores": layers * 4 * self._queries * sizes.attention_pairs,
            "mlp": layers * 6 * positions * width * self._inner,
            "text logits": 2 * width * sum(n * rows for n, rows in zip(sizes.lm_targets, self._choices, strict=False)),
            "speech heads": 2 * sizes.speech_steps * sum(self._weights(classes) for classes in self._classes),
            "fusion": 2 * positions * self._fusion,
            "speaker": 2 * sizes.speakers * SPEAKER_FACTOR * speaker * (speaker + width),
        }

    def training(self, sizes: BatchSizes) -> int:
        """Forward and backward pass of one micro-batch."""
        return TRAINING_PASSES * sum(self.parts(sizes).values())

    @property
    def _fusion(self) -> int:
        """Weights of the mlp that fuses a speech step."""
        return (self._config.group + 1) * self._width**2 if self._config.group and self._config.fusion == "mlp" else 0

    def _weights(self, classes: int) -> int:
        """Weights of a speech head that work at the speech steps alone."""
        if self._config.head == "mlp":
            return MLP_FACTOR * self._width * (self._width + classes)
        return self._width * classes


def peak_tflops(device_name: str) -> float | None:
    """Dense bf16 TFLOP/s of a device that torch.cuda.get_device_name() names; None when it is not known.

    The whole name counts: a slice of a device (MIG) has another name, and so has no peak.
    """
    return PEAK_BF16_TFLOPS.get(device_name)
