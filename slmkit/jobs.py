"""Jobs that write one record after another into a directory, over as many starts as it takes.

    DIR/job.json          the settings that decide the records, written first and compared at every start
    DIR/.outputs.part     a line of JSON for each record, on disk before the next one is made
    DIR/outputs.jsonl     all records in order; it exists when the job is finished, and not before

A record is written after the files it speaks of, and those appear whole or not at all. So a start that was killed has
lost at most the item it was working on, and the next start goes on from there. One process at a time fills a directory.

It knows nothing of what the records say.

Invariant: one directory holds records of one set of settings, each id once.

Example:
    with ResumableJob.open("out", {"task": "tts", "model": sha256}) as job:
        for item in items:
            if item.id not in job.records:
                job.add({"id": item.id, "seconds": speak(item)})
        job.finish([item.id for item in items])
"""

import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from slmkit.errors import UserError
from slmkit.files import atomic_write, disk_error, provenance, read_json, write_json
from slmkit.texts import excerpt

JOB, RECORDS, NOTES = "job.json", "outputs.jsonl", ".outputs.part"
ELSEWHERE = "choose another output directory, or use the settings that this one was started with"
MAX_SHOWN_CHARS = 200  # of a setting, in an error
LINE_EVERY_SEC = 5.0  # between two lines of progress where there is no terminal
BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # figures fit 80 columns

JobRecord = dict[str, Any]


class ResumableJob:
    """A directory of records that this process alone is filling; see the module."""

    def __init__(self, directory: Path, description: dict[str, Any], records: dict[str, JobRecord], notes: IO[bytes]):
        self.directory, self.description, self.records, self._notes = directory, description, records, notes

    @staticmethod
    @contextmanager
    def open(
        directory: str | Path, settings: Mapping[str, Any], *, growing: Sequence[str] = (), **facts: Any
    ) -> "Iterator[ResumableJob]":
        """Begin a job, or go on with it. `facts` are kept beside the settings of a new job and never compared.

        The settings in `growing`, lists or dicts, may have more at their end than before.

        Raises UserError when the directory belongs to a job with other settings or holds something else, another
        process is filling it, its files are damaged, or the disk refuses.
        """
        directory, settings = Path(directory), json.loads(json.dumps(settings))
        if not os.path.exists(directory / JOB):
            check_empty(directory)
        with _locked(directory / NOTES) as notes:
            if os.path.exists(directory / JOB):
                description = read_description(directory)
                before = description["settings"]
                grown = {name: settings[name] for name in growing if _is_more(settings[name], before.get(name))}
                check_same(directory, {**before, **grown}, settings)
                if grown:
                    description["settings"] |= grown
                    write_json(directory / JOB, description, replace=True)
            else:
                description = {"settings": settings, "made_by": provenance(), **facts}
                write_json(directory / JOB, description)
            paths = [path for path in (directory / RECORDS, directory / NOTES) if os.path.exists(path)]
            records = {record["id"]: record for path in paths for record in read_job_records(path)}
            yield ResumableJob(directory, description, records, notes)

    def describe(self, **facts: Any) -> None:
        """Keep facts in job.json that are not compared, in place of earlier ones of the same names."""
        self.description |= facts
        write_json(self.directory / JOB, self.description, replace=True)

    def add(self, record: JobRecord) -> None:
        """Keep a record, for good, under its "id". Raises UserError when the disk refuses."""
        line = _record_line(record)
        try:
            while line:  # a disk that is nearly full takes a part
                line = line[self._notes.write(line) :]
            os.fsync(self._notes.fileno())
        except OSError as error:
            raise disk_error(self.directory / NOTES, error) from error
        self.records[record["id"]] = record

    def finish(self, ids: Sequence[str]) -> list[JobRecord]:
        """Write and return the records of these ids, in this order; ids without a record are left out."""
        records = [self.records[name] for name in ids if name in self.records]
        with atomic_write(self.directory / RECORDS, replace=True) as file:
            file.writelines(_record_line(record) for record in records)
        for part in self.directory.rglob(".*.*.part"):  # of processes that were killed
            part.unlink(missing_ok=True)
        (self.directory / NOTES).unlink()
        return records


def _is_more(now: Any, before: Any) -> bool:
    """Whether a list or dict begins as `before` and goes on."""
    if isinstance(now, dict) and isinstance(before, dict):
        now, before = list(now.items()), list(before.items())
    if not isinstance(now, list) or not isinstance(before, list):
        return False
    return len(now) > len(before) and now[: len(before)] == before


def check_same(directory: str | Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UserError naming the first setting in which `now` differs from what the directory was begun with."""
    for name in [*now, *(name for name in before if name not in now)]:
        if name not in before or name not in now or before[name] != now[name]:
            raise UserError(
                f"{directory} holds another job: {name} differs",
                got=excerpt(now.get(name, "absent"), MAX_SHOWN_CHARS),
                expected=excerpt(before.get(name, "absent"), MAX_SHOWN_CHARS),
                next_step=ELSEWHERE,
            )


def read_description(directory: str | Path) -> dict[str, Any]:
    """What job.json says: "settings", "made_by" and other facts. Raises UserError when it is missing or damaged."""
    path = Path(directory) / JOB
    description = read_json(path)
    if not isinstance(description, dict) or not isinstance(description.get("settings"), dict):
        raise UserError(f"{path} is damaged: it holds no settings", next_step="choose another output directory")
    return description


def read_job_records(path: Path, *, missing_ok: bool = False) -> list[JobRecord]:
    """The records in a file of them; a torn last line is left out. Raises UserError when the file is damaged."""
    try:
        content = path.read_bytes()
        records = [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
        if not all(isinstance(record["id"], str) for record in records):
            raise TypeError("an id is not text")
    except OSError as error:
        if missing_ok and isinstance(error, FileNotFoundError):
            return []
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: {repr(error)[:200]}", next_step="choose another output directory"
        ) from error
    return records


def is_free(directory: str | Path) -> bool:
    """Whether a job may begin there. What killed processes left does not count, nor job.json, which another process may
    write at this moment: it is to be looked for after this."""
    directory = Path(directory)
    if not os.path.exists(directory):
        return True
    return os.path.isdir(directory) and all(path.suffix == ".part" or path.name == JOB for path in directory.iterdir())


def check_empty(directory: str | Path) -> None:
    """Raise UserError where a job would begin among other things."""
    if not is_free(directory):
        raise UserError(
            "the output directory exists and holds something else",
            got=directory,
            next_step="choose another output directory",
        )


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """A file open at its end, for one process at a time. It goes away again where nothing was written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what the disk refuses is known at once, and not tried again at the end.
        file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise disk_error(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A process that finished just now has removed the file that was locked.
            is_ours = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            is_ours = False
        if not is_ours:
            raise UserError("another process is writing to this directory", got=path.parent, next_step="wait for it")
        file.truncate(path.read_bytes().rfind(b"\n") + 1)  # a killed process may leave half a line
        try:
            yield file
        finally:
            if os.path.exists(path) and not path.stat().st_size:
                path.unlink()


def _record_line(record: JobRecord) -> bytes:
    # Half a surrogate pair, which UTF-8 cannot hold, becomes the escape that JSON has for it.
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


class ProgressBar:
    """How far a job is: a bar on a terminal, otherwise a line of the log every few seconds.

    Lines of the log are printed above the bar, never into it.

    Example:
        with ProgressBar(len(items), "utterances", log, initial=len(job.records)) as bar:
            bar.show(done, "12.5 s of speech")
    """

    def __init__(
        self,
        total: int,
        unit: str,
        log: logging.Logger,
        *,
        initial: int = 0,
        line_every_sec: float | None = None,
        leave: bool = True,
    ) -> None:
        """`initial` of `total` items were done by earlier starts. With `leave` the bar stays on the screen."""
        self._total, self._unit, self._log, self._initial = total, unit, log, initial
        self._line_every_sec = LINE_EVERY_SEC if line_every_sec is None else line_every_sec
        self._began = self._shown = time.monotonic()
        self._exits = ExitStack()
        self._bar: Any = None
        self._leave = leave

    def __enter__(self) -> "ProgressBar":
        if sys.stderr.isatty():
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            bar = tqdm(total=self._total, initial=self._initial, bar_format=BAR, dynamic_ncols=True, leave=self._leave)
            self._bar = self._exits.enter_context(bar)
            self._exits.enter_context(logging_redirect_tqdm([logging.getLogger("slmkit")]))
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()

    def show(self, done: int, figures: str) -> None:
        """`done` items are done, those of earlier starts included; `figures` says more."""
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if now - self._shown < self._line_every_sec:
            return
        self._shown = now
        left_sec = (now - self._began) / max(1, done - self._initial) * (self._total - done)
        share = 100 * done / max(1, self._total)
        self._log.info(
            "%d of %d %s (%.0f %%), %s, %.0f s left", done, self._total, self._unit, share, figures, left_sec
        )
