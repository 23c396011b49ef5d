"""slmkit: train speech language models on codec codes and speak with them.

`SpeechLM` and `Synthesizer` are imported when they are first asked for, which takes seconds; importing the package does
nothing else but define the version. Each other part is imported by its own name, for example
`from slmkit.data.vocab import VocabLayout`.

Example:
    from slmkit import SpeechLM, Synthesizer

    model = SpeechLM.from_pretrained("MODEL")
    synthesizer = Synthesizer.load("MODEL")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slmkit.infer.synthesizer import Synthesizer as Synthesizer
    from slmkit.model.slm import SpeechLM as SpeechLM

__version__ = "0.5.0"
LAZY = {"SpeechLM": "slmkit.model.slm", "Synthesizer": "slmkit.infer.synthesizer"}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module 'slmkit' has no attribute {name!r}")
    return getattr(importlib.import_module(LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *LAZY])
