"""Open whatever codec a directory holds.

Knows the codecs by their file names only; each checks its own files.

Example:
    codec = open_codec("my_codec", "cuda")
"""

from pathlib import Path

import torch

from slmkit.codec.base import Codec
from slmkit.errors import UserError

FACODEC_FILES = ("ns3_facodec_encoder_v2.bin", "ns3_facodec_decoder_v2.bin")
MELVQ_FILES = ("melvq.safetensors", "codec_spec.json")


def open_codec(path: str | Path, device: str | torch.device = "cpu") -> Codec:
    """The codec in directory `path`, ready on `device`: FACodec's published files or a fitted codec.

    Raises UserError when the directory holds neither or only a part of one, a file is damaged, or the device is not
    there.
    """
    path, device = Path(path), _usable_device(device)
    present = {file.name for file in path.iterdir()} if path.is_dir() else set()
    for files, load in ((MELVQ_FILES, _load_melvq), (FACODEC_FILES, _load_facodec)):
        if present.issuperset(files):
            return load(path, device)
    raise UserError(
        f"{path} is not a codec directory",
        got=f"{', '.join(sorted(present)[:8]) or 'no files'}" if path.is_dir() else "no such directory",
        expected=f"{' and '.join(FACODEC_FILES)}, or {' and '.join(MELVQ_FILES)}",
        next_step="make one with `slmkit codec fit AUDIO_DIR OUT`, or fetch the FACodec V2 files",
    )


def _load_melvq(path: Path, device: torch.device) -> Codec:
    from slmkit.codec.melvq import MelVQ

    return MelVQ.load(path, device)


def _load_facodec(path: Path, device: torch.device) -> Codec:
    from slmkit.codec.facodec.codec import FACodec

    return FACodec.from_directory(path, device, detail=False)


def _usable_device(name: str | torch.device) -> torch.device:
    """The device called `name`, tried out. Raises UserError when torch does not know it or cannot reach it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"cannot use device {name}: {str(error).splitlines()[0]}", expected="cpu, or cuda where there is a GPU"
        ) from error
    return device
