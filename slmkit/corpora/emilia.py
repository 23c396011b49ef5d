"""Emilia and corpora laid out like it: tars in which `X.mp3` and `X.json` belong together, and JSONL files beside mp3.

A folder is searched for both at any depth. The json, and the line of a JSONL file, have `id, wav, text, duration,
speaker, language, dnsmos, phone_count`, each of which but the text may be missing or null; `wav`, the path of a line's
audio, is relative to the folder of the JSONL file, or to `source`. `dnsmos`, `phone_count` and further columns travel
with the sample.

Only the headers of a tar and its json members are read, never the audio, and nothing is extracted. The two members of
a key need not be neighbours.

Invariant: an item is a line, a key of a tar, or a damaged place in one; keys come in the order in which they are whole.
Memory: the names of one folder, and the places of the members of one tar that wait for their partner.

Example:
    next(next(emilia_parts(Path("Emilia"), ReadOptions()))()).audio
    # Audio("Emilia/EN/EN-B000000.tar", start_byte=1536, num_bytes=40960)
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from slmkit.corpora.base import (
    Audio,
    SourcePart,
    Utterance,
    checked_text,
    extra_columns,
    number_field,
    seconds_field,
    text_field,
)
from slmkit.corpora.folders import files_under, is_audio
from slmkit.corpora.layouts import ReadOptions, layout
from slmkit.corpora.tar_members import Damage, Member, members
from slmkit.data.ledger import Failure, printable
from slmkit.data.lines import Lines, line_blocks, parse_record, read_lines
from slmkit.errors import BadSample, UserError

COLUMNS = frozenset({"id", "wav", "text", "duration", "speaker", "language", "dnsmos"})
SUFFIXES = (".tar", ".jsonl")
COMPRESSED = (".tar.gz", ".tgz", ".jsonl.gz")
MAX_JSON_BYTES = 2**20  # of a member
MAX_WAITING = 2**20  # members of a tar without their partner


@layout("emilia", files="DIR/EN/EN-B000000.tar (X.mp3, X.json in it), or DIR/EN/EN_B00000.jsonl beside mp3 files")
def emilia_parts(source: Path, options: ReadOptions) -> Iterator[SourcePart]:
    """A part for each tar, and for some thousand lines of a JSONL file.

    Raises UserError when something cannot be read, or there is no tar and no JSONL file at all.
    """
    found = False
    for path, name in files_under(source, SUFFIXES + COMPRESSED):
        found = True
        if printable(path) != path:
            yield partial(iter, (Failure(printable(name), "bad_key", "the name is not valid UTF-8"),))
        elif name.lower().endswith(COMPRESSED):
            what = f"{name} is compressed, and its members cannot be read from their places; unpack it with gunzip"
            yield partial(iter, (Failure(name, "compressed", what),))
        elif name.lower().endswith(".tar"):
            yield partial(_read_tar, path, name, options.language)
        else:
            for lines in line_blocks(path):
                yield partial(_read_lines, lines, name, str(source), options.language)
    if not found:
        raise UserError(
            f"no tars and no JSONL files under {source}",
            expected="Emilia's EN/EN-B000000.tar and others, or its EN/EN_B00000.jsonl beside folders of mp3",
            next_step="check the path, and `kind`, the layout of the source",
        )


def _read_tar(path: str, name: str, language: str) -> Iterator[Utterance | Failure]:
    waiting: dict[tuple[str, bool], Member] = {}  # (key, whether it is audio) -> member without its partner
    with open_tar(path) as file:
        for found in members(path):
            if isinstance(found, Damage):
                yield Failure(
                    f"{name}@{found.start_byte}", "damaged", f"{name} at byte {found.start_byte}: {found.what}"
                )
                continue
            key, suffix = os.path.splitext(found.name)
            kind = is_audio(found.name)
            if os.path.basename(key).startswith(".") or not (kind or suffix.lower() == ".json"):
                continue
            partner = waiting.pop((key, not kind), None)
            if partner is not None:
                audio, record = (found, partner) if kind else (partner, found)
                yield _pair(file, path, name, audio, record, language)
            elif (key, kind) in waiting:
                yield Failure(_key(key), "duplicate_key", f"{name} holds {printable(found.name)} twice")
            else:
                waiting[key, kind] = found
                if len(waiting) > MAX_WAITING:
                    oldest = next(iter(waiting))
                    yield _alone(name, waiting.pop(oldest), is_it_audio=oldest[1])
    for (_, kind), member in waiting.items():
        yield _alone(name, member, is_it_audio=kind)


def open_tar(path: str) -> IO[bytes]:
    """The file, to read members from. Raises UserError when it cannot be opened."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", next_step="check the path") from error


def _alone(name: str, member: Member, *, is_it_audio: bool) -> Failure:
    reason, lacks = ("missing_transcript", "no .json") if is_it_audio else ("missing", "no audio")
    where = f"{name}: {printable(member.name)}"
    if not member.whole:
        return Failure(_key(os.path.splitext(member.name)[0]), "truncated", f"{where} is cut short")
    return Failure(_key(os.path.splitext(member.name)[0]), reason, f"{where} has {lacks} beside it")


def _key(path: str) -> str:
    return printable(os.path.basename(path))


def _pair(file: IO[bytes], path: str, name: str, audio: Member, json: Member, language: str) -> Utterance | Failure:
    stem = os.path.basename(os.path.splitext(audio.name)[0])
    where = f"{name}/{printable(audio.name)}"
    try:
        if not (audio.whole and json.whole):
            raise BadSample("truncated", f"{where} is cut short")
        if json.num_bytes > MAX_JSON_BYTES:
            raise BadSample("malformed", f"the json of {where} is too long", expected=f"at most {MAX_JSON_BYTES} bytes")
        file.seek(json.start_byte)
        record = parse_record(file.read(json.num_bytes).strip())
        place = Audio(path, start_byte=audio.start_byte, num_bytes=audio.num_bytes)
        return _utterance(record, stem, place, where, language)
    except BadSample as error:
        return Failure.of(stem, error)


def _read_lines(lines: Lines, name: str, root: str, language: str) -> Iterator[Utterance | Failure]:
    folder = os.path.dirname(lines.path)
    roots = [folder] if root in (folder, lines.path) else [folder, root]
    for number, line in read_lines(lines):
        try:
            record = parse_record(line)
            wav = text_field(record, "wav", required=True)
            if not wav or "\0" in wav:
                raise BadSample("malformed", "the path is empty or holds a zero byte", got=repr(wav)[:100])
            candidates = [os.path.join(place, wav) for place in roots]
            there = next(filter(os.path.isfile, candidates), candidates[0]) if len(candidates) > 1 else candidates[0]
            stem = os.path.splitext(os.path.basename(wav))[0]
            yield _utterance(record, stem, Audio(there), wav, language)
        except BadSample as error:
            yield Failure.of(f"{name}:{number}", error)


def _utterance(record: dict[str, Any], stem: str, audio: Audio, source: str, language: str) -> Utterance:
    extra = extra_columns(record, COLUMNS, "emilia")
    if (dnsmos := number_field(record, "dnsmos")) is not None:
        extra["dnsmos"] = dnsmos
    return Utterance(
        key=text_field(record, "id") or stem,
        audio=audio,
        text=checked_text(text_field(record, "text"), "the record"),
        source=source,
        speaker=text_field(record, "speaker"),
        language=text_field(record, "language") or language,
        seconds=seconds_field(record, "duration"),
        extra=extra,
    )
