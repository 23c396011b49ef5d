"""What may come next, and what the chosen tokens mean: text until `<sosp>`, speech until `<eosp>`, text again. Text has
the marks of a spoken answer, `[ta]` and `[ua]`, where the vocabulary has tokens for them.

Two grammars with one face, for the two ways of writing speech. `Interleaved` (next-token prediction): the streams take
turns, a b c a ..., and `<eosp>` only stands where a frame is whole. `Grouped` (multi-token prediction): a step holds
one class per head; `<eosp>` from any head ends the speech and voids the step; `<|speech_pad|>` voids the frames of the
step from its own on. So whatever is chosen decodes to whole frames.

Shapes: G ids per position, K streams, H heads, C classes of a head.

Invariant: in text no code can be chosen, and `frames` always holds whole frames.

Example:
    grammar = make_grammar(layout, group=3)
    allowed = grammar.allowed(grammar.state)
    grammar.accept_text(allowed[int(logits[allowed].argmax())])
"""

import numpy as np

from slmkit.codec.base import Codes
from slmkit.data.prompt import MARKS
from slmkit.data.sequence import frames_per_step
from slmkit.data.vocab import VocabLayout

TEXT, SPEECH = 0, 1  # states; in an interleaved grammar SPEECH + k is the turn of stream k


class Grammar:
    """State of one answer. `mode` is "text", "speech" or "end"."""

    def __init__(self, layout: VocabLayout) -> None:
        self.layout = layout
        self.mode = "text"
        self.text_ids: list[int] = []
        self.frames: list[list[int]] = []  # whole frames, K codes each
        self._sosp, self._eosp = layout.id_of("<sosp>"), layout.id_of("<eosp>")

    @property
    def state(self) -> int:
        """What may come next: TEXT, or from SPEECH on a number that tells which part of speech."""
        return TEXT if self.mode == "text" else SPEECH

    def allowed(self, state: int) -> list[int]:
        """Token ids that may be chosen from the vocabulary in `state`, in the order of their rows."""
        assert state == TEXT, "the classes of a speech step come from heads"
        marks = (token_id for token, token_id in self.layout.specials if token in MARKS)
        return [*range(self.layout.base_size), *sorted([self._sosp, *marks])]

    def codes(self, first: int = 0) -> Codes:
        """uint16 [K, T]: the frames so far, from frame `first` on."""
        return np.array(self.frames[first:], dtype=np.uint16).reshape(-1, self.layout.num_streams).T

    def accept_text(self, token: int) -> None:
        """Take the text token that was chosen."""
        if token == self.layout.eos_id:
            self.mode = "end"
        elif token == self._sosp:
            self.mode = "speech"
        else:
            self.text_ids.append(token)

    def accept_speech(self, chosen: list[int]) -> list[int]:
        """Take what was chosen, a token id (interleaved) or one class per head; returns the G ids of the position."""
        raise NotImplementedError


class Interleaved(Grammar):
    """One token per position, the streams in turn."""

    def __init__(self, layout: VocabLayout) -> None:
        super().__init__(layout)
        self._open: list[int] = []  # codes of the frame that is not whole yet

    @property
    def state(self) -> int:
        return TEXT if self.mode == "text" else SPEECH + len(self._open)

    def allowed(self, state: int) -> list[int]:
        if state == TEXT:
            return super().allowed(state)
        _, first, size = self.layout.streams[state - SPEECH]
        codes = [*range(first, first + size)]
        return [*codes, self._eosp] if state == SPEECH else codes

    def accept_speech(self, chosen: list[int]) -> list[int]:
        (token,) = chosen
        if token == self._eosp:
            self.mode = "text"
            return [token]
        self._open.append(token - self.layout.code_id(len(self._open), 0))
        if len(self._open) == self.layout.num_streams:
            self.frames.append(self._open)
            self._open = []
        return [token]


class Grouped(Grammar):
    """One step of `group` tokens per position, a head for each."""

    def __init__(self, layout: VocabLayout, group: int) -> None:
        super().__init__(layout)
        self._frames_per_step = frames_per_step(group, layout.num_streams)
        self._pad = layout.id_of("<|speech_pad|>")

    def accept_speech(self, chosen: list[int]) -> list[int]:
        num_streams, sizes = self.layout.num_streams, self.layout.codebook_sizes
        if any(c == sizes[head % num_streams] for head, c in enumerate(chosen)):
            self.mode = "text"
            return [self._eosp] * len(chosen)
        ids: list[int] = []
        for frame in np.array(chosen).reshape(self._frames_per_step, num_streams):
            if self._pad in ids or (frame > sizes).any():
                ids += [self._pad] * num_streams
                continue
            self.frames.append(frame.tolist())
            ids += [self.layout.code_id(stream, code) for stream, code in enumerate(frame.tolist())]
        return ids


def make_grammar(layout: VocabLayout, group: int) -> Grammar:
    """The grammar of a model with `group` tokens per step (0 for NTP)."""
    return Grouped(layout, group) if group else Interleaved(layout)
