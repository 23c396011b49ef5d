"""Readers: order, keys, columns, and a ledger line for everything that cannot be used."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_corpora import read_source

from slmkit.corpora import base
from slmkit.corpora.base import Audio, Cut, Utterance, key_refusal, read_transcript
from slmkit.corpora.content import open_audio
from slmkit.corpora.librispeech import read_librispeech
from slmkit.corpora.libritts import read_libritts
from slmkit.corpora.published import SPEC, parse_tokens, read_published
from slmkit.data import lines
from slmkit.data.ledger import Failure
from slmkit.data.lines import parse_record, read_lines
from slmkit.data.shards import Sample
from slmkit.errors import BadSample, UserError

DEMO = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "demo"


def touch(path, content=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- folders


def test_a_folder_is_read_in_the_order_of_its_folders_then_names(tmp_path):
    for name in ("b/19/2/19_2_000000_000001.wav", "c/84/1/84_1_000000_000000.FLAC", "b/19/2/19_2_000000_000000.mp3"):
        touch(tmp_path / name)
    touch(tmp_path / "c/84/1/84_1_000000_000000.normalized.txt")
    touch(tmp_path / "b/19/2/19_2_000000_000000.normalized.txt")
    touch(tmp_path / "b/19/2/19_2_000000_000001.txt")
    touch(tmp_path / "notes.md")
    touch(tmp_path / "._19_9_000000_000000.wav")
    items = list(read_libritts(tmp_path, "en"))
    assert [item.key for item in items] == ["19_2_000000_000000", "19_2_000000_000001", "84_1_000000_000000"]
    assert [item.speaker for item in items] == ["19", "19", "84"]
    assert [item.text.name for item in items] == [
        "19_2_000000_000000.normalized.txt",
        "19_2_000000_000001.txt",
        "84_1_000000_000000.normalized.txt",
    ]
    assert items[0].source == "b/19/2/19_2_000000_000000.mp3"
    assert items[0].audio == Audio(str(tmp_path / items[0].source))
    assert {item.language for item in items} == {"en"}


def test_transcripts_with_suffixes_in_capitals_are_read(tmp_path):
    for name in ("1.wav", "1.TXT", "2.WAV", "2.Normalized.Txt", "2.txt", "3.wav", "3.TXT", "3.txt", "4.TXT"):
        touch(tmp_path / name)
    *items, alone = read_libritts(tmp_path)
    assert alone.text.name == "3.txt"
    assert [item.text.name for item in items[1:]] == ["1.TXT", "2.Normalized.Txt"]
    assert (items[0].key, items[0].reason) == ("4", "missing")


def test_a_folder_is_not_listed_before_its_turn(tmp_path):
    for name in ("a/1.wav", "a/1.txt", "b/2.wav", "b/2.txt"):
        touch(tmp_path / name)
    items = read_libritts(tmp_path)
    assert next(items).key == "1"
    touch(tmp_path / "b/3.wav")
    assert [item.key for item in items] == ["2", "3"]


def test_names_of_another_kind_have_no_speaker(tmp_path):
    touch(tmp_path / "my song.wav")
    touch(tmp_path / "my song.txt")
    (item,) = read_libritts(tmp_path)
    assert (item.key, item.speaker) == ("my song", "")


def test_links_are_followed_once(tmp_path):
    for name in ("corpus/one/a", "elsewhere/b"):
        touch(tmp_path / f"{name}.wav")
        touch(tmp_path / f"{name}.txt")
    os.symlink(tmp_path / "elsewhere", tmp_path / "corpus/linked")
    os.symlink(tmp_path / "elsewhere", tmp_path / "corpus/one/linked")
    os.symlink(tmp_path / "corpus", tmp_path / "corpus/one/loop")
    assert [item.source for item in read_libritts(tmp_path / "corpus")] == ["linked/b.wav", "one/a.wav"]


def test_a_name_that_is_not_utf8_goes_to_the_ledger(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.wav", "wb"):
        pass
    (item,) = read_libritts(tmp_path)
    assert (item.key, item.reason) == ("caf\\udce9", "bad_key")


def test_a_folder_without_audio_or_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="no audio files under"):
        list(read_libritts(tmp_path))
    with pytest.raises(UserError, match=r"cannot list .*missing: No such file"):
        list(read_libritts(tmp_path / "missing"))


def outcomes(items):
    return [
        (item.key, item.reason if isinstance(item, Failure) else item.audio.path.rpartition(".")[2]) for item in items
    ]


def test_what_may_have_been_a_recording_is_a_failure(tmp_path):
    names = ["1.ape", "1.normalized.txt", "2.txt", "2.original.txt", "3.txt", "3", "4.wav", "5.m4a", "5.txt", "5.lab"]
    for name in (*names, "6.flac", "6.txt", "6.wav", "README.txt", "LICENSE", "7.zip", "7.txt", "8.txt", "8.json"):
        touch(tmp_path / "a" / name)
    touch(tmp_path / "docs/SPEAKERS.txt")  # where no recordings are
    touch(tmp_path / "docs/9.normalized.txt")
    (tmp_path / "lost").symlink_to("/not/mounted")
    assert outcomes(read_libritts(tmp_path)) == [
        ("lost", "missing"),
        ("a/7.zip", "unsupported"),
        ("1", "unsupported"),
        ("2", "missing"),
        ("3", "unsupported"),
        ("8", "missing"),
        ("4", "missing_transcript"),
        ("5", "m4a"),
        ("6", "flac"),
        ("6", "duplicate_key"),
        ("9", "missing"),
    ]


def test_a_folder_of_unknown_recordings_alone_is_no_wrong_path(tmp_path):
    touch(tmp_path / "1.ape")
    touch(tmp_path / "1.txt")
    assert outcomes(read_libritts(tmp_path)) == [("1", "unsupported")]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_match_in_any_normalization(tmp_path, forms):
    sound, words = (unicodedata.normalize(form, "Zoë") for form in forms)
    assert sound != words
    touch(tmp_path / "tts" / f"{sound}.wav")
    touch(tmp_path / "tts" / f"{words}.txt", b"Hi.")
    (item,) = read_libritts(tmp_path / "tts")
    assert (item.key, read_transcript(item.text)) == (sound, "Hi.")
    touch(tmp_path / "speech" / f"{sound}.flac")
    touch(tmp_path / "speech/1.trans.txt", f"{words} Hi.".encode())
    (item,) = read_librispeech(tmp_path / "speech")
    assert (item.key, item.text) == (sound, "Hi.")
    touch(tmp_path / f"wavs/{sound}/1.wav", b"x")
    (item,) = read(tmp_path, json.dumps({"path": f"wavs/{words}/1.wav", "text": "Hi."}))
    assert open_audio(item.audio) == tmp_path / f"wavs/{sound}/1.wav"


# --- transcripts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A\ttab,\r\na line \n and\u2028another.", "A tab, a line and another."),
        ("A\x00b\x07\x1b[1mc\x7f\x9b", "Ab[1mc"),
        ("\ufeffabc \u202edef\u202c\u200f", "abc def"),
        ("a\u200cb", "a\u200cb"),  # Persian and others spell with it
        ("A\u00a0b  c", "A\u00a0b  c"),
    ],
)
def test_a_text_is_one_line_without_control_characters(tmp_path, text, expected):
    assert read_transcript(touch(tmp_path / "a.txt", text.encode())) == expected
    segments = [{"start": 0, "end": 1, "text": text}]
    for row in ({"path": "a.wav", "text": text}, {"path": "a.wav", "segments": segments}):
        (item,) = read(tmp_path, json.dumps(row))
        assert item.text == expected


@pytest.mark.parametrize("text", ["\x00\x01", "\u200b\u200d", "\ufeff \t", "\u00a0\u3000", "\u202e\u2066"])
def test_a_text_of_which_nothing_can_be_seen_is_empty(tmp_path, text):
    with pytest.raises(BadSample, match="has no text"):
        read_transcript(touch(tmp_path / "a.txt", text.encode()))
    for row in ({"path": "a.wav", "text": text}, {"path": "a.wav", "segments": [{"start": 0, "end": 1, "text": text}]}):
        (item,) = read(tmp_path, json.dumps(row))
        assert item.reason == "empty_transcript"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty_transcript"), (b" \n\t", "empty_transcript"), (b"caf\xe9", "transcript_not_utf8")],
)
def test_a_bad_transcript_is_refused(tmp_path, content, reason):
    with pytest.raises(BadSample) as caught:
        read_transcript(touch(tmp_path / "a.txt", content))
    assert caught.value.reason == reason


def test_a_transcript_that_is_missing_or_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    for name in ("missing.txt", "pipe.txt", "x" * 300):
        with pytest.raises(BadSample, match=r"does not exist|cannot be read") as caught:
            read_transcript(tmp_path / name)
        assert caught.value.reason == "missing_transcript"


def test_a_huge_transcript_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "MAX_TRANSCRIPT_BYTES", 10)
    assert read_transcript(touch(tmp_path / "a.txt", b"x" * 10)) == "x" * 10
    with pytest.raises(BadSample, match="too long") as caught:
        read_transcript(touch(tmp_path / "a.txt", b"x" * 11))
    assert caught.value.reason == "long_transcript"


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path):
    assert read_transcript(touch(tmp_path / "a.txt", b"\xef\xbb\xbfHello \xc3\xa9.\r\n")) == "Hello é."


# --- keys


def test_the_first_of_equal_keys_wins():
    seen = set()
    found = [key_refusal(key, seen) for key in ("a", "b", "a", "", "\ud800")]
    assert found[:2] == [None, None]
    assert [(item.key, item.reason) for item in found[2:]] == [
        ("a", "duplicate_key"),
        ("", "bad_key"),
        ("\\ud800", "bad_key"),
    ]


# --- manifests


def read(tmp_path, content, name="m.jsonl", **options):
    content = content if isinstance(content, bytes) else content.encode()
    return read_source("manifest", touch(tmp_path / name, content), **options)


def test_a_jsonl_manifest_is_read_in_its_order(tmp_path):
    rows = [
        {"path": "z/2.wav", "text": " Two. ", "speaker": 7, "language": "de", "key": "two", "snr": 3.5, "seconds": 9}
        | {"source": "x"},
        {"path": "/abs/1.wav", "text": "One.", "speaker": None},
    ]
    first, second = read(tmp_path, "\n".join(map(json.dumps, rows)) + "\n\n", language="en")
    assert first == Utterance(
        key="two",
        audio=Audio(f"{tmp_path}/z/2.wav"),
        text="Two.",
        source="z/2.wav",
        speaker="7",
        language="de",
        seconds=9.0,
        extra={"snr": 3.5, "manifest_source": "x"},
    )
    assert (second.key, second.audio, second.speaker, second.language) == ("/abs/1", Audio("/abs/1.wav"), "", "en")


def test_a_tsv_manifest_is_read_by_its_header(tmp_path):
    content = b'\xef\xbb\xbftext\twav\tmood\r\nHi "there"\ta.b.wav\tsad\r\nshort line\r\nBye\tc.wav\t\r\n'
    first, bad, last = read(tmp_path, content, "m.tsv", columns={"path": "wav"})
    assert (first.key, first.text, first.extra) == ("a.b", 'Hi "there"', {"mood": "sad"})
    assert bad == Failure("m.tsv:3", "malformed", "wrong number of columns; got 1; expected 3")
    assert last.key == "c"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "malformed"),
        (b"[1, 2]", "malformed"),
        (b"\xff\xfe", "malformed"),
        (b"[" * 100_000, "malformed"),
        (b'{"path": "a.wav"}', "malformed"),
        (b'{"text": "a"}', "malformed"),
        (b'{"path": "", "text": "a"}', "malformed"),
        (b'{"path": "a\\u0000.wav", "text": "a"}', "malformed"),
        (b'{"path": true, "text": "a"}', "malformed"),
        (b'{"path": "a.wav", "text": ["a"]}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "speaker": {}}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "x": NaN}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "x": 1e999}', "malformed"),
        (b'{"path": "a.wav", "text": "\\ud800"}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "x": -Infinity}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "x": ' + b"1" * 400 + b".0}", "malformed"),
        (b'{"path": "a.wav", "text": "a", "x": "\\uDC00"}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "x": {"\\uD800": 1}}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "x": ' + b"[" * 70 + b"]" * 70 + b"}", "malformed"),
        (b'{"path": "a.wav", "text": "a"} {}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "seconds": "long"}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "seconds": 0}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "seconds": true}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "seconds": 1' + b"0" * 400 + b"}", "malformed"),
        (b'{"path": "a.wav", "text": "a", "dnsmos": "inf"}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "dnsmos": [3]}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "speech_share": "all"}', "malformed"),
        (b'{"path": "a.wav", "text": "a", "start": 1}', "bad_times"),
        (b'{"path": "a.wav", "text": "a", "start": 2, "end": 2}', "bad_times"),
        (b'{"path": "a.wav", "text": "a", "start": -1, "end": 2}', "bad_times"),
        (b'{"path": "a.wav", "text": "a", "start": 1e12, "end": -1}', "bad_times"),
        (b'{"path": "a.wav", "text": "a", "start": 1, "end": 1e12}', "bad_times"),
        (b'{"path": "a.wav", "segments": "a"}', "malformed"),
        (b'{"path": "a.wav", "segments": []}', "empty_transcript"),
        (b'{"path": "a.wav", "segments": [{}], "start": 1, "end": 2}', "malformed"),
        (b'{"path": "", "segments": [{}]}', "malformed"),
        (b'{"path": "a.wav", "text": " "}', "empty_transcript"),
    ],
)
def test_a_malformed_line_is_a_ledger_line_with_its_number(tmp_path, line, reason):
    good = b'{"path": "good.wav", "text": "Good."}'
    first, bad, last = read(tmp_path, good + b"\n" + line + b"\n" + good)
    assert (bad.key, bad.reason) == ("m.jsonl:2", reason)
    assert bad.line()
    assert first.key == last.key == "good"


TEXT = st.text('aé\ud800\udc00\U0001f600\\"', max_size=4)
WRITTEN = st.recursive(
    st.none() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(TEXT, WRITTEN, max_size=4), st.booleans())
def test_a_record_is_read_exactly_where_it_can_be_written_again(record, escaped):
    """The naive way: read it with the standard library, and write it."""
    line = json.dumps(record, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    try:
        naive = json.loads(line.decode())
        json.dumps(naive, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        with pytest.raises(BadSample, match="the line is not"):
            parse_record(line)
    else:
        assert parse_record(line) == naive


def test_spaces_and_marks_around_a_record_do_not_matter():
    assert parse_record(b'\xef\xbb\xbf \t{"a": [1e2, "\\ud83d\\ude00"]} ') == {"a": [100.0, "\U0001f600"]}
    deep = b'{"a": ' + b"[" * 60 + b"]" * 60 + b', "b": [[[[[]]]]]}'
    assert parse_record(deep)["b"] == [[[[[]]]]]


def test_parts_of_files_lengths_and_quality(tmp_path):
    rows = [
        {"path": "a/x.wav", "text": "A.", "start": 1, "end": "2.5", "seconds": 60},
        {"path": "a/x.wav", "text": "B.", "start": 2.5, "end": 4.25, "key": "named"},
        {"path": "y.wav", "text": "C.", "start": None, "end": None, "duration": 1, "dnsmos": "3.5"},
    ]
    first, second, third = read(tmp_path, "\n".join(map(json.dumps, rows)))
    assert (first.key, first.cut, first.seconds) == ("a/x_00001000_00002500", Cut(1.0, 2.5, 1.0, 2.5), 1.5)
    assert (second.key, second.cut, second.seconds) == ("named", Cut(2.5, 4.25, 2.5, 4.25), 1.75)
    assert (third.cut, third.seconds, third.extra) == (None, None, {"duration": 1, "dnsmos": 3.5})
    columns = {"seconds": "duration", "start": "from"}
    *_, third = read(tmp_path, "\n".join(map(json.dumps, rows[2:])), columns=columns)
    assert (third.seconds, third.extra) == (1.0, {"dnsmos": 3.5, "start": None})
    (item,) = read(
        tmp_path, "path\ttext\tseconds\tdnsmos\tspeech_share\tstart\tend\na.wav\tA.\t2.5\t3\t.5\t\t\n", "m.tsv"
    )
    assert (item.seconds, item.cut, item.extra) == (2.5, None, {"dnsmos": 3.0, "speech_share": 0.5})


def test_a_recording_with_time_stamps_becomes_pieces(tmp_path):
    segments = [
        {"start": 0, "end": 4, "text": " One. ", "id": 0},
        {"start": 4.5, "end": 9, "text": "Two.", "id": 1},
        {"start": 9, "end": 8, "text": "Three.", "id": 2},
        {"start": 9, "end": 12, "text": "Four.", "id": 3},
    ]
    row = {"path": "x.flac", "segments": segments, "speaker": "s", "seconds": 12.25, "dnsmos": 4.0, "show": 7}
    first, second, third, last = read(tmp_path, json.dumps(row), max_sec=6.0)
    assert first == Utterance(
        key="x_0000",
        audio=Audio(f"{tmp_path}/x.flac"),
        text="One.",
        source="x.flac",
        speaker="s",
        seconds=4.0,
        cut=Cut(0.0, 4.0, 0.0, 4.5),
        extra={"dnsmos": 4.0, "show": 7},
    )
    assert (second.key, second.text, third.key, third.reason) == ("x_0001", "Two.", "x_0002", "bad_times")
    assert (last.key, last.cut) == ("x_0003", Cut(9.0, 12.0, 9.0, 12.25))
    whole, *_ = read(tmp_path, json.dumps(row))
    assert whole.text == "One. Two."


def test_odd_paths_still_have_keys(tmp_path):
    keys = [
        item.key
        for item in read(tmp_path, "\n".join(json.dumps({"path": p, "text": "x"}) for p in (".", "..", ".a", "a.")))
    ]
    assert keys == [".", "..", ".a", "a."]


def test_a_line_that_is_too_long_is_skipped_without_losing_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 20)
    path = touch(tmp_path / "lines", b"short\n" + b"x" * 95 + b"\n\n" + b"y" * 19 + b"\n" + b"z" * 45)
    assert list(read_lines(path)) == [(1, b"short"), (2, None), (4, b"y" * 19), (5, None)]
    failures = read(tmp_path, b"x" * 50)
    assert failures == [Failure("m.jsonl:1", "malformed", "the line is too long; expected fewer than 20 bytes")]


def test_manifests_that_cannot_be_read_at_all_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        list(lines.line_blocks(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="is not a manifest"):
        read(tmp_path, "x", "m.xlsx")
    with pytest.raises(UserError, match=r"columns maps an unknown name\n.*paths\n.*did you mean path"):
        read(tmp_path, "", columns={"paths": "x"})
    for header in ("a\tb\n", "path\ttext\ttext\n"):
        with pytest.raises(UserError, match="the first line must name the columns, each once"):
            read(tmp_path, header, "m.tsv")
    with pytest.raises(UserError, match="the header line cannot be read"):
        read(tmp_path, b"\xff\n", "m.tsv")


# --- published codes


def ntp(codes):
    return "".join(f"<a{a}><b{b}><c{c}>" for a, b, c in codes.T)


def mtp(codes, frames):
    heads = {}
    for frame in range(frames):
        for stream, letter in enumerate("abc"):
            tokens = [f"<{letter}{code}>" for code in codes[stream, frame::frames]]
            steps = -(-codes.shape[1] // frames)
            heads[f"head_{letter}_{frame + 1}"] = "".join(tokens + ["<|speech_pad|>"] * (steps - len(tokens)))
    return heads


@given(frames=st.integers(1, 13), seed=st.integers(0, 99))
def test_every_published_form_gives_the_same_codes(frames, seed):
    codes = np.random.default_rng(seed).integers(0, 1024, (3, frames)).astype(np.uint16)
    for tokens in (ntp(codes), *(mtp(codes, per_step) for per_step in (1, 2, 4))):
        np.testing.assert_array_equal(parse_tokens(tokens), codes, strict=True)


PAIR = np.array([[1, 4], [2, 5], [3, 6]])
GOOD = mtp(np.array([[1, 4, 7], [2, 5, 8], [3, 6, 9]]), 2)


@pytest.mark.parametrize(
    ("tokens", "match"),
    [
        ("", "not written"),
        (None, "neither a string nor a group of heads"),
        (["<a1>"], "neither a string nor a group of heads"),
        ("<a1><b2>", "not a multiple of 3"),
        ("<a1> <b2> <c3>", "not a multiple of 3"),
        ("<a1><b2><c3>\n", "not written"),
        ("<a1><c2><b3>", "not a code of its stream"),
        ("<a1><b2><c1024>", "not a code of its stream"),
        ("<a1><b2><c-1>", "not a code of its stream"),
        ("<a1><b2><c03>", "not a code of its stream"),
        ("<a1><b2><c³>", "not a code of its stream"),
        ("<a1><b2><c3x>", "not a code of its stream"),
        ("<a1><b2><|speech_pad|>", "not a code of its stream"),
        ("<sosp><a1><b2>", "not a code of its stream"),
        ({}, "the heads are not head_a_1"),
        ({**GOOD, "head_d_1": "<a1>"}, "the heads are not head_a_1"),
        ({name: head for name, head in GOOD.items() if name != "head_b_2"}, "the heads are not head_a_1"),
        ({**GOOD, "head_a_1": 3}, "the heads are not head_a_1"),
        ({**GOOD, "head_a_1": "<a1>"}, "the heads differ in length"),
        ({**GOOD, "head_a_2": "<a4><a7>"}, "may only fill whole frames"),
        ({**GOOD, "head_a_1": "<a1><|speech_pad|>"}, "may only fill whole frames"),
        (dict.fromkeys(GOOD, "<|speech_pad|>"), "may only fill whole frames"),
        ({**GOOD, "head_a_1": "<|speech_pad|><a1>"}, "not a code of its stream"),
        ({**GOOD, "head_b_2": "<a5><|speech_pad|>"}, "not a code of its stream"),
    ],
)
def test_other_tokens_are_refused(tokens, match):
    assert parse_tokens(GOOD).shape == (3, 3)
    with pytest.raises(BadSample, match=match) as caught:
        parse_tokens(tokens)
    assert caught.value.reason == "bad_tokens"


def test_padded_first_frames_are_refused():
    swapped = {
        **{f"head_{x}_1": GOOD[f"head_{x}_2"] for x in "abc"},
        **{f"head_{x}_2": GOOD[f"head_{x}_1"] for x in "abc"},
    }
    with pytest.raises(BadSample, match="may only fill whole frames at the end"):
        parse_tokens(swapped)


def test_bad_records_are_ledger_lines_and_good_ones_survive(tmp_path):
    good = {"uttid": "u.1", "text": " Hi. ", "tokens": ntp(PAIR)}
    lines = [
        good,
        {**good, "tokens": "<a1>"},
        {**good, "text": ""},
        {**good, "uttid": None},
        {**good, "uttid": "m", "tokens": GOOD},
    ]
    path = touch(tmp_path / "x.jsonl", "\n".join(map(json.dumps, lines)).encode() + b"\n{")
    items = list(read_published(path))
    assert [(item.key, item.reason) for item in items if isinstance(item, Failure)] == [
        ("u.1", "bad_tokens"),
        ("u.1", "empty_transcript"),
        ("x.jsonl:4", "malformed"),
        ("x.jsonl:6", "malformed"),
    ]
    first, last = (item for item in items if isinstance(item, Sample))
    assert (first.key, first.speaker, last.key) == ("u.1", None, "m")
    assert first.meta == {"text": "Hi.", "speaker": "", "language": "", "source": "x.jsonl:1", "seconds": 0.025}
    np.testing.assert_array_equal(first.codes, PAIR)


@pytest.mark.skipif(not DEMO.is_dir(), reason="the published demo data is not beside the project")
def test_the_published_demo_data_is_read_whole():
    read_demo = {name: list(read_published(DEMO / f"{name}.jsonl")) for name in ("ntp", "mtp_h3", "mtp_h6", "mtp_h12")}
    assert {name: sum(isinstance(item, Sample) for item in items) for name, items in read_demo.items()} == {
        "ntp": 10,
        "mtp_h3": 10,
        "mtp_h6": 10,
        "mtp_h12": 10,
    }
    assert [item.codes.shape for item in read_demo["ntp"][:3]] == [(3, 177), (3, 229), (3, 150)]
    for three, six, twelve in zip(read_demo["mtp_h3"], read_demo["mtp_h6"], read_demo["mtp_h12"], strict=True):
        assert three.key == six.key == twelve.key
        np.testing.assert_array_equal(three.codes, six.codes, strict=True)
        np.testing.assert_array_equal(three.codes, twelve.codes, strict=True)
    assert read_demo["ntp"][0].codes[:, 0].tolist() == [420, 983, 726]
    assert SPEC.frame_rate == 80
