"""Weights from strangers: a file of tensors, or a model of transformers in a local directory.

Nothing is fetched, and no code of a file or a directory is run: torch's files are read by its reader for weights alone.
Models are read from safetensors where there are any, else from `pytorch_model.bin` in the same way. Weights that do not
match a model's config are refused: transformers would go on with random ones.

Example:
    weights = read_weights("codec.safetensors")
    model = load_model(WhisperForConditionalGeneration, "whisper-large-v3", "whisper", "cuda", what="a recognizer")
"""

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from slmkit.errors import UserError
from slmkit.files import read_json

LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
# What torch, safetensors and transformers raise at damaged files.
UNREADABLE = (
    *(OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(AssertionError, MemoryError, struct.error, pickle.UnpicklingError, SafetensorError),
)


class _LeftOut:
    """Takes the place of an array or number of NumPy in a checkpoint, and keeps nothing of it."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class _LeftOutMapping:
    """Takes the place of any other foreign object. torch's reader fills exact dicts only, so it is one."""

    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


def read_weights(path: Path, *, next_step: str = "") -> dict[str, Any]:
    """What a file of weights holds, on the CPU, without running any code of it.

    A trainer's checkpoint may hold objects of its own types beside the weights (callbacks, settings). Their types are
    not looked up: an empty object takes the place of each. Raises UserError when the file cannot be read so.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            stand_ins: Any = [(_LeftOut if name.startswith("numpy.") else _LeftOutMapping, name) for name in foreign]
            with torch.serialization.safe_globals(stand_ins):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        # torch's own text advises to run the file's code.
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "it holds more than weights and plain values" if refused else str(error)[:500] or type(error).__name__
        expected = "safetensors, or a torch file of tensors and plain values"
        raise UserError(f"cannot read {path}: {reason}", expected=expected, next_step=next_step) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} does not hold weights by name", got=type(state).__name__, next_step=next_step)
    return state


def load_model(kind: Any, path: str | Path, model_type: str, device: str | torch.device, *, what: str) -> Any:
    """The `kind` of model in directory `path`, float32, ready for inference on `device`.

    Raises UserError when it is not of `model_type` (`what` says what it is wanted for), or cannot be loaded.
    """
    path = Path(path)
    config = read_json(path / "config.json")
    found_type = config.get("model_type") if isinstance(config, dict) else None
    if found_type != model_type:
        raise UserError(f"{path} is not {what}", got=f"model_type {found_type}", expected=f"model_type {model_type}")
    model, found = load_part(kind, path, dtype=torch.float32, output_loading_info=True)
    wrong = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
    if wrong:
        raise UserError(f"the weights in {path} are not those of {what}", got=f"without {', '.join(wrong[:3])}")
    return model.eval().to(device)


def load_part(kind: Any, path: str | Path, **options: Any) -> Any:
    """What `kind.from_pretrained` reads from directory `path`: a model, a tokenizer, a feature extractor.

    Raises UserError when it cannot.
    """
    try:
        return kind.from_pretrained(str(path), **options, **LOCAL)
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot load {kind.__name__} from {path}: {reason}") from error
