"""Walking: what is passed over, what no reader knows, and names in another Unicode normalization."""

import unicodedata
from pathlib import Path

import pytest

from slmkit.audio import AUDIO_SUFFIXES
from slmkit.corpora.folders import Folder, as_spelled, files_under, is_archive, is_audio, no_recording, unread, walk

ARCHIVES = "a.tar a.tar.gz a.TGZ a.zip a.7z a.tar.zst a.jsonl.gz a.mp3.gz a.tar.gz.0 a.tar.gz.12 a.tar.gz.aa a.tgz.part"
ARCHIVES += (
    " a.tar.part-aa a.tar.gzab a.zip.001 a.z01 a.part01.rar a.tar.gz.crdownload a.tar.tmp a.tar.bz2 EN-B0.tar.xz"
)
OTHERS = "a.wav a.zip.md5 a.tar.gz.sha256 a.tar.json star.txt a.target gz a.index.json x.jsonl a.targets a.zipper"


@pytest.mark.parametrize("name", ARCHIVES.split())
def test_archives_and_their_parts_are_told_by_their_names(name):
    assert is_archive(name)


@pytest.mark.parametrize("name", OTHERS.split())
def test_other_files_are_no_archives(name):
    assert not is_archive(name)


def test_audio_is_told_by_its_suffix():
    for suffix in ("sph", "nist", "oga", "aifc", "snd", "m4a", "aac", "mp4", "webm", "wma", "amr", "b.WAV", "wave"):
        name = f"a.{suffix}"
        assert (is_audio(name), is_archive(name)) == (True, False)
    assert len(set(AUDIO_SUFFIXES)) == len(AUDIO_SUFFIXES)


def test_hidden_names_and_loops_are_passed_over(tmp_path):
    for name in ("b/1.wav", "a.wav", "._a.wav", ".git/x.wav", "__MACOSX/b/._1.wav", "__MACOSX/b/2.wav"):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "src" / name).touch()
    (tmp_path / "disk/2").mkdir(parents=True)
    (tmp_path / "disk/2/3.wav").touch()
    (tmp_path / "disk/2/up").symlink_to("..")
    (tmp_path / "src/linked").symlink_to(tmp_path / "disk")
    assert [name for _, name in files_under(tmp_path / "src", AUDIO_SUFFIXES)] == ["a.wav", "b/1.wav", "linked/2/3.wav"]
    (folder, *_) = walk(tmp_path / "src")
    assert folder.names == ["a.wav"]


def test_what_no_reader_knows_says_what_to_do(tmp_path):
    (tmp_path / "disk").symlink_to("/not/mounted")
    (tmp_path / "ok").symlink_to(tmp_path)
    folder = Folder(str(tmp_path), "EN", [])
    archive, link = unread(folder, "a.tar.gz.0"), unread(folder, "disk")
    assert (archive.key, archive.reason, link.key, link.reason) == (
        "EN/a.tar.gz.0",
        "unsupported",
        "EN/disk",
        "missing",
    )
    assert "unpack it" in archive.detail
    assert "is a link to /not/mounted" in link.detail
    assert [unread(folder, name) for name in ("ok", "notes.md", "none")] == [None] * 3
    (found, missing) = no_recording("a.txt", "a", {"a": "a.ape"}), no_recording("b.txt", "b", {"a": "a.ape"})
    assert (found.reason, missing.reason) == ("unsupported", "missing")
    assert "a.ape, which is not known as audio; convert it to WAV or FLAC" in found.detail


@pytest.mark.parametrize(("there", "asked"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_path_is_found_in_another_normalization(tmp_path, monkeypatch, there, asked):
    path = tmp_path / unicodedata.normalize(there, "é/plain/ü.wav")
    path.parent.mkdir(parents=True)
    path.touch()
    wanted = tmp_path / unicodedata.normalize(asked, "é/plain/ü.wav")
    assert not wanted.exists()
    assert as_spelled(str(wanted)) == path
    assert as_spelled(wanted.with_suffix(".flac")) == path.with_name(wanted.with_suffix(".flac").name)  # as asked
    monkeypatch.chdir(tmp_path)
    assert as_spelled(wanted.relative_to(tmp_path)) == path.relative_to(tmp_path)
    assert as_spelled("a.wav") == Path("a.wav")
