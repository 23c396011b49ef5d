"""What `from slmkit import ...` gives, and what it costs."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import tiny_model

import slmkit
from slmkit.infer import synthesizer
from slmkit.model import slm
from slmkit.model.pretrained import to_causal_lm


def test_models_of_both_kinds_load_without_a_warning(tmp_path: Path) -> None:
    """Also one whose config.json is that of a plain Qwen2 model, for other programs."""
    tiny_model(3).save_pretrained(tmp_path / "mtp")
    to_causal_lm(tiny_model(0), tmp_path / "plain")
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger, level = logging.getLogger("transformers"), logging.getLogger("transformers").level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        for name in ("mtp", "plain"):
            assert isinstance(slmkit.SpeechLM.from_pretrained(tmp_path / name), slm.SpeechLM)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert said == []


def test_the_package_names_what_it_gives() -> None:
    assert {"SpeechLM", "Synthesizer", "__version__"} <= {*dir(slmkit)}
    assert slmkit.Synthesizer is synthesizer.Synthesizer
    with pytest.raises(AttributeError, match="module 'slmkit' has no attribute 'Speech'"):
        slmkit.Speech  # noqa: B018


def test_the_package_itself_imports_nothing_large() -> None:
    code = "import sys, slmkit; print(sorted({'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
