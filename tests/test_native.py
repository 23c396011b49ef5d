"""C kernels are compiled once, and done without where they cannot be."""

import ctypes
from pathlib import Path

import pytest

from slmkit import native
from slmkit.native import compile_library, load_library

SEVEN = "int number(void) { return 7; }\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A C file of which there is no library yet."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "libraries"))
    path = tmp_path / "seven.c"
    path.write_text(SEVEN)
    return path


def test_a_source_is_compiled_once_and_another_one_anew(source: Path) -> None:
    first = compile_library(source)
    assert list(first.parent.iterdir()) == [first]
    made = first.stat().st_mtime_ns
    assert compile_library(source) == first
    assert first.stat().st_mtime_ns == made
    assert ctypes.CDLL(str(first)).number() == 7
    source.write_text(SEVEN.replace("7", "8"))
    library = load_library(source, otherwise="something is slower")
    assert library is not None
    assert library.number() == 8


@pytest.mark.parametrize("obstacle", ["no compiler", "broken compiler", "damaged library"])
def test_where_it_cannot_be_compiled_a_warning_says_what_follows(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    if obstacle == "damaged library":
        compile_library(source).write_bytes(b"not a library")
    else:
        (tmp_path / "bin").mkdir()
        if obstacle == "broken compiler":
            (tmp_path / "bin/cc").write_text("#!/bin/sh\nexit 1\n")
            (tmp_path / "bin/cc").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(native.log, "propagate", True)
    assert load_library(source, otherwise="something is slower") is None
    assert "something is slower on this machine: cannot compile seven.c" in caplog.text
