"""Opens the codec in a directory, of whichever family it is.

A codec family is a module of `slmkit.codec` that calls `register_codec` when it is imported. A directory holds the
family whose files are all there; the family checks their content.

Example:
    register_codec("mine", ("mine.safetensors",), lambda path, device: MyCodec.load(path, device))
    codec = open_codec("my_codec", "cuda")
"""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import slmkit.codec
from slmkit.codec.base import Codec
from slmkit.errors import UserError


class CodecFamily(NamedTuple):
    """How a kind of codec lies in a directory."""

    files: tuple[str, ...]  # names; the directory is of this family when all of them are there
    load: Callable[[Path, torch.device], Codec]  # raises UserError where a file is damaged


_families: dict[str, CodecFamily] = {}


def register_codec(name: str, files: tuple[str, ...], load: Callable[[Path, torch.device], Codec]) -> None:
    """Let `open_codec` find a family by the names of its files."""
    _families[name] = CodecFamily(files, load)


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


def open_codec(path: str | Path, device: str | torch.device = "cpu") -> Codec:
    """The codec in directory `path`, ready on `device`.

    Raises UserError when the directory holds none or only a part of one, a file is damaged, or the device is not there.
    """
    path, device = Path(path), usable_device(device)
    present = {file.name for file in path.iterdir()} if path.is_dir() else set()
    families = codec_families()
    for family in families.values():
        if present.issuperset(family.files):
            return family.load(path, device)
    raise UserError(
        f"{path} is not a codec directory",
        got=f"{', '.join(sorted(present)[:8]) or 'no files'}" if path.is_dir() else "no such directory",
        expected=", or ".join(f"{' and '.join(family.files)} ({name})" for name, family in families.items()),
        next_step="make one with `slmkit codec fit AUDIO_DIR OUT`, or fetch the FACodec V2 files",
    )
