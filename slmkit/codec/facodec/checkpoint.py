"""Reads the two published files of FACodec V2 and holds them against the layout of the network.

Keys that serve training losses only are skipped. Every other key must be there, in its shape, finite, and alone;
weight norm is folded into one weight. No code in a file is ever run.

Invariant: what `load_weights` returns has exactly the keys of `layout.json`, `weight` standing for each pair
`weight_g`, `weight_v`.

Example:
    weights = load_weights("models/facodec")
    weights["decoder"] / "model.0"  # the weights whose keys start with "model.0."
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from slmkit.codec.weights import Weights, check_layout, fold
from slmkit.files import read_json
from slmkit.weights import read_weights

FILES = {"encoder": "ns3_facodec_encoder_v2.bin", "decoder": "ns3_facodec_decoder_v2.bin"}
LAYOUT = Path(__file__).with_name("layout.json")
TRAINING_ONLY = re.compile(r"(f0|phone|res_\w+|x_timbre)_predictor\.")
NEXT_STEP = "download the file again from huggingface.co/amphion/naturalspeech3_facodec"


def load_weights(directory: str | Path, device: torch.device | str = "cpu") -> dict[str, Weights]:
    """The weights of "encoder" and "decoder", float32 on `device`, weight norm folded.

    Raises UserError when a file is missing, unreadable, carries code, or has other keys or shapes than V2.
    """
    loaded = {}
    for part, layout in published_layout().items():
        path = Path(directory) / FILES[part]
        state = check_state(read_weights(path, next_step=NEXT_STEP), layout, path)
        loaded[part] = Weights({key: value.to(device) for key, value in fold(state).items()})
    return loaded


def hash_files(directory: str | Path) -> str:
    """SHA-256 of the encoder file's bytes followed by the decoder file's."""
    digest = hashlib.sha256()
    for name in FILES.values():
        with open(Path(directory) / name, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def published_layout() -> dict[str, dict[str, tuple[int, ...]]]:
    """Shape by key of both files, without the keys that serve training losses."""
    stored = read_json(LAYOUT)
    return {part: {key: tuple(shape) for key, shape in stored[part].items()} for part in FILES}


def check_state(state: Mapping[str, Any], layout: Mapping[str, tuple[int, ...]], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of `state` that `layout` names, float32. Raises UserError that names every other key."""
    found = {key: value for key, value in state.items() if not TRAINING_ONLY.match(str(key))}
    return check_layout(found, layout, f"{path} does not hold FACodec V2", NEXT_STEP)
