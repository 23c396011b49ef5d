"""Emilia and corpora laid out like it: tars in which `X.mp3` and `X.json` belong together, and JSONL files beside mp3.

A folder is searched for both at any depth. Where no JSONL file lies, there or in a folder above, `X.mp3` and `X.json`
are read as files beside each other too, which is what unpacking a tar leaves. The json, and the line of a JSONL file,
have `id, wav, text, duration, speaker, language, dnsmos, phone_count`, each of which but the text may be missing or
null; `wav`, the path of a line's audio, is relative to the folder of the JSONL file, or to `source`. `dnsmos`,
`phone_count` and further columns travel with the sample; `dnsmos` and `speech_share` are numbers.

Only the headers of a tar and its json members are read, never the audio, and nothing is extracted. The two members of
a key need not be neighbours.

Invariant: an item is a line, a key of a tar or of a folder, a damaged place in a tar, or what `folders.unread` names;
keys come in the order in which they are whole.
Memory: the names of one folder, and the places of the members of one tar that wait for their partner.

Example:
    next(next(emilia_parts(Path("Emilia"), ReadOptions()))()).audio
    # Audio("Emilia/EN/EN-B000000.tar", start_byte=1536, num_bytes=40960)
"""

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from slmkit.corpora.base import (
    QUALITIES,
    Audio,
    SourcePart,
    Utterance,
    checked_text,
    extra_columns,
    quality_fields,
    seconds_field,
    text_field,
)
from slmkit.corpora.folders import (
    Folder,
    as_spelled,
    composed,
    files_under,
    is_archive,
    is_audio,
    is_hidden,
    maybe_recordings,
    no_file,
    no_recording,
    unread,
    walk,
)
from slmkit.corpora.layouts import ReadOptions, layout
from slmkit.corpora.tar_members import Damage, Member, members
from slmkit.data.ledger import Failure, printable
from slmkit.data.lines import Lines, line_blocks, open_named, parse_record, read_lines
from slmkit.errors import BadSample, UserError
from slmkit.log import get_logger

log = get_logger(__name__)
COLUMNS = frozenset({"id", "wav", "text", "duration", "speaker", "language", *QUALITIES})
QUALITY_NAMES = {name: name for name in QUALITIES}
COLLECTIONS = {"Emilia", "Emilia-YODAS"}  # folders of the published repository, of different licences
LINES = (".jsonl", ".jsonl.gz")
MAX_JSON_BYTES = 2**20  # of a member
MAX_WAITING = 2**20  # members of a tar without their partner


@layout(
    "emilia",
    files="""\
DIR/EN/EN-B000000.tar, or the same unpacked: X.mp3 and X.json: {"text": "Hello.", "duration": 2.5, "dnsmos": 3.4, ...}
DIR/EN/EN_B00000.jsonl beside mp3 files: {"wav": "EN_B00000/a.mp3", "text": "Hello.", ...}""",
)
def emilia_parts(source: Path, options: ReadOptions) -> Iterator[SourcePart]:
    """A part for each tar, for some thousand lines of a JSONL file, and for a folder's files of their own.

    Raises UserError when something cannot be read, or there is no tar and no JSONL file at all.
    """
    found = False
    folders = [Folder(str(source.parent), "", [source.name])] if os.path.isfile(source) else walk(source)
    # Audio beside and below JSONL files is that of their lines, and no item by itself. Lines elsewhere may name it too.
    with_lone = not any(True for _ in files_under(source, LINES))
    with_lines: tuple[str, ...] = ()  # folders in which JSONL files lie
    tops: set[str] = set()  # folders right below the source
    for folder in folders:
        tops.add(folder.name.partition("/")[0])
        if any(name.lower().endswith(LINES) for name in folder.names):
            with_lines += (folder.relative(""),)
        pairs = [] if folder.relative("").startswith(with_lines) else _pairs_of(folder, with_lone=with_lone)
        failures = []
        for name in sorted(set(folder.names).difference(pairs)):
            path, shown = os.path.join(folder.path, name), folder.relative(name)
            if name.lower().endswith((".tar", ".jsonl")) and printable(path) != path:
                failures.append(Failure(printable(shown), "bad_key", "the name is not valid UTF-8"))
            elif name.lower().endswith((".tar", ".jsonl")) and (failure := no_file(folder, name)) is not None:
                failures.append(failure)
            elif name.lower().endswith(".tar"):
                found = True
                yield partial(_read_tar, path, shown, options.language)
            elif name.lower().endswith(".jsonl"):
                found = True
                for lines in line_blocks(path):
                    yield partial(_read_lines, lines, shown, str(source), options.language)
            elif not is_audio(name) and (failure := unread(folder, name)) is not None:
                failures.append(failure)
        if failures:
            found = True
            yield partial(iter, tuple(failures))
        if pairs:
            found = found or not all(map(is_audio, pairs))
            yield partial(_read_pairs, folder._replace(names=pairs), options.language)
    if tops >= COLLECTIONS:
        log.warning(
            "%s holds Emilia and Emilia-YODAS, of different licences; filters.sources=[Emilia/*] leaves out the other",
            source,
        )
    if not found:
        raise UserError(
            f"no tars and no JSONL files under {source}",
            expected="Emilia's EN/EN-B000000.tar and others, or its EN/EN_B00000.jsonl beside folders of mp3",
            next_step="check the path, and `kind`, the layout of the source",
        )


def _read_tar(path: str, name: str, language: str) -> Iterator[Utterance | Failure]:
    waiting: dict[tuple[str, bool], Member] = {}  # (key, whether it is audio) -> member without its partner
    maybe: dict[str, str] = {}  # key -> member that may be a recording and is not known as one
    with open_named(path) as file:
        for found in members(path):
            if isinstance(found, Damage):
                yield Failure(
                    f"{name}@{found.start_byte}", "damaged", f"{name} at byte {found.start_byte}: {found.what}"
                )
                continue
            key, suffix = os.path.splitext(composed(found.name))
            kind = is_audio(found.name)
            if any(is_hidden(part) and part not in (".", "..") for part in key.split("/")):
                continue
            if is_archive(found.name):
                inside = f"{name}: {printable(found.name)}"
                yield Failure(_key(found.name), "unsupported", f"{inside} is an archive within a tar; unpack both")
                continue
            if not (kind or suffix.lower() == ".json"):
                maybe |= maybe_recordings([found.name])
                if len(maybe) > MAX_WAITING:
                    maybe.pop(next(iter(maybe)))
                continue
            partner = waiting.pop((key, not kind), None)
            if partner is not None:
                maybe.pop(key, None)
                audio, record = (found, partner) if kind else (partner, found)
                yield _pair(file, path, name, audio, record, language)
            elif (key, kind) in waiting:
                yield Failure(_key(key), "duplicate_key", f"{name} holds {printable(found.name)} twice")
            else:
                waiting[key, kind] = found
                if len(waiting) > MAX_WAITING:
                    oldest = next(iter(waiting))
                    yield _alone(name, waiting.pop(oldest), maybe, is_it_audio=oldest[1])
    for (_, kind), member in waiting.items():
        yield _alone(name, member, maybe, is_it_audio=kind)


def _pairs_of(folder: Folder, *, with_lone: bool) -> list[str]:
    """The audio files of a folder that have a json, or all, and the json of each file that is audio or may be."""
    stems = {name: composed(os.path.splitext(name)[0]) for name in folder.names}
    jsons = {stem for name, stem in stems.items() if name.lower().endswith(".json")}
    audio = {stem for name, stem in stems.items() if is_audio(name) and (with_lone or stem in jsons)}
    with_json = audio | maybe_recordings(folder.names).keys()
    return [
        name
        for name, stem in stems.items()
        if (is_audio(name) and stem in audio) or (name.lower().endswith(".json") and stem in with_json)
    ]


def _read_pairs(folder: Folder, language: str) -> Iterator[Utterance | Failure]:
    """The utterances of a folder's audio files, each with its json beside it."""
    waiting = {composed(os.path.splitext(name)[0]): name for name in folder.names if not is_audio(name)}
    for name in filter(is_audio, folder.names):
        stem, where = os.path.splitext(name)[0], folder.relative(name)
        json = waiting.pop(composed(stem), None)
        try:
            if printable(where) != where:
                raise BadSample("bad_key", f"{where}: the name is not valid UTF-8")
            if json is None:
                raise BadSample("missing_transcript", f"{where} has no .json beside it")
            if not os.path.isfile(os.path.join(folder.path, json)):  # opening a pipe could wait for ever
                raise BadSample("missing_transcript", f"the json of {where} is not a file")
            with open(os.path.join(folder.path, json), "rb") as file:
                content = file.read(MAX_JSON_BYTES + 1)
            if len(content) > MAX_JSON_BYTES:
                raise BadSample("malformed", f"the json of {where} is too long", expected=f"at most {MAX_JSON_BYTES}")
            record = parse_record(content.strip())
            yield _utterance(record, stem, Audio(os.path.join(folder.path, name)), where, language)
        except OSError as error:
            yield Failure(stem, "missing_transcript", f"the json of {where} cannot be read: {error.strerror}")
        except BadSample as error:
            yield Failure.of(stem, error)
    for stem, name in waiting.items():
        what = f"{folder.relative(name)}: beside it lies a file that is not known as audio; convert it to WAV or FLAC"
        yield Failure(printable(stem), "unsupported", printable(what))


def _alone(name: str, member: Member, maybe: Mapping[str, str], *, is_it_audio: bool) -> Failure:
    stem, where = os.path.splitext(member.name)[0], f"{name}: {printable(member.name)}"
    if not member.whole:
        return Failure(_key(stem), "truncated", f"{where} is cut short")
    if is_it_audio:
        return Failure(_key(stem), "missing_transcript", f"{where} has no .json beside it")
    return no_recording(where, stem, maybe)._replace(key=_key(stem))


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
            candidates = [str(as_spelled(os.path.join(place, wav))) for place in roots]
            there = next(filter(os.path.isfile, candidates), candidates[0]) if len(candidates) > 1 else candidates[0]
            stem = os.path.splitext(os.path.basename(wav))[0]
            source = os.path.join(os.path.dirname(name), wav) if there == candidates[0] else wav
            yield _utterance(record, stem, Audio(there), source, language)
        except BadSample as error:
            yield Failure.of(f"{name}:{number}", error)


def _utterance(record: dict[str, Any], stem: str, audio: Audio, source: str, language: str) -> Utterance:
    extra = extra_columns(record, COLUMNS, "emilia") | quality_fields(record, QUALITY_NAMES)
    key = text_field(record, "id")
    return Utterance(
        key=key or stem,
        audio=audio,
        text=checked_text(text_field(record, "text"), "the record"),
        source=source,
        speaker=text_field(record, "speaker"),
        language=text_field(record, "language") or language,
        seconds=seconds_field(record, "duration"),
        extra=extra,
        named_by_file=not key,
    )
