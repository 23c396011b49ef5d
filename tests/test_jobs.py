"""A job that writes records: it goes on where it was, and does not mix what does not belong together."""

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from slmkit.errors import UserError
from slmkit.jobs import JOB, NOTES, RECORDS, ProgressBar, ResumableJob, check_same, read_job_records
from slmkit.log import get_logger

SETTINGS = {"model": "m", "seeds": (1, 2)}


def records(directory: Path, name: str = RECORDS) -> list[Any]:
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def test_records_come_in_order_when_all_are_there(tmp_path: Path) -> None:
    with ResumableJob.open(tmp_path / "out", SETTINGS, names={"model": "mine"}) as job:
        for name in "bac":
            job.add({"id": name, "text": "caf\u00e9 \ud800"})
        assert not (tmp_path / "out" / RECORDS).exists()
        job.finish(["a", "b", "missing", "c"])
    assert [record["id"] for record in records(tmp_path / "out")] == ["a", "b", "c"]
    assert records(tmp_path / "out")[0]["text"] == "caf\u00e9 \ud800"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {JOB, RECORDS}


def test_a_killed_job_goes_on(tmp_path: Path) -> None:
    """Half a line at the end is cut; a later record of the same id counts."""
    with pytest.raises(KeyboardInterrupt), ResumableJob.open(tmp_path, SETTINGS) as job:
        job.add({"id": "a", "n": 1})
        job.add({"id": "b", "n": 1})
        raise KeyboardInterrupt
    with open(tmp_path / NOTES, "ab") as file:
        file.write(b'{"id": "c", "n')
    with ResumableJob.open(tmp_path, SETTINGS) as job:
        assert job.records == {"a": {"id": "a", "n": 1}, "b": {"id": "b", "n": 1}}
        job.add({"id": "b", "n": 2})
        assert [record["n"] for record in job.finish(["a", "b"])] == [1, 2]
    with ResumableJob.open(tmp_path, SETTINGS) as job:
        assert [*job.records] == ["a", "b"]
    assert {path.name for path in tmp_path.iterdir()} == {JOB, RECORDS}


def test_a_finished_job_may_have_more_to_do(tmp_path: Path) -> None:
    def run(**lists: Any) -> None:
        with ResumableJob.open(tmp_path, {"model": "m", **lists}, growing=["ids", "voices"]) as job:
            for name in lists["ids"]:
                if name not in job.records:
                    job.add({"id": name, "made with": len(lists["ids"])})
            job.finish(lists["ids"])

    run(ids=["a"], voices={"own": 1})
    run(ids=["a", "b"], voices={"own": 1, "other": 2})
    assert [record["made with"] for record in records(tmp_path)] == [1, 2]
    assert json.loads((tmp_path / JOB).read_text())["settings"]["ids"] == ["a", "b"]
    for lists, name in (
        ({"ids": ["a"], "voices": {"own": 1, "other": 2}}, "ids"),
        ({"ids": ["b", "a", "c"], "voices": {"own": 1, "other": 2}}, "ids"),
        ({"ids": ["a", "b"], "voices": {"own": 2, "other": 2, "more": 3}}, "voices"),
    ):
        with pytest.raises(UserError, match=f"{name} differs"):
            run(**lists)


def test_other_settings_are_named(tmp_path: Path) -> None:
    with ResumableJob.open(tmp_path, SETTINGS) as job:
        job.describe(engines=[1])
        job.finish([])
    before = (tmp_path / JOB).read_bytes()
    for change, message in (
        ({"model": "other"}, "model differs\n  got:      other\n  expected: m"),
        ({"more": 1}, "more differs\n  got:      1\n  expected: absent"),
    ):
        with pytest.raises(UserError, match=message), ResumableJob.open(tmp_path, {**SETTINGS, **change}):
            pass
    with pytest.raises(UserError, match="seeds differs"):
        check_same(tmp_path, SETTINGS, {"model": "m"})
    assert (tmp_path / JOB).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {JOB, RECORDS}


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with (
            pytest.raises(UserError, match="the output directory exists and holds something else"),
            ResumableJob.open(path, SETTINGS),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        ResumableJob.open(tmp_path, SETTINGS),
        pytest.raises(UserError, match="another process is writing to this directory"),
        ResumableJob.open(tmp_path, SETTINGS),
    ):
        pass


def test_a_file_that_the_other_process_has_just_removed_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def late(file: Any, flags: int) -> None:
        (tmp_path / NOTES).unlink()
        lock(file, flags)

    monkeypatch.setattr(fcntl, "flock", late)
    with (
        pytest.raises(UserError, match="another process is writing to this directory"),
        ResumableJob.open(tmp_path, SETTINGS),
    ):
        pass


def test_what_is_damaged_is_named(tmp_path: Path) -> None:
    for name, content in ((JOB, "[]"), (JOB, '{"settings": 1}'), (RECORDS, "[]\n"), (RECORDS, '{"id": 1}\n')):
        (tmp_path / JOB).write_text('{"settings": {}}')
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=f"{name} is damaged"), ResumableJob.open(tmp_path, {}):
            pass
    with pytest.raises(UserError, match=r"cannot read .*missing"):
        read_job_records(tmp_path / "missing")


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with ResumableJob.open(tmp_path, SETTINGS) as job, open("/dev/full", "wb", buffering=0) as full:
        job._notes = full
        with pytest.raises(UserError, match=r"cannot write .*\.outputs\.part: No space left"):
            job.add({"id": "a"})
        assert job.records == {}


def test_progress_is_a_line_now_and_then(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slmkit.jobs.LINE_EVERY_SEC", 0.0)
    with caplog.at_level("INFO"), ProgressBar(8, "answers", get_logger("slmkit.test"), initial=2) as bar:
        bar.show(4, "1.5 s of speech")
    assert caplog.messages[0].startswith("4 of 8 answers (50 %), 1.5 s of speech, ")


def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of the log stands above the bar."""
    from slmkit import log

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    log.set_up()
    with ProgressBar(8, "answers", get_logger("slmkit.test"), initial=2) as bar:
        bar.show(4, "1.5 s of speech")
        get_logger("slmkit.test").info("a line")
        bar.show(8, "3.0 s of speech")
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "8/8" in shown
    assert "3.0 s of speech" in shown
    assert any(line.strip().endswith("a line") for line in shown.replace("\r", "\n").splitlines())
