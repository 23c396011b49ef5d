"""The lines of metrics.jsonl, also those of a run that goes on or was cut off."""

from pathlib import Path

import pytest

from slmkit.errors import UserError
from slmkit.train.records import cut, is_start, read_records


def test_a_half_written_line_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "event": "start"}\n{"step": 1}\n{"step": 2, "lo')
    assert [(record["step"], is_start(record)) for record in read_records(path)] == [(0, True), (1, False)]
    cut(path, 9)
    assert path.read_text() == '{"step": 0, "event": "start"}\n{"step": 1}\n'


def test_nothing_to_cut_makes_no_file(tmp_path: Path) -> None:
    cut(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["hello", "[1]", "{}", '{"step": "1"}', '{"step": true}', "\0\0", "[" * 100_000])
def test_a_line_of_something_else_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    for read in (read_records, lambda path: cut(path, 9)):
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is not a line of metrics"):
            read(path)
    assert path.read_text().startswith('{"step": 1}\n')


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match=r"cannot read .*metrics\.jsonl"):
        read_records(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl"):
        read_records(tmp_path / "none.jsonl")
