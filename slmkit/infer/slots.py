"""Keys and values of a fixed number of answers, and the two ways in which transformers' layers fill them.

A prompt is read alone, in one piece (`PromptWriter`). A step is one position of every slot (`Step`); its attention is
`step_attention`, which transformers' layers find under the name `STEP_ATTENTION`.

The memory is taken once. A slot is filled from its first position on and used again by the next answer. Where slots
attend by themselves it is not cleared in between: what lies behind an answer's own positions is never read.

Shapes: N slots, R >= N rows of a step, P positions of a slot's memory, S positions of a prompt, H query heads,
J key-value heads, E head width.

Invariant: nothing that one slot holds is ever read for another.

Example:
    cache = SlotCache(num_layers=24, num_slots=8, num_heads=2, num_positions=4096, width=64, like=weight)
    run_layers(layers, rotary, embedded, position_ids, cache=PromptWriter(cache, slot=3))
    step = Step(cache, places, lengths=[(3, 17)])
    run_layers(step_layers, rotary, embedded, position_ids, cache=step, step=step)
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

from slmkit.errors import UserError
from slmkit.model.attention import check_plain, packed_attention

STEP_ATTENTION = "slmkit_step"
ALIGNED_POSITIONS = 16  # every slot's memory then begins at a multiple of 64 bytes, and the same kernels run on each


class SlotCache:
    """Keys and values of every layer, [N, J, P, E] each."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_slots: int,
        num_heads: int,
        num_positions: int,
        width: int,
        like: torch.Tensor,
        clear: bool = False,
    ) -> None:
        """Memory of the type and device of `like`, for at least `num_positions` positions of each slot.

        `clear` fills it with zeros, which `read_all` needs: a mask does not hide what is not a number.
        """
        self.num_positions = -(-num_positions // ALIGNED_POSITIONS) * ALIGNED_POSITIONS
        shape = (num_slots, num_heads, self.num_positions, width)
        take = like.new_zeros if clear else like.new_empty
        try:
            self._keys, self._values = ([take(shape) for _ in range(num_layers)] for _ in range(2))
        except RuntimeError as error:  # so torch says that there is no memory
            size = 2 * num_layers * math.prod(shape) * like.element_size()
            raise UserError(
                "there is no memory for so many answers at a time",
                got=f"{num_slots} slots of {self.num_positions} positions, which are {size} bytes",
                next_step="take fewer slots (--slots), or shorter speech (--max-sec)",
            ) from error
        self._slots = torch.arange(num_slots, device=like.device)
        self.dtype = like.dtype

    def write(self, layer: int, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put keys and values [N, J, E] of one position of every slot at places int64 [N]."""
        self._keys[layer][self._slots, :, places] = keys
        self._values[layer][self._slots, :, places] = values

    def read(self, layer: int, slot: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `length` keys and values of a slot, [1, J, length, E] each, without a copy."""
        return self._keys[layer][slot : slot + 1, :, :length], self._values[layer][slot : slot + 1, :, :length]

    def clear(self, slot: int) -> None:
        """Fill the memory of a slot with zeros."""
        for memory in (*self._keys, *self._values):
            memory[slot].zero_()

    def read_all(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a layer, [N, J, P, E] each, used or not, without a copy."""
        return self._keys[layer], self._values[layer]


class PromptWriter:
    """The one method of transformers' caches that the layers call, for a prompt that is read in one piece."""

    def __init__(self, cache: SlotCache, slot: int) -> None:
        self._cache, self._slot = cache, slot

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values [1, J, S, E] of a layer and give them back."""
        keys, values = self._cache.read(layer_idx, self._slot, key_states.shape[2])
        keys.copy_(key_states)
        values.copy_(value_states)
        return key_states, value_states


class Step:
    """One position of every slot: transformers' cache for one step, and what its attention reads."""

    def __init__(self, cache: SlotCache, places: torch.Tensor, lengths: list[tuple[int, int]] | None) -> None:
        """`places` int64 [N]: of the new position in each slot.

        `lengths`: (slot, its positions) of each slot that attends by itself, over no more than these; None lets all
        attend at once, over the whole memory, behind a mask.
        """
        self.lengths, self._cache, self._places = lengths, cache, places
        self.num_slots = len(places)
        if lengths is None:
            # What is added to scores, float [N, 1, 1, P]: of truth values torch would make it anew in every layer.
            seen = torch.arange(cache.num_positions, device=places.device) <= places[:, None]
            self.bias = torch.where(seen, 0.0, -math.inf).to(cache.dtype)[:, None, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values [R, J, 1, E] of the slots; returns all that the cache holds, [N, J, P, E] each."""
        self._cache.write(layer_idx, self._places, *(new[: self.num_slots, :, 0] for new in (key_states, value_states)))
        return self._cache.read_all(layer_idx)


def step_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    step: Step,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention output [R, 1, H, E] of query [R, H, 1, E] over key and value [N, J, P, E], float; 0 in unused rows.

    Raises UserError where `options` asks for another attention, such as one with a window.
    """
    check_plain(module, options)
    num_rows, num_heads, _, width = query.shape
    output = query.new_zeros(num_rows, 1, num_heads, value.shape[-1])
    count = step.num_slots
    if step.lengths is None:
        output[:count], _ = packed_attention(module, query[:count], key, value, step.bias, scaling=scaling)
        return output, None
    # As `packed_attention` does it for one query; but a step does this in every layer for every slot.
    shared = query.reshape(num_rows, key.shape[1], -1, width)
    for slot, length in step.lengths:
        here = slice(slot, slot + 1)
        keys, values = key[here, :, :length], value[here, :, :length]
        output[slot] = F.scaled_dot_product_attention(shared[here], keys, values, scale=scaling).view(1, num_heads, -1)
    return output, None


def register_step_attention() -> None:
    """Make `step_attention` known to transformers."""
    AttentionInterface.register(STEP_ATTENTION, step_attention)
