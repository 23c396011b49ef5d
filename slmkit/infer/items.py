"""Lines of a file as texts to be read or questions to be answered.

A line of a file is a JSON object with "text" (to be read) or "question" (to be answered). It may have an "id" (letters,
digits and `._-`; default: the number of the line), "speaker" where a voice is taken, and any field of
`SpeakingSettings`. A text is read sentence by sentence (`passage`); "normalize": "english" has its numbers as words.

Nothing of a line is lost: each is an item, or a failure that says what is wrong with it.

Example:
    listed = read_items("sentences.jsonl", "tts", SpeakingSettings(), speaker="voice.wav")
    listed.items[0].text, listed.failures
"""

import dataclasses
import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from slmkit.data.ledger import Failure, printable
from slmkit.data.lines import read_lines
from slmkit.errors import BadSample, UserError
from slmkit.infer.passage import MAX_TEXT_CHARS
from slmkit.infer.request import SHOWN_WORDS_CHARS, SpeakingSettings
from slmkit.infer.spoken_form import check_spoken_form
from slmkit.infer.synthesizer import MAX_PROMPT_CHARS
from slmkit.texts import excerpt, is_blank

SpeakingTask = Literal["tts", "qa"]
TEXT_FIELD: dict[SpeakingTask, str] = {"tts": "text", "qa": "question"}
MOST_CHARS: dict[SpeakingTask, int] = {"tts": MAX_TEXT_CHARS, "qa": MAX_PROMPT_CHARS}
MAX_ITEM_BYTES = 2**20  # of a line, without what ends it
ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")  # a safe name of a file, wherever it is copied


class SpeechItem(NamedTuple):
    """A text to read or a question to answer, and how."""

    id: str  # names its files
    text: str
    speaker: str  # names the voice
    settings: SpeakingSettings
    columns: Mapping[str, Any] = MappingProxyType({})  # more columns of its record
    normalize: str = ""  # as of `Synthesizer.passage`

    @property
    def digest(self) -> str:
        """Equal for equal wishes: what is asked, and how; of the speaker its name alone."""
        more = [self.normalize] if self.normalize else []
        asked = json.dumps([self.text, self.speaker, dataclasses.asdict(self.settings), *more], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:16]


class Listed(NamedTuple):
    """A whole file, in its order."""

    items: list[SpeechItem]
    failures: list[Failure]


def read_items(
    path: str | Path, task: SpeakingTask, defaults: SpeakingSettings, *, speaker: str, normalize: str = ""
) -> Listed:
    """The items of a JSONL file, and a failure for each line that gives none; blank lines do not count.

    What is well formed may still be refused later: models, codecs and files of speakers are not looked at.
    Raises UserError when the file cannot be read, or holds no line.
    """
    items: dict[str, SpeechItem] = {}
    failures = []
    for number, line in read_lines(path, max_line_bytes=MAX_ITEM_BYTES + 1):
        name = f"line {number}"
        try:
            values = _parse_item(line)
            name = _id_of(values, number)
            item = _make_item(name, values, task, defaults, speaker, normalize)
            if item.id in items:
                raise BadSample("duplicate_id", f"line {number} has the id of an earlier one", got=item.id)
            items[item.id] = item
        except BadSample as error:
            failures.append(Failure.of(name, error))
    if not items and not failures:
        raise UserError(f"{path} holds no line", expected=f'lines such as {{"{TEXT_FIELD[task]}": "Some words."}}')
    return Listed(list(items.values()), failures)


def _parse_item(line: bytes | None) -> dict[str, Any]:
    if line is None:
        raise BadSample("too_long", "the line is too long", expected=f"at most {MAX_ITEM_BYTES} bytes")
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise BadSample("not_json", f"the line is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadSample("not_json", "the line is not an object", got=type(values).__name__, expected="an object")
    return values


def _id_of(values: dict[str, Any], number: int) -> str:
    given = values.get("id", f"{number:06d}")
    name = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
    if not isinstance(name, str) or not ID.fullmatch(name):
        got = printable(repr(given)[:120])
        raise BadSample(
            "bad_id", f"line {number} has an id that cannot name a file", got=got, expected="A-Z a-z 0-9 . _ -"
        )
    return name


def _make_item(
    name: str, values: dict[str, Any], task: SpeakingTask, defaults: SpeakingSettings, speaker: str, normalize: str
) -> SpeechItem:
    field = TEXT_FIELD[task]
    kinds = {setting.name: setting.type for setting in dataclasses.fields(SpeakingSettings)}
    own_fields = [field, "id", "speaker", *(["normalize"] if task == "tts" else [])]
    unknown = sorted(values.keys() - {*kinds, *own_fields})
    if unknown:
        known = ", ".join([*own_fields, *kinds])
        raise BadSample("unknown_field", f"a field is not known: {printable(unknown[0][:100])}", expected=known)
    text = values.get(field)
    if not isinstance(text, str) or is_blank(text):
        raise BadSample("empty_text", f"there is no {field}", got=printable(repr(text)[:100]), expected="text")
    most = MOST_CHARS[task]
    if len(text) > most:
        raise BadSample("too_long", f"the {field} is too long", got=f"{len(text)} characters", expected=most)
    speaker = _of_kind("speaker", str, values.get("speaker", speaker))
    normalize = _of_kind("normalize", str, values.get("normalize", normalize))
    try:
        check_spoken_form(normalize)
    except UserError as error:
        raise BadSample("bad_setting", error.what, got=printable(normalize[:100]), expected=error.expected) from error
    own = {name: _of_kind(name, kinds[name], values[name]) for name in kinds.keys() & values.keys()}
    try:
        settings = dataclasses.replace(defaults, **own)
    except (ValueError, OverflowError) as error:
        raise BadSample("bad_setting", excerpt(error, SHOWN_WORDS_CHARS)) from error
    return SpeechItem(name, text, speaker, settings, normalize=normalize)


def _of_kind(name: str, kind: Any, value: Any) -> Any:
    """The value of a setting. Raises BadSample when it is of another type."""
    if kind is str and isinstance(value, str):
        return value
    if kind in (int, bool) and type(value) is kind:
        return value
    if kind not in (str, int, bool) and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if isinstance(value, float) or abs(value) <= sys.float_info.max else math.inf
    expected = {str: "text", int: "a whole number", bool: "true or false"}.get(kind, "a number")
    raise BadSample("bad_setting", f"{name} is of the wrong type", got=printable(repr(value)[:100]), expected=expected)
