"""The published prompts as data: which text, special tokens, speech and speaker slot an example is made of.

A prompt is a tuple of `Segment`s. Text between two special tokens is one segment and is tokenized as one piece; the
piece is cut after each `[Assistant]:`, where the answer begins; only answers are labelled (Facts of the published code
of arXiv 2506.12537.) User text is put in after the template is split, so that it can never add a special token.

Example:
    tts("hello there", speaker=False)
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

TEMPLATES = {
    "tts": "[Human]: Read this sentence: {text}.\n [Assistant]: The speech is: {audio}.\n\n",
    "tts_speaker": "[Human]: Read this sentence: {text}. You should speak like: <|placeholder|>.\n"
    " [Assistant]: The speech is: {audio}.\n\n",
    "asr": "[Human]: Recognize this speech: {audio}.\n [Assistant]: The text is: {text}.\n\n",
    "turn": "[Human]: {instruction}\n [Assistant]: {response}\n\n",
}
_SPLIT = re.compile(r"(\[Human\]|\[Assistant\]:|<\|placeholder\|>|\{audio\})")


class Segment(NamedTuple):
    """A part of an example.

    kind "text": `value` is plain text; "special": a token such as `<sosp>`, or "bos" and "eos"; "speech": the codes of
    the utterance with the closing `<eosp>`; "speaker": the slot of the speaker vector. `labelled` parts are learnt.
    """

    kind: Literal["text", "special", "speech", "speaker"]
    value: str
    labelled: bool


def normalize_text(text: str) -> str:
    """Strip, lower-case, capitalize the first letter."""
    text = text.strip().lower()
    return text[:1].upper() + text[1:]


def tts(text: str, *, speaker: bool = False) -> tuple[Segment, ...]:
    """Read `text` aloud; with `speaker`, in the voice of a speaker vector."""
    return _example(_fill("tts_speaker" if speaker else "tts", text=normalize_text(text)))


def asr(text: str, *, speaker: bool = False) -> tuple[Segment, ...]:
    """Write down the speech. `speaker` has no meaning here and is ignored."""
    return _example(_fill("asr", text=normalize_text(text)))


def conversation(turns: Sequence[tuple[str, str]]) -> tuple[Segment, ...]:
    """Text dialogue of (instruction, response) turns, each response labelled."""
    return _example(
        [part for ask, reply in turns for part in _fill("turn", instruction=ask.strip(), response=reply.strip())]
    )


TASKS: dict[str, Callable[..., tuple[Segment, ...]]] = {"tts": tts, "asr": asr}


def prompt_only(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The part before the last answer: what generation starts from."""
    answers = [i for i, segment in enumerate(segments) if segment.labelled and not segments[i - 1].labelled]
    return tuple(segments[: answers[-1]])


def _example(parts: Sequence[Segment]) -> tuple[Segment, ...]:
    return (Segment("special", "bos", False), *parts, Segment("special", "eos", True))


def _fill(template: str, **texts: str) -> list[Segment]:
    segments: list[Segment] = []
    in_answer = False
    for piece in _SPLIT.split(TEMPLATES[template]):
        if piece == "[Human]":
            in_answer = False
            segments.append(Segment("special", "[Human]", False))
        elif piece == "[Assistant]:":
            segments += [Segment("special", "[Assistant]", False), Segment("text", ":", False)]
            in_answer = True
        elif piece == "<|placeholder|>":
            segments.append(Segment("speaker", piece, in_answer))
        elif piece == "{audio}":
            segments += [Segment("special", "<sosp>", in_answer), Segment("speech", "", in_answer)]
        elif piece:
            segments.append(Segment("text", piece.format_map(texts), in_answer))
    return segments
