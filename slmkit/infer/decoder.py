"""The model over a fixed number of slots: reads a prompt into one, or goes one position on in all of them.

Guaranteed: what a slot computes is, bit for bit, the same in every slot and whatever the others hold.

- A prompt is read alone, in one piece, by transformers' own layers; on a CPU with the linear layers of a step, whose
  products of few rows are faster.
- A step runs the same layers, with linear layers and activations whose rows are all alike (`rows`). Every matrix
  product has the same number of rows, filled or not.
- On a CPU each slot attends by itself, over its own positions and no more (`slots`).
- On a GPU all slots attend at once over the whole memory, behind a mask, so that shapes never change and a step is one
  CUDA graph (`GraphReplay`), the logits of the heads another. So give it no more positions than answers need.

With another number of slots or threads the guarantee holds again, but roundings may differ between the two.

Several prompts at once could be read in one piece on a CPU, too, by products that do not depend on the number of rows.
Measured with MTP-12 of Qwen2.5-0.5B's shape on a Xeon: 8 prompts of 16 to 23 tokens would take 0.6 times as long, 64 of
up to 79 tokens 0.9 times. Of the time to first audio, in which the steps and the codec are the larger part, that is
less than a fifth, so it is not done.

Shapes: N slots, R >= N rows of a step, P positions of a slot's memory, G ids per position, D width, E head width,
C classes.

Example:
    decoder = SlotDecoder(model, num_slots=8, num_positions=4096, lm_rows=[model.lm_model.lm_head.weight])
    decoder.prefill(slot, prompt, speaker)
    token = int(decoder.lm_logits(0)[slot].argmax())
    decoder.advance({slot: ([token] * width, False)})
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from slmkit.data.sequence import Example
from slmkit.infer.product import fastest_product
from slmkit.infer.request import from_ids
from slmkit.infer.rows import Rows, rows_needed, step_layer
from slmkit.infer.slots import STEP_ATTENTION, PromptWriter, SlotCache, Step, register_step_attention
from slmkit.model.architecture import TESTED, does_not_fit, head_width, num_key_value_heads
from slmkit.model.backbone import ATTENTION, run_layers
from slmkit.model.slm import SpeechLM

WARM_UP_RUNS = 3  # libraries take their work space before a graph is recorded; a step may be run twice without harm

TRIAL_POSITIONS = 4  # of the prompt with which a step is tried
TRIAL_TOLERANCE, HALF_TRIAL_TOLERANCE = 1e-3, 5e-2  # of hidden states, relative to the largest


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
        graph: bool | None = None,
    ) -> None:
        """`lm_rows`: the parts [C, D] of the text model's output layer that `lm_logits` is asked for.

        `together`: all slots attend at once, over the whole memory; by default on a GPU.
        `graph`: a step is a CUDA graph, which needs `together`; by default on a GPU.
        Raises UserError where no number of rows makes matrix products independent of a row's place, and where a step
        of a model whose architecture is not in `TESTED` does not give what reading a prompt gives.
        """
        self.model, self.num_slots, self._lm_rows = model, num_slots, lm_rows
        backbone, heads = model.backbone, model.heads
        weight = backbone.embed_tokens.weight
        self._together = weight.is_cuda if together is None else together
        graph = weight.is_cuda and self._together if graph is None else graph
        assert self._together or not graph, "a graph keeps the lengths of slots that attend by themselves"
        self._cache = SlotCache(
            num_layers=len(backbone.layers) + sum(head.num_layers for head in heads),
            num_slots=num_slots,
            num_heads=num_key_value_heads(backbone.config),
            num_positions=num_positions,
            width=head_width(backbone.config),
            like=weight,
            clear=self._together,
        )
        with torch.inference_mode():
            product = fastest_product(weight)
            self.num_rows = rows_needed([*lm_rows, *_distinct_weights(model)], num_slots, product)
            cos, sin = backbone.rotary_emb(weight, torch.arange(num_positions, device=weight.device)[None])
            self._cos, self._sin = cos[0, :, None], sin[0, :, None]  # [P, 1, E or less]
            # These stay the same tensors: a prompt and a step write into them, and graphs read them where they are.
            self._hidden = weight.new_zeros(self.num_rows, weight.shape[1])
            # Behind the layers of each head; where it has none, the hidden states themselves.
            self._states = [torch.zeros_like(self._hidden) if head.num_layers else self._hidden for head in heads]
        self._rows = Rows(product, one_by_one=weight.device.type == "cpu")
        register_step_attention()
        layers = [backbone.layers, *(head.head_layers if head.num_layers else () for head in heads)]
        self._layers, *self._head_layers = (
            [step_layer(layer, self._rows, attention=STEP_ATTENTION) for layer in some] for some in layers
        )
        self._prompt_layers, *self._head_prompt_layers = (
            [step_layer(layer, self._rows, attention=ATTENTION) for layer in some] for some in layers
        )
        self._lengths = [0] * num_slots
        self._active: list[int] = []
        self._run: Callable[[torch.Tensor], Any] = self._step
        self._run_heads: Callable[[], list[torch.Tensor]] = self._compute_heads
        if graph:
            self._run = GraphReplay(self._step, weight.device)
            self._run_heads = GraphReplay(self._compute_heads, weight.device)
        if backbone.config.model_type not in TESTED:
            self._try_step()

    @torch.inference_mode()
    def _try_step(self) -> None:
        """Raise UserError unless the last position of a prompt gives in a step what it gives in the prompt."""
        *before, last = range(TRIAL_POSITIONS)
        layout, group, config = self.model.layout, self.model.group, self.model.backbone.config
        try:
            for slot in range(self.num_slots):
                self.prefill(slot, from_ids(tuple(before), layout, group), None)
            self.advance({slot: ([last] * max(1, group), False) for slot in range(self.num_slots)})
            stepped = torch.stack([self._hidden, *self._states])[:, : self.num_slots].clone()
            where = torch.arange(TRIAL_POSITIONS, device=self.model.device)[None]
            hidden = self.model.hidden(self.model.embed_prompt(from_ids((*before, last), layout, group)), where)
            rotary = self.model.backbone.rotary_emb
            states = [head.states(hidden, where, rotary) for head in self.model.heads]
            read = torch.stack([of_all[0, -1] for of_all in (hidden, *states)])
        except (RuntimeError, AttributeError, TypeError, ValueError, LookupError) as error:
            raise does_not_fit(config, f"a decoding step fails: {error}") from error
        tolerance = TRIAL_TOLERANCE if read.dtype == torch.float32 else HALF_TRIAL_TOLERANCE
        is_near = (stepped[:, 0] - read).abs().max() <= tolerance * read.abs().max()
        if not (is_near and bool((stepped == stepped[:, :1]).all())):
            raise does_not_fit(config, "a decoding step gives other numbers than a prompt")

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
        embedded, rotary = model.embed_prompt(prompt, speaker), model.backbone.rotary_emb
        if self._rows.one_by_one:
            turn = self._cos[positions[0], 0][None], self._sin[positions[0], 0][None]

            def run(layers: Sequence[nn.Module], hidden: torch.Tensor) -> torch.Tensor:
                return run_layers(layers, lambda *_: turn, hidden, positions, cache=writer)

            hidden = model.backbone.norm(run(self._prompt_layers, embedded))
            of_heads = [run(layers, hidden) for layers in self._head_prompt_layers]
        else:
            hidden = model.hidden(embedded, positions, cache=writer)
            of_heads = [head.states(hidden, positions, rotary, cache=writer) for head in model.heads]
        self._hidden[slot] = hidden[0, -1]
        for head, states, of_head in zip(model.heads, self._states, of_heads, strict=True):
            if head.num_layers:
                states[slot] = of_head[0, -1]
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
        for slot in positions:
            self._lengths[slot] += 1
        self._active = sorted(positions)
        self._run(to_device(numbers, self.model.device))

    def lm_logits(self, part: int) -> torch.Tensor:
        """Logits [R, C] of every row for the tokens of `lm_rows[part]`."""
        return self._rows.product(self._hidden, self._lm_rows[part])

    def head_logits(self) -> list[torch.Tensor]:
        """Class logits of every head, [R, C] each, to be used before the next call."""
        return self._run_heads()

    def _compute_heads(self) -> list[torch.Tensor]:
        pairs = zip(self.model.heads, self._states, strict=True)
        return [self._rows.linear(head.output, head.step_features(states, self._rows)) for head, states in pairs]

    def _step(self, numbers: torch.Tensor) -> list[torch.Tensor]:
        """Go one position on in every row: what `_compute` gives of `numbers` comes to where the last one was."""
        held = [self._hidden, *(states for states in self._states if states is not self._hidden)]
        for old, new in zip(held, self._compute(numbers), strict=True):
            old.copy_(new)
        return []

    def _compute(self, numbers: torch.Tensor) -> list[torch.Tensor]:
        """Hidden states [R, D] of one position of every row, and behind the layers of each head that has some.

        numbers int64 [R, G + 2]: its G ids; whether it is a speech step; its place in the slot.
        """
        model, backbone = self.model, self.model.backbone
        tokens, speech, where = numbers[:, :-2], numbers[:, -2] > 0, numbers[:, -1]
        if model.fusion is None:
            embedded = model.embed(tokens, speech)
        else:  # as `SpeechLM.embed`, but row by row where it matters
            each = backbone.embed_tokens(tokens)
            embedded = torch.where(speech[:, None], self._rows.chain(model.fusion, each.flatten(-2)), each[:, 0])
        lengths = None if self._together else [(slot, self._lengths[slot]) for slot in self._active]
        step = Step(self._cache, where[: self.num_slots], lengths)
        turn = self._cos[where], self._sin[where]

        def run(layers: Sequence[nn.Module], hidden: torch.Tensor) -> torch.Tensor:
            cache: Any = step
            out = run_layers(layers, lambda *_: turn, hidden[:, None], where[:, None], cache=cache, step=step)
            return out[:, 0]

        hidden = backbone.norm(run(self._layers, embedded))
        return [hidden, *(run(layers, hidden) for layers in self._head_layers if layers)]


class GraphReplay:
    """A function of tensors as a CUDA graph: hundreds of small kernels started by one call.

    The first call records, each call plays the same kernels on the same memory with new inputs. So the function takes
    tensors of the same shapes each time, does not look at their values on the host, reads no number or tensor of the
    host's that changes, and its results are the same tensors in every call, with new content. What it reads beside its
    inputs must stay where it is.
    """

    def __init__(self, compute: Callable[..., list[torch.Tensor]], device: torch.device) -> None:
        """`device`: where all of it happens, which need not be the process's current one."""
        self._compute, self._device = compute, device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[torch.Tensor] = []
        self._outputs: list[torch.Tensor] = []

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        with torch.cuda.device(self._device):
            if self._graph is None:
                self._inputs = [given.clone() for given in inputs]
                self._graph = self._recorded()
            for held, given in zip(self._inputs, inputs, strict=True):
                held.copy_(given)
            self._graph.replay()
        return self._outputs

    def _recorded(self) -> torch.cuda.CUDAGraph:
        aside = torch.cuda.Stream()  # of this device: the one that `torch.cuda.graph` keeps may be another's
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP_RUNS):
                self._compute(*self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=aside):
            self._outputs = self._compute(*self._inputs)
        return graph


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on `device`, by a copy that nothing waits for: to a GPU from pinned memory, which torch does
    not use again before the copy is done."""
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def _distinct_weights(model: SpeechLM) -> list[torch.Tensor]:
    """One weight of each shape that a step multiplies with; of the text output layer there are parts instead."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.lm_model.lm_head]
    return list({tuple(layer.weight.shape): layer.weight for layer in layers}.values())
