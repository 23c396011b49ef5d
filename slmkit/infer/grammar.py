"""What may come next, and what the chosen tokens mean: text until `<sosp>`, speech until `<eosp>`, text again. Text has
the marks of a spoken answer, `[ta]` and `[ua]`, where the vocabulary has tokens for them.

Speech is one row of tokens, the streams in turn (a b c a ...), and a step takes the next of them: one (`Interleaved`,
next-token prediction), chosen among rows of the vocabulary, or `group` (`Grouped`, multi-token prediction), a class of
each head. Next-token prediction has `<eosp>` only where a frame is whole. Of a group, `<eosp>` from any head ends the
speech and voids the step, and a class that is no code of its stream, such as `<|speech_pad|>`, voids the step from the
begin of its frame on. A frame that lacks a code, or that the speech leaves incomplete, is void. So whatever is chosen
decodes to whole frames.

Shapes: G ids per position, K streams, H heads, C classes of a head.

Invariant: in text no code can be chosen, and `frames` always holds whole frames.

Example:
    grammar = make_grammar(layout, group=3)
    allowed = grammar.allowed(grammar.state)
    grammar.accept_text(allowed[int(logits[allowed].argmax())])
"""

from collections.abc import Sequence

import numpy as np

from slmkit.codec.base import Codes
from slmkit.data.prompt import MARKS
from slmkit.data.sequence import head_classes
from slmkit.data.vocab import VocabLayout

TEXT, SPEECH = 0, 1  # states; in an interleaved grammar SPEECH + k is the turn of stream k


class Grammar:
    """State of one answer. `mode` is "text", "speech" or "end"."""

    def __init__(self, layout: VocabLayout) -> None:
        self.layout = layout
        self.mode = "text"
        self.text_ids: list[int] = []
        self.frames: list[list[int]] = []  # whole frames, K codes each
        self._open: list[int | None] = []  # the frame that is not whole yet; None where it lacks a code
        self._sosp, self._eosp = layout.id_of("<sosp>"), layout.id_of("<eosp>")

    @property
    def state(self) -> int:
        """What may come next: TEXT, or from SPEECH on a number that tells which part of speech."""
        return TEXT if self.mode == "text" else SPEECH

    @property
    def phase(self) -> int:
        """The stream of the next token of speech, from 0."""
        return len(self._open)

    def stream(self, token: int) -> int:
        """The stream of token number `token` of the next step."""
        return (self.phase + token) % self.layout.num_streams

    def allowed(self, state: int) -> list[int]:
        """Token ids that may be chosen from the vocabulary in `state`, in the order of their rows."""
        assert state == TEXT, "the classes of a speech step come from heads"
        marks = (token_id for token, token_id in self.layout.specials if token in MARKS)
        return [*range(self.layout.base_size), *sorted([self._sosp, *marks])]

    def codes(self, first: int = 0) -> Codes:
        """uint16 [K, T]: the frames so far, from frame `first` on."""
        return np.array(self.frames[first:], dtype=np.uint16).reshape(-1, self.layout.num_streams).T

    def recent(self, stream: int, window: int) -> list[int]:
        """The last codes of a stream, at most `window`, with that of the frame that is not whole yet."""
        codes = [frame[stream] for frame in self.frames[-window:]]
        codes += [code for code in self._open[stream : stream + 1] if code is not None]
        return codes[-window:]

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

    def _take(self, codes: Sequence[int | None]) -> None:
        """The codes of a step, in turn; None for a token that is no code."""
        self._open += codes
        num_streams = self.layout.num_streams
        while len(self._open) >= num_streams:
            frame = [code for code in self._open[:num_streams] if code is not None]
            del self._open[:num_streams]
            if len(frame) == num_streams:
                self.frames.append(frame)

    def _end_speech(self) -> None:
        self.mode = "text"
        self._open.clear()


class Interleaved(Grammar):
    """One token per position, the streams in turn."""

    @property
    def state(self) -> int:
        return TEXT if self.mode == "text" else SPEECH + self.phase

    def allowed(self, state: int) -> list[int]:
        if state == TEXT:
            return super().allowed(state)
        _, first, size = self.layout.streams[state - SPEECH]
        codes = [*range(first, first + size)]
        return [*codes, self._eosp] if state == SPEECH else codes

    def accept_speech(self, chosen: list[int]) -> list[int]:
        (token,) = chosen
        if token == self._eosp:
            self._end_speech()
        else:
            self._take([token - self.layout.code_id(self.phase, 0)])
        return [token]


class Grouped(Grammar):
    """One step of `group` tokens per position, a head for each."""

    def __init__(self, layout: VocabLayout, group: int) -> None:
        super().__init__(layout)
        self._heads = head_classes(group, layout.codebook_sizes)
        self._pad = layout.id_of("<|speech_pad|>")

    def accept_speech(self, chosen: list[int]) -> list[int]:
        if any(c == head.eosp for c, head in zip(chosen, self._heads, strict=True)):
            self._end_speech()
            return [self._eosp] * len(chosen)
        streams, sizes = [self.stream(head) for head in range(len(chosen))], self.layout.codebook_sizes
        no_code = (head for head, stream in enumerate(streams) if chosen[head] >= sizes[stream])
        first = next(no_code, None)
        num_codes = len(chosen) if first is None else max(0, first - streams[first])
        num_void = len(chosen) - num_codes
        codes = chosen[:num_codes]
        self._take([*codes, *[None] * num_void])
        ids = [self.layout.code_id(stream, code) for stream, code in zip(streams, codes, strict=False)]
        return [*ids, *[self._pad] * num_void]


def make_grammar(layout: VocabLayout, group: int) -> Grammar:
    """The grammar of a model with `group` tokens per step (0 for NTP)."""
    return Grouped(layout, group) if group else Interleaved(layout)
