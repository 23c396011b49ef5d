"""What a speech head of multi-token prediction is: one per token of a speech step.

Head i predicts token i of the step; its classes are those of `sequence.head_classes`. Module names are the published
ones (`speech_heads.{i}.head...`), so that published weights load by name.

A head computes in three stages. `states` looks at other positions, if the kind has decoder layers of its own;
`features` works on single positions, and is called only for those that matter; `output` maps features to class logits.
Decoding one position of many answers has the same stages: the engine runs the layers, then `step_features`, `output`.

Shapes: B batch (1 when packed), S positions, Q of them that matter, R rows of a decoding step, D width, C classes.

Example:
    head = HEADS["mlp"](config, num_classes=1025, layers=nn.ModuleList())
    logits = head.output(head.features(hidden))
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import nn
from transformers import Cache, PreTrainedConfig

from slmkit.model import losses
from slmkit.model.attention import Packing
from slmkit.model.backbone import run_layers


class OutputLayer(nn.Linear):
    """Features to logits, or straight to their cross-entropy, without all logits at once.

    The last layer of every head and of the text model. Its weight is read inside its own `forward` alone: ZeRO-3 puts
    a weight together only there.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> "OutputLayer":
        """The same layer with the very parameters of `linear`, so that ties stay."""
        layer = cls(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer

    def forward(
        self,
        features: torch.Tensor,
        *,
        targets: torch.Tensor | None = None,
        scales: torch.Tensor | None = None,
        spans: Sequence[losses.TargetSpan] | None = None,
    ) -> Any:
        """Logits float [..., C] of features float [..., D], or their cross-entropy with targets.

        targets, scales and spans are those of `losses.cross_entropy`, whose CrossEntropy of features float [M, D] they
        give.
        """
        if targets is None:
            return super().forward(features)
        assert scales is not None
        assert spans is not None
        return losses.cross_entropy(features, self.weight, self.bias, targets, scales, spans)


class RowArithmetic(Protocol):
    """What `step_features` computes with: each row's result has the same bits wherever the row stands.

    Matrix products and activations of torch do not promise that, so a head uses these in their place. Norms, sums along
    a row and element-wise additions and products may be torch's own.
    """

    def linear(self, module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        """`module` of rows float [R, D]."""

    def activation(self, function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """An element-wise function, such as SiLU, of rows float [R, D]."""

    def chain(self, modules: Iterable[nn.Module], rows: torch.Tensor) -> torch.Tensor:
        """Linear layers and activations, one after the other."""


class SpeechHead(nn.Module):
    """The base of every kind. A kind gives `published_key`, `output` and `features`; the rest where it needs to."""

    published_key: ClassVar[str]  # name of a weight that no other kind has: tells the kind of a published checkpoint
    num_layers: ClassVar[int] = 0  # decoder layers of its own, each with an entry in the key-value cache

    def __init__(self, config: PreTrainedConfig, *, num_classes: int, layers: nn.ModuleList) -> None:
        """`config`: the backbone's. `layers`: as many new decoder layers of its kind as `num_layers` says."""
        super().__init__()
        assert len(layers) == self.num_layers, f"{len(layers)} layers for a head that has {self.num_layers}"
        if layers:
            self.head_layers = layers

    @property
    def output(self) -> OutputLayer:
        """The last linear map, features to class logits."""
        raise NotImplementedError

    def states(
        self,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        rotary: nn.Module,
        *,
        packing: Packing | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """The backbone's hidden states float [B, S, D] behind the layers of this head; as `run_layers`."""
        if not self.num_layers:
            return hidden
        return run_layers(self.head_layers, rotary, hidden, position_ids, packing=packing, cache=cache)

    def features(self, states: torch.Tensor) -> torch.Tensor:
        """Input of `output`, float [..., F], from `states` float [..., D] at the positions that matter."""
        raise NotImplementedError

    def step_features(self, states: torch.Tensor, rows: RowArithmetic) -> torch.Tensor:
        """`features` of states float [R, D] in a decoding step. To be overridden where it has products or activations,
        which must then be those of `rows`."""
        return self.features(states)

    def weights_per_step(self) -> int:
        """Weights that one predicted speech step is multiplied with: of all linear layers outside `head_layers`."""
        return sum(linear_weights(part) for name, part in self.named_children() if name != "head_layers")


def linear_weights(module: nn.Module) -> int:
    """Weights of all linear layers in a module.

    From the sizes of the layers: ZeRO-3 keeps the weights themselves elsewhere.
    """
    linear = (part for part in module.modules() if isinstance(part, nn.Linear))
    return sum(part.in_features * part.out_features for part in linear)
