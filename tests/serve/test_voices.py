"""Voices by name, from folders, files and corpora; what gives none is named."""

from pathlib import Path

import pytest

from slmkit.errors import UserError
from slmkit.serve.voices import find_voices


def test_folders_files_and_corpora_give_voices(tmp_path: Path) -> None:
    folder, corpus, single = tmp_path / "voices", tmp_path / "corpus", tmp_path / "dora.wav"
    folder.mkdir(), corpus.mkdir(), single.touch()
    for name in ("bert.WAV", "anna.flac", "c.x.npy", "emma.m4a", "notes.txt", "._anna.flac"):
        (folder / name).touch()
    (folder / "sub.wav").mkdir()
    assert list(find_voices([f"{corpus}:LJ-1", str(folder), str(single)]).items()) == [
        ("LJ-1", f"{corpus}:LJ-1"),
        ("anna", str(folder / "anna.flac")),
        ("bert", str(folder / "bert.WAV")),
        ("c.x", str(folder / "c.x.npy")),
        ("emma", str(folder / "emma.m4a")),
        ("dora", str(single)),
    ]


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in ("a.wav", "a.npy"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"two voices have the same name\n.*a\n.*rename .*a.npy or .*a.wav"):
        find_voices([str(tmp_path)])


def test_what_gives_no_voice_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder holds no voices"):
        find_voices([str(tmp_path)])
    for source in (tmp_path / "missing.wav", f"{tmp_path}/none:KEY", "x" * 5000, f"{'x' * 5000}:KEY", "a\0b"):
        with pytest.raises(UserError, match="no such voice"):
            find_voices([str(source)])
