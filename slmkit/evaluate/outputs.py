"""What a model said, on disk: the directory of a job (see `jobs`) that generation fills and scoring reads.

    job.json            how it is made: settings; and names for people
    outputs.jsonl       a record per utterance, in the order of the choice
    codes/00000.npy     uint16 [K, T]
    wav/00000.wav       not there where the model gave no speech
    voices/00.npy       float32 [D], voices that are not of the corpus

Invariant: one directory holds outputs of one model, corpus, choice and settings.

Example:
    generate(synthesizer, corpus, selected, SpeakingSettings(), "scores", model=sha256)
    finished("scores").records[0].frames
"""

import dataclasses
import json
import os
import wave as wave_files
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, TypeAdapter

from slmkit.audio.encode import PCM16_SCALE
from slmkit.codec.base import CodecSpec, Codes, to_codes
from slmkit.errors import UserError
from slmkit.files import read_npy
from slmkit.infer.batch import CODES_DIR
from slmkit.infer.shares import WAVES_DIR
from slmkit.jobs import JOB, RECORDS, read_description, read_job_records
from slmkit.texts import excerpt, visible

AGAIN = "generate into a new directory"
MAX_CODES = 2**28  # of an utterance
SHOWN_ERROR = 300  # characters


@dataclass(frozen=True, kw_only=True)
class OutputRecord:
    """How one utterance came out."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False)  # of those in files

    place: int  # in the choice; the name of its files
    number: Annotated[int, Ge(0)]  # of the sample in the corpus
    key: str
    voice: str  # "own", "swapped", or the name of a voice from outside the corpus
    voice_number: Annotated[int, Ge(0)] | None  # the sample whose voice it is
    voice_key: str  # of that sample
    speaker: str  # the name of the voice's speaker
    text: str  # what to say or, of a question, what to answer
    seed: int
    frames: Annotated[int, Ge(0)]
    steps: int | None  # positions decoded; None for copy synthesis
    reason: Literal["end", "limit", "runaway", "refused"]  # "refused": there is no answer, see `why`
    limit: str | None = None  # what stopped it, where it did not come to its end
    why: str = ""
    answer: str = ""  # in text, to a question; else the words around the speech
    question: str = ""
    true_answers: tuple[str, ...] = ()
    engine_sec: float | None = None  # share of the decoding time; the sum over all is the time it took
    trained_on: bool | None = None  # whether the model was trained on the utterance; None where that is not known
    trained_voice: bool | None = None  # the same of the speaker whose voice it is
    attempts: Annotated[int, Ge(1)] = 1  # of speaking it; this is the best one
    runaways: Annotated[int, Ge(0)] = 0  # of them, that would not have ended
    warning: str | None = None  # "short": the speech is far shorter than its text

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "OutputRecord":
        """The columns that scoring reads, of a record of the job. Raises KeyError, TypeError or ValueError."""
        values = {**NEWER_COLUMNS, **values}
        own = {field.name: values[field.name] for field in dataclasses.fields(OutputRecord)}
        # Texts may hold half a surrogate pair, which pydantic takes for an error.
        _RECORD.validate_json(json.dumps({name: _whole(value) for name, value in own.items()}))
        return OutputRecord(**{**own, "true_answers": tuple(values["true_answers"])})


# Columns that earlier versions did not store, with what they mean there.
NEWER_COLUMNS = {
    field.name: field.default
    for field in dataclasses.fields(OutputRecord)
    if field.name in ("trained_on", "trained_voice", "attempts", "runaways", "warning")
}


_RECORD = TypeAdapter(OutputRecord)


def _whole(value: Any) -> Any:
    return (
        [_whole(part) for part in value] if isinstance(value, list) else visible(value) if type(value) is str else value
    )


class _Sampling(BaseModel):
    """What the page shows of it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)
    temperature: float


class _Source(BaseModel):
    model_config = ConfigDict(strict=True)
    path: str
    task: str
    utterances: int
    of: int


class _TrainedOn(BaseModel):
    """What is said of it."""

    model_config = ConfigDict(strict=True)
    is_known: bool
    is_all: bool = True
    is_same_corpus: bool = True
    held_out: str = ""
    sources: list[_Source] = []


class _Settings(BaseModel):
    """The settings that scoring reads; others are left as they are."""

    model_config = ConfigDict(strict=True)
    task: Literal["tts", "qa"]
    model: str
    corpus: str
    codec: dict[str, Any]
    voices: dict[str, str]
    utterances: list[Any]
    seed: int
    sampling: _Sampling


class _Description(BaseModel):
    """What is read of job.json."""

    model_config = ConfigDict(strict=True)
    settings: _Settings
    names: dict[str, str]
    machine: dict[str, str] = {}
    trained_on: _TrainedOn = _TrainedOn(is_known=False)


@dataclass(frozen=True)
class Finished:
    """All outputs of a choice."""

    directory: Path
    settings: dict[str, Any]
    names: dict[str, str]
    records: tuple[OutputRecord, ...]
    machine: dict[str, str]  # what speeds depend on; empty where it is not known
    trained_on: dict[str, Any]  # what the model was trained on, see `generation`


def finished(directory: str | Path) -> Finished:
    """The outputs in a directory. Raises UserError when it holds none, or not all."""
    directory = Path(directory)
    if not os.path.isfile(directory / JOB):
        raise UserError(f"{directory} holds no generated outputs", next_step="generate them first")
    description = read_description(directory)
    settings = description["settings"]
    try:
        told = _Description.model_validate(description)
        CodecSpec.from_dict(settings["codec"])
    except (ValueError, UserError) as error:
        what = f"{directory / JOB} does not say how outputs were made"
        raise UserError(what, got=excerpt(error, SHOWN_ERROR), next_step="generate again") from error
    path, expected = directory / RECORDS, len(settings["utterances"])
    try:
        records = [OutputRecord.from_dict(values) for values in read_job_records(path)] if os.path.exists(path) else []
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {excerpt(error, SHOWN_ERROR)}", next_step=AGAIN) from error
    if [record.place for record in records] != list(range(expected)):
        raise UserError(
            f"the outputs in {directory} are not finished",
            got=f"{len(records)} utterances",
            expected=expected,
            next_step="start the same command again to continue",
        )
    trained_on = description.get("trained_on", {"is_known": False})
    return Finished(directory, settings, told.names, tuple(records), told.machine, trained_on)


def utterance_id(place: int) -> str:
    """The id of an utterance, which names its files."""
    return f"{place:05d}"


def codes_path(directory: Path, place: int) -> Path:
    return directory / CODES_DIR / f"{utterance_id(place)}.npy"


def wav_path(directory: Path, place: int) -> Path:
    return directory / WAVES_DIR / f"{utterance_id(place)}.wav"


def voice_path(directory: Path, number: int) -> Path:
    return directory / "voices" / f"{number:02d}.npy"


def read_codes(directory: Path, record: OutputRecord, num_streams: int) -> Codes:
    """The codes of an output, uint16 [K, T]. Raises UserError naming the file when it does not hold them."""
    path = codes_path(directory, record.place)
    stored = read_npy(path, what="codes", max_values=MAX_CODES)
    try:
        if stored.dtype.kind not in "iu" or stored.shape != (num_streams, record.frames):
            raise ValueError(f"{stored.dtype} {list(stored.shape)}")
        return to_codes(stored)  # older jobs stored int16
    except ValueError as error:
        expected = f"integers {[num_streams, record.frames]}"
        what = f"{path} does not hold the codes of the utterance"
        raise UserError(what, got=error, expected=expected, next_step=AGAIN) from error


def read_voice(directory: Path, number: int, width: int) -> npt.NDArray[np.float32]:
    """A voice from outside the corpus, float32 [width]. Raises UserError naming the file when it holds none."""
    path = voice_path(directory, number)
    vector = read_npy(path, what="a speaker vector", max_values=width)
    if vector.shape != (width,) or vector.dtype != np.float32 or not np.isfinite(vector).all():
        got = f"{vector.dtype} {list(vector.shape)}"
        raise UserError(f"{path} holds no voice", got=got, expected=f"finite float32 [{width}]", next_step=AGAIN)
    return vector


def read_wave(path: Path) -> npt.NDArray[np.float32]:
    """A stored wave, float32 [samples]: also silence, which `read_audio` takes for a fault. Raises UserError."""
    try:
        with wave_files.open(str(path), "rb") as file:
            if (file.getnchannels(), file.getsampwidth()) != (1, 2):
                raise wave_files.Error("not mono 16-bit")
            content = file.readframes(file.getnframes())
        samples = np.frombuffer(content, dtype="<i2")
    except (OSError, EOFError, ValueError, wave_files.Error) as error:
        raise UserError(f"cannot read {path}: {error}", next_step=AGAIN) from error
    return samples.astype(np.float32) / np.float32(PCM16_SCALE)
