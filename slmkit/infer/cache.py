"""Keys and values of a fixed number of answers, in memory that is taken once.

Each layer has one tensor [N, J, P, E]. A slot is filled from its first position on and used again by the next answer
without being cleared: what lies behind an answer's own positions is never read.

Shapes: N slots, J key-value heads, P positions, E head width, S positions of a prompt.

Invariant: nothing that one slot holds is ever read for another.

Example:
    cache = SlotCache(num_layers=24, num_slots=8, num_heads=2, num_positions=4096, width=64, like=weight)
    cache.write(layer, places, keys, values)
    keys, values = cache.read(layer, slot, length)
"""

import torch

ALIGNED_POSITIONS = 16  # every slot then begins at a multiple of 64 bytes, and the same kernels run on each


class SlotCache:
    """See the module."""

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
        held = -(-num_positions // ALIGNED_POSITIONS) * ALIGNED_POSITIONS
        shape = (num_slots, num_heads, held, width)
        take = like.new_zeros if clear else like.new_empty
        self._keys = [take(shape) for _ in range(num_layers)]
        self._values = [take(shape) for _ in range(num_layers)]
        self._slots = torch.arange(num_slots, device=like.device)

    def write(self, layer: int, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put keys and values [N, J, E] of one position of every slot at places int64 [N]."""
        self._keys[layer][self._slots, :, places] = keys
        self._values[layer][self._slots, :, places] = values

    def read(self, layer: int, slot: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first `length` keys and values of a slot, [1, J, length, E] each, without a copy."""
        return self._keys[layer][slot : slot + 1, :, :length], self._values[layer][slot : slot + 1, :, :length]

    def read_all(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """All keys and values of a layer, [N, J, P, E] each, used or not, without a copy."""
        return self._keys[layer], self._values[layer]

    def prompt(self, slot: int) -> "PromptWriter":
        """What the model's layers see as their cache while they read the prompt of `slot`."""
        return PromptWriter(self, slot)


class PromptWriter:
    """The one method of transformers' caches that the layers call, for a prompt that is read in one piece."""

    def __init__(self, cache: SlotCache, slot: int) -> None:
        self._cache, self._slot = cache, slot

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep keys and values [1, J, S, E] of a layer and give them back."""
        keys, values = self._cache.read(layer_idx, self._slot, key_states.shape[2])
        keys.copy_(key_states)
        values.copy_(value_states)
        return key_states, value_states
