"""One file of lines spoken by several processes: each has a share, and what they have spoken is joined.

    OUT/.shares.part/0003-of-0064/    what task 3 of 64 has spoken, as `jobs` has it: lines 3, 67, 131, ...

Shares are jobs of their own, so that tasks know nothing of each other and each continues by itself. Joined they are
what one process would have left: the records of a line, its wave and its failure depend on the line alone. A task of
another number of tasks leaves out what others have spoken.

Invariant: a directory is joined when each line has a record or a failure, and not before; nothing is moved before that.

Example:
    speak_all(synthesizer, listed, "out", task="tts", model=sha256, share=Share(3, 64))
    join_shares(listed, "out", task="tts", max_failure_share=0.05)
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from slmkit.data.ledger import FAILURES_FILE, Failure
from slmkit.errors import UserError
from slmkit.jobs import JOB, NOTES, RECORDS, JobRecord, ResumableJob, check_same, read_description, read_job_records

WAVES_DIR = "wav"
SHARES_DIR = ".shares.part"  # such a name is no obstacle to a job that begins


class Share(NamedTuple):
    """Part `number`, from 0 on, of `total`."""

    number: int
    total: int

    def directory(self, out_dir: str | Path) -> Path:
        """Where it is spoken."""
        return Path(out_dir) / SHARES_DIR / f"{self.number:04d}-of-{self.total:04d}"


class Spoken(NamedTuple):
    """What the tasks have left."""

    settings: dict[str, Any] | None  # of their jobs; None where there are none
    engines: list[Any]
    records: dict[str, JobRecord]  # by id
    directories: dict[str, Path]  # of the waves, by id
    failures: dict[str, Failure]  # of lines without a record, by id


def is_whole(record: JobRecord, *directories: str | Path) -> bool:
    """Whether a record says why its answer ended, and its wave, if it has one, is in one of the directories."""
    wave = record.get("wav")
    own_wave = f"{WAVES_DIR}/{record['id']}.wav"
    is_there = wave is None or (wave == own_wave and any((Path(place) / wave).is_file() for place in directories))
    return is_there and isinstance(record.get("reason"), str)


def shares_of(out_dir: str | Path) -> Iterator[Path]:
    """The directories of the shares."""
    yield from sorted(path.parent for path in (Path(out_dir) / SHARES_DIR).glob(f"*/{JOB}"))


def spoken_elsewhere(out_dir: str | Path, share: Share) -> set[str]:
    """The lines that other tasks, or earlier ones, have spoken. They may be at work."""
    others = [path for path in (Path(out_dir), *shares_of(out_dir)) if path != share.directory(out_dir)]
    # Notes first: a task that ends in between has written all of its records before it removes its notes.
    paths = [path / name for path in others for name in (NOTES, RECORDS)]
    return {record["id"] for path in paths for record in read_job_records(path, missing_ok=True)}


def read_shares(out_dir: str | Path) -> Spoken:
    """Raises UserError when a task is at work, shares are of different jobs, or their files are damaged."""
    found = Spoken(None, [], {}, {}, {})
    for directory in shares_of(out_dir):
        description = read_description(directory)
        settings = description["settings"]
        if found.settings is not None:
            check_same(directory, found.settings, settings)
        found = found._replace(settings=settings)
        found.engines.extend(engine for engine in description.get("engines", ()) if engine not in found.engines)
        with ResumableJob.open(directory, settings) as job:
            for name, record in job.records.items():
                if is_whole(record, directory, out_dir):
                    found.records[name], found.directories[name] = record, directory
        found.failures.update(failures_in(directory))
    return found._replace(failures={name: one for name, one in found.failures.items() if name not in found.records})


def failures_in(directory: Path) -> dict[str, Failure]:
    """The failures of a finished job, by id. Raises UserError when their file is damaged."""
    path = directory / FAILURES_FILE
    try:
        lines = path.read_bytes().splitlines() if path.is_file() else []
        return {failure.key: failure for failure in (Failure(**json.loads(line)) for line in lines)}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}", next_step="remove it, and start its task again") from error


def move_shares(out_dir: str | Path, spoken: Spoken) -> None:
    """Move the waves of the records to where one process would have put them."""
    (Path(out_dir) / WAVES_DIR).mkdir(parents=True, exist_ok=True)
    for name, directory in spoken.directories.items():
        wave = f"{WAVES_DIR}/{name}.wav"
        if (directory / wave).is_file():  # not moved by a start that was killed
            os.replace(directory / wave, Path(out_dir) / wave)


def remove_shares(out_dir: str | Path) -> None:
    shutil.rmtree(Path(out_dir) / SHARES_DIR, ignore_errors=True)


def check_all_spoken(out_dir: str | Path, missing: list[str], total: int) -> None:
    """Raise UserError naming lines that no task has tried."""
    if missing:
        raise UserError(
            f"{out_dir} is incomplete: {len(missing)} of {total} lines are not spoken",
            got=f"nothing of {missing[0]}",
            next_step="start the tasks again, or the command without tasks; what is spoken is kept",
        )
