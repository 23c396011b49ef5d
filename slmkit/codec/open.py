"""Opens the codec in a directory, of whichever family it is.

A codec family is a module of `slmkit.codec` that calls `register_codec` when it is imported. There are two ways for a
codec to lie in a directory. Published files that are read as they are: the directory is of the family whose files are
all there. Or what `slmkit codec add` has written once (`added.py`): codec.json names the family.

Example:
    register_codec("mine", ("mine.safetensors",), lambda path, device: MyCodec.load(path, device))
    codec = open_codec("my_codec", "cuda")
"""

import importlib
import os
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

import slmkit.codec
from slmkit.codec.base import Codec
from slmkit.errors import UserError

if TYPE_CHECKING:
    from slmkit.codec.added import Added, Source

CODEC_JSON = "codec.json"


class Preset(NamedTuple):
    """A published codec of a family, as `slmkit codec list` shows it."""

    name: str  # hub id, or what people call it
    sample_rate: int  # Hz
    hop_samples: int
    streams: str  # numbers of streams that can be used, and their size: "1 to 8 of 1024"
    streaming: bool  # whether decoding can begin before the end of an answer
    licence: str  # of the published weights


class CodecFamily(NamedTuple):
    """How a kind of codec lies in a directory."""

    name: str
    presets: tuple[Preset, ...]
    files: tuple[
        str, ...
    ]  # names; the directory is of this family when all of them are there. Empty: only by codec.json
    load: Callable[[Path, torch.device], Codec] | None  # opens `files`; raises UserError where one is damaged
    read: "Callable[[Source], Added | None] | None"  # what `codec add` was given; None where it is another family's
    build: "Callable[[Added, torch.device], Codec] | None"  # of what `read` gave; raises UserError where it is damaged


_families: dict[str, CodecFamily] = {}


def register_codec(
    name: str,
    files: tuple[str, ...] = (),
    load: Callable[[Path, torch.device], Codec] | None = None,
    *,
    read: "Callable[[Source], Added | None] | None" = None,
    build: "Callable[[Added, torch.device], Codec] | None" = None,
    presets: Sequence[Preset] = (),
) -> None:
    """Let `open_codec` find a family: by its `files`, with `load`; or, with `read` and `build`, by codec.json."""
    _families[name] = CodecFamily(name, tuple(presets), files, load, read, build)


def codec_families() -> dict[str, CodecFamily]:
    """All families, in the order of the module names of `slmkit.codec`, then those that others registered."""
    for module in pkgutil.iter_modules(slmkit.codec.__path__, "slmkit.codec."):
        importlib.import_module(module.name)
    return dict(_families)


def usable_device(name: str | torch.device) -> torch.device:
    """A device that torch can use here. Raises UserError for one that is not there, or that torch does not know."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"cannot use device {name}: torch knows none of this name", expected="cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"cannot use device {name}: there is no GPU that torch can use",
            got=f"torch {torch.__version__}",
            next_step="use the device cpu, or install a CUDA build of torch that fits the driver",
        )
    if device.type == "meta":
        raise UserError(f"cannot use device {name}: it holds no numbers", expected="cpu or cuda")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = f"cannot use device {name}: {str(error).splitlines()[0]}"
        raise UserError(reason, expected="cpu, or cuda where there is a GPU") from error
    return device


def published_family(path: Path) -> CodecFamily | None:
    """The family of a directory whose published files are read as they are."""
    present = {file.name for file in path.iterdir()} if os.path.isdir(path) else set()
    found = (family for family in codec_families().values() if family.load and present.issuperset(family.files))
    return next(found, None)


def codec_files(path: str | Path) -> list[Path]:
    """The files that make the directory `path` the codec it is. Raises UserError where it holds none."""
    path = Path(path)
    if os.path.isfile(path / CODEC_JSON):
        from slmkit.codec.added import added_files

        return added_files(path)
    family = published_family(path)
    if family is None:
        raise UserError(f"{path} is not a codec directory")
    return sorted({*(path / name for name in family.files), *path.glob("*.json")})


def open_codec(path: str | Path, device: str | torch.device = "cpu") -> Codec:
    """The codec in directory `path`, ready on `device`.

    Raises UserError when the directory holds none or only a part of one, a file is damaged, or the device is not there.
    """
    path, device = Path(path), usable_device(device)
    families = codec_families()
    if os.path.isfile(path / CODEC_JSON):
        from slmkit.codec.added import open_added

        return open_added(path, device, families)
    family = published_family(path)
    if family is not None and family.load is not None:
        return family.load(path, device)
    present = {file.name for file in path.iterdir()} if os.path.isdir(path) else set()
    published = [f"{' and '.join(family.files)} ({family.name})" for family in families.values() if family.files]
    raise UserError(
        f"{path} is not a codec directory",
        got=f"{', '.join(sorted(present)[:8]) or 'no files'}" if os.path.isdir(path) else "no such directory",
        expected=", or ".join([CODEC_JSON, *published]),
        next_step="make one with `slmkit codec add` or `slmkit codec fit`, or fetch the FACodec V2 files",
    )
