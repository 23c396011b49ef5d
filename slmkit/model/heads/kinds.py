"""The kinds of speech heads, and the registry that names them as `model.head` of a run does.

To add a kind, write a subclass of `SpeechHead` (base.py says what it gives) and enter it in `HEADS`.
"""

import torch
from torch import nn
from transformers import PreTrainedConfig

from slmkit.model.architecture import norm_epsilon
from slmkit.model.heads.base import OutputLayer, RowArithmetic, SpeechHead

MLP_FACTOR = 2  # inner width in hidden sizes (published code)


class LinearHead(SpeechHead):
    """One linear map of the backbone's hidden state."""

    published_key = "head.weight"

    def __init__(self, config: PreTrainedConfig, *, num_classes: int, layers: nn.ModuleList) -> None:
        super().__init__(config, num_classes=num_classes, layers=layers)
        self.head = OutputLayer(config.hidden_size, num_classes)

    @property
    def output(self) -> OutputLayer:
        return self.head

    def features(self, states: torch.Tensor) -> torch.Tensor:
        return states


class MlpHead(SpeechHead):
    """Linear, SiLU, Linear."""

    published_key = "head.2.weight"

    def __init__(self, config: PreTrainedConfig, *, num_classes: int, layers: nn.ModuleList) -> None:
        super().__init__(config, num_classes=num_classes, layers=layers)
        inner = MLP_FACTOR * config.hidden_size
        self.head = nn.Sequential(nn.Linear(config.hidden_size, inner), nn.SiLU(), OutputLayer(inner, num_classes))

    @property
    def output(self) -> OutputLayer:
        last = self.head[2]
        assert isinstance(last, OutputLayer)
        return last

    def features(self, states: torch.Tensor) -> torch.Tensor:
        return self.head[1](self.head[0](states))

    def step_features(self, states: torch.Tensor, rows: RowArithmetic) -> torch.Tensor:
        return rows.chain((self.head[0], self.head[1]), states)


class TransformerHead(SpeechHead):
    """Two decoder layers of the backbone's kind, LayerNorm, Linear (published code).

    The norm has the backbone's epsilon. A decoding step of it sums along a row, which is exact as it is.
    """

    published_key = "head_proj.weight"
    num_layers = 2

    def __init__(self, config: PreTrainedConfig, *, num_classes: int, layers: nn.ModuleList) -> None:
        super().__init__(config, num_classes=num_classes, layers=layers)
        self.head_norm = nn.LayerNorm(config.hidden_size, eps=norm_epsilon(config))
        self.head_proj = OutputLayer(config.hidden_size, num_classes)

    @property
    def output(self) -> OutputLayer:
        return self.head_proj

    def features(self, states: torch.Tensor) -> torch.Tensor:
        return self.head_norm(states)


HEADS: dict[str, type[SpeechHead]] = {"linear": LinearHead, "mlp": MlpHead, "transformer": TransformerHead}
