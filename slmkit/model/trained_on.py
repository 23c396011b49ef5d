"""What a model was trained on, as it is noted beside the weights: sources, and hashes of keys and of speakers.

    trained_on/sources.json     sources with their fingerprints, how much of each, and what was held out
    trained_on/keys.npy         uint64 [N], sorted: the hash of the key of every utterance
    trained_on/speakers.npy     uint64 [M], sorted: the hash of the name of every speaker

A run notes it in RUN/model when it begins, exports take it along, and a run that starts from an export adds to what is
noted there. Counted is what the run was given to train on, also what it never came to because it ended before, or what
was longer than a row.

Utterances are told by their keys alone, so that the same corpus is known again when it is tokenized with another codec.
Two corpora that use the same keys for different utterances cannot be told apart.

Invariant: an utterance that a run held out is not among its keys, unless an earlier run was trained on it.

Example:
    trained_on = TrainedOn.read("exports/mtp3")         # None where it is not noted
    trained_on.has_keys(["1034_121119_000005_000001"])  # bool [1]
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, ValidationError

from slmkit.data.examples import TrainingData
from slmkit.data.lengths import key_hash, speaker_hash
from slmkit.errors import UserError
from slmkit.files import atomic_write, read_json, read_npy, write_json
from slmkit.model.companions import TRAINED_ON_DIR
from slmkit.texts import excerpt

SOURCES_FILE, KEYS_FILE, SPEAKERS_FILE = "sources.json", "keys.npy", "speakers.npy"
MAX_HASHES = 2**33
Hashes = npt.NDArray[np.uint64]
NO_SPEAKER = speaker_hash("")


class TrainedSource(BaseModel):
    """One source of a run."""

    model_config = ConfigDict(frozen=True)
    path: str
    sha256: str  # its fingerprint
    task: str
    utterances: Annotated[int, Ge(0)]  # trained on
    of: Annotated[int, Ge(0)]  # that it has


class _File(BaseModel):
    """What sources.json holds."""

    sources: tuple[TrainedSource, ...]
    held_out: str
    is_all: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedOn:
    """See the module."""

    sources: tuple[TrainedSource, ...]
    held_out: str  # what the last run held out, in words; "" for nothing
    is_all: bool  # False where the weights that a run started from do not say what they were trained on
    keys: Hashes
    speakers: Hashes

    @staticmethod
    def of(data: TrainingData, held_out: str = "") -> "TrainedOn":
        """What `data` holds. Text without speech is listed as a source, without keys."""
        sources, keys, speakers = [], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        for part in data.parts:
            source = part.source
            known = {"path": source.path, "sha256": source.fingerprint, "task": part.wording.task}
            sources.append(TrainedSource(**known, utterances=part.count, of=len(source)))
            if source.codec is not None:
                chosen = slice(part.count) if part.members is None else part.members
                keys.append(part.table["key_hash"][chosen])
                speakers.append(part.table["speaker_hash"][chosen])
        found = np.unique(np.concatenate(speakers))
        return TrainedOn(
            sources=tuple(sources),
            held_out=held_out,
            is_all=True,
            keys=np.unique(np.concatenate(keys)),
            speakers=found[found != NO_SPEAKER],
        )

    def after(self, earlier: "TrainedOn | None") -> "TrainedOn":
        """This and what the weights were trained on before; None where that is not known."""
        if earlier is None:
            return dataclasses.replace(self, is_all=False)
        return TrainedOn(
            sources=tuple(dict.fromkeys([*earlier.sources, *self.sources])),
            held_out=self.held_out,
            is_all=self.is_all and earlier.is_all,
            keys=np.union1d(earlier.keys, self.keys),
            speakers=np.union1d(earlier.speakers, self.speakers),
        )

    def write(self, directory: Path) -> None:
        """Note it beside the model in `directory`. Raises UserError when the disk refuses."""
        for name, hashes in ((KEYS_FILE, self.keys), (SPEAKERS_FILE, self.speakers)):
            with atomic_write(directory / TRAINED_ON_DIR / name, replace=True) as file:
                np.save(file, hashes, allow_pickle=False)
        noted = _File(sources=self.sources, held_out=self.held_out, is_all=self.is_all)
        write_json(directory / TRAINED_ON_DIR / SOURCES_FILE, noted.model_dump(), replace=True)

    @staticmethod
    def read(directory: str | Path) -> "TrainedOn | None":
        """What is noted beside a model; None where nothing is. Raises UserError when it is damaged."""
        folder = Path(directory) / TRAINED_ON_DIR
        if not (folder / SOURCES_FILE).is_file():
            return None
        try:
            noted = _File.model_validate(read_json(folder / SOURCES_FILE))
        except ValidationError as error:
            raise _damaged(folder / SOURCES_FILE, error.errors(include_url=False)[0]["msg"]) from error
        hashes = {}
        for name in (KEYS_FILE, SPEAKERS_FILE):
            found = read_npy(folder / name, what="hashes of what a model was trained on", max_values=MAX_HASHES)
            if found.dtype != np.uint64 or found.ndim != 1 or (found[1:] <= found[:-1]).any():
                raise _damaged(folder / name, f"{found.dtype} {list(found.shape)}")
            hashes[name] = found
        return TrainedOn(**dict(noted), keys=hashes[KEYS_FILE], speakers=hashes[SPEAKERS_FILE])

    def has_keys(self, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Of each key whether the utterance was trained on, bool [n]."""
        return _is_among(self.keys, (key_hash(key) for key in keys))

    def has_speakers(self, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Of each name whether the speaker was trained on, bool [n]; no name is no speaker."""
        return _is_among(self.speakers, (speaker_hash(name) for name in names))


def _is_among(known: Hashes, hashes: Iterable[int]) -> npt.NDArray[np.bool_]:
    """Of each hash whether it is in `known`, which is sorted."""
    asked = np.fromiter(hashes, dtype=np.uint64)
    if not len(known):
        return np.zeros(len(asked), dtype=np.bool_)
    places = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    found: npt.NDArray[np.bool_] = known[places] == asked
    return found


def _damaged(path: Path, got: Any) -> UserError:
    return UserError(
        f"{path} does not say what the model was trained on",
        got=excerpt(got, 200),
        expected="what `slmkit train` noted",
        next_step=f"export the model again, or remove {path.parent}: then it is not known",
    )
