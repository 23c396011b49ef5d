"""What lies beside the weights of an exported model: where its codec is, a few voices, and what it was trained on.

    codec_source.json       where the codec is, a path or a hub id with its commit, and the hashes of its weights
    codec/                  the codec itself, where it was copied (`slmkit consolidate --with-codec`)
    voices/NAME.npy         a speaker vector, float32 [D]; audio files that are put there are voices, too
    voices/voices.json      which utterances the vectors are of
    trained_on/             what the model was trained on (see `trained_on`)
    speech_rates.json       frames per text token of the corpus, as quantiles: what speech that will not end is told by

A run notes them in RUN/model when it begins, since corpus and codec may be elsewhere when it is exported. `codec` as a
source means the folder beside: the directory may be moved. Codec and voices say nothing about the model, and do not
count for its hash; the rates do, since answers depend on them. torch is not needed to read them.

Example:
    write_companions(Path("runs/tts/model"), spec, codec_source="/codecs/melvq", voices=choose_voices(source))
    codec_beside("exports/tts")         # Path("/codecs/melvq")
    voices_beside("exports/tts")        # {"11": "exports/tts/voices/11.npy", "12": ...}
"""

import os
import re
import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slmkit.audio import AUDIO_SUFFIXES
from slmkit.corpora.folders import walk
from slmkit.errors import DamagedSample, UserError
from slmkit.files import atomic_write, disk_errors_named, read_json, write_json
from slmkit.hub import local_path, parse
from slmkit.texts import excerpt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from slmkit.codec.base import CodecSpec
    from slmkit.data.rates import SpeechRates
    from slmkit.data.sources import Source

SOURCE_FILE, CODEC_DIR, VOICES_DIR, VOICES_FILE = "codec_source.json", "codec", "voices", "voices.json"
TRAINED_ON_DIR = "trained_on"
RATES_FILE = "speech_rates.json"
HASHES = ("weights_sha256", "speaker_sha256")
VOICE_SUFFIXES = (*AUDIO_SUFFIXES, ".npy")
NUM_VOICES = 4
LOOKED_AT = 64  # samples of a corpus, evenly spread, among which voices are chosen
UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")  # in names of files
NAME_CHARS = 60
OVERRIDE = "give the codec with --codec, or export the model again with --with-codec"


class Voice(NamedTuple):
    """A speaker vector and the utterance that it is of."""

    name: str
    vector: "npt.NDArray[np.float32]"  # [D]
    origin: dict[str, str]  # corpus, key, speaker


def choose_voices(source: "Source", *, num_samples: int | None = None, without: Collection[str] = ()) -> list[Voice]:
    """Voices of up to `NUM_VOICES` speakers of a corpus, the same at every call; none where it has no speaker vectors.

    Only the first `num_samples` of the corpus are looked at, and no speakers among `without`.
    """
    found: dict[str, tuple[int, Voice]] = {}  # by speaker, with the frames of the longest utterance
    count = min(len(source), num_samples or len(source))
    for i in sorted({place * count // LOOKED_AT for place in range(LOOKED_AT)} if count else ()):
        try:
            sample = source.reader.read(i)
        except DamagedSample:  # training says what becomes of it
            continue
        speaker, frames = str(sample.meta.get("speaker") or ""), sample.codes.shape[1]
        if sample.speaker is None or speaker in without or frames <= found.get(speaker, (0, None))[0]:
            continue
        origin = {"corpus": source.path, "key": sample.key, "speaker": speaker}
        found[speaker] = frames, Voice(UNSAFE.sub("_", speaker)[:NAME_CHARS].strip("_"), sample.speaker, origin)
    number, voices = min(NUM_VOICES, len(found)), list[Voice]()
    for _, voice in [list(found.values())[place * len(found) // number] for place in range(number)]:
        taken = {other.name.lower() for other in voices}
        names = (f"{voice.name or 'voice'}{f'-{i}' if i else ''}" for i in range(NUM_VOICES))
        voices.append(voice._replace(name=next(name for name in names if name.lower() not in taken)))
    return voices


def write_companions(
    directory: Path,
    spec: "CodecSpec",
    *,
    codec_source: str = "",
    voices: Sequence[Voice] = (),
    rates: "SpeechRates | None" = None,
) -> None:
    """Note the codec, where its place is known, the voices and the rates. Raises UserError when the disk refuses."""
    import numpy as np

    if codec_source:
        hashes = {name: getattr(spec, name) for name in HASHES}
        write_json(directory / SOURCE_FILE, {"source": codec_source, **hashes}, replace=True)
    for voice in voices:
        with atomic_write(directory / VOICES_DIR / f"{voice.name}.npy") as file:
            np.save(file, voice.vector, allow_pickle=False)
    if voices:
        write_json(directory / VOICES_DIR / VOICES_FILE, {voice.name: voice.origin for voice in voices})
    if rates is not None:
        write_json(directory / RATES_FILE, rates.to_dict(), replace=True)


def copy_companions(source: Path, target: Path) -> None:
    """Take what is beside one model to another, but for a copied codec: that stays, and is named where it is."""
    noted = _noted(source)
    if noted is not None:
        place = str((source / CODEC_DIR).absolute()) if noted["source"] == CODEC_DIR else noted["source"]
        write_json(target / SOURCE_FILE, {**noted, "source": place}, replace=True)
    for name, path in voices_beside(source).items():
        _copy(Path(path), target / VOICES_DIR / f"{name}{Path(path).suffix}")
    if os.path.isfile(source / VOICES_DIR / VOICES_FILE):
        _copy(source / VOICES_DIR / VOICES_FILE, target / VOICES_DIR / VOICES_FILE)
    for file in (source / TRAINED_ON_DIR).glob("*"):
        _copy(file, target / TRAINED_ON_DIR / file.name)
    if os.path.isfile(source / RATES_FILE):
        _copy(source / RATES_FILE, target / RATES_FILE)


def copy_codec(directory: Path, codec: Path, files: Iterable[Path], spec: "CodecSpec") -> None:
    """Put the `files` of a codec, all below `codec`, beside the model in `directory`, and note that they are there."""
    for file in files:
        _copy(file, directory / CODEC_DIR / file.relative_to(codec))
    write_companions(directory, spec, codec_source=CODEC_DIR)


def codec_beside(directory: str | Path) -> Path:
    """Where the codec of an exported model is on this disk; fetched where it is on the hub.

    Raises UserError where the model does not say, or its codec is not there any more.
    """
    noted = _noted(Path(directory))
    if noted is None:
        raise UserError(
            f"{directory} does not say where its codec is",
            got=f"no {SOURCE_FILE}",
            next_step="give the codec with --codec",
        )
    source = noted["source"]
    if source == CODEC_DIR:
        source = str(Path(directory) / CODEC_DIR)
    if not os.path.exists(source) and parse(source) is None:
        raise UserError(
            f"the codec of {directory} is not where it was",
            got=f"no directory {source}",
            expected=f"the codec with weights of sha256 {noted['weights_sha256'][:12] or 'unknown'}",
            next_step=OVERRIDE,
        )
    try:
        return local_path(source, what="the codec")
    except UserError as error:
        what = f"the codec of {directory} cannot be fetched: {error.what}"
        raise UserError(what, got=error.got, expected=error.expected, next_step=OVERRIDE) from error


def check_codec_beside(directory: str | Path, spec: "CodecSpec", opened: str | Path) -> None:
    """Raise UserError where the codec that was `opened` in the place that a model notes is another one by now."""
    noted = _noted(Path(directory)) or {}
    for name in HASHES:
        found, expected = getattr(spec, name), noted.get(name, "")
        if found != expected and found and expected:
            raise UserError(
                f"{opened} is not the codec any more that {directory} was made with",
                got=f"{name} {found}",
                expected=f"{name} {expected}",
                next_step=OVERRIDE,
            )


def codec_source(directory: str | Path) -> str:
    """Where an exported model says that its codec is; "" where it says nothing."""
    noted = _noted(Path(directory))
    return noted["source"] if noted else ""


def voices_beside(directory: str | Path) -> dict[str, str]:
    """The voices of an exported model: files by name, sorted. Raises UserError where two have the same name."""
    folder = Path(directory) / VOICES_DIR
    return voices_by_name(voices_in(folder)) if os.path.isdir(folder) else {}


def voices_in(folder: Path) -> list[tuple[str, str]]:
    """Names and paths of the audio files and vectors in a folder that are not hidden, sorted."""
    files = [folder / name for name in next(walk(folder)).names]
    return sorted((file.stem, str(file)) for file in files if file.suffix.lower() in VOICE_SUFFIXES)


def voices_by_name(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Raises UserError where two voices have the same name."""
    voices: dict[str, str] = {}
    for name, place in found:
        if name in voices:
            raise UserError("two voices have the same name", got=name, next_step=f"rename {voices[name]} or {place}")
        voices[name] = place
    return voices


def rates_beside(directory: str | Path) -> "SpeechRates | None":
    """The rates of an exported model's corpus; None where it notes none. Raises UserError where they are damaged."""
    from slmkit.data.rates import SpeechRates

    path = Path(directory) / RATES_FILE
    if not os.path.isfile(path):
        return None
    values = read_json(path)
    try:
        return SpeechRates.from_dict(values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        what = f"{path} does not hold frames per text token"
        raise UserError(what, got=excerpt(error), next_step="export the model again, or remove the file") from error


def _noted(directory: Path) -> dict[str, Any] | None:
    path = directory / SOURCE_FILE
    if not os.path.isfile(path):
        return None
    values = read_json(path)
    names = ("source", *HASHES)
    if not isinstance(values, dict) or not all(isinstance(values.get(name), str) for name in names):
        raise UserError(f"{path} does not say where a codec is", got=f"{values!r:.100}", expected=", ".join(names))
    return {name: values[name] for name in names}


def _copy(source: Path, target: Path) -> None:
    with disk_errors_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
