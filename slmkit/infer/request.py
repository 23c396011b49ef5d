"""What the engine is asked and what it answers.

Invariant: an answer that did not end by itself says which limit stopped it.

Example:
    Request(prompt_example(tokenizer, layout, "hello", group=3, speaker=False), seed=7, max_sec=10)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from slmkit.data.sequence import Example, Piece, build
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.infer.sampling import Sampling
from slmkit.model.slm import SpeechLM

GREEDY = Sampling()
MAX_SEED = 2**64 - 1
Limit = Literal["seconds", "text_tokens", "steps", "positions"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A prompt and how to answer it."""

    prompt: Example | tuple[int, ...]  # as `build` makes it, or token ids of text
    speaker: torch.Tensor | None = None  # float32 [D], for a prompt with a place for it
    text_sampling: Sampling = GREEDY
    speech_sampling: Sampling = GREEDY
    seed: int = 0  # of what is sampled
    max_sec: float = 30.0  # of speech
    max_text_tokens: int = 256  # text positions of the answer, `<sosp>` included
    max_steps: int | None = None  # positions of the answer in all; None for no such limit

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_sec) and self.max_sec > 0):
            raise ValueError(f"max_sec: got {self.max_sec}, expected a number above 0")
        if self.max_text_tokens < 1:
            raise ValueError(f"max_text_tokens: got {self.max_text_tokens}, expected 1 or more")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps: got {self.max_steps}, expected 1 or more, or None")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed: got {self.seed}, expected 0 to {MAX_SEED}")


@dataclass(frozen=True, kw_only=True)
class Output:
    """One answer. `reason`: it came to its end, or to `limit`."""

    codes: npt.NDArray[np.int16]  # [K, T], whole frames
    text_ids: tuple[int, ...]  # the words around the speech
    num_steps: int  # positions decoded
    reason: Literal["end", "limit"]
    limit: Limit | None = None  # "positions": the engine has no room for more


def checked_prompt(request: Request, model: SpeechLM, num_positions: int) -> Example:
    """The request's prompt as an example. Raises UserError when it does not fit the model or `num_positions`."""
    prompt = request.prompt
    if not isinstance(prompt, Example):
        prompt = from_ids(prompt, model.layout, model.group)
    if not len(prompt.tokens):
        raise UserError("the prompt is empty", expected="at least one token")
    if prompt.tokens.shape[1] != max(1, model.group):
        raise UserError(
            "the prompt was made for another model",
            got=f"{prompt.tokens.shape[1]} tokens per position",
            expected=max(1, model.group),
        )
    lowest, highest = int(prompt.tokens.min()), int(prompt.tokens.max())
    if lowest < 0 or highest >= model.layout.size:
        raise UserError(
            "the prompt has tokens that are not in the vocabulary",
            got=f"ids from {lowest} to {highest}",
            expected=f"0 to {model.layout.size - 1}",
        )
    if len(prompt.tokens) >= num_positions:
        raise UserError(
            "the prompt leaves no room for an answer",
            got=f"{len(prompt.tokens)} positions",
            expected=f"fewer than {num_positions}",
            next_step="shorten the prompt, or make an engine with more positions",
        )
    _check_speaker(request.speaker, model.config.speaker_dim, len(prompt.speaker_positions))
    return prompt


def from_ids(ids: Sequence[int], layout: VocabLayout, group: int) -> Example:
    """The example of a prompt of text alone; each `<|placeholder|>` is a place for the speaker vector."""
    slot = layout.id_of("<|placeholder|>")
    pieces = [Piece((int(i),), "speaker" if i == slot else "text", False) for i in ids]
    return build(pieces or [Piece((), "text", False)], None, layout, group)


def _check_speaker(speaker: torch.Tensor | None, width: int, num_places: int) -> None:
    if speaker is None:
        if width and num_places:
            raise UserError("the prompt has a place for a speaker vector and none was given")
        return
    if not width:
        raise UserError(
            "a speaker vector was given to a model without speaker input",
            next_step="leave it out; the codec alone gives the voice",
        )
    if not num_places:
        raise UserError("a speaker vector was given, but the prompt has no place for it")
    if speaker.shape != (width,):
        raise UserError("the speaker vector has another width", got=tuple(speaker.shape), expected=(width,))
    if not bool(speaker.isfinite().all()):
        raise UserError("the speaker vector holds numbers that are not finite")
