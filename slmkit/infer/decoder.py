"""The model over a fixed number of slots: reads a prompt into one, or goes one position on in all of them.

Guaranteed: what a slot computes is, bit for bit, the same in every slot and whatever the others hold.

- A prompt is read alone, in one piece, by transformers' own layers.
- In a step every matrix product has the same number of rows, filled or not. The one in product.py treats all rows
  alike. A library's may round a row differently by its place (MKL does where a thread gets fewer than four of them);
  so the number of rows is the first that a trial with this model's weights and threads finds free of that.
- On a CPU each slot attends by itself, over its own positions and no more, and activations are computed row by row.
- On a GPU all slots attend at once over the whole memory, behind a mask, so that shapes never change and a step is one
  CUDA graph. So give it no more positions than answers need.
- All else is exact in its order whatever the rows: sums along a row, additions, products, roots, tables.

With another number of slots or threads the guarantee holds again, but roundings may differ between the two.

Keys and values of a slot lie in memory that is taken once. A slot is filled from its first position on and used again
by the next answer. Where slots attend by themselves it is not cleared in between: what lies behind an answer's own
positions is never read.

Shapes: N slots, R >= N rows of a step, P positions of a slot's memory, S positions of a prompt, G ids per position,
D width, H query heads, J key-value heads, E head width, C classes.

Example:
    decoder = SlotDecoder(model, num_slots=8, num_positions=4096, lm_rows=[model.lm_model.lm_head.weight])
    decoder.prefill(slot, prompt, speaker)
    token = int(decoder.lm_logits(0)[slot].argmax())
    decoder.advance({slot: ([token] * width, False)})
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from slmkit.data.sequence import Example
from slmkit.errors import UserError
from slmkit.infer.product import Product, fastest_product
from slmkit.model.backbone import packed_attention
from slmkit.model.slm import SpeechLM

ROW_BLOCK = 4  # rows that the kernels of matrix products take at a time
ALIGNED_POSITIONS = 16  # every slot's memory then begins at a multiple of 64 bytes, and the same kernels run on each
WARM_UP_RUNS = 3  # libraries take their work space before a graph is recorded; a step may be run twice without harm


class SlotDecoder:
    """See the module. `model` must be in evaluation mode and keep its weights."""

    def __init__(
        self,
        model: SpeechLM,
        *,
        num_slots: int,
        num_positions: int,
        lm_rows: Sequence[torch.Tensor],
        together: bool | None = None,
    ) -> None:
        """`lm_rows`: the parts [C, D] of the text model's output layer that `lm_logits` is asked for.

        `together`: all slots attend at once, over the whole memory; by default on a GPU.
        Raises UserError where no number of rows makes matrix products independent of a row's place.
        """
        self.model, self.num_slots, self._lm_rows = model, num_slots, lm_rows
        backbone, heads = model.backbone, model.heads
        weight = backbone.embed_tokens.weight
        self._together = weight.is_cuda if together is None else together
        self._cache = SlotCache(
            num_layers=len(backbone.layers) + sum(head.num_layers for head in heads),
            num_slots=num_slots,
            num_heads=backbone.config.num_key_value_heads,
            num_positions=num_positions,
            width=backbone.layers[0].self_attn.head_dim,
            like=weight,
            clear=self._together,
        )
        with torch.inference_mode():
            product = fastest_product(weight)
            self.num_rows = rows_needed([*lm_rows, *_distinct_weights(model)], num_slots, product)
            cos, sin = backbone.rotary_emb(weight, torch.arange(num_positions, device=weight.device)[None])
            self._cos, self._sin = cos[0, :, None], sin[0, :, None]  # [P, 1, E]
            self._hidden = weight.new_zeros(self.num_rows, weight.shape[1])
            # Behind the layers of each head; where it has none, the hidden states themselves.
            self._states = [torch.zeros_like(self._hidden) if head.num_layers else self._hidden for head in heads]
        self._rows = Rows(product, one_by_one=not weight.is_cuda)
        self._lengths = [0] * num_slots
        self._active: list[int] = []
        self._run = GraphReplay(self._compute) if weight.is_cuda else self._compute

    def length(self, slot: int) -> int:
        """Positions that `slot` holds."""
        return self._lengths[slot]

    def prefill(self, slot: int, prompt: Example, speaker: torch.Tensor | None) -> None:
        """Begin `slot` anew with a prompt and its speaker vector float32 [D], where it has a slot for one."""
        model = self.model
        if self._together:  # an answer that was not finite may have sat here before, and a mask does not hide that
            self._cache.clear(slot)
        positions = torch.arange(len(prompt.tokens), device=model.device)[None]
        writer: Any = PromptWriter(self._cache, slot)
        hidden = model.hidden(model.embed_prompt(prompt, speaker), positions, cache=writer)
        self._hidden[slot] = hidden[0, -1]
        for head, states in zip(model.heads, self._states, strict=True):
            if head.num_layers:
                states[slot] = head.states(hidden, positions, model.backbone.rotary_emb, cache=writer)[0, -1]
        self._lengths[slot] = len(prompt.tokens)

    def advance(self, positions: Mapping[int, tuple[Sequence[int], bool]]) -> None:
        """Append to each slot that is named one position: its G ids, and whether it is a speech step."""
        width = max(1, self.model.group)
        blank: tuple[Sequence[int], bool] = ([0] * width, False)
        rows = [positions.get(slot, blank) for slot in range(self.num_slots)]
        rows += [blank] * (self.num_rows - self.num_slots)
        places = [self._lengths[slot] if slot in positions else 0 for slot in range(self.num_slots)]
        places += [0] * (self.num_rows - self.num_slots)
        numbers = torch.tensor([[*ids, is_speech, place] for (ids, is_speech), place in zip(rows, places, strict=True)])
        numbers = numbers.to(self.model.device)  # one transfer
        for slot in positions:
            self._lengths[slot] += 1
        self._active = sorted(positions)
        self._hidden, *self._states = self._run(numbers[:, :width], numbers[:, width] > 0, numbers[:, width + 1])

    def lm_logits(self, part: int) -> torch.Tensor:
        """Logits [R, C] of every row for the tokens of `lm_rows[part]`."""
        return self._rows.product(self._hidden, self._lm_rows[part])

    def head_logits(self) -> list[torch.Tensor]:
        """Class logits of every head, [R, C] each."""
        pairs = zip(self.model.heads, self._states, strict=True)
        return [self._rows.linear(head.output, head.step_features(states, self._rows)) for head, states in pairs]

    def _compute(self, tokens: torch.Tensor, speech: torch.Tensor, where: torch.Tensor) -> list[torch.Tensor]:
        """Hidden states [R, D] of one position of every row, and behind the layers of each head.

        tokens int64 [R, G]; speech bool [R]; where int64 [R], the place of the position in its slot.
        """
        model, backbone = self.model, self.model.backbone
        if model.fusion is None:
            embedded = model.embed(tokens, speech)
        else:  # as `SpeechLM.embed`, but row by row where it matters
            each = backbone.embed_tokens(tokens)
            embedded = torch.where(speech[:, None], self._rows.chain(model.fusion, each.flatten(-2)), each[:, 0])
        lengths = None if self._together else [(slot, self._lengths[slot]) for slot in self._active]
        step = _Step(lengths, where[: self.num_slots], self._cos[where], self._sin[where])
        hidden = backbone.norm(self._layers(backbone.layers, embedded, step))
        heads = model.heads
        return [
            hidden,
            *(self._layers(head.head_layers, hidden, step) if head.num_layers else hidden for head in heads),
        ]

    def _layers(self, layers: Iterable[Any], hidden: torch.Tensor, step: "_Step") -> torch.Tensor:
        """Hidden states [R, D] behind `layers`, transformers' own, whose modules hold the weights."""
        rows = self._rows
        for layer in layers:
            hidden = hidden + self._attention(layer.self_attn, layer.input_layernorm(hidden), step)
            mlp, inner = layer.mlp, layer.post_attention_layernorm(hidden)
            gate, up = rows.linear(mlp.gate_proj, inner), rows.linear(mlp.up_proj, inner)
            hidden = hidden + rows.linear(mlp.down_proj, rows.activation(mlp.act_fn, gate) * up)
        return hidden

    def _attention(self, module: Any, hidden: torch.Tensor, step: "_Step") -> torch.Tensor:
        shape = (len(hidden), -1, module.head_dim)
        projections = (module.q_proj, module.k_proj, module.v_proj)
        query, key, value = (self._rows.linear(projection, hidden).view(shape) for projection in projections)
        query, key = step.rotate(query), step.rotate(key)
        num_slots = self.num_slots
        self._cache.write(module.layer_idx, step.where, key[:num_slots], value[:num_slots])
        output = torch.zeros_like(query)
        if step.lengths is None:
            keys, values = self._cache.read_all(module.layer_idx)
            seen = torch.arange(keys.shape[2], device=keys.device) <= step.where[:, None]
            attended, _ = packed_attention(
                module, query[:num_slots, :, None], keys, values, seen[:, None, None], scaling=module.scaling
            )
            output[:num_slots] = attended[:, 0]
        else:
            for slot, length in step.lengths:
                keys, values = self._cache.read(module.layer_idx, slot, length)
                one = query[slot, None, :, None]
                attended, _ = packed_attention(module, one, keys, values, None, scaling=module.scaling)
                output[slot] = attended[0, 0]
        return self._rows.linear(module.o_proj, output.flatten(1))


class _Step(NamedTuple):
    """What all layers of one step share."""

    lengths: list[tuple[int, int]] | None  # (slot, its positions) of each that attends by itself; None: all together
    where: torch.Tensor  # int64 [N], the place of the new position in each slot
    cos: torch.Tensor  # [R, 1, E]
    sin: torch.Tensor

    def rotate(self, heads: torch.Tensor) -> torch.Tensor:
        """Queries or keys [R, H, E] turned by their position."""
        first, second = heads.chunk(2, dim=-1)
        return heads * self.cos + torch.cat((-second, first), dim=-1) * self.sin


class Rows:
    """Arithmetic on rows [R, D] that treats all alike; what `RowArithmetic` of the heads asks for."""

    def __init__(self, product: Product, *, one_by_one: bool) -> None:
        self.product, self.one_by_one = product, one_by_one

    def linear(self, module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        out = self.product(rows, module.weight)
        return out if module.bias is None else out + module.bias

    def activation(self, function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """On a CPU row by row: its kernels take the end of a piece of memory another way."""
        return torch.stack([function(row) for row in rows.unbind()]) if self.one_by_one else function(rows)

    def chain(self, modules: Iterable[nn.Module], rows: torch.Tensor) -> torch.Tensor:
        for module in modules:
            rows = self.linear(module, rows) if isinstance(module, nn.Linear) else self.activation(module, rows)
        return rows


class SlotCache:
    """Keys and values of every layer, [N, J, P, E] each. Nothing that one slot holds is ever read for another."""

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


class GraphReplay:
    """A function of tensors as a CUDA graph: hundreds of small kernels started by one call.

    The first call records, the others play the same kernels on the same memory with new inputs. So the function takes
    tensors of the same shapes each time, does not look at their values on the host, and its results are the same
    tensors in every call, with new content.
    """

    def __init__(self, compute: Callable[..., list[torch.Tensor]]) -> None:
        self._compute = compute
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[torch.Tensor] = []
        self._outputs: list[torch.Tensor] = []

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        if self._graph is None:
            self._inputs = [given.clone() for given in inputs]
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP_RUNS):
                    self._compute(*self._inputs)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._outputs = self._compute(*self._inputs)
            self._graph = graph
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        self._graph.replay()
        return self._outputs


def rows_needed(weights: Iterable[torch.Tensor], num_slots: int, product: Product = F.linear) -> int:
    """The least number of rows, at least `num_slots`, at which products with `weights` [C, D] round all rows alike.

    Raises UserError when none is found among the sizes that kernels like. One row needs no trial.
    """
    if num_slots == 1:
        return 1
    threads = torch.get_num_threads()
    blocks = [ROW_BLOCK * 2**i for i in range(10) if 2**i < 2 * threads]
    sizes = sorted({num_slots, *(-(-num_slots // block) * block for block in blocks)})
    generator = torch.Generator().manual_seed(0)
    kept = [(weight, torch.randn(weight.shape[1], generator=generator).to(weight)) for weight in weights]
    for size in sizes:
        products = (product(row.expand(size, -1).contiguous(), weight) for weight, row in kept)
        if all(bool((rows == rows[:1]).all()) for rows in products):
            return size
    raise UserError(
        f"on this machine a matrix product depends on the position of the row, at {', '.join(map(str, sizes))} rows",
        next_step="use one slot, or another number of threads",
    )


def _distinct_weights(model: SpeechLM) -> list[torch.Tensor]:
    """One weight of each shape that a step multiplies with; of the text output layer there are parts instead."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.lm_model.lm_head]
    return list({tuple(layer.weight.shape): layer.weight for layer in layers}.values())
