"""Small corpora of synthetic speech in every layout that slmkit reads, with defects of which the number is known.

Needs espeak-ng. The same utterances are written in each layout; `Expected` says what must come of them when a job runs
with `SETTINGS`.

    python tests/corpora.py OUT --count 300          # OUT/libritts, OUT/emilia, ... and OUT/expected.json
"""

import argparse
import functools
import io
import json
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from slmkit.corpora.base import Utterance
from slmkit.corpora.layouts import ReadOptions, read_parts
from slmkit.data.ledger import Failure

VOICES = ("en-us", "en-gb+f2", "en-us+m3", "en-gb-scotland+f4")
OTHER_VOICE, OTHER_LANGUAGE = "de", "de"
WHO = ("The judge", "My brother", "A doctor", "The baker", "Our teacher", "Somebody")
DID = ("found", "sold", "painted", "carried", "counted", "liked")
WHAT = ("nine boats", "a red coat", "the old map", "two geese", "some bread", "a blue door", "the clock")
MAX_SEC, MIN_DNSMOS = 6.0, 3.5
SETTINGS: dict[str, Any] = {
    "min_sec": 0.1,
    "max_sec": MAX_SEC,
    "filters": {"min_dnsmos": None, "languages": []},
    "max_failure_share": 0.5,
}
FILTERS = {"min_dnsmos": MIN_DNSMOS, "languages": ["en"]}  # for layouts whose source knows both
LOW, OTHER, EMPTY, TWICE, MISSING, LONG = DEFECTS = (
    "low_dnsmos",
    "other_language",
    "empty_transcript",
    "duplicate_key",
    "missing",
    "too_long",
)
PERIOD = 30  # utterances among which each defect is once
PER_RECORDING, PAUSE_SEC = 10, 0.3  # utterances of a long recording, and the silence between them


class Spoken(NamedTuple):
    """An utterance, and the reason for which it must be refused ("" for none), where its layout can have the defect."""

    number: int
    speaker: str
    text: str
    wave: np.ndarray  # int16 [samples]
    rate: int  # Hz
    defect: str

    @property
    def key(self) -> str:
        """Of the utterance before it, where that is the defect."""
        number = self.number - (self.defect == TWICE)
        return f"{self.speaker}-1-{number:06d}"

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.rate

    @property
    def dnsmos(self) -> float:
        return 2.5 if self.defect == LOW else 3.9

    @property
    def language(self) -> str:
        return OTHER_LANGUAGE if self.defect == OTHER else "en"

    @property
    def written_text(self) -> str:
        return "" if self.defect == EMPTY else self.text


class Expected(NamedTuple):
    """What a job must make of a corpus. items = good + sum(reasons)."""

    kind: str
    source: str
    settings: dict[str, Any]
    items: int
    good: int
    reasons: dict[str, int]


@functools.cache
def speak(voice: str, text: str) -> tuple[np.ndarray, int]:
    """int16 [samples] and the sample rate."""
    done = subprocess.run(["espeak-ng", "-v", voice, "-s", "200", "--stdout", text], check=True, capture_output=True)
    header = done.stdout.index(b"data") + 8  # lengths in the header of a stream are not true
    return np.frombuffer(done.stdout[header:], "<i2"), int.from_bytes(done.stdout[24:28], "little")


def utterances(count: int) -> list[Spoken]:
    """`count` different utterances; each defect is there once, and once more for every `PERIOD`."""
    period = min(PERIOD, count)
    assert period >= 2 * len(DEFECTS), "too few for every defect to be there, each beside a good one"
    found = []
    for i in range(count):
        place = i % period
        defect = DEFECTS[place // 2] if place % 2 and place // 2 < len(DEFECTS) else ""
        text = f"{WHO[i % 6]} {DID[i // 6 % 6]} {WHAT[i // 36 % 7]}."
        # The key of a duplicate is that of the utterance before it, and so is the speaker.
        speaker = str(11 + (i - (defect == TWICE)) % len(VOICES))
        wave, rate = speak(OTHER_VOICE if defect == OTHER else VOICES[i % len(VOICES)], text)
        if defect == LONG:
            wave = np.tile(wave, int(MAX_SEC * rate / len(wave)) + 2)
        found.append(Spoken(i, speaker, text, wave, rate, defect))
    return found


def encoded(spoken: Spoken, kind: str) -> bytes:
    """The content of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, spoken.wave, spoken.rate, format=kind)
    return file.getvalue()


def expect(kind: str, source: Path, spoken: list[Spoken], defects: tuple[str, ...], **settings: Any) -> Expected:
    """For a layout in which those defects can be."""
    reasons = Counter(each.defect for each in spoken if each.defect in defects)
    good = len(spoken) - sum(reasons.values())
    return Expected(kind, str(source), {**SETTINGS, **settings}, len(spoken), good, dict(reasons))


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_libritts(root: Path, spoken: list[Spoken]) -> Expected:
    for each in spoken:
        suffix = "wave" if each.defect == TWICE else "wav"  # behind the first by name
        path = root / "dev-clean" / each.speaker / "1" / f"{each.key.replace('-', '_')}.{suffix}"
        if each.defect != TWICE:
            put(path.with_suffix(".normalized.txt"), each.written_text)
        if each.defect == MISSING:
            path.symlink_to("nowhere.wav")
        else:
            put(path, encoded(each, "WAV"))
    return expect("libritts", root, spoken, (EMPTY, TWICE, MISSING, LONG))


def write_librispeech(root: Path, spoken: list[Spoken]) -> Expected:
    lines: dict[Path, list[str]] = {}
    for each in spoken:
        folder = root / "dev-clean" / each.speaker / "1"
        if each.defect == TWICE:
            put(folder / f"{each.key}.wav", encoded(each, "WAV"))
            continue
        if each.defect != MISSING:
            put(folder / f"{each.key}.flac", encoded(each, "FLAC"))
        place = folder / f"{each.speaker}-1.trans.txt"
        lines.setdefault(place, []).append(f"{each.key} {each.written_text.upper()}".rstrip())
    for path, found in lines.items():
        put(path, "\n".join(found) + "\n")
    return expect("librispeech", root, spoken, (EMPTY, TWICE, MISSING, LONG))


def emilia_record(each: Spoken, wav: str) -> dict[str, Any]:
    return {
        "id": each.key,
        "wav": wav,
        "text": f" {each.written_text}",
        "duration": each.seconds,
        "speaker": each.speaker,
        "language": each.language,
        "dnsmos": each.dnsmos,
        "phone_count": len(each.text),
    }


def write_emilia(root: Path, spoken: list[Spoken]) -> Expected:
    """Two tars; the members of a key are neighbours in the first alone."""
    half = len(spoken) // 2
    half -= spoken[half].defect == TWICE  # duplicates lie in one tar with what they are duplicates of
    for number, part in enumerate((spoken[:half], spoken[half:])):
        path = root / "EN" / f"EN-B{number:06d}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        members = [member for each in part for member in _emilia_members(each)]
        if number:
            members.sort(key=lambda member: member[0].rpartition(".")[2])
        with tarfile.open(path, "w") as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return expect("emilia", root, spoken, DEFECTS, filters=FILTERS)


def _emilia_members(each: Spoken) -> list[tuple[str, bytes]]:
    stem = f"EN_B00000_S{each.number:05d}_W000000"
    record = (".".join((stem, "json")), json.dumps(emilia_record(each, f"{stem}.mp3")).encode())
    return [record] if each.defect == MISSING else [(f"{stem}.mp3", encoded(each, "MP3")), record]


def write_emilia_lines(root: Path, spoken: list[Spoken]) -> Expected:
    lines = []
    for each in spoken:
        wav = f"EN_B00000/EN_B00000_S00000/mp3/{each.number:06d}.mp3"
        lines.append(json.dumps(emilia_record(each, wav)) + "\n")
        if each.defect != MISSING:
            put(root / "EN" / wav, encoded(each, "MP3"))
    put(root / "EN" / "EN_B00000.jsonl", "".join(lines))
    return expect("emilia", root, spoken, DEFECTS, filters=FILTERS)


def write_parquet(root: Path, spoken: list[Spoken]) -> Expected:
    """Two files of row groups of 8, laid out like question and answer."""
    half = len(spoken) // 2
    for number, part in enumerate((spoken[:half], spoken[half:])):
        rows = [
            {
                "id": each.key,
                "text question": f"Question {each.number}?",
                "text answer": each.written_text,
                "speech answer": None
                if each.defect == MISSING
                else {"bytes": encoded(each, "FLAC"), "path": f"{each.key}.flac"},
                "role": each.speaker,
                "lang": each.language,
                "mos": each.dnsmos,
                "length": each.seconds,
            }
            for each in part
        ]
        root.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), root / f"train-{number:05d}-of-00002.parquet", row_group_size=8)
    columns = {"audio": "speech answer", "text": "text answer", "question": "text question", "speaker": "role"}
    columns |= {"key": "id", "language": "lang", "dnsmos": "mos", "seconds": "length"}
    return expect("parquet", root, spoken, DEFECTS, filters=FILTERS, columns=columns)


def write_kaldi(root: Path, spoken: list[Spoken]) -> Expected:
    """Every third recording lies in an ark, the others in files of their own."""
    tables: dict[str, list[str]] = {name: [] for name in ("wav.scp", "text", "utt2spk", "utt2dur", "utt2lang")}
    ark = b""
    for each in spoken:
        tables["text"].append(f"{each.key} {each.written_text}".rstrip())
        if each.defect == TWICE:
            continue  # a line of text that is there twice
        content = encoded(each, "WAV")
        place = f"audio/{each.key}.wav"
        if each.number % 3 == 0:
            ark += f"{each.key} ".encode()
            place, ark = f"audio/part.ark:{len(ark)}", ark + content
        elif each.defect != MISSING:
            put(root / place, content)
        if each.defect == MISSING:
            place = "audio/nowhere.wav"
        tables["wav.scp"].append(f"{each.key} {place}")
        tables["utt2spk"].append(f"{each.key} {each.speaker}")
        tables["utt2dur"].append(f"{each.key} {each.seconds}")
        tables["utt2lang"].append(f"{each.key} {each.language}")
    put(root / "audio/part.ark", ark)
    _put_tables(root, tables)
    filters = {"min_dnsmos": None, "languages": ["en"]}
    return expect("kaldi", root, spoken, (OTHER, EMPTY, TWICE, MISSING, LONG), filters=filters)


def _put_tables(root: Path, tables: dict[str, list[str]]) -> None:
    for name, lines in tables.items():
        by_key = sorted((f"{line}\n".encode() for line in lines), key=lambda line: line.split()[0])
        put(root / name, b"".join(by_key))


class Recording(NamedTuple):
    """Utterances one after the other, with silence between them."""

    name: str
    parts: list[Spoken]
    times: list[tuple[float, float]]  # of each, in seconds
    content: bytes


def recordings(spoken: list[Spoken]) -> list[Recording]:
    found = []
    for start in range(0, len(spoken), PER_RECORDING):
        parts = spoken[start : start + PER_RECORDING]
        pause = np.zeros(int(PAUSE_SEC * parts[0].rate), np.int16)
        times, waves, at = [], [pause], len(pause)
        for each in parts:
            times.append((at / each.rate, (at + len(each.wave)) / each.rate))
            waves += [each.wave, pause]
            at += len(each.wave) + len(pause)
        whole = parts[0]._replace(wave=np.concatenate(waves))
        found.append(Recording(f"recording-{start:06d}", parts, times, encoded(whole, "FLAC")))
    return found


def write_kaldi_segments(root: Path, spoken: list[Spoken]) -> Expected:
    tables: dict[str, list[str]] = {name: [] for name in ("wav.scp", "segments", "text", "utt2spk")}
    for recording in recordings(spoken):
        put(root / f"audio/{recording.name}.flac", recording.content)
        tables["wav.scp"].append(f"{recording.name} audio/{recording.name}.flac")
        for each, (start, end) in zip(recording.parts, recording.times, strict=True):
            tables["text"].append(f"{each.key} {each.written_text}".rstrip())
            if each.defect != TWICE:
                name = "nowhere" if each.defect == MISSING else recording.name
                tables["segments"].append(f"{each.key} {name} {start} {end}")
                tables["utt2spk"].append(f"{each.key} {each.speaker}")
    _put_tables(root, tables)
    return expect("kaldi", root, spoken, (EMPTY, TWICE, MISSING, LONG))


def write_manifest(root: Path, spoken: list[Spoken]) -> Expected:
    lines = []
    for each in spoken:
        wav = f"wavs/{each.number:06d}.ogg"
        row = {"path": wav, "text": each.written_text, "speaker": each.speaker, "language": each.language}
        row |= {"key": each.key, "dnsmos": each.dnsmos, "seconds": each.seconds}
        lines.append(json.dumps(row) + "\n")
        if each.defect != MISSING:
            put(root / wav, encoded(each, "OGG"))
    source = put(root / "manifest.jsonl", "".join(lines))
    return expect("manifest", source, spoken, DEFECTS, filters=FILTERS)


def write_segments(root: Path, spoken: list[Spoken]) -> Expected:
    """Long recordings with time stamps. The pieces are counted here in the plainest way."""
    lines, good, reasons = [], 0, Counter[str]()
    for recording in recordings(spoken):
        put(root / f"{recording.name}.flac", recording.content)
        segments, begun = [], None
        for each, (start, end) in zip(recording.parts, recording.times, strict=True):
            segments.append({"start": start, "end": end, "text": each.written_text})
            if each.defect in (EMPTY, LONG):
                reasons[each.defect] += 1
                begun = None
            elif begun is None or end - begun > MAX_SEC:
                good += 1
                begun = start
        lines.append(json.dumps({"path": f"{recording.name}.flac", "segments": segments, "speaker": "many"}) + "\n")
    source = put(root / "manifest.jsonl", "".join(lines))
    return Expected("manifest", str(source), SETTINGS, good + sum(reasons.values()), good, dict(reasons))


WRITERS: dict[str, Callable[[Path, list[Spoken]], Expected]] = {
    "libritts": write_libritts,
    "librispeech": write_librispeech,
    "emilia": write_emilia,
    "emilia_lines": write_emilia_lines,
    "parquet": write_parquet,
    "kaldi": write_kaldi,
    "kaldi_segments": write_kaldi_segments,
    "manifest": write_manifest,
    "segments": write_segments,
}


def read_source(kind: str, source: Path, **options: Any) -> list[Utterance | Failure]:
    """All items of a corpus, in their order."""
    return [item for part in read_parts(kind, source, ReadOptions(**options)) for item in part()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=300, help="utterances in each")
    arguments = parser.parse_args()
    spoken = utterances(arguments.count)
    expected = {name: write(arguments.out / name, spoken)._asdict() for name, write in WRITERS.items()}
    put(arguments.out / "expected.json", json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
