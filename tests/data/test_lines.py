"""Lines and arrays of tables: what Windows adds is taken off, and damage costs one item or is named."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.data import lines
from slmkit.data.lines import parse_record, read_json_array, read_lines
from slmkit.errors import BadSample, UserError

BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("block_bytes", [1, 8, 2**22])
def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_a_line(tmp_path, monkeypatch, block_bytes):
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    path = tmp_path / "joined.txt"
    path.write_bytes(BOM + b"a 1\r\n" + BOM + b"\r\nb 2\r\n" + BOM + b"c 3")
    whole = [(1, b"a 1"), (3, b"b 2"), (4, b"c 3")]
    assert list(read_lines(path)) == whole
    assert [line for block in lines.line_blocks(path) for line in read_lines(block)] == whole


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_refused_by_name(tmp_path, encoding):
    path = tmp_path / "table.txt"
    path.write_bytes("\ufeffa 1\r\n".encode(encoding))
    with pytest.raises(UserError, match=r"table\.txt is written in UTF-16\n.*UTF-8\n.*save it again as UTF-8"):
        list(read_lines(path))


@given(
    items=st.lists(st.dictionaries(st.text('aé]},\\"', max_size=3), st.integers() | st.text('[{ é"', max_size=9))),
    indent=st.none() | st.integers(0, 2),
    block=st.integers(1, 40),
    mark=st.booleans(),
)
def test_an_array_gives_its_items_however_it_is_written(tmp_path_factory, items, indent, block, mark):
    path = tmp_path_factory.mktemp("array") / "a.json"
    path.write_bytes(mark * BOM + b" \n" + json.dumps(items, indent=indent, ensure_ascii=mark).encode() + b"\r\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_CHARS", block)
        assert [(number, parse_record(text)) for number, text in read_json_array(path)] == list(enumerate(items, 1))


def test_an_item_that_cannot_be_used_costs_no_other(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": 1}, {"a": NaN}, 12, {"a": "\xff"}, {"a": 2}]')
    found = []
    for number, text in read_json_array(path):
        try:
            found.append((number, parse_record(text)["a"]))
        except BadSample as error:
            found.append((number, error.reason))
    assert found == [(1, 1), (2, "malformed"), (3, "malformed"), (4, "malformed"), (5, 2)]


@pytest.mark.parametrize(
    ("content", "number"),
    [
        (b'[{"a": 1}, {"a": 2', 1),
        (b'[{"a": 1}, x, {"a": 2}]', 1),
        (b'[{"a": 1}] [{"a": 2}]', 1),
        (b'[{"a": 1}', 0),  # it might go on
        (b"[" * 100_000, 0),
        (b"", 0),
    ],
)
def test_a_damaged_array_is_named(tmp_path, content, number):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json is no JSON array, or is damaged behind item {number}\n"):
        list(read_json_array(path))


def test_an_array_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*No such file"):
        list(read_json_array(tmp_path / "none.json"))
