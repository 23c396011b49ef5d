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
import wave as wave_files
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from slmkit.audio.encode import PCM16_SCALE
from slmkit.codec.base import Codes, to_codes
from slmkit.errors import UserError
from slmkit.files import read_npy
from slmkit.infer.batch import CODES_DIR, WAVES_DIR
from slmkit.jobs import JOB, RECORDS, read_description, read_job_records

AGAIN = "generate into a new directory"
MAX_CODES = 2**28  # of an utterance
NEEDED = {"task", "model", "corpus", "codec", "voices", "utterances"}  # settings that scoring reads


@dataclass(frozen=True, kw_only=True)
class OutputRecord:
    """How one utterance came out."""

    place: int  # in the choice; the name of its files
    number: int  # of the sample in the corpus
    key: str
    voice: str  # "own", "swapped", or the name of a voice from outside the corpus
    voice_number: int | None  # the sample whose voice it is
    voice_key: str  # of that sample
    speaker: str  # the name of the voice's speaker
    text: str  # what to say or, of a question, what to answer
    seed: int
    frames: int
    steps: int | None  # positions decoded; None for copy synthesis
    reason: Literal["end", "limit", "refused"]  # "refused": there is no answer, see `why`
    limit: str | None = None
    why: str = ""
    answer: str = ""  # in text, to a question; else the words around the speech
    question: str = ""
    true_answers: tuple[str, ...] = ()
    engine_sec: float | None = None  # share of the decoding time; the sum over all is the time it took

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "OutputRecord":
        """The columns that scoring reads, of a record of the job."""
        own = {field.name: values[field.name] for field in dataclasses.fields(OutputRecord)}
        return OutputRecord(**{**own, "true_answers": tuple(values["true_answers"])})


@dataclass(frozen=True)
class Finished:
    """All outputs of a choice."""

    directory: Path
    settings: dict[str, Any]
    names: dict[str, str]
    records: tuple[OutputRecord, ...]


def finished(directory: str | Path) -> Finished:
    """The outputs in a directory. Raises UserError when it holds none, or not all."""
    directory = Path(directory)
    if not (directory / JOB).is_file():
        raise UserError(f"{directory} holds no generated outputs", next_step="generate them first")
    description = read_description(directory)
    settings = description["settings"]
    if not settings.keys() >= NEEDED or "names" not in description:
        raise UserError(f"{directory / JOB} does not say how outputs were made", next_step="generate again")
    path, expected = directory / RECORDS, len(settings["utterances"])
    try:
        records = [OutputRecord.from_dict(values) for values in read_job_records(path)] if path.exists() else []
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error!r}", next_step=AGAIN) from error
    if [record.place for record in records] != list(range(expected)):
        raise UserError(
            f"the outputs in {directory} are not finished",
            got=f"{len(records)} utterances",
            expected=expected,
            next_step="start the same command again to continue",
        )
    return Finished(directory, settings, description["names"], tuple(records))


def utterance_id(place: int) -> str:
    """The id of an utterance, which names its files."""
    return f"{place:05d}"


def codes_path(directory: Path, place: int) -> Path:
    return directory / CODES_DIR / f"{utterance_id(place)}.npy"


def wav_path(directory: Path, place: int) -> Path:
    return directory / WAVES_DIR / f"{utterance_id(place)}.wav"


def voice_path(directory: Path, number: int) -> Path:
    return directory / "voices" / f"{number:02d}.npy"


def read_codes(directory: Path, record: OutputRecord) -> Codes:
    """The codes of an output, uint16 [K, T], whatever integers are stored: slmkit 0.5 and before had int16.

    Raises UserError naming the file when it does not hold them.
    """
    path = codes_path(directory, record.place)
    codes = read_npy(path, what="codes", max_values=MAX_CODES)
    if codes.ndim != 2 or codes.dtype.kind not in "iu" or codes.shape[1] != record.frames:
        raise UserError(
            f"{path} does not hold the codes of the utterance",
            got=f"{codes.dtype} {list(codes.shape)}",
            expected=f"integers, {record.frames} frames",
            next_step=AGAIN,
        )
    try:
        return to_codes(codes)
    except ValueError as error:
        raise UserError(f"{path} does not hold the codes of the utterance: {error}", next_step=AGAIN) from error


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
    except (OSError, EOFError, wave_files.Error) as error:
        raise UserError(f"cannot read {path}: {error}", next_step=AGAIN) from error
    return np.frombuffer(content, dtype="<i2").astype(np.float32) / np.float32(PCM16_SCALE)
