"""What a model said, on disk: a directory that one run or several fill, and that scoring reads.

    generation.json     how it is made: settings, names, versions; written first and never changed
    outputs.jsonl       a record per utterance, in the order of the choice once all are there
    codes/00000.npy     int16 [K, T]
    wavs/00000.wav      not there where the model gave no speech
    voices/00.npy       float32 [D], voices that are not of the corpus

A record is written after its files, so a run that was killed goes on with the next utterance. The output of an
utterance does not depend on the others, so what an interrupted run and the next one made is what one run makes.

Invariant: one directory holds outputs of one model, corpus, choice and settings.

Example:
    with Outputs.open("scores", settings, names={}) as outputs:
        outputs.add(record, codes, wave, sample_rate=16000)
    finished(Path("scores"))
"""

import dataclasses
import fcntl
import io
import json
import os
import wave as wave_files
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slmkit.audio.encode import PCM16_SCALE
from slmkit.audio.io import write_wav
from slmkit.errors import UserError
from slmkit.evaluate.selection import Voice
from slmkit.files import atomic_write, disk_error, provenance, read_json, write_json

GENERATION, RECORDS = "generation.json", "outputs.jsonl"
NEEDED = {"task", "model", "corpus", "codec", "voices", "utterances"}  # settings that scoring reads
MAX_SHOWN = 200  # characters of a setting in an error


@dataclass(frozen=True, kw_only=True)
class Record:
    """How one utterance came out."""

    place: int  # in the choice; the name of its files
    number: int  # of the sample in the corpus
    key: str
    voice: str  # "own", "swapped", or the name of a voice from outside the corpus
    voice_number: int | None  # the sample whose voice it is
    voice_key: str
    speaker: str  # the name of the voice's speaker
    text: str  # what to say or, of a question, what to answer
    seed: int
    frames: int
    steps: int | None  # positions decoded; None for copy synthesis
    reason: Literal["end", "limit", "refused"]  # "refused": nothing was asked of the model, see `why`
    limit: str | None = None
    why: str = ""
    answer: str = ""  # in text, to a question; else the words around the speech
    question: str = ""
    true_answers: tuple[str, ...] = ()
    engine_sec: float | None = None  # share of the decoding time; the sum over all is the time it took

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Record":
        return Record(**{**values, "true_answers": tuple(values["true_answers"])})


class Outputs:
    """A directory that is being filled. Only one process can do so."""

    def __init__(self, directory: Path, records: list[Record], file: io.FileIO) -> None:
        self.directory, self.records, self._file = directory, records, file

    @staticmethod
    def open(
        directory: str | Path, settings: dict[str, Any], *, names: dict[str, str], voices: Sequence[Voice] = ()
    ) -> "Outputs":
        """Begin, or go on with what was begun; `settings` say what is generated, `names` only where it came from.

        Raises UserError when the directory holds something else, or another process fills it.
        """
        directory = Path(directory)
        settings = json.loads(json.dumps(settings))
        if (directory / GENERATION).exists():
            _check_same(directory, _read_generation(directory)["settings"], settings)
        elif directory.exists() and any(not path.name.endswith(".part") for path in directory.iterdir()):
            raise UserError("the output directory holds other things", got=directory, next_step="give another --out")
        else:
            write_json(directory / GENERATION, {"settings": settings, "names": names, "made_by": provenance()})
        for i, voice in enumerate(voices):
            with atomic_write(voice_path(directory, i), replace=True) as file:
                np.save(file, voice.vector, allow_pickle=False)
        # Unbuffered: what the disk refuses is known at once, and not tried again at the end.
        log = open(directory / RECORDS, "a+b", buffering=0)  # noqa: SIM115 - closed by `close`
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log.seek(0)
            content = log.read()
            whole = content[: content.rfind(b"\n") + 1]
            log.truncate(len(whole))  # the last line of a run that was killed may be torn
            return Outputs(directory, _parse(directory, whole), log)
        except BlockingIOError as error:
            log.close()
            raise UserError("another process generates into this directory", got=directory) from error
        except UserError:
            log.close()
            raise

    @property
    def done(self) -> set[int]:
        """Places that have a record."""
        return {record.place for record in self.records}

    def add(
        self, record: Record, codes: npt.NDArray[np.int16], wave: npt.NDArray[Any] | None, *, sample_rate: int
    ) -> None:
        """Store the files of an utterance, then its record. Raises UserError when the disk refuses."""
        with atomic_write(codes_path(self.directory, record.place), replace=True) as file:
            np.save(file, codes, allow_pickle=False)
        if wave is not None:
            write_wav(wav_path(self.directory, record.place), wave, sample_rate, replace=True)
        try:
            self._file.write(_line(record))
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(self.directory / RECORDS, error) from error
        self.records.append(record)

    def close(self) -> None:
        """Let others open it."""
        self._file.close()

    def __enter__(self) -> "Outputs":
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            ordered = sorted(self.records, key=lambda record: record.place)
            with atomic_write(self.directory / RECORDS, replace=True) as file:
                file.writelines(_line(record) for record in ordered)
        self.close()


@dataclass(frozen=True)
class Finished:
    """All outputs of a choice."""

    directory: Path
    settings: dict[str, Any]
    names: dict[str, str]
    records: tuple[Record, ...]


def finished(directory: str | Path) -> Finished:
    """The outputs in a directory. Raises UserError when it holds none, or not all."""
    directory = Path(directory)
    if not (directory / GENERATION).is_file():
        raise UserError(f"{directory} holds no generated outputs", next_step="generate them first")
    generation = _read_generation(directory)
    try:
        content = (directory / RECORDS).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the outputs in {directory}: {error}") from error
    records = _parse(directory, content[: content.rfind(b"\n") + 1])
    expected = len(generation["settings"]["utterances"])
    if sorted(record.place for record in records) != list(range(expected)):
        raise UserError(
            f"the outputs in {directory} are not finished",
            got=f"{len(records)} utterances",
            expected=expected,
            next_step="give the same command again; it goes on where it was",
        )
    ordered = sorted(records, key=lambda record: record.place)
    return Finished(directory, generation["settings"], generation["names"], tuple(ordered))


def codes_path(directory: Path, place: int) -> Path:
    return directory / "codes" / f"{place:05d}.npy"


def wav_path(directory: Path, place: int) -> Path:
    return directory / "wavs" / f"{place:05d}.wav"


def voice_path(directory: Path, number: int) -> Path:
    return directory / "voices" / f"{number:02d}.npy"


def read_array(path: Path) -> npt.NDArray[Any]:
    """A stored array. Raises UserError naming the file."""
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {error}", next_step="generate into a new directory") from error


def read_wave(path: Path) -> npt.NDArray[np.float32]:
    """A stored wave, float32 [samples]: also silence, which `read_audio` takes for a fault. Raises UserError."""
    try:
        with wave_files.open(str(path), "rb") as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise wave_files.Error("not mono 16-bit")
            content = file.readframes(file.getnframes())
    except (OSError, EOFError, wave_files.Error) as error:
        raise UserError(f"cannot read {path}: {error}", next_step="generate into a new directory") from error
    return np.frombuffer(content, dtype="<i2").astype(np.float32) / np.float32(PCM16_SCALE)


def _read_generation(directory: Path) -> dict[str, Any]:
    values = read_json(directory / GENERATION)
    settings = values.get("settings") if isinstance(values, dict) else None
    if not isinstance(settings, dict) or not settings.keys() >= NEEDED or "names" not in values:
        raise UserError(f"{directory / GENERATION} does not say how outputs were made", next_step="generate again")
    return values


def _parse(directory: Path, lines: bytes) -> list[Record]:
    try:
        return [Record.from_dict(json.loads(line)) for line in lines.splitlines()]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{directory / RECORDS} is damaged: {error!r}", next_step="generate into a new directory"
        ) from error


def _line(record: Record) -> bytes:
    return json.dumps(dataclasses.asdict(record)).encode() + b"\n"


def _check_same(directory: Path, stored: dict[str, Any], given: dict[str, Any]) -> None:
    """Raise UserError naming the first setting that differs."""
    for name in [*given, *(name for name in stored if name not in given)]:
        if stored.get(name) != given.get(name):
            raise UserError(
                f"{directory} holds outputs that were made otherwise: {name} differs",
                got=str(given.get(name))[:MAX_SHOWN],
                expected=str(stored.get(name))[:MAX_SHOWN],
                next_step="give another --out, or the settings it was begun with",
            )
