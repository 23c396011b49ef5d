"""What the engine is asked, what it answers, and the words of an answer to a question.

The words stand between the marks `[ta]` and `[ua]`, before the speech. The next-token vocabulary has tokens for the two
marks, the multi-token vocabulary writes them as plain text: there, words that look like a mark cannot be told from one.

Invariant: an answer that did not end by itself says which limit, or which part of the watch, stopped it. Every list of
ids gives words.

Example:
    Request(prompt=prompt_example(tokenizer, layout, "hello", group=3, speaker=False), seed=7, max_sec=10)
    answer_words(output.text_ids, layout, tokenizer.decode)  # Words(text="In dover.", is_marked=True)
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from slmkit.codec.base import Codes
from slmkit.data.prompt import MARKS
from slmkit.data.sequence import Example, Piece, build
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.infer.sampling import Sampling
from slmkit.infer.watch import MAX_RETRIES, Runaway, Watch
from slmkit.model.slm import SpeechLM
from slmkit.texts import counted, excerpt

GREEDY = Sampling()
MAX_SEED = 2**64 - 1
SHOWN_WORDS_CHARS = 200  # of an answer without speech, in a message
MOST_SEC = 86400.0  # of speech that may be asked for; what a backbone has positions for is far less
# What stopped an answer: the request's own limits; "positions": the engine has no room for more; "not_finite": the
# model gave logits that are no numbers to choose by, as damaged weights do.
Limit = Literal["seconds", "text_tokens", "steps", "positions", "not_finite"]
Reason = Literal["end", "limit", "runaway"]
Warned = Literal["short"]
WARNINGS: dict[Warned, str] = {"short": "the speech is far shorter than its text"}
NOT_FINITE = "the model gave numbers that are not finite"
LIMITS = ("max_sec", "max_text_tokens", "seed")  # numbers of `SpeakingSettings` that are a request's own
_MARK = re.compile("(" + "|".join(re.escape(mark) for mark in MARKS) + ")")


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
    watch: Watch | None = None  # what stops an answer that will not end, and tries it again; None: nothing does

    def __post_init__(self) -> None:
        if not 0 < self.max_sec <= MOST_SEC:
            raise ValueError(f"max_sec: got {self.max_sec}, expected a number above 0, at most {MOST_SEC:g}")
        if self.max_text_tokens < 1:
            raise ValueError(f"max_text_tokens: got {self.max_text_tokens}, expected 1 or more")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps: got {self.max_steps}, expected 1 or more, or None")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed: got {self.seed}, expected 0 to {MAX_SEED}")

    def tried_once(self) -> "Request":
        """The same request, which is watched as before but not tried again."""
        if self.watch is None:
            return self
        return dataclasses.replace(self, watch=dataclasses.replace(self.watch, max_retries=0))


def without_speech(limit: str | None, asked: str = "") -> str:
    """Says that an answer has none; `limit` is what stopped it, if anything did."""
    return f"the model gave no speech{asked} (it stopped by: {limit or 'its end'})"


@dataclass(frozen=True, kw_only=True)
class Output:
    """One answer, the best of `attempts`. `reason`: it came to its end, to a limit, or would not have ended."""

    codes: Codes  # uint16 [K, T], whole frames
    text_ids: tuple[int, ...]  # the words around the speech
    num_steps: int  # positions decoded, in all attempts
    reason: Reason
    limit: Limit | Runaway | None = None  # what stopped it: a limit, or the part of the watch that saw the runaway
    warning: Warned | None = None  # what is wrong with an answer that came to its end
    attempts: int = 1  # how often it was tried
    runaways: int = 0  # attempts that the watch stopped, this one too
    seed: int = 0  # of this attempt

    @property
    def is_success(self) -> bool:
        """Whether it came to its end, with speech, and nothing is wrong with it."""
        return self.reason == "end" and self.warning is None and self.codes.shape[1] > 0

    def check_finite(self) -> None:
        """Raise UserError where the model's logits were not finite: damaged weights may have spoiled the rest, too."""
        if self.limit == "not_finite":
            raise UserError(
                NOT_FINITE,
                next_step="its weights may be damaged: export the checkpoint again, or take an earlier one",
            )

    def check_speech(self, text: str = "", words: str = "") -> None:
        """Raise UserError where there is no speech; `text` is what was asked, `words` what was written instead."""
        if not self.codes.shape[1]:
            asked = f" for {excerpt(text)!r}" if text else ""
            raise UserError(
                without_speech(self.limit, asked),
                got=f"the words {excerpt(words, SHOWN_WORDS_CHARS)!r}" if words else None,
                next_step="train it longer, or check that text and task are like those of the training data",
            )

    def line(self) -> str:
        """For people."""
        made = f"{counted(self.num_steps, 'step')}, {counted(self.codes.shape[1], 'frame')}"
        runaway = "runaway, " if self.reason == "runaway" else ""
        tried = f", the best of {self.attempts} attempts" if self.attempts > 1 else ""
        warned = f"; warning: {WARNINGS[self.warning]}" if self.warning else ""
        return f"{made}, stopped by: {runaway}{self.limit or self.reason}{tried}{warned}"


@dataclass(frozen=True, kw_only=True)
class SpeakingSettings:
    """How a text is spoken, as flags, lines of a file or callers say it. Raises ValueError for numbers out of range."""

    seed: int = 0  # of what is sampled
    max_sec: float = 30.0  # longest speech
    max_text_tokens: int = 256  # longest text of an answer
    temperature: float = 0.0  # of speech; 0 is greedy
    text_temperature: float | None = None  # of the words around the speech; None: as `temperature`
    top_k: int = 0  # keep the k most probable classes, 0 all
    top_p: float = 1.0  # keep the fewest classes that hold this share of the probability
    repetition_penalty: float = 1.0  # above 1: what was chosen recently becomes less probable
    repetition_window: int = 50  # how far back that looks, frames or text tokens
    watch: bool = True  # stop speech that will not end, and try it again
    max_retries: int = 2  # how often at most, each time with other random numbers

    def __post_init__(self) -> None:
        if not 0 <= self.max_retries <= MAX_RETRIES:
            raise ValueError(f"max_retries: got {self.max_retries}, expected 0 to {MAX_RETRIES}")
        self.request(())

    def request(self, prompt: Example | tuple[int, ...], **parts: Any) -> Request:
        """The request of a prompt; `parts` are its speaker and watch."""
        limits = {name: getattr(self, name) for name in LIMITS}
        return Request(
            prompt=prompt, speech_sampling=self.sampling, text_sampling=self.text_sampling, **limits, **parts
        )

    @property
    def sampling(self) -> Sampling:
        """Of speech."""
        names = (field.name for field in dataclasses.fields(Sampling))
        return Sampling(**{name: getattr(self, name) for name in names})

    @property
    def text_sampling(self) -> Sampling:
        """Of the words around the speech."""
        if self.text_temperature is None:
            return self.sampling
        return dataclasses.replace(self.sampling, temperature=self.text_temperature)


class Words(NamedTuple):
    """`text` without surrounding white space. `is_marked`: `[ta]` stood before it and `[ua]` after."""

    text: str
    is_marked: bool


def answer_words(ids: Sequence[int], layout: VocabLayout, decode: Callable[[Sequence[int]], str]) -> Words:
    """The words from the first `[ta]` to the next `[ua]`, of the text ids of an answer; `decode` as the tokenizer's.

    Where a mark is missing the words begin, or end, with the answer.
    """
    tokens = {token_id: token for token, token_id in layout.specials if token in MARKS}
    parts: list[str] = []  # text, mark, text, mark, ..., text
    if tokens:
        first = 0
        for place, token_id in enumerate(ids):
            if token_id in tokens:
                parts += [decode(ids[first:place]), tokens[token_id]]
                first = place + 1
        parts.append(decode(ids[first:]))
    else:
        parts = _MARK.split(decode(ids))
    marks = parts[1::2]
    has_begin = MARKS[0] in marks
    begin = marks.index(MARKS[0]) + 1 if has_begin else 0
    has_end = MARKS[1] in marks[begin:]
    end = marks.index(MARKS[1], begin) if has_end else len(marks)
    texts = (part.strip() for part in parts[2 * begin : 2 * end + 1 : 2])
    return Words(" ".join(text for text in texts if text), has_begin and has_end)


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
    speaker, width = request.speaker, model.config.speaker_dim
    num_places = len(prompt.speaker_positions)
    if speaker is None:
        if width and num_places:
            raise UserError("the prompt has a place for a speaker vector and none was given")
        return prompt
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
    return prompt


def from_ids(ids: Sequence[int], layout: VocabLayout, group: int) -> Example:
    """The example of a prompt of text alone; each `<|placeholder|>` is a place for the speaker vector."""
    slot = layout.id_of("<|placeholder|>")
    pieces = [Piece((int(i),), "speaker" if i == slot else "text", False) for i in ids]
    return build(pieces or [Piece((), "text", False)], None, layout, group)
