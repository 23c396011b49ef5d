"""Codecs that `slmkit codec add` has taken in: a published checkpoint, read once and written in one form for all.

    OUT/codec.json           kind, streams, settings of the network, hashes, source and licence
    OUT/model.safetensors    the weights that are needed, and no others
    OUT/voice/               where speaker vectors are wanted: the files of a voice encoder

The published files are read with nothing but tensors and plain values in mind: weights-only, never as code.

Invariant: a directory opens as the codec that its published files describe, or not at all.

Example:
    spec = add_codec("facebook/encodec_24khz", "codecs/encodec-4", num_streams=4)
    codec = open_codec("codecs/encodec-4")
"""

import functools
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
import yaml
from annotated_types import Ge, Le
from pydantic import Field
from pydantic.types import Strict

from slmkit.codec.base import MAX_LM_STREAMS, Codec, CodecSpec
from slmkit.codec.open import CODEC_JSON, CodecFamily, codec_families, published_family
from slmkit.codec.voiced import refuse_own_vectors, with_voice
from slmkit.config.load import Config, from_dict, parse_yaml, to_dict
from slmkit.config.values import Name, Text
from slmkit.errors import UserError
from slmkit.files import new_directory, read_bounded, read_json, sha256_file, write_json
from slmkit.hub import local_file, source_of
from slmkit.voice.open import open_voice
from slmkit.weights import read_weights

WEIGHTS, VOICE = "model.safetensors", "voice"
MAX_CARD_BYTES = 2**20
MAX_LICENCE_CHARS = 100


class Source:
    """A published codec, as `codec add` was given it: a directory, or a checkpoint file. Each file is read once."""

    def __init__(self, path: Path, num_streams: int | None) -> None:
        """`num_streams`: how many the user wants; None for the family's usual number."""
        self.path, self.num_streams = path, num_streams
        self.directory = path if os.path.isdir(path) else path.parent

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """config.json beside the weights, empty without one."""
        file = self.directory / "config.json"
        values = read_json(file) if os.path.isfile(file) else {}
        if not isinstance(values, dict):
            raise UserError(f"{file} does not hold a mapping", got=f"{values!r:.100}")
        return values

    @functools.cached_property
    def licence(self) -> str:
        """What the model card beside the weights (README.md) says, empty where it says nothing."""
        card = self.directory / "README.md"
        try:
            text = read_bounded(card, MAX_CARD_BYTES).decode() if os.path.isfile(card) else ""
            head = parse_yaml(text.split("---", 2)[1]) if text.startswith("---\n") and text.count("---") > 1 else {}
        except (OSError, ValueError, yaml.YAMLError, RecursionError, UserError):
            return ""  # a card that cannot be read says nothing
        licence = head.get("license", "") if isinstance(head, dict) else ""
        return licence[:MAX_LICENCE_CHARS] if isinstance(licence, str) else ""

    @functools.cached_property
    def weights_file(self) -> Path:
        """The file that holds the weights. Raises UserError where it is not clear which."""
        return local_file(self.path, what="the weights")

    @functools.cached_property
    def weights(self) -> dict[str, Any]:
        """What the weights' file holds: names -> tensors, or a checkpoint of a trainer with such mappings in it.

        Raises UserError when it cannot be read without running code.
        """
        return read_weights(self.weights_file)

    def chosen_streams(self, available: int, *, usual: int | None = None) -> int:
        """The number of streams to use, of `available`. Raises UserError when there are not so many."""
        number = self.num_streams or min(usual or available, MAX_LM_STREAMS)
        if not 1 <= number <= min(available, MAX_LM_STREAMS):
            raise UserError(
                f"{self.path} does not have so many streams for a language model",
                got=f"--streams {number}",
                expected=f"1 to {min(available, MAX_LM_STREAMS)}",
            )
        return number


@dataclass(frozen=True, kw_only=True)
class Added:
    """A codec of one family in the form that is kept."""

    streams: int  # used by the language model
    config: dict[str, Any]  # settings of the network: plain values, checked by the family when it builds
    weights: dict[str, torch.Tensor]  # those that are needed
    licence: str = ""  # of the weights, where it is known


class _CodecFile(Config):
    """codec.json."""

    kind: Name = Field(description="family of the codec")
    streams: Annotated[int, Strict(), Ge(1), Le(MAX_LM_STREAMS)] = Field(description="streams that are used")
    config: dict[str, Any] = Field(description="settings of the network")
    weights_sha256: Text = Field(description="hash of model.safetensors")
    source: Text = Field(default="", description="where the published weights came from")
    source_sha256: Text = Field(default="", description="hash of the published file")
    licence: Text = Field(default="", description="of the weights")
    voice: dict[str, Text] = Field(default={}, description="hashes of the files in voice/")


def add_codec(
    source: str | Path, out: str | Path, *, num_streams: int | None = None, speaker: str | Path | None = None
) -> CodecSpec:
    """Convert the published codec at `source` into the new directory `out`; returns its spec.

    With the voice encoder at `speaker`, the codec gives its speaker vectors. Then `source` may also be a directory that
    this function wrote, whose codec is copied.

    Raises UserError when `out` exists, no family knows the source, it does not give a codec that can be opened, or it
    has speaker vectors of its own.
    """
    if speaker is not None and os.path.isfile(Path(source) / CODEC_JSON):
        return _add_voice(Path(source), Path(out), speaker, num_streams)
    found = Source(Path(source), num_streams)
    if not os.path.exists(found.path):
        raise UserError(f"cannot add the codec {source}: there is no such file or directory")
    opened = published_family(found.path)
    if opened is not None or os.path.isfile(found.path / CODEC_JSON):
        what = f"{source} is a codec as it is: {opened.name if opened else 'added before'}"
        raise UserError(what, next_step="give it to --codec; nothing has to be added")
    families = codec_families()
    for family in families.values():
        added = family.read(found) if family.read else None
        if added is not None:
            break
    else:
        known = ", ".join(family.name for family in families.values() if family.read)
        raise UserError(f"{source} is not a codec that slmkit knows", expected=f"published files of {known}")
    with new_directory(Path(out)) as temporary:
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in added.weights.items()}
        safetensors.torch.save_file(weights, temporary / WEIGHTS)
        described = _CodecFile(
            kind=family.name,
            streams=added.streams,
            config=added.config,
            weights_sha256=sha256_file(temporary / WEIGHTS),
            source=source_of(source),
            source_sha256=sha256_file(found.weights_file),
            licence=added.licence,
            voice={} if speaker is None else _copy_voice(speaker, temporary / VOICE),
        )
        write_json(temporary / CODEC_JSON, to_dict(described))
        return open_added(temporary, torch.device("cpu"), families).spec


def _add_voice(source: Path, out: Path, speaker: str | Path, num_streams: int | None) -> CodecSpec:
    """Copy the codec that `add_codec` wrote to `source` into `out`, with the voice encoder at `speaker`."""
    families = codec_families()
    described = from_dict(_CodecFile, read_json(source / CODEC_JSON), f"{source / CODEC_JSON}")
    refuse_own_vectors(open_added(source, torch.device("cpu"), families).spec)
    if num_streams not in (None, described.streams):
        raise UserError(
            f"{source} was added with another number of streams",
            got=f"--streams {num_streams}",
            expected=described.streams,
            next_step="add the published files again, or leave --streams out",
        )
    with new_directory(out) as temporary:
        shutil.copyfile(source / WEIGHTS, temporary / WEIGHTS)
        voice = _copy_voice(speaker, temporary / VOICE)
        write_json(temporary / CODEC_JSON, {**to_dict(described), "voice": voice})
        return open_added(temporary, torch.device("cpu"), families).spec


def _copy_voice(speaker: str | Path, directory: Path) -> dict[str, str]:
    """Write the voice encoder at `speaker` into the new `directory`; hashes of its files by name."""
    voice = open_voice(speaker)
    directory.mkdir()
    voice.save(directory)
    return _hashes(directory)


def _hashes(directory: Path) -> dict[str, str]:
    files = sorted(file for file in directory.iterdir() if file.is_file() and not file.name.startswith("."))
    return {file.name: _sha256(file) for file in files}


def _sha256(file: Path) -> str:
    try:
        return sha256_file(file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}", next_step="check its permissions") from error


def added_files(path: Path) -> list[Path]:
    """The files of the codec in a directory that `add_codec` wrote, and none that lie beside them."""
    described = from_dict(_CodecFile, read_json(path / CODEC_JSON), f"{path / CODEC_JSON}")
    voice = (file for file in sorted((path / VOICE).glob("*")) if file.name in described.voice)
    return [path / CODEC_JSON, path / WEIGHTS, *voice]


def open_added(path: Path, device: torch.device, families: dict[str, CodecFamily]) -> Codec:
    """The codec in a directory that `add_codec` wrote. Raises UserError when a file is missing or damaged."""
    described = from_dict(_CodecFile, read_json(path / CODEC_JSON), f"{path / CODEC_JSON}")
    family = families.get(described.kind)
    if family is None or family.build is None:
        known = ", ".join(name for name, one in families.items() if one.build)
        raise UserError(f"{path} holds a codec of a kind that is not known", got=described.kind, expected=known)
    weights_sha256 = _sha256(path / WEIGHTS) if os.path.isfile(path / WEIGHTS) else "no such file"
    if weights_sha256 != described.weights_sha256:
        raise UserError(
            f"{path / WEIGHTS} is not the file that {CODEC_JSON} names: damaged, or of another codec",
            got=f"sha256 {weights_sha256}",
            expected=f"sha256 {described.weights_sha256}",
            next_step="add the codec again, or copy both files again",
        )
    weights = read_weights(path / WEIGHTS)
    added = Added(streams=described.streams, config=described.config, weights=weights, licence=described.licence)
    codec = family.build(added, device)
    if not described.voice:
        return codec
    voice = path / VOICE
    found = _hashes(voice) if os.path.isdir(voice) else {}
    if wrong := sorted(name for name in found | described.voice if found.get(name) != described.voice.get(name)):
        raise UserError(
            f"{voice / wrong[0]} is not the file that {CODEC_JSON} names: damaged, or of another voice encoder",
            got=f"sha256 {found[wrong[0]]}" if wrong[0] in found else "no such file",
            expected=f"sha256 {described.voice[wrong[0]]}" if wrong[0] in described.voice else "no such file",
            next_step="add the codec again with --speaker, or copy the whole directory again",
        )
    return with_voice(codec, open_voice(voice, device))


def identity(added: Added) -> str:
    """SHA-256 of all that makes the codes: streams, settings and weights. The `weights_sha256` of a codec's spec."""
    found = hashlib.sha256(repr((added.streams, sorted(added.config.items()))).encode())
    for name in sorted(added.weights):
        found.update(name.encode())
        found.update(safetensors.torch.save({name: added.weights[name].detach().cpu().contiguous()}))
    return found.hexdigest()
