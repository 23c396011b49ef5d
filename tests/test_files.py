"""Files appear whole or not at all."""

import os
from pathlib import Path

import forked
import pytest

from slmkit import files
from slmkit.errors import UserError


def test_an_error_inside_the_block_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.atomic_write(tmp_path / "a") as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    files.write_json(tmp_path / "a", {"x": 1})
    with pytest.raises(UserError, match="the file already exists"):
        files.write_json(tmp_path / "a", {"x": 2})
    assert files.read_json(tmp_path / "a") == {"x": 1}
    files.write_json(tmp_path / "a", {"x": 2}, replace=True)
    assert files.read_json(tmp_path / "a") == {"x": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_refuses_is_named_and_the_old_file_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_json(tmp_path / "a", 1)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device[\s\S]*MiB free"):
        files.write_json(tmp_path / "a", 2, replace=True)
    monkeypatch.undo()
    assert files.read_json(tmp_path / "a") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000])
def test_bad_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*bad\.json as JSON"):
        files.read_json(tmp_path / "bad.json")
    with pytest.raises(UserError, match=r"cannot read .*missing as JSON"):
        files.read_json(tmp_path / "missing")


def test_provenance_holds_versions_and_no_times(tmp_path: Path) -> None:
    record = files.provenance({"a": 1})
    assert record == files.provenance({"a": 1})
    assert record["config"] == {"a": 1}
    assert {"python", "torch", "numpy"} <= set(record["versions"])


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert files.sha256_file(tmp_path / "abc").startswith("ba7816bf8f01cfea")


def test_an_error_of_another_file_inside_the_block_is_not_taken_for_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"), files.atomic_write(tmp_path / "a") as file:
        file.write((tmp_path / "missing").read_bytes())
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_inside_the_block_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*full"), files.atomic_write(tmp_path / "full") as file:
        os.dup2(os.open("/dev/full", os.O_WRONLY), file.fileno())
        file.write(b"x" * 2**20)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write .*inner"):
        files.write_json(tmp_path / "file" / "inner" / "a", 1)


def test_what_a_library_in_rust_says_of_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left on device"), files.disk_errors_named(tmp_path / "tokenizer"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="a bug"), files.disk_errors_named(tmp_path):
        raise RuntimeError("a bug")


def test_what_a_killed_process_left_is_removed_by_the_next_start(tmp_path: Path) -> None:
    """And nothing of one that still writes, here or, for a day, elsewhere."""
    script = f"""
import os
from pathlib import Path
from slmkit import files
with files.atomic_write("{tmp_path}/a") as file, files.new_directory("{tmp_path}/b") as directory:
    (directory / "half").write_text("x")
    os.kill(os.getpid(), 9)
"""
    forked.run(["-c", script])
    left = sorted(tmp_path.iterdir())
    assert [path.name.split(".")[1] for path in left] == ["a", "b"]
    with files.atomic_write(tmp_path / "c") as file:
        file.write(b"x")
        elsewhere = [tmp_path / f".d.{age}.part" for age in ("0123-1f-0000", "51cdeb68")]
        for path in elsewhere:
            path.write_text("x")
        os.utime(elsewhere[1], (0, 0))
        assert sorted(files.clean_parts(tmp_path)) == sorted([*left, elsewhere[1]])
    assert sorted(path.name for path in tmp_path.iterdir()) == [elsewhere[0].name, "c"]
    assert files.clean_parts(tmp_path / "none") == []
