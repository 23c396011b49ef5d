"""Voices by name, from folders, files and corpora; what gives none is named."""

from pathlib import Path

import numpy as np
import pytest
from synthetic import write_corpus

from slmkit.errors import UserError
from slmkit.serve.voices import read_voices


def echo(source: str) -> np.ndarray:
    return np.array([len(source)], dtype=np.float32)


def test_folders_files_and_corpora_give_voices(tmp_path: Path) -> None:
    folder = tmp_path / "voices"
    folder.mkdir()
    for name in ("bert.WAV", "anna.flac", "c.x.npy", "notes.txt"):
        (folder / name).touch()
    (folder / "sub.wav").mkdir()
    corpus = write_corpus(tmp_path / "corpus", 2)
    single = tmp_path / "dora.wav"
    seen: list[str] = []

    def read(source: str) -> np.ndarray:
        seen.append(source)
        return echo(source)

    key = f"{tmp_path / 'corpus'}:{corpus.key(1)}"
    voices = read_voices([key, str(folder), str(single)], read)
    assert list(voices) == [corpus.key(1), "anna", "bert", "c.x", "dora"]
    assert seen == [key, *(str(folder / name) for name in ("anna.flac", "bert.WAV", "c.x.npy")), str(single)]


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two voices have the same name"):
        read_voices([str(tmp_path / "a.wav"), str(tmp_path / "a.npy")], echo)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder holds no voices"):
        read_voices([str(tmp_path)], echo)
