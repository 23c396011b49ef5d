"""What may come next, and what the chosen tokens mean: text until `<sosp>`, speech until `<eosp>`, text again.

Two grammars with one face, for the two ways of writing speech. `Interleaved` (next-token prediction): the streams take
turns, a b c a ..., and `<eosp>` only stands where a frame is whole. `Grouped` (multi-token prediction): a step holds
one class per head; `<eosp>` from any head ends the speech and voids the step; `<|speech_pad|>` voids the frames of the
step from its own on. So whatever is chosen decodes to whole frames.

Shapes: G ids per position, V vocabulary rows, K streams, H heads, C classes of a head.

Invariant: in text no code can be chosen, and `frames` always holds whole frames.

Example:
    grammar = make_grammar(layout, group=3, vocab_rows=3850)
    ids, is_speech = grammar.text_step(choose, lm_logits)
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from slmkit.data.sequence import frames_per_step
from slmkit.data.vocab import VocabLayout

Choose = Callable[[torch.Tensor], torch.Tensor]  # logits [..., V] to classes int64 [...]


class Grammar:
    """State of one answer. `mode` is "text", "speech" or "end"."""

    def __init__(self, layout: VocabLayout, vocab_rows: int) -> None:
        self.layout = layout
        self.mode = "text"
        self.text_ids: list[int] = []
        self.frames: list[list[int]] = []  # whole frames, K codes each
        self._sosp, self._eosp = layout.id_of("<sosp>"), layout.id_of("<eosp>")
        self._text_mask = self._mask([*range(layout.base_size), self._sosp], vocab_rows)

    def codes(self) -> npt.NDArray[np.int16]:
        """int16 [K, T]: the frames so far."""
        return np.array(self.frames, dtype=np.int16).reshape(-1, self.layout.num_streams).T

    def text_step(self, choose: Choose, logits: torch.Tensor) -> int:
        """Choose the next text token from vocabulary logits [V]; returns its id."""
        token = int(choose(logits + self._text_mask.to(logits)))
        if token == self.layout.eos_id:
            self.mode = "end"
        elif token == self._sosp:
            self.mode = "speech"
        else:
            self.text_ids.append(token)
        return token

    def speech_step(self, choose: Choose, logits: list[torch.Tensor]) -> list[int]:
        """Choose the next speech position from logits: [V] (interleaved) or [C] per head; returns its G ids."""
        raise NotImplementedError

    @staticmethod
    def _mask(allowed: list[int], rows: int) -> torch.Tensor:
        mask = torch.full((rows,), -math.inf)
        mask[allowed] = 0
        return mask


class Interleaved(Grammar):
    """One token per position, the streams in turn."""

    def __init__(self, layout: VocabLayout, vocab_rows: int) -> None:
        super().__init__(layout, vocab_rows)
        ends = [[self._eosp], *[[]] * (layout.num_streams - 1)]
        self._stream_masks = [
            self._mask([*range(first, first + size), *end], vocab_rows)
            for (_, first, size), end in zip(layout.streams, ends, strict=True)
        ]
        self._open: list[int] = []  # codes of the frame that is not whole yet

    def speech_step(self, choose: Choose, logits: list[torch.Tensor]) -> list[int]:
        stream = len(self._open)
        token = int(choose(logits[0] + self._stream_masks[stream].to(logits[0])))
        if token == self._eosp:
            self.mode = "text"
            return [token]
        self._open.append(token - self.layout.code_id(stream, 0))
        if len(self._open) == self.layout.num_streams:
            self.frames.append(self._open)
            self._open = []
        return [token]


class Grouped(Grammar):
    """One step of `group` tokens per position, a head for each."""

    def __init__(self, layout: VocabLayout, vocab_rows: int, group: int) -> None:
        super().__init__(layout, vocab_rows)
        self._frames_per_step = frames_per_step(group, layout.num_streams)
        self._pad = layout.id_of("<|speech_pad|>")

    def speech_step(self, choose: Choose, logits: list[torch.Tensor]) -> list[int]:
        num_streams, sizes = self.layout.num_streams, self.layout.codebook_sizes
        classes = [int(choose(head_logits)) for head_logits in logits]
        if any(c == sizes[head % num_streams] for head, c in enumerate(classes)):
            self.mode = "text"
            return [self._eosp] * len(classes)
        ids: list[int] = []
        for frame in np.array(classes).reshape(self._frames_per_step, num_streams):
            if self._pad in ids or (frame > sizes).any():
                ids += [self._pad] * num_streams
                continue
            self.frames.append(frame.tolist())
            ids += [self.layout.code_id(stream, code) for stream, code in enumerate(frame.tolist())]
        return ids


def make_grammar(layout: VocabLayout, group: int, vocab_rows: int) -> Grammar:
    """The grammar of a model with `group` tokens per step (0 for NTP) and `vocab_rows` rows of logits."""
    return Grouped(layout, vocab_rows, group) if group else Interleaved(layout, vocab_rows)
