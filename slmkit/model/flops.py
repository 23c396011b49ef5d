"""Floating-point operations of the model, from sizes alone: what throughput in TFLOP/s and MFU are computed from.

Counted is what the mathematics of a step needs, two operations per multiply-add of every matrix product; norms,
activations, softmax and rotations are not (below 1 % in models of a usual width), nor is anything a kernel
does beyond that (recomputation, the masked half of causal attention). The backward pass needs twice the forward pass:
one product for the inputs and one for the weights of each. For a backbone of width D with L layers of H heads of E
each, N positions of utterances n_u, Q speech steps to predict, group G:

    attention projections   2 N * weights of the linear layers of all attentions
    attention scores        L * 4 H E * pairs,  pairs = sum of n_u (n_u + 1) / 2: each position with itself and before
    mlp                     2 N * weights of all other linear layers of the decoder layers
    text logits             2 D * sum over targets of the rows they choose among (all V, or those of their stream)
    speech heads, each      2 Q * weights of its linear layers (heads/), of the last only the rows of classes that
                            compete; its decoder layers as those of the backbone
    mlp fusion              2 N (G D D + D D): it runs at every position
    speaker projector       2 P (S 4S + 4S D) for P speaker slots of width S
    embeddings              none, they are lookups

It sees sizes that the host knows, those of the model's own modules; it never touches a tensor on a device.

Invariant: with pairs = sum of n_u^2 the parts add up to what torch's FlopCounterMode counts in a forward pass.

Example:
    costs = Flops(model)
    costs.training(BatchSizes.of(batch))        # of one micro-batch
"""

from dataclasses import dataclass

import torch

from slmkit.data.batch import Batch
from slmkit.model import losses
from slmkit.model.architecture import attention_of, head_width
from slmkit.model.heads.base import linear_weights
from slmkit.model.slm import SPEAKER_FACTOR, SpeechLM

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
    speech_steps: tuple[int, ...]  # positions whose next speech step is predicted, per phase
    speakers: int  # speaker slots

    @staticmethod
    def of(batch: Batch) -> "BatchSizes":
        """Sizes of a batch, wherever its tensors are: the host knows them."""
        return BatchSizes(
            positions=batch.num_tokens,
            attention_pairs=sum(length * (length + 1) for length in batch.lengths) // 2,
            lm_targets=batch.lm_counts,
            speech_steps=batch.head_counts,
            speakers=len(batch.speaker_positions),
        )


class Flops:
    """The cost of a model, float operations by part."""

    def __init__(self, model: SpeechLM) -> None:
        config = model.config
        self._config, backbone = config, config.backbone_config
        self._width = width = backbone.hidden_size
        layers = [
            *model.backbone.layers,
            *(layer for head in model.heads if head.num_layers for layer in head.head_layers),
        ]
        self._projections = sum(linear_weights(attention_of(layer)) for layer in layers)
        self._mlp = sum(linear_weights(layer) for layer in layers) - self._projections
        self._query_width = len(layers) * backbone.num_attention_heads * head_width(backbone)
        self._head_weights = [0] * config.vocab_layout.num_streams  # that a step is multiplied with, by its phase
        competing = losses.head_candidates(config.vocab_layout, config.group)
        for head, by_phase in zip(model.heads, competing, strict=True):
            for phase, classes in by_phase.items():
                others = head.output.out_features - sum(stop - start for start, stop in classes)
                self._head_weights[phase] += head.weights_per_step() - others * head.output.in_features
        is_fused = config.group > 0 and config.fusion == "mlp"
        self._fusion_weights = (config.group + 1) * width**2 if is_fused else 0
        ranges = losses.candidates(config.vocab_layout, backbone.vocab_size, config.softmax)
        self._choices = [sum(stop - start for start, stop in pairs) for pairs in ranges]  # rows, per loss term

    def parts(self, sizes: BatchSizes) -> dict[str, int]:
        """Forward pass of one micro-batch, by part."""
        width, positions = self._width, sizes.positions
        speaker = self._config.speaker_dim
        return {
            "attention projections": 2 * positions * self._projections,
            "attention scores": 4 * self._query_width * sizes.attention_pairs,
            "mlp": 2 * positions * self._mlp,
            "text logits": 2 * width * sum(n * rows for n, rows in zip(sizes.lm_targets, self._choices, strict=False)),
            "speech heads": 2 * sum(n * each for n, each in zip(sizes.speech_steps, self._head_weights, strict=True)),
            "fusion": 2 * positions * self._fusion_weights,
            "speaker": 2 * sizes.speakers * SPEAKER_FACTOR * speaker * (speaker + width),
        }

    def training(self, sizes: BatchSizes) -> int:
        """Forward and backward pass of one micro-batch."""
        return TRAINING_PASSES * sum(self.parts(sizes).values())


def peak_tflops(device_name: str) -> float | None:
    """Dense bf16 TFLOP/s of a device that torch.cuda.get_device_name() names; None when it is not known.

    The whole name counts: a slice of a device (MIG) has another name, and so has no peak.
    """
    return PEAK_BF16_TFLOPS.get(device_name)


def known_peak(device: torch.device, *, in_bf16: bool) -> float | None:
    """Dense TFLOP/s of a device; None where it is not known. The peaks we know are those of bf16 on GPUs."""
    return peak_tflops(torch.cuda.get_device_name(device)) if in_bf16 and device.type == "cuda" else None
