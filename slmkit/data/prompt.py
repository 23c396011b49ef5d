"""The published prompts as data: which text, special tokens, speech and speaker slot an example is made of.

A prompt is a tuple of `Segment`s. Text between two special tokens is one segment and is tokenized as one piece; the
piece is cut after each `[Assistant]:`, where the answer begins; only answers are labelled (Facts of the published code
of arXiv 2506.12537.) User text is put in after the template is split, so that it can never add a special token.

The prompt of role-playing question answering is not published; only its tokens `[ta]` (text answer) and `[ua]` (unit
answer) are. The one here asks as a text dialogue does, names the voice as speaker-aware speech does, and answers in
text before it speaks. The published MTP vocabulary lacks the two tokens; there they are written as plain text.

Example:
    example("tts", {"text": "hello there"}, speaker=False)
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from slmkit.errors import BadSample

TEMPLATES = {
    "tts": "[Human]: Read this sentence: {text}.\n [Assistant]: The speech is: {audio}.\n\n",
    "tts_speaker": "[Human]: Read this sentence: {text}. You should speak like: <|placeholder|>.\n"
    " [Assistant]: The speech is: {audio}.\n\n",
    "asr": "[Human]: Recognize this speech: {audio}.\n [Assistant]: The text is: {text}.\n\n",
    "qa": "[Human]: {question}\n [Assistant]: [ta] {text} [ua] {audio}\n\n",
    "qa_speaker": "[Human]: {question} You should speak like: <|placeholder|>.\n"
    " [Assistant]: [ta] {text} [ua] {audio}\n\n",
    "turn": "[Human]: {instruction}\n [Assistant]: {response}\n\n",
}
MARKS = ("[ta]", "[ua]")  # before the answer in text, and before the answer in speech
_SPLIT = re.compile(r"(\[Human\]|\[Assistant\]:|<\|placeholder\|>|\{audio\}|\[ta\]|\[ua\])")
TASKS = {"tts": (True,), "asr": (False,), "text": (), "qa": (True,)}  # of each speech part of a task: is it learnt?


# Samples that show every part of every prompt, and what is done to the texts: see `prompt_sha256`.
PROBE = {
    "text": "  Some TEXT, naïve & 12. ",
    "question": " What IS it? ",
    "turns": [[" Who? ", " It's ME. "], ["and then", "Nothing"]],
}
PROBES: tuple[dict[str, Any], ...] = (PROBE, {**PROBE, "answer": " An Answer! "})


class Segment(NamedTuple):
    """A part of an example.

    kind "text": `value` is plain text; "special": a token such as `<sosp>`, or "bos" and "eos"; "marker": a token where
    the vocabulary has it, plain text elsewhere; "speech": the codes of the utterance with the closing `<eosp>`;
    "speaker": the slot of the speaker vector. `labelled` parts are learnt.
    """

    kind: Literal["text", "special", "marker", "speech", "speaker"]
    value: str
    labelled: bool


def normalize_text(text: str) -> str:
    """Strip, lower-case, capitalize the first letter."""
    text = text.strip().lower()
    return text[:1].upper() + text[1:]


def example(task: str, meta: dict[str, Any], *, speaker: bool) -> tuple[Segment, ...]:
    """The example of `task` for a sample with `meta`; `speaker` asks for the slot of a speaker vector.

    tts and asr need `text`; text needs `turns`, [[instruction, response], ...]; qa needs `question` and `answer`, or
    `text` where the words that are spoken are the answer. Raises BadSample "missing_field" when `meta` lacks one, or
    it holds nothing.
    """
    if task == "tts":
        return tts(_field(meta, "text"), speaker=speaker)
    if task == "asr":
        return asr(_field(meta, "text"))
    if task == "qa":
        answer = _field(meta, "answer" if "answer" in meta else "text")
        return qa(_field(meta, "question"), answer, speaker=speaker)
    assert task == "text", f"no task {task}"
    turns = meta.get("turns")
    pairs = isinstance(turns, list) and all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in turns)
    if not pairs or not turns or not all(isinstance(part, str) and part.strip() for turn in turns for part in turn):
        raise BadSample("missing_field", "the sample has no turns", expected="[[instruction, response], ...] with text")
    return conversation([(ask, reply) for ask, reply in turns])


def prompt_sha256(task: str, *, speaker: bool) -> str:
    """A hash of the prompt of a task: equal where `example` gives the same for the same sample."""
    made = [example(task, probe, speaker=speaker) for probe in PROBES]
    return hashlib.sha256(repr([tuple(segment) for segments in made for segment in segments]).encode()).hexdigest()


def _field(meta: dict[str, Any], name: str) -> str:
    value = meta.get(name)
    if not isinstance(value, str) or not value.strip():
        raise BadSample("missing_field", f"the sample has no {name}", got=repr(value)[:100], expected="text")
    return value


def tts(text: str, *, speaker: bool = False) -> tuple[Segment, ...]:
    """Read `text` aloud; with `speaker`, in the voice of a speaker vector."""
    return _example(_fill("tts_speaker" if speaker else "tts", text=normalize_text(text)))


def asr(text: str, *, speaker: bool = False) -> tuple[Segment, ...]:
    """Write down the speech. `speaker` has no meaning here and is ignored."""
    return _example(_fill("asr", text=normalize_text(text)))


def qa(question: str, answer: str, *, speaker: bool = False) -> tuple[Segment, ...]:
    """Answer `question` in text, then speak the answer; with `speaker`, in the voice of a speaker vector."""
    name = "qa_speaker" if speaker else "qa"
    return _example(_fill(name, question=question.strip(), text=normalize_text(answer)))


def conversation(turns: Sequence[tuple[str, str]]) -> tuple[Segment, ...]:
    """Text dialogue of (instruction, response) turns, each response labelled."""
    return _example(
        [part for ask, reply in turns for part in _fill("turn", instruction=ask.strip(), response=reply.strip())]
    )


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
        elif piece in MARKS:
            segments.append(Segment("marker", piece, in_answer))
        elif piece == "{audio}":
            segments += [Segment("special", "<sosp>", in_answer), Segment("speech", "", in_answer)]
        elif piece:
            segments.append(Segment("text", piece.format_map(texts), in_answer))
    return segments
