"""LibriSpeech: a line for every audio file of a chapter, an audio file for every line."""

import os

import pytest

from slmkit.corpora import librispeech
from slmkit.corpora.base import Audio, Utterance
from slmkit.corpora.librispeech import read_librispeech
from slmkit.data import lines
from slmkit.data.ledger import Failure
from slmkit.errors import UserError


def chapter(root, lines, *names, folder="84/121123"):
    path = root / folder
    path.mkdir(parents=True, exist_ok=True)
    (path / "84-121123.trans.txt").write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    for name in names:
        with open(os.fsencode(path) + b"/" + os.fsencode(name), "wb"):
            pass
    return path


def outcomes(items):
    return [(item.key, item.reason if isinstance(item, Failure) else item.text) for item in items]


def test_a_chapter_is_read_with_its_texts(tmp_path):
    path = chapter(
        tmp_path,
        "\ufeff84-121123-0000 GO DO YOU HEAR\r\n84-121123-0001\tBUT é\n",
        "84-121123-0001.flac",
        "84-121123-0000.flac",
    )
    first, second = read_librispeech(tmp_path, "en")
    assert first == Utterance(
        key="84-121123-0000",
        audio=Audio(str(path / "84-121123-0000.flac")),
        text="GO DO YOU HEAR",
        source="84/121123/84-121123-0000.flac",
        speaker="84",
        language="en",
        named_by_file=True,
    )
    assert (second.key, second.text) == ("84-121123-0001", "BUT é")


def test_a_list_with_a_suffix_in_capitals_is_read(tmp_path):
    path = chapter(tmp_path, "a ONE\n", "a.flac")
    (list_file,) = path.glob("*.trans.txt")
    list_file.rename(path / "LIST.TRANS.TXT")
    assert outcomes(read_librispeech(tmp_path)) == [("a", "ONE")]


def test_folders_come_in_order_and_loops_are_entered_once(tmp_path):
    for folder in ("b", "a/2", "a/10"):
        chapter(tmp_path, "x WORD\n", "x.flac", folder=folder)
    (tmp_path / "a/loop").symlink_to(tmp_path)
    assert [item.source for item in read_librispeech(tmp_path)] == ["a/10/x.flac", "a/2/x.flac", "b/x.flac"]


def test_what_has_no_partner_or_no_words_is_a_failure(tmp_path):
    lines = b"a ONE\nb\nnoaudio TWO\na AGAIN\nc \xff\n\xff\xfe WORD\n\n  \n"
    chapter(tmp_path, lines, "a.flac", "b.flac", "c.flac", "noline.flac", ".hidden.flac", "\udcff.flac")
    assert outcomes(read_librispeech(tmp_path)) == [
        ("noaudio", "missing"),
        ("a", "duplicate_key"),
        ("\\udcff\\udcfe", "missing"),
        ("a", "ONE"),
        ("b", "empty_transcript"),
        ("c", "transcript_not_utf8"),
        ("noline", "missing_transcript"),
        ("\\udcff", "bad_key"),
    ]


def test_what_may_have_been_a_recording_is_a_failure(tmp_path):
    path = chapter(tmp_path, "a ONE\nb TWO\nc THREE\n", "a.shn", "c.flac", "c.wav", "84.tar.gz", "._b.flac")
    os.mkfifo(path / "z.trans.txt")
    assert outcomes(read_librispeech(tmp_path)) == [
        ("a", "unsupported"),
        ("b", "missing"),
        ("84/121123/84.tar.gz", "unsupported"),
        ("84/121123/z.trans.txt", "unsupported"),
        ("c", "THREE"),
        ("c", "duplicate_key"),
    ]


def test_huge_lines_and_texts_are_failures(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 60)
    monkeypatch.setattr(librispeech, "MAX_TRANSCRIPT_BYTES", 20)
    chapter(tmp_path, "a " + "X" * 30 + "\nb " + "X" * 90 + "\nc WORD", "a.flac", "b.flac", "c.flac")
    assert outcomes(read_librispeech(tmp_path)) == [
        ("84/121123/84-121123.trans.txt:2", "malformed"),
        ("a", "long_transcript"),
        ("b", "missing_transcript"),
        ("c", "WORD"),
    ]


def test_no_audio_or_no_folder_is_refused(tmp_path):
    chapter(tmp_path, "a WORD\n")
    with pytest.raises(UserError, match=r"no audio files under[\s\S]*next: "):
        list(read_librispeech(tmp_path))
    with pytest.raises(UserError, match="cannot list"):
        list(read_librispeech(tmp_path / "none"))
