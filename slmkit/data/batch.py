"""The tensors of one micro-batch: utterances back to back, no padding anywhere.

Shapes: N positions, G token ids per position (1 for NTP, the group size for MTP), U utterances, D speaker width,
P speaker slots, M language-model targets, Q speech steps to predict, H speech heads (0 for NTP), K streams, T loss
terms besides text (one per stream for NTP, one per head for MTP).

Targets are shifted already: position t of `lm_positions` or `head_positions` predicts what stands at t + 1.
`cu_seqlens` tells utterances apart; nothing in a batch refers across one of its borders.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch. Positions are indices into the N positions of this batch."""

    tokens: torch.Tensor  # int64 [N, G], vocabulary ids; at text positions every column holds the text id
    speech_mask: torch.Tensor  # bool [N], MTP code steps and <eosp>: the embedding is the fusion of the G embeddings
    position_ids: torch.Tensor  # int64 [N], restarts at 0 in each utterance
    cu_seqlens: torch.Tensor  # int32 [U + 1], first 0, last N
    speaker: torch.Tensor  # float32 [P, D]
    speaker_positions: torch.Tensor  # int64 [P], where the projected speaker vector replaces the embedding
    lm_positions: torch.Tensor  # int64 [M]
    lm_targets: torch.Tensor  # int64 [M], vocabulary ids
    lm_groups: torch.Tensor  # int64 [M], 0 text; NTP: 1 + stream (<eosp> goes with the first stream)
    head_positions: torch.Tensor  # int64 [Q]
    head_targets: torch.Tensor  # int64 [Q, H], class in the head: see `sequence.HeadClasses`
    global_counts: torch.Tensor  # float64 [1 + T], valid targets per term in the whole global batch
    lengths: tuple[int, ...]  # [U] positions of each utterance; this and the counts are known without a device
    lm_counts: tuple[int, ...]  # [1 + T], language-model targets per term in this micro-batch
    head_counts: tuple[int, ...]  # [K] speech steps to predict per phase; they stand in the order of their phases
    keys: tuple[str, ...]  # of the utterances, in order
    num_frames: int  # codec frames that are predicted in this micro-batch
    row_tokens: int  # positions the rows of this micro-batch could hold
    skipped: tuple[str, ...] = ()  # a sentence for every sample that could not be read and is left out

    @property
    def num_tokens(self) -> int:
        """Positions in use."""
        return self.tokens.shape[0]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its tensors on `device`: copied without waiting where they are pinned."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in memory that a device copies from while it computes; a DataLoader calls this by its name."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        changed: dict[str, Any] = {
            field.name: change(value)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return dataclasses.replace(self, **changed)
