"""Networks in packages: what is missing is named, with what to install."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

from slmkit.audio.dnsmos import Dnsmos
from slmkit.audio.packaged import packaged_network
from slmkit.audio.speech_share import SpeechDetector
from slmkit.errors import UserError


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    places = {"some_package": [str(tmp_path)], "onnxruntime": ["somewhere"]}

    def find(name: str) -> object:
        return types.SimpleNamespace(submodule_search_locations=places[name]) if name in places else None

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(UserError, match=r"DNSMOS needs the package speechmos\n.*slmkit\[measure\]"):
        Dnsmos.load()
    with pytest.raises(UserError, match=r"the share of speech needs the package silero-vad\n.*slmkit\[measure\]"):
        SpeechDetector.load()
    with pytest.raises(UserError, match="it needs another version of the package some-package"):
        packaged_network("some_package", "a.onnx", what="it")
    (tmp_path / "a.onnx").touch()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # there, and cannot be imported
    with pytest.raises(UserError, match=r"it needs the package onnxruntime\n.*got:"):
        packaged_network("some_package", "a.onnx", what="it")
    del places["onnxruntime"]
    with pytest.raises(UserError, match=r"it needs the package onnxruntime\n.*next:"):
        packaged_network("some_package", "a.onnx", what="it")
