"""Files appear whole or not at all."""

import os
from pathlib import Path

import forked
import numpy as np
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


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_a_new_directory_is_on_disk_and_as_readable_as_the_umask_says(tmp_path, monkeypatch, umask):
    synced, sync = set(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.add(os.fstat(handle).st_ino), sync(handle)))
    before = os.umask(umask)
    try:
        with files.new_directory(tmp_path / "new") as directory:
            (directory / "inner").mkdir()
            for name in ("a", "inner/b"):
                (directory / name).write_text("x")
                (directory / name).chmod(0o600)  # as safetensors writes
    finally:
        os.umask(before)
    found = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert {file.stat().st_mode & 0o777 for file in found if file.is_file()} == {0o666 & ~umask}
    assert {file.stat().st_ino for file in found} <= synced


def test_json_from_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{\r\n"a": 1}\r\n')
    assert files.read_json(tmp_path / "a.json") == {"a": 1}


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


def npy_of(header: str) -> bytes:
    text = header.encode() + b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no array",
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }") + b"\0" * 16,
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (4000000000, 4000000000, 4000000000), }"),
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (-4,), }") + b"\0" * 16,
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (2.5,), }") + b"\0" * 16,
        npy_of("{'descr': '|O', 'fortran_order': False, 'shape': (4,), }") + b"\0" * 16,
        npy_of("{'descr': 3, 'fortran_order': [], 'shape': 'x', }") + b"\0" * 16,
        npy_of("((((((") + b"\0" * 16,
        npy_of("{'descr': '<f4', 'fortran_order': False, 'shape': (9,), }") + b"\0" * 36,
        b"PK\x05\x06" + b"\0" * 18,
    ],
    ids=["empty", "text", "absurd", "huge", "negative", "fraction", "objects", "kinds", "torn", "larger", "archive"],
)
def test_an_array_of_strangers_is_read_or_refused(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*a\.npy as a vector"):
        files.read_npy(tmp_path / "a.npy", what="a vector", max_values=8)


def test_an_array_is_read_whole(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(8.0))
    assert files.read_npy(tmp_path / "a.npy", what="a vector", max_values=8).tolist() == list(range(8))
    with pytest.raises(UserError, match="there is no such file"):
        files.read_npy(tmp_path / "b.npy", what="a vector", max_values=8)


def test_a_file_larger_than_wanted_is_not_read(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert files.read_bounded(tmp_path / "a", 5) == b"12345"
    with pytest.raises(UserError, match="is too large"):
        files.read_bounded(tmp_path / "a", 4)
    with pytest.raises(UserError, match="is too large"):
        files.read_json(tmp_path / "a", max_bytes=4)


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
    with files.new_directory(tmp_path / "b"):  # the same again
        assert not left.pop().exists()
    with files.atomic_write(tmp_path / "c") as file:
        file.write(b"x")
        elsewhere = [tmp_path / f".d.{age}.part" for age in ("0123-1f-0000", "51cdeb68")]
        for path in elsewhere:
            path.write_text("x")
        os.utime(elsewhere[1], (0, 0))
        assert sorted(files.clean_parts(tmp_path)) == sorted([*left, elsewhere[1]])
    assert sorted(path.name for path in tmp_path.iterdir()) == [elsewhere[0].name, "b", "c"]
    assert files.clean_parts(tmp_path / "none") == []


@pytest.mark.parametrize("what", ["/proc/self/ns/pid", "host name"])
def test_process_numbers_are_those_of_one_machine_and_one_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Whose numbers are others: a file of a process that has none here may be written at this moment."""
    here = files._here()
    assert len(here) >= 8  # so that no two of many machines share it by chance
    monkeypatch.setattr(files.os, "readlink", lambda path: what * (path == what))
    if what == "host name":
        monkeypatch.setattr(files.socket, "gethostname", lambda: what)
    there = files._here.__wrapped__()
    assert there != here
    (tmp_path / f".a.{there}-{2**30:x}-0000.part").touch()
    assert files.clean_parts(tmp_path) == []
