"""Opens the voice encoder in a directory or file, of whichever kind it is.

Example:
    voice = open_voice("wavlm-base-plus-sv", "cuda")
    voice = open_voice("site-packages/resemblyzer")     # or its pretrained.pt
"""

import os
from pathlib import Path

import torch

from slmkit.errors import UserError
from slmkit.files import read_json
from slmkit.voice.base import VoiceEncoder

EXPECTED = "a WavLM model with an x-vector head, or the pretrained.pt of PyPI's package resemblyzer"


def open_voice(path: str | Path, device: str | torch.device = "cpu") -> VoiceEncoder:
    """The voice encoder at `path`, ready on `device`.

    Raises UserError when there is none, or its files are damaged.
    """
    from slmkit.voice import ge2e

    path = Path(path)
    if os.path.isfile(path):
        return ge2e.GE2EVoice.load(path, device)
    if os.path.isfile(path / ge2e.PUBLISHED_FILE):
        return ge2e.GE2EVoice.load(path / ge2e.PUBLISHED_FILE, device)
    if not os.path.isfile(path / ge2e.CONFIG_FILE):
        raise UserError(
            f"{path} holds no voice encoder",
            got="a directory without config.json" if os.path.isdir(path) else "no such file or directory",
            expected=EXPECTED,
        )
    config = read_json(path / ge2e.CONFIG_FILE)
    if isinstance(config, dict) and config.get("model_type") == ge2e.KIND:
        return ge2e.GE2EVoice.load(path / ge2e.WEIGHTS_FILE, device)
    from slmkit.voice.wavlm import WavLMVoice  # takes seconds to import

    return WavLMVoice.load(path, device)
