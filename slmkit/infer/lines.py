"""What to say, line by line: a JSONL file of sentences or questions, checked before anything is decoded.

A line is an object with "text" (to be read) or "question" (to be answered) and, where it wants others than the default,
"id" (letters, digits and `._-`; default: the number of the line), "speaker", "seed", "max_sec", "max_text_tokens" and
the fields of sampling: "temperature", "text_temperature", "top_k", "top_p", "repetition_penalty", "repetition_window".

It knows nothing of models, codecs or files of speakers: a line that is well formed may still be refused later.

Invariant: every line that is not blank gives an item or a failure, and all items have ids of their own.

Example:
    listed = read_items("sentences.jsonl", "read", Settings(speaker="voice.wav", temperature=0.8))
    listed.items[0].text, listed.failures
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from slmkit.data.ledger import Failure, printable
from slmkit.data.lines import read_lines
from slmkit.errors import BadSample, UserError
from slmkit.infer.request import Request
from slmkit.infer.sampling import Sampling
from slmkit.infer.synthesizer import MAX_TEXT_CHARS

Task = Literal["read", "answer"]
TEXT_FIELD: dict[Task, str] = {"read": "text", "answer": "question"}
MAX_LINE_BYTES = 2**20  # of a line, without what ends it
ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")  # a safe name of a file, wherever it is copied


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one line is spoken. Raises ValueError for numbers out of range."""

    speaker: str = ""  # an audio file, a .npy vector, or CORPUS:KEY
    seed: int = 0  # of what is sampled
    max_sec: float = 30.0  # of speech
    max_text_tokens: int = 256  # text positions of the answer
    temperature: float = 0.0  # of speech, 0 is greedy
    text_temperature: float | None = None  # of the words around the speech; None: as `temperature`
    top_k: int = 0  # keep the k most probable, 0 all
    top_p: float = 1.0  # keep the fewest classes that hold this share of the probability
    repetition_penalty: float = 1.0  # of what was chosen lately
    repetition_window: int = 50  # how far back that looks, frames or text tokens

    def __post_init__(self) -> None:
        names = {"sampling": "speech_sampling"}
        Request(prompt=(), **{names.get(name, name): value for name, value in self.options.items()})

    @property
    def options(self) -> dict[str, Any]:
        """For `Synthesizer.reading` and `answering`."""
        return {
            "sampling": self.sampling,
            "text_sampling": self.text_sampling,
            "max_sec": self.max_sec,
            "max_text_tokens": self.max_text_tokens,
            "seed": self.seed,
        }

    @property
    def sampling(self) -> Sampling:
        """Of speech."""
        names = ("temperature", "top_k", "top_p", "repetition_penalty", "repetition_window")
        return Sampling(**{name: getattr(self, name) for name in names})

    @property
    def text_sampling(self) -> Sampling:
        """Of the words around the speech."""
        if self.text_temperature is None:
            return self.sampling
        return dataclasses.replace(self.sampling, temperature=self.text_temperature)


class Item(NamedTuple):
    """A line that is well formed."""

    id: str
    text: str  # the sentence or the question
    settings: Settings

    @property
    def digest(self) -> str:
        """Equal for equal wishes: what is asked, and how; of the speaker its name alone."""
        asked = json.dumps([self.text, dataclasses.asdict(self.settings)], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:16]


class Listed(NamedTuple):
    """A whole file, in its order."""

    items: list[Item]
    failures: list[Failure]


def read_items(path: str | Path, task: Task, defaults: Settings) -> Listed:
    """The items of a JSONL file, and a failure for each line that gives none.

    Raises UserError when the file cannot be read, or holds no line.
    """
    items: dict[str, Item] = {}
    failures = []
    for number, line in read_lines(path, max_line_bytes=MAX_LINE_BYTES + 1):
        name = f"line {number}"
        try:
            values = _parse(line)
            name = _id_of(values, number)
            item = _item(name, values, task, defaults)
            if item.id in items:
                raise BadSample("duplicate_id", f"line {number} has the id of an earlier one", got=item.id)
            items[item.id] = item
        except BadSample as error:
            failures.append(Failure.of(name, error))
    if not items and not failures:
        raise UserError(f"{path} holds no line", expected=f'lines such as {{"{TEXT_FIELD[task]}": "Some words."}}')
    return Listed(list(items.values()), failures)


def _parse(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise BadSample("too_long", "the line is too long", expected=f"at most {MAX_LINE_BYTES} bytes")
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadSample("not_json", f"the line is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadSample("not_json", "the line is no object", got=type(values).__name__, expected="an object")
    return values


def _id_of(values: dict[str, Any], number: int) -> str:
    given = values.get("id", f"{number:06d}")
    name = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
    if not isinstance(name, str) or not ID.fullmatch(name):
        got = printable(repr(given)[:120])
        raise BadSample(
            "bad_id", f"line {number} has an id that can name no file", got=got, expected="A-Z a-z 0-9 . _ -"
        )
    return name


def _item(name: str, values: dict[str, Any], task: Task, defaults: Settings) -> Item:
    field = TEXT_FIELD[task]
    kinds = {setting.name: setting.type for setting in dataclasses.fields(Settings)}
    unknown = sorted(values.keys() - {*kinds, "id", field})
    if unknown:
        known = ", ".join([field, "id", *kinds])
        raise BadSample("unknown_field", f"a field is not known: {printable(unknown[0][:100])}", expected=known)
    text = values.get(field)
    if not isinstance(text, str) or not text.strip():
        raise BadSample("empty_text", f"there is no {field}", got=printable(repr(text)[:100]), expected="text")
    if len(text) > MAX_TEXT_CHARS:
        raise BadSample("too_long", f"the {field} is too long", got=f"{len(text)} characters", expected=MAX_TEXT_CHARS)
    own = {name: _of_kind(name, kinds[name], values[name]) for name in kinds.keys() & values.keys()}
    try:
        settings = dataclasses.replace(defaults, **own)
    except (ValueError, OverflowError) as error:
        raise BadSample("bad_setting", str(error)) from error
    if not settings.speaker:
        raise BadSample("bad_speaker", "no speaker is given", expected="an audio file, a .npy vector, or CORPUS:KEY")
    return Item(name, text, settings)


def _of_kind(name: str, kind: Any, value: Any) -> Any:
    """The value of a setting. Raises BadSample when it is of another type."""
    if kind is str and isinstance(value, str):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind not in (str, int) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    expected = {str: "text", int: "a whole number"}.get(kind, "a number")
    raise BadSample("bad_setting", f"{name} is of the wrong type", got=printable(repr(value)[:100]), expected=expected)
