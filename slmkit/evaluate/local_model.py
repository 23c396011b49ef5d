"""Models of transformers from a local directory: nothing is fetched, no code of the directory is run.

Weights are read from safetensors where there are any, else from `pytorch_model.bin` with torch's reader for weights
alone, which builds no objects. Weights that do not match the config are refused: transformers would go on with random
ones.

Example:
    model = load_model(WhisperForConditionalGeneration, "whisper-large-v3", "whisper", "cuda", what="a recognizer")
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from slmkit.errors import UserError
from slmkit.files import read_json
from slmkit.model.pretrained import LOCAL

UNLOADABLE = (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError)


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
    except UNLOADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot load {kind.__name__} from {path}: {reason}") from error
