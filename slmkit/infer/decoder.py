"""The model over a fixed number of slots: reads a prompt into one, or goes one position on in all of them.

Guaranteed: what a slot computes is, bit for bit, the same in every slot and whatever the others hold.

- A prompt is read alone, in one piece.
- In a step every matrix product has the same number of rows, filled or not. The one in product.py treats all rows
  alike. A library's may round a row differently by its place (MKL does where a thread gets fewer than four of them);
  so the number of rows is the first that a trial with this model's weights and threads finds free of that.
- Each slot attends by itself, over its own positions and no more, so nothing is padded or masked.
- Activations are computed row by row: their kernels take the last few numbers of a piece of memory another way.
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

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from slmkit.data.sequence import Example
from slmkit.errors import UserError
from slmkit.infer.cache import SlotCache
from slmkit.infer.product import Product, fastest_product
from slmkit.model.attention import attend
from slmkit.model.heads import SpeechHead
from slmkit.model.slm import SpeechLM

ROW_BLOCK = 4  # rows that the kernels of matrix products take at a time


class Decoder:
    """See the module. `model` must be in evaluation mode and keep its weights."""

    def __init__(self, model: SpeechLM, *, num_slots: int, num_positions: int, lm_rows: Sequence[torch.Tensor]) -> None:
        """`lm_rows`: the parts [C, D] of the text model's output layer that `lm_logits` is asked for.

        Raises UserError where no number of rows makes matrix products independent of a row's place.
        """
        self.model, self.num_slots, self._lm_rows = model, num_slots, lm_rows
        qwen2 = model.lm_model.model
        weight = qwen2.embed_tokens.weight
        deep_heads = [head for head in model.heads if head.kind == "transformer"]
        attention = qwen2.layers[0].self_attn
        self._cache = SlotCache(
            num_layers=len(qwen2.layers) + sum(len(head.head_layers) for head in deep_heads),
            num_slots=num_slots,
            num_heads=qwen2.config.num_key_value_heads,
            num_positions=num_positions,
            width=attention.head_dim,
            like=weight,
        )
        with torch.inference_mode():
            self._product = fastest_product(weight)
            self.num_rows = rows_needed([*lm_rows, *_distinct_weights(model)], num_slots, self._product)
            cos, sin = qwen2.rotary_emb(weight, torch.arange(num_positions, device=weight.device)[None])
            self._cos, self._sin = cos[0, :, None], sin[0, :, None]  # [P, 1, E]
            self._hidden = weight.new_zeros(self.num_rows, weight.shape[1])
            self._attended = [torch.zeros_like(self._hidden) for _ in deep_heads]
        self._lengths = [0] * num_slots

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
        model, device = self.model, self.model.device
        width = max(1, model.group)
        blank: tuple[Sequence[int], bool] = ([0] * width, False)
        rows = [positions.get(slot, blank) for slot in range(self.num_slots)]
        rows += [blank] * (self.num_rows - self.num_slots)
        places = [self._lengths[slot] if slot in positions else 0 for slot in range(self.num_slots)]
        tokens = torch.tensor([ids for ids, _ in rows], device=device)
        speech = torch.tensor([is_speech for _, is_speech in rows], device=device)
        where = torch.tensor(places + [0] * (self.num_rows - self.num_slots), device=device)
        for slot in positions:
            self._lengths[slot] += 1
        rotary = self._cos[where], self._sin[where]
        step = _Step(self._product, self._cache, sorted(positions), self._lengths, where, *rotary)
        hidden = step.layers(model.lm_model.model.layers, self._embed(tokens, speech))
        self._hidden = model.lm_model.model.norm(hidden)
        self._attended = [
            step.layers(head.head_layers, self._hidden) for head in model.heads if head.kind == "transformer"
        ]

    def lm_logits(self, part: int) -> torch.Tensor:
        """Logits [R, C] of every row for the tokens of `lm_rows[part]`."""
        return self._product(self._hidden, self._lm_rows[part])

    def head_logits(self) -> list[torch.Tensor]:
        """Class logits of every head, [R, C] each."""
        inputs = self._attended or [self._hidden] * len(self.model.heads)
        pairs = zip(self.model.heads, inputs, strict=True)
        return [_linear(self._product, head.output, _features(self._product, head, each)) for head, each in pairs]

    def _embed(self, tokens: torch.Tensor, speech: torch.Tensor) -> torch.Tensor:
        """Input embeddings [R, D] of tokens [R, G], as `SpeechLM.embed` but row by row where it matters."""
        if self.model.fusion is None:
            return self.model.embed(tokens, speech)
        each = self.model.lm_model.model.embed_tokens(tokens)
        return torch.where(speech[:, None], _row_by_row(self._product, self.model.fusion, each.flatten(-2)), each[:, 0])


class _Step:
    """One position of every row through decoder layers."""

    def __init__(
        self,
        product: Product,
        cache: SlotCache,
        active: list[int],
        lengths: list[int],
        where: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> None:
        self.cache, self.active, self.lengths = cache, active, lengths
        self.linear = functools.partial(_linear, product)
        self.where, self.cos, self.sin = where, cos, sin

    def layers(self, layers: Iterable[Any], hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [R, D] behind `layers`, transformers' own, whose modules do the arithmetic."""
        for layer in layers:
            hidden = hidden + self._attention(layer.self_attn, layer.input_layernorm(hidden))
            mlp, inner = layer.mlp, layer.post_attention_layernorm(hidden)
            gate, up = self.linear(mlp.gate_proj, inner), self.linear(mlp.up_proj, inner)
            hidden = hidden + self.linear(mlp.down_proj, _each_row(mlp.act_fn, gate) * up)
        return hidden

    def _attention(self, module: Any, hidden: torch.Tensor) -> torch.Tensor:
        shape = (len(hidden), -1, module.head_dim)
        query, key, value = (
            self.linear(projection, hidden).view(shape) for projection in (module.q_proj, module.k_proj, module.v_proj)
        )
        query, key = self._rotate(query), self._rotate(key)
        num_slots = len(self.lengths)
        self.cache.write(module.layer_idx, self.where[:num_slots], key[:num_slots], value[:num_slots])
        output = torch.zeros_like(query)
        for slot in self.active:
            keys, values = self.cache.read(module.layer_idx, slot, self.lengths[slot])
            attended, _ = attend(module, query[slot, None, :, None], keys, values, None, scaling=module.scaling)
            output[slot] = attended[0, 0]
        return self.linear(module.o_proj, output.flatten(1))

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


def _linear(product: Product, module: nn.Linear, rows: torch.Tensor) -> torch.Tensor:
    out = product(rows, module.weight)
    return out if module.bias is None else out + module.bias


def _features(product: Product, head: SpeechHead, attended: torch.Tensor) -> torch.Tensor:
    """As `head.features`, row by row where it matters."""
    if head.kind != "mlp":
        return head.features(attended)
    assert isinstance(head.head, nn.Sequential)
    return _row_by_row(product, list(head.head)[:-1], attended)


def _row_by_row(product: Product, modules: Iterable[nn.Module], rows: torch.Tensor) -> torch.Tensor:
    """`modules` one after the other: products of all rows at once, anything else of each row by itself."""
    for module in modules:
        rows = _linear(product, module, rows) if isinstance(module, nn.Linear) else _each_row(module, rows)
    return rows


def _each_row(function: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    return torch.stack([function(row) for row in rows.unbind()])
