"""The model over a fixed number of slots: reads a prompt into one, or goes one position on in all of them.

Guaranteed: what a slot computes is, bit for bit, the same in every slot and whatever the others hold.

- A prompt is read alone, in one piece.
- In a step every matrix product has the same number of rows, filled or not. The one in product.py treats all rows
  alike. A library's may round a row differently by its place (MKL does where a thread gets fewer than four of them);
  so the number of rows is the first that a trial with this model's weights and threads finds free of that.
- On a CPU each slot attends by itself, over its own positions and no more, and activations are computed row by row.
- On a GPU all slots attend at once over the whole memory, behind a mask, so that shapes never change and a step is one
  CUDA graph. So give it no more positions than answers need.
- All else is exact in its order whatever the rows: sums along a row, additions, products, roots, tables.

With another number of slots or threads the guarantee holds again, but roundings may differ between the two.

Shapes: N slots, R >= N rows of a step, S positions of a prompt, G ids per position, D width, H query heads, E head
width, C classes.

Example:
    decoder = Decoder(model, num_slots=8, num_positions=4096, lm_rows=[model.lm_model.lm_head.weight])
    decoder.prefill(slot, prompt, speaker)
    token = int(decoder.lm_logits(0)[slot].argmax())
    decoder.advance({slot: ([token] * width, False)})
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from slmkit.data.sequence import Example
from slmkit.errors import UserError
from slmkit.infer.cache import SlotCache
from slmkit.infer.graph import Replay
from slmkit.infer.product import Product, fastest_product
from slmkit.model.attention import attend
from slmkit.model.heads import SpeechHead
from slmkit.model.slm import SpeechLM

ROW_BLOCK = 4  # rows that the kernels of matrix products take at a time


class Decoder:
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
        qwen2 = model.lm_model.model
        weight = qwen2.embed_tokens.weight
        deep_heads = [head for head in model.heads if head.kind == "transformer"]
        self._together = weight.is_cuda if together is None else together
        self._cache = SlotCache(
            num_layers=len(qwen2.layers) + sum(len(head.head_layers) for head in deep_heads),
            num_slots=num_slots,
            num_heads=qwen2.config.num_key_value_heads,
            num_positions=num_positions,
            width=qwen2.layers[0].self_attn.head_dim,
            like=weight,
            clear=self._together,
        )
        with torch.inference_mode():
            product = fastest_product(weight)
            self.num_rows = rows_needed([*lm_rows, *_distinct_weights(model)], num_slots, product)
            cos, sin = qwen2.rotary_emb(weight, torch.arange(num_positions, device=weight.device)[None])
            self._cos, self._sin = cos[0, :, None], sin[0, :, None]  # [P, 1, E]
            self._hidden = weight.new_zeros(self.num_rows, weight.shape[1])
            self._attended = [torch.zeros_like(self._hidden) for _ in deep_heads]
        self._rows = _Rows(product, one_by_one=not weight.is_cuda)
        self._lengths = [0] * num_slots
        self._active: list[int] = []
        self._run = Replay(self._compute) if weight.is_cuda else self._compute

    def length(self, slot: int) -> int:
        """Positions that `slot` holds."""
        return self._lengths[slot]

    def prefill(self, slot: int, prompt: Example, speaker: torch.Tensor | None) -> None:
        """Begin `slot` anew with a prompt and its speaker vector float32 [D], where it has a slot for one."""
        model, device = self.model, self.model.device
        tokens = torch.from_numpy(prompt.tokens).to(device)
        mask = torch.from_numpy(prompt.speech_mask).to(device)
        places = torch.from_numpy(prompt.speaker_positions).to(device)
        vectors = None if speaker is None or not len(places) else speaker.to(device)[None].expand(len(places), -1)
        embedded = model.embed(tokens, mask, vectors, None if vectors is None else places)[None]
        positions = torch.arange(len(tokens), device=device)[None]
        writer = self._cache.prompt(slot)
        hidden = model.hidden(embedded, positions, cache=writer)  # type: ignore[arg-type]
        self._hidden[slot] = hidden[0, -1]
        rotary = model.lm_model.model.rotary_emb
        for head, attended in zip(model.heads, self._attended, strict=False):
            attended[slot] = head.attend(hidden, positions, rotary, cache=writer)[0, -1]  # type: ignore[arg-type]
        self._lengths[slot] = len(tokens)

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
        self._hidden, *self._attended = self._run(numbers[:, :width], numbers[:, width] > 0, numbers[:, width + 1])

    def _compute(self, tokens: torch.Tensor, speech: torch.Tensor, where: torch.Tensor) -> list[torch.Tensor]:
        """Hidden states [R, D], and those inside each deep head, of one position of every row.

        tokens int64 [R, G]; speech bool [R]; where int64 [R], the place of the position in its slot.
        """
        qwen2 = self.model.lm_model.model
        lengths = None if self._together else [(slot, self._lengths[slot]) for slot in self._active]
        step = _Step(self._rows, self._cache, lengths, where[: self.num_slots], self._cos[where], self._sin[where])
        hidden = qwen2.norm(step.layers(qwen2.layers, self._embed(tokens, speech)))
        deep_heads = [head for head in self.model.heads if head.kind == "transformer"]
        return [hidden, *(step.layers(head.head_layers, hidden) for head in deep_heads)]

    def lm_logits(self, part: int) -> torch.Tensor:
        """Logits [R, C] of every row for the tokens of `lm_rows[part]`."""
        return self._rows.product(self._hidden, self._lm_rows[part])

    def head_logits(self) -> list[torch.Tensor]:
        """Class logits of every head, [R, C] each."""
        inputs = self._attended or [self._hidden] * len(self.model.heads)
        return [self._class_logits(head, each) for head, each in zip(self.model.heads, inputs, strict=True)]

    def _class_logits(self, head: SpeechHead, attended: torch.Tensor) -> torch.Tensor:
        if head.kind == "mlp":
            assert isinstance(head.head, nn.Sequential)
            return self._rows.chain(head.head, attended)
        return self._rows.linear(head.output, head.features(attended))

    def _embed(self, tokens: torch.Tensor, speech: torch.Tensor) -> torch.Tensor:
        """Input embeddings [R, D] of tokens [R, G], as `SpeechLM.embed` but row by row where it matters."""
        if self.model.fusion is None:
            return self.model.embed(tokens, speech)
        each = self.model.lm_model.model.embed_tokens(tokens)
        return torch.where(speech[:, None], self._rows.chain(self.model.fusion, each.flatten(-2)), each[:, 0])


class _Rows:
    """Arithmetic on rows [R, D] that treats all alike."""

    def __init__(self, product: Product, *, one_by_one: bool) -> None:
        self.product, self.one_by_one = product, one_by_one

    def linear(self, module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
        out = self.product(rows, module.weight)
        return out if module.bias is None else out + module.bias

    def each(self, function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """An activation. On a CPU row by row: its kernels take the end of a piece of memory another way."""
        return torch.stack([function(row) for row in rows.unbind()]) if self.one_by_one else function(rows)

    def chain(self, modules: Iterable[nn.Module], rows: torch.Tensor) -> torch.Tensor:
        """Linear layers and activations, one after the other."""
        for module in modules:
            rows = self.linear(module, rows) if isinstance(module, nn.Linear) else self.each(module, rows)
        return rows


class _Step:
    """One position of every row through decoder layers."""

    def __init__(
        self,
        rows: _Rows,
        cache: SlotCache,
        lengths: list[tuple[int, int]] | None,
        where: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> None:
        """`lengths`: (slot, its positions) of each that attends by itself; None lets all attend together.

        where int64 [N]: the place of the new position in each slot.
        """
        self.rows, self.cache, self.lengths = rows, cache, lengths
        self.where, self.cos, self.sin = where, cos, sin

    def layers(self, layers: Iterable[Any], hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [R, D] behind `layers`, transformers' own, whose modules hold the weights."""
        for layer in layers:
            hidden = hidden + self._attention(layer.self_attn, layer.input_layernorm(hidden))
            mlp, inner = layer.mlp, layer.post_attention_layernorm(hidden)
            gate, up = self.rows.linear(mlp.gate_proj, inner), self.rows.linear(mlp.up_proj, inner)
            hidden = hidden + self.rows.linear(mlp.down_proj, self.rows.each(mlp.act_fn, gate) * up)
        return hidden

    def _attention(self, module: Any, hidden: torch.Tensor) -> torch.Tensor:
        shape = (len(hidden), -1, module.head_dim)
        projections = (module.q_proj, module.k_proj, module.v_proj)
        query, key, value = (self.rows.linear(projection, hidden).view(shape) for projection in projections)
        query, key = self._rotate(query), self._rotate(key)
        num_slots = len(self.where)
        self.cache.write(module.layer_idx, self.where, key[:num_slots], value[:num_slots])
        output = torch.zeros_like(query)
        if self.lengths is None:
            keys, values = self.cache.read_all(module.layer_idx)
            seen = torch.arange(keys.shape[2], device=keys.device) <= self.where[:, None]
            attended, _ = attend(
                module, query[:num_slots, :, None], keys, values, seen[:, None, None], scaling=module.scaling
            )
            output[:num_slots] = attended[:, 0]
        else:
            for slot, length in self.lengths:
                keys, values = self.cache.read(module.layer_idx, slot, length)
                attended, _ = attend(module, query[slot, None, :, None], keys, values, None, scaling=module.scaling)
                output[slot] = attended[0, 0]
        return self.rows.linear(module.o_proj, output.flatten(1))

    def _rotate(self, heads: torch.Tensor) -> torch.Tensor:
        first, second = heads.chunk(2, dim=-1)
        return heads * self.cos + torch.cat((-second, first), dim=-1) * self.sin


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
        if all(_alike(product(row.expand(size, -1).contiguous(), weight)) for weight, row in kept):
            return size
    raise UserError(
        f"matrix products of this machine depend on a row's place, at {', '.join(map(str, sizes))} rows",
        next_step="use one slot, or another number of threads",
    )


def _alike(rows: torch.Tensor) -> bool:
    return bool((rows == rows[:1]).all())


def _distinct_weights(model: SpeechLM) -> list[torch.Tensor]:
    """One weight of each shape that a step multiplies with; of the text output layer there are parts instead."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.lm_model.lm_head]
    return list({tuple(layer.weight.shape): layer.weight for layer in layers}.values())
