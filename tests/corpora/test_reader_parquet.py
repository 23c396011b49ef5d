"""Parquet: every form of audio, columns by name, nothing of the audio read in planning, damage named."""

import datetime
import decimal
import io
import json
import random
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_corpora import read_source

from slmkit.corpora import parquet
from slmkit.corpora.base import Audio, Utterance, text_file
from slmkit.corpora.content import open_audio
from slmkit.data.ledger import Failure
from slmkit.errors import BadSample, UserError


def write(path, rows, schema=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, **options)
    return path


def sound(number):
    return random.Random(number).randbytes(100 + number)


def rows(count, first=0):
    return [
        {"audio": {"bytes": sound(i), "path": f"{i}.wav"}, "text": f"Text {i}"} for i in range(first, first + count)
    ]


def outcomes(items):
    return [(item.key, item.reason if isinstance(item, Failure) else item.text) for item in items]


@pytest.fixture(autouse=True)
def no_cursor_left():
    yield
    parquet._cursor.cache_clear()


def test_files_and_rows_come_in_order_with_their_places(tmp_path):
    second = write(tmp_path / "train-1.parquet", rows(3, 5))
    first = write(tmp_path / "a/train-0.parquet", rows(5), row_group_size=2)
    found = read_source("parquet", tmp_path, language="en")
    assert [item.audio for item in found] == [
        *(Audio(str(second), row_group=0, row=i, column="audio") for i in range(3)),
        *(Audio(str(first), row_group=i // 2, row=i % 2, column="audio") for i in range(5)),
    ]
    assert (found[3].key, found[3].source, found[3].language) == ("a/train-0_00000000", "a/train-0.parquet:1", "en")
    assert [open_audio(item.audio).read() for item in found] == [sound(i) for i in (5, 6, 7, 0, 1, 2, 3, 4)]
    assert read_source("parquet", second)[0].key == "train-1_00000000"


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_bytes_are_audio(tmp_path, kind):
    schema = pa.schema([("wave", kind), ("words", pa.large_string())])
    path = write(tmp_path / "a.parquet", [{"wave": b"x", "words": " A. "}, {"wave": None, "words": "B."}], schema)
    first, second = read_source("parquet", path, columns={"audio": "wave", "text": "words"})
    assert (first.text, open_audio(first.audio).read()) == ("A.", b"x")
    with pytest.raises(BadSample, match="has no audio") as caught:
        open_audio(second.audio)
    assert caught.value.reason == "missing"


def test_paths_are_relative_to_the_file(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"sound")
    path = write(tmp_path / "a.parquet", [{"audio": name, "text": "A."} for name in ("x.wav", "y.wav", None, "", "\0")])
    found = read_source("parquet", path)
    assert [item.audio for item in found[:2]] == [Audio(f"{tmp_path}/x.wav"), Audio(f"{tmp_path}/y.wav")]
    assert [item.reason for item in found[2:]] == ["missing"] * 3


def test_a_struct_without_bytes_names_a_file(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"sound")
    schema = pa.schema([("audio", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("text", pa.string())])
    cells = [{"bytes": None, "path": "x.wav"}, {"bytes": None, "path": "y.wav"}, {"bytes": None, "path": None}, None]
    path = write(tmp_path / "a.parquet", [{"audio": cell, "text": "A."} for cell in cells], schema)
    first, *rest = read_source("parquet", path)
    assert open_audio(first.audio) == tmp_path / "x.wav"
    for item in rest:
        with pytest.raises(BadSample, match=r"has no audio") as caught:
            open_audio(item.audio)
        assert caught.value.reason == "missing"


def test_columns_are_mapped_and_what_json_holds_travels_along(tmp_path):
    row = {
        "clip": b"x",
        "answer": "The answer is 7.",
        "asked": "What is it?",
        "role": 3,
        "id": "k1",
        "length": 2.5,
        "quality": 3.75,
        "speech": 1,
        "lang": "en",
        "text": "other",
        "tags": [{"a": 1.5, "b": None}],
        "nan": float("nan"),
        "day": datetime.date(2024, 1, 1),
        "raw": b"x",
        "vague": "x",
    }
    path = write(tmp_path / "a.parquet", [row])
    columns = {"audio": "clip", "text": "answer", "question": "asked", "speaker": "role", "key": "id"}
    columns |= {"seconds": "length", "dnsmos": "quality", "speech_share": "speech", "language": "lang"}
    (item,) = read_source("parquet", path, columns=columns)
    assert item == Utterance(
        key="k1",
        audio=Audio(str(path), row_group=0, row=0, column="clip"),
        text="The answer is 7.",
        source="a.parquet:1",
        speaker="3",
        language="en",
        seconds=2.5,
        extra={
            "parquet_text": "other",
            "tags": [{"a": 1.5, "b": None}],
            "nan": None,
            "vague": "x",
            "question": "What is it?",
            "dnsmos": 3.75,
            "speech_share": 1.0,
        },
    )
    assert Utterance.from_values(json.loads(json.dumps(item, default=text_file, allow_nan=False))) == item


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (
            {},
            r"lacks columns: audio \(our audio\), text \(our text\)\n.*got: +clip, words, number\n.*next: +map",
        ),
        ({"audio": "clip", "text": "words", "speaker": "who"}, r"lacks columns: who \(our speaker\)"),
        ({"audio": "number", "text": "words"}, r"the column number holds no audio[\s\S]*int64"),
        ({"audio": "clip", "text": "number"}, "the column number holds no text"),
        ({"audio": "clip", "text": "words", "source": "number"}, "names that have a meaning in a sample"),
    ],
)
def test_columns_that_are_not_there_or_of_another_kind_are_refused(tmp_path, columns, match):
    path = write(tmp_path / "a.parquet", [{"clip": b"x", "words": "A.", "number": 1}])
    with pytest.raises(UserError, match=match):
        read_source("parquet", path, columns=columns)


# --- types


STRINGS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
STRINGS += [pa.dictionary(pa.int32(), pa.large_string()), pa.binary(), pa.large_binary(), pa.binary_view()]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(3), pa.dictionary(pa.int16(), pa.binary())]


@pytest.mark.parametrize("kind", STRINGS, ids=str)
def test_every_type_of_text_is_text(tmp_path, kind):
    def column(*texts):
        return pa.array(texts).cast(kind)

    table = pa.table({"audio": [b"xyz"] * 3, "text": column("A é.", "B.", "A é."), "speaker": column("s", None, "t")})
    pq.write_table(table, tmp_path / "a.parquet")
    items = read_source("parquet", tmp_path)
    assert [(item.text, item.speaker) for item in items] == [("A é.", "s"), ("B.", ""), ("A é.", "t")]


@pytest.mark.parametrize("kind", STRINGS[:5], ids=str)
def test_every_type_of_text_is_a_path(tmp_path, kind):
    for name in ("x.wav", "y.wav"):
        (tmp_path / name).write_bytes(name.encode())
    paths = pa.array(["x.wav", "y.wav"])
    struct = pa.StructArray.from_arrays([pa.nulls(2), paths.cast(kind)], ["bytes", "path"])
    only = pa.StructArray.from_arrays([paths.cast(kind)], ["path"])
    for audio in (paths.cast(kind), struct, only):
        pq.write_table(pa.table({"audio": audio, "text": ["A.", "B."]}), tmp_path / "a.parquet")
        parquet._cursor.cache_clear()
        places = [open_audio(item.audio) for item in read_source("parquet", tmp_path)]
        assert [place.read_bytes() for place in places] == [b"x.wav", b"y.wav"]


@pytest.mark.parametrize("kind", BYTES, ids=str)
def test_every_type_of_bytes_is_audio(tmp_path, kind):
    cells = pa.array([b"abc", b"def", b"abc"]).cast(kind) if "dict" not in str(kind) else pa.array([b"abc", b"def"] * 2)
    cells = cells.dictionary_encode()[:3] if "dict" in str(kind) else cells
    structs = pa.StructArray.from_arrays([cells, pa.nulls(3)], ["bytes", "path"])
    for audio in (cells, structs):
        pq.write_table(pa.table({"audio": audio, "text": ["A."] * 3}), tmp_path / "a.parquet")
        parquet._cursor.cache_clear()
        items = read_source("parquet", tmp_path)
        assert [open_audio(item.audio).read() for item in items] == [b"abc", b"def", b"abc"]


def test_the_table_of_an_audio_folder_names_its_files(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"sound")
    (item,) = read_source("parquet", write(tmp_path / "metadata.parquet", [{"file_name": "x.wav", "text": "A."}]))
    assert (open_audio(item.audio), item.extra) == (tmp_path / "x.wav", {})


def test_where_there_are_no_bytes_the_path_is_used(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"sound")
    write(tmp_path / "a.parquet", [{"audio": {"bytes": b"", "path": "x.wav"}, "text": "A."}])
    (item,) = read_source("parquet", tmp_path)
    assert open_audio(item.audio) == tmp_path / "x.wav"


def test_a_struct_without_bytes_and_paths_is_no_audio(tmp_path):
    kinds = [{"bytes": pa.binary(), "path": pa.int32()}, {"bytes": pa.list_(pa.uint8()), "path": pa.string()}]
    kinds += [{"bytes": pa.null(), "path": pa.null()}, {"array": pa.list_(pa.float32()), "sampling_rate": pa.int32()}]
    for kind in kinds:
        audio = pa.nulls(1, pa.struct(kind.items()))
        pq.write_table(pa.table({"audio": audio, "text": ["A."]}), tmp_path / "a.parquet")
        with pytest.raises(UserError, match="the column audio holds no audio"):
            read_source("parquet", tmp_path)


def test_numbers_lists_and_structs_of_every_type_travel_along(tmp_path):
    words = pa.array([["a", "b"], None])
    table = pa.table(
        {
            "audio": [b"x"] * 2,
            "text": ["A.", "B."],
            "speaker": pa.array([3.0, None]),
            "seconds": pa.array([decimal.Decimal("2.5"), None]),
            "large": words.cast(pa.large_list(pa.large_string())),
            "view": pa.array([["a", "b"], None], pa.list_view(pa.string_view())),
            "fixed": pa.array([["a"], ["b"]], pa.list_(pa.string(), 1)),
            "struct": pa.StructArray.from_arrays([pa.array(["p", None]).dictionary_encode()], ["d"]),
            "half": pa.array([1.5, 2.5]).cast(pa.float16()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = read_source("parquet", tmp_path)
    assert (first.speaker, first.seconds) == ("3", 2.5)
    assert (second.speaker, second.seconds) == ("", None)
    assert [first.extra, second.extra] == [
        {"large": ["a", "b"], "view": ["a", "b"], "fixed": ["a"], "struct": {"d": "p"}, "half": 1.5},
        {"large": None, "view": None, "fixed": ["b"], "struct": {"d": None}, "half": 2.5},
    ]


def test_labels_are_names(tmp_path):
    label = {"names": ["judge", "baker"], "_type": "ClassLabel"}
    features = {"speaker": label, "text": {**label, "names": ["yes", "no"]}, "mood": label, "named": label}
    table = pa.table(
        {
            "audio": [b"x"] * 4,
            "speaker": [1, 0, -1, 9],
            "text": pa.array([0, 1, 0, 1], pa.int8()),
            "mood": pa.array([0.0, None, float("nan"), 1.0]),
            "named": ["judge"] * 4,
        }
    )
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "a.parquet")
    items = read_source("parquet", tmp_path)
    assert [(item.speaker, item.text, item.extra["mood"], item.extra["named"]) for item in items] == [
        ("baker", "yes", "judge", "judge"),
        ("judge", "no", None, "judge"),
        ("", "yes", None, "judge"),
        ("", "no", "baker", "judge"),
    ]
    for damaged in ("{", "[]", '{"info": {"features": [1]}}', '{"info": {"features": {"speaker": 1}}}'):
        pq.write_table(table.drop("text").append_column("text", [["A."] * 4]), tmp_path / "b.parquet")
        plain = pq.read_table(tmp_path / "b.parquet").replace_schema_metadata({"huggingface": damaged})
        pq.write_table(plain, tmp_path / "b.parquet")
        assert read_source("parquet", tmp_path / "b.parquet")[0].speaker == "1"


def test_fields_of_structs_are_columns_and_their_audio_is_not_read_in_planning(tmp_path, monkeypatch):
    rows = [
        {
            "json": {"text": f"Text {i}", "by": {"name": f"s{i}"}, "at": datetime.date(2024, 1, 1), "n": i},
            "mp3": {"wav": {"bytes": random.Random(i).randbytes(100_000), "path": None}, "from": f"{i}.wav"},
        }
        for i in range(20)
    ]
    path = write(tmp_path / "a.parquet", rows, row_group_size=7)
    columns = {"text": "json.text", "speaker": "json.by.name"}
    opened = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda place, **options: opened(Counted(place), **options))
    Counted.total = 0
    items = read_source("parquet", path, columns={**columns, "audio": "mp3.wav"})
    assert 0 < Counted.total < path.stat().st_size / 10
    assert [(item.text, item.speaker) for item in items] == [(f"Text {i}", f"s{i}") for i in range(20)]
    assert [open_audio(item.audio).read() for item in items] == [row["mp3"]["wav"]["bytes"] for row in rows]
    parquet._cursor.cache_clear()
    (tmp_path / "3.wav").touch()
    by_path = read_source("parquet", path, columns={**columns, "path": "mp3.from"})
    assert by_path[3].audio == Audio(f"{tmp_path}/3.wav")
    assert by_path[3].extra == {"json": {"by": {}}, "mp3": {}}
    for columns in ({"text": "json.words", "audio": "mp3.wav"}, {"text": "json.text.x", "audio": "mp3.wav"}):
        with pytest.raises(UserError, match=r"lacks columns: json\.\S+ \(our text\)"):
            read_source("parquet", path, columns=columns)


def test_a_mapped_column_of_which_json_can_hold_nothing_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", [{"audio": b"x", "text": "A.", "day": datetime.date(2024, 1, 1)}])
    for ours in ("speaker", "question"):
        with pytest.raises(UserError, match=rf"the column day \(our {ours}\) holds what JSON cannot hold[\s\S]*date32"):
            read_source("parquet", path, columns={ours: "day"})


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([pa.array([b"x"]), pa.array(["a"]), pa.array(["b"])], names=["audio", "text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="two columns with the same name"):
        read_source("parquet", tmp_path)


def test_bad_rows_are_failures_and_cost_no_other(tmp_path):
    texts = pa.array([b"A.", b"\xff", None, b" ", b"E."]).cast(pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 5, texts.buffers())
    table = pa.table({"audio": [b"x"] * 5, "text": texts, "seconds": [1.0, 1.0, 1.0, 1.0, -1.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert outcomes(read_source("parquet", tmp_path)) == [
        ("a_00000000", "A."),
        ("a_00000001", "malformed"),
        ("a_00000002", "empty_transcript"),
        ("a_00000003", "empty_transcript"),
        ("a_00000004", "malformed"),
    ]


# --- damage


@pytest.mark.parametrize("how", ["empty", "text", "cut", "footer"])
def test_a_file_without_a_whole_footer_is_a_user_error_that_names_it(tmp_path, how):
    path = write(tmp_path / "a.parquet", rows(5))
    content = path.read_bytes()
    damaged = {
        "empty": b"",
        "text": b"PAR1 no",
        "cut": content[:-20],
        "footer": content[:-200] + bytes(192) + content[-8:],
    }
    path.write_bytes(damaged[how])
    with pytest.raises(UserError, match=r"a\.parquet is not a parquet file, or is damaged[\s\S]*next: +fetch it again"):
        read_source("parquet", tmp_path)


def test_a_damaged_row_group_is_as_many_failures_as_it_has_rows(tmp_path):
    path = write(tmp_path / "a.parquet", rows(9), row_group_size=3, compression="zstd")
    column = pq.read_metadata(path).row_group(1).column(2)
    assert column.path_in_schema == "text"
    content = bytearray(path.read_bytes())
    at = column.dictionary_page_offset
    content[at : at + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    assert [item[1] for item in outcomes(read_source("parquet", tmp_path))] == [
        *(f"Text {i}" for i in range(3)),
        *["damaged"] * 3,
        *(f"Text {i}" for i in range(6, 9)),
    ]


def test_rows_that_a_file_promises_and_does_not_have_are_counted(tmp_path, monkeypatch):
    class Short(pq.ParquetFile):
        def iter_batches(self, *words, **options):
            yield from list(super().iter_batches(*words, **options))[:1]

    path = write(tmp_path / "a.parquet", rows(5))
    monkeypatch.setattr(parquet, "ROWS_READ", 2)
    monkeypatch.setattr(pq, "ParquetFile", Short)
    assert [item[1] for item in outcomes(read_source("parquet", path))] == ["Text 0", "Text 1", *["damaged"] * 3]
    monkeypatch.setattr(parquet, "MAX_GROUP_ROWS", 4)
    with pytest.raises(UserError, match="row group 0 says that it has 5 rows"):
        read_source("parquet", path)


def test_damaged_audio_is_found_where_it_is_decoded(tmp_path):
    path = write(tmp_path / "a.parquet", rows(4), row_group_size=2, use_dictionary=False, compression="zstd")
    column = pq.read_metadata(path).row_group(0).column(0)
    content = bytearray(path.read_bytes())
    at = column.data_page_offset
    content[at : at + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    found = read_source("parquet", tmp_path)
    for item in found[:2]:
        with pytest.raises(BadSample, match=r"a\.parquet, row group 0, row . cannot be read") as caught:
            open_audio(item.audio)
        assert caught.value.reason == "damaged"
    assert [open_audio(item.audio).read() for item in found[2:]] == [sound(2), sound(3)]


def test_a_place_that_is_not_in_the_file_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", rows(2))
    for audio in (
        Audio(str(path), row_group=0, row=2, column="audio"),
        Audio(str(path), row_group=7, row=0, column="audio"),
        Audio(str(path), row_group=0, row=0, column="sound"),
    ):
        with pytest.raises(BadSample, match="cannot be read"):
            open_audio(audio)
    with pytest.raises(BadSample, match="is not a file"):
        open_audio(Audio(str(tmp_path / "none"), row_group=0, row=0, column="audio"))


# --- reading no more than is wanted


class Counted(io.FileIO):
    """A file that counts the bytes read from it."""

    total = 0

    def read(self, size=-1):
        found = super().read(size)
        Counted.total += len(found)
        return found

    def readinto(self, buffer):
        count = super().readinto(buffer)
        Counted.total += count
        return count


def test_planning_does_not_read_the_audio(tmp_path, monkeypatch):
    big = [
        {"audio": {"bytes": random.Random(i).randbytes(100_000), "path": "x"}, "text": f"Text {i}"} for i in range(40)
    ]
    path = write(tmp_path / "a.parquet", big, row_group_size=10)
    opened = pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda place, **options: opened(Counted(place), **options))
    Counted.total = 0
    assert len(read_source("parquet", path)) == 40
    assert 0 < Counted.total < path.stat().st_size / 10


def test_cells_are_read_in_any_order_and_once_when_they_go_up(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", rows(50), row_group_size=25)
    places = [item.audio for item in read_source("parquet", path)]
    order = list(range(50))
    random.Random(0).shuffle(order)
    assert [open_audio(places[i]).read() for i in order] == [sound(i) for i in order]
    parquet._cursor.cache_clear()
    opened = []
    monkeypatch.setattr(parquet, "_open", lambda place: opened.append(place) or pq.ParquetFile(place))
    assert [open_audio(place).read() for place in places[::3]] == [sound(i) for i in range(0, 50, 3)]
    assert len(opened) == 2  # one for each row group


READ_ALL = """
import resource, sys
import pyarrow.parquet
from slmkit.corpora.content import open_audio
from slmkit.corpora.layouts import ReadOptions, read_parts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
(part,) = read_parts("parquet", sys.argv[1], ReadOptions())
total = sum(len(open_audio(item.audio).getvalue()) for item in part())
print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_row_group_is_not_held(tmp_path):
    content = random.Random(0).randbytes(2**20)
    table = pa.table({"audio": pa.array([content] * 100), "text": ["A."] * 100})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none", data_page_size=2**20)
    command = [sys.executable, "-c", READ_ALL, str(tmp_path / "a.parquet")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    total, kilobytes = map(int, done.stdout.split())
    assert total == 100 * 2**20
    assert kilobytes < 60 * 1024  # the row group has 100 MiB


def test_an_archive_beside_the_files_is_named(tmp_path):
    write(tmp_path / "a.parquet", rows(1))
    (tmp_path / "more.tar.gz").touch()
    assert outcomes(read_source("parquet", tmp_path))[1:] == [("more.tar.gz", "unsupported")]
