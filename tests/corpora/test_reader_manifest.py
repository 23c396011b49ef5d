"""Manifests as people have them: spreadsheets, Hugging Face's audio folders, NeMo, arrays, names of their own."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from raw_corpora import read_source

from slmkit.corpora import manifest
from slmkit.corpora.base import Cut
from slmkit.data.ledger import Failure
from slmkit.errors import UserError

SEPARATORS = {"m.tsv": "\t", "m.csv": ","}


def read(path, content, name="m.jsonl", **options):
    (path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_source("manifest", path / name, **options)


def read_rows(path, rows, **options):
    return read(path, "\n".join(map(json.dumps, rows)), **options)


def outcomes(items):
    return [(item.key, item.reason if isinstance(item, Failure) else item.text) for item in items]


# --- tables


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize(
    ("name", "separator"), [("m.tsv", "\t"), ("m.csv", ","), ("m.csv", ";"), ("m.csv", "\t"), ("m.csv", "|")]
)
def test_what_a_spreadsheet_writes_is_read(tmp_path, name, separator, quoting):
    texts = ['She said "no", twice; or | three times.', '"Quoted."', "A tab\tand,\ntwo lines.", "Plain é."]
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, quoting=quoting)
    writer.writerows([["path", "text", "mood"], *([f"{i}.wav", text, "x"] for i, text in enumerate(texts))])
    content = ("\ufeff" + file.getvalue()).encode()
    assert b"\r\n" in content
    items = read(tmp_path, content, name)
    assert outcomes(items) == [(str(i), " ".join(text.split())) for i, text in enumerate(texts)]
    assert {item.extra["mood"] for item in items} == {"x"}


CELL = st.text("aé\",; \n'", min_size=1, max_size=6).filter(lambda text: text.strip())


@given(st.lists(CELL, min_size=1, max_size=5), st.sampled_from(sorted(SEPARATORS)))
def test_cells_come_back_as_they_were_written(tmp_path_factory, texts, name):
    file = io.StringIO()
    rows = [["path", "text", "last"], *([f"{i}.wav", text, "x"] for i, text in enumerate(texts))]
    csv.writer(file, delimiter=SEPARATORS[name], quoting=csv.QUOTE_ALL).writerows(rows)
    items = read(tmp_path_factory.mktemp("table"), file.getvalue(), name)
    without_blank = ["\n".join(line for line in text.split("\n") if line.strip("\r")) for text in texts]
    assert [item.text.split() for item in items] == [text.split() for text in without_blank]


def test_a_disk_that_refuses_is_named():
    with pytest.raises(UserError, match=r"cannot read /proc/self/mem: Input/output error"):
        manifest._has_quotes(Path("/proc/self/mem"))


def test_quotes_of_a_sentence_are_no_quotes_of_a_table(tmp_path):
    """In a table that no spreadsheet wrote, a line may open a quote and another close it."""
    texts = ['"Do you think so?', 'I do," she said.', '"Yes," he said, "no."', 'A 5" pipe', 'Said "so"']
    content = "path\ttext\n" + "".join(f"{i}.wav\t{text}\n" for i, text in enumerate(texts))
    assert outcomes(read(tmp_path, content, "m.tsv")) == [(str(i), text) for i, text in enumerate(texts)]


def test_a_row_that_cannot_be_split_costs_no_other(tmp_path):
    content = b'path,text\na.wav,"Open\nb.wav,B,C\nc.wav,\xff\nd.wav,"D"\ne.wav,"E" x\nf.wav,"F", x\n'
    assert outcomes(read(tmp_path, content, "m.csv")) == [
        ("a", '"Open'),
        ("m.csv:3", "malformed"),
        ("m.csv:4", "malformed"),
        ("d", "D"),
        ("e", '"E" x'),
        ("m.csv:7", "malformed"),
    ]


def test_empty_columns_of_a_spreadsheet_and_row_numbers_of_pandas_are_left_out(tmp_path):
    content = ",path,text,segments,start,,\n0,a.wav,A.,,,,\n1,b.wav,B.,,,x,\n2,c.wav,C.,,\n"
    first, second, third = read(tmp_path, content, "m.csv")
    assert (first.key, first.text, first.extra) == ("a", "A.", {})
    assert second == Failure("m.csv:3", "malformed", "wrong number of columns; got 7; expected 5")
    assert third.key == "c"


def test_columns_that_are_mapped_must_be_in_the_header(tmp_path):
    content = "wav,words,who\na.wav,A.,s1\n"
    columns = {"path": "wav", "text": "words"}
    (item,) = read(tmp_path, content, "m.csv", columns={**columns, "speaker": "who", "question": "words"})
    assert (item.speaker, item.extra) == ("s1", {"question": "A."})
    for more in ({"speaker": "whom"}, {"question": "asked"}, {"text": "json.text"}):
        with pytest.raises(UserError, match=rf"must name the columns[\s\S]*{next(iter(more.values()))}"):
            read(tmp_path, content, "m.csv", columns=columns | more)


# --- forms


def test_audio_folders_of_hugging_face(tmp_path):
    columns = {"text": "transcription"}
    for name, content in {
        "metadata.csv": "file_name,transcription\ntrain/a.wav,A b.\n",
        "metadata.jsonl": '{"file_name": "train/a.wav", "transcription": "A b."}\n',
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        (item,) = read(folder, content, name, columns=columns)
        assert (item.key, item.audio.path, item.text) == ("train/a", f"{folder}/train/a.wav", "A b.")
        assert read_source("manifest", folder, columns=columns) == [item]
    with pytest.raises(UserError, match=r"is not a manifest\n[\s\S]*or a folder with metadata\.jsonl or metadata\.csv"):
        read_source("manifest", tmp_path)


NEMO = [
    {"audio_filepath": "talk.wav", "text": "One.", "offset": 0.0, "duration": 1.5, "lang": "en"},
    {"audio_filepath": "talk.wav", "text": "Two.", "offset": 2.0, "duration": 1.5},
    {"audio_filepath": "b.wav", "text": "Whole.", "duration": 3.5},
    {"audio_filepath": "c.wav", "text": "Whole.", "offset": 0, "duration": None},
    {"audio_filepath": "d.wav", "text": "Part.", "offset": 2.0},
]


@pytest.mark.parametrize(
    "columns",
    [{}, {"path": "audio_filepath"}, {"path": "audio_filepath", "seconds": "duration", "start": "offset"}],
)
def test_nemo_manifests(tmp_path, columns):
    items = read_rows(tmp_path, NEMO, columns={**columns, "language": "lang"})
    assert [(item.key, item.cut, item.seconds, item.extra) for item in items[:4]] == [
        ("talk_00000000_00001500", Cut(0.0, 1.5, 0.0, 1.5), 1.5, {}),
        ("talk_00002000_00003500", Cut(2.0, 3.5, 2.0, 3.5), 1.5, {}),
        ("b", None, 3.5, {}),
        ("c", None, None, {}),
    ]
    assert items[0].language == "en"
    assert items[4] == Failure(
        "m.jsonl:5",
        "bad_times",
        "a part of a file lacks its start, or its end; got 2.0 s to None s; expected 0 <= start < end, or seconds",
    )


def test_a_part_may_go_on_to_the_end(tmp_path):
    (item,) = read_rows(tmp_path, [{"path": "a.wav", "text": "A.", "start": 1.5, "end": -1}])
    assert (item.key, item.cut, item.seconds) == ("a_00001500_end", Cut(1.5, -1.0, 1.5, -1.0), None)


def test_an_array_is_read_like_lines(tmp_path):
    rows = [{"path": "a.wav", "text": "A."}, {"path": "b.wav"}, 7, {"path": "c.wav", "text": "C.\n"}]
    found = [
        outcomes(read(tmp_path, mark + json.dumps(rows, indent=indent).encode(), "m.json"))
        for indent in (None, 2)
        for mark in (b"", b"\xef\xbb\xbf \n")
    ]
    assert found == [[("a", "A."), ("m.json:2", "malformed"), ("m.json:3", "malformed"), ("c", "C.")]] * 4
    assert outcomes(read(tmp_path, "\n".join(map(json.dumps, rows[::3])), "m.json")) == [("a", "A."), ("c", "C.")]
    assert read(tmp_path, "[]", "m.json") == read(tmp_path, "", "m.json") == []
    with pytest.raises(UserError, match=r"holds one object that is written in several lines[\s\S]*jq"):
        read(tmp_path, json.dumps({"data": rows}, indent=1), "m.json")
    with pytest.raises(UserError, match="is damaged behind item 1"):
        read(tmp_path, '[{"path": "a.wav", "text": "A."}, {', "m.json")


# --- columns


QA = {"audio": "a.wav", "text": "The river.", "question": "Who froze?", "role": "judge"}


@pytest.mark.parametrize("name", ["m.jsonl", "m.json", "m.csv", "m.tsv"])
@pytest.mark.parametrize("ours", ["path", "audio"])
def test_questions_and_answers_load_by_mapping_alone(tmp_path, name, ours):
    row = dict(zip(("speech_answer", "text_answer", "text_question", "role"), QA.values(), strict=True))
    separator = SEPARATORS.get(name)
    content = separator and "\n".join(separator.join(cells) for cells in (row, row.values()))
    columns = {ours: "speech_answer", "text": "text_answer", "question": "text_question", "speaker": "role"}
    (item,) = read(tmp_path, content or json.dumps([row] if name == "m.json" else row), name, columns=columns)
    assert (item.audio.path, item.text, item.speaker) == (f"{tmp_path}/a.wav", "The river.", "judge")
    assert item.extra == {"question": "Who froze?"}


def test_audio_as_an_object_names_its_path(tmp_path):
    places = [{"path": "a.wav", "bytes": None}, {"bytes": "UklGRg==", "path": None}, {}, "b.wav", {"path": 3.5}]
    items = read_rows(tmp_path, [{"audio": place, "text": "A.", "path": None} for place in places])
    assert outcomes(items) == [
        ("a", "A."),
        ("m.jsonl:2", "missing"),
        ("m.jsonl:3", "missing"),
        ("b", "A."),
        ("m.jsonl:5", "malformed"),
    ]
    assert "bytes in JSON are not read" in items[1].detail


def test_fields_of_objects_are_columns(tmp_path):
    rows = [
        {"path": "a.wav", "json": {"text": "A.", "by": {"name": "s", "age": 7}, "dnsmos": 3.5}, "b.c": "x"},
        {"path": "b.wav", "json": "text"},
        {"path": "c.wav", "json": {"text": "C."}},
    ]
    columns = {"text": "json.text", "speaker": "json.by.name", "dnsmos": "json.dnsmos", "mood": "b.c"}
    first, bad, last = read_rows(tmp_path, rows, columns=columns)
    assert (first.text, first.speaker) == ("A.", "s")
    assert first.extra == {"json": {"by": {"age": 7}}, "mood": "x", "dnsmos": 3.5}
    assert (bad.key, bad.reason) == ("m.jsonl:2", "malformed")
    assert (last.text, last.speaker, last.extra) == ("C.", "", {"json": {}, "mood": None})
    assert rows[0]["json"]["text"] == "A."


def test_whole_numbers_are_names_however_they_are_written(tmp_path):
    first, second = read_rows(
        tmp_path, [{"path": f"{i}.wav", "text": "A.", "speaker": who} for i, who in enumerate((7.0, 7.5))]
    )
    assert (first.speaker, second.reason) == ("7", "malformed")


def test_names_that_cannot_be_columns_are_refused(tmp_path):
    for name in ("source", "checks"):
        with pytest.raises(UserError, match=rf"names that have a meaning in a sample\n.*{name}"):
            read(tmp_path, "", columns={name: "x"})
    with pytest.raises(UserError, match=r"an unknown name\n.*got: +speakers\n.*did you mean speaker\?"):
        read(tmp_path, "", columns={"speakers": "x"})
