"""The directory of a job that writes a corpus: whose it is, and its shards.

`job.json` is written first and says what the job is: another job, or another codec, is refused. A shard is done when
its index exists; it is written whole or not at all, so that a job may be stopped at any moment, and two processes that
write the same shard do no harm. `finalize` makes a corpus of the directory when every shard is there.

It knows nothing of audio, codecs or plans: it takes samples and ledger lines.

Example:
    job = CorpusJob("out", "libritts", spec, settings)
    if not job.is_done(shard):
        job.write(shard, (encode(item) for item in items))
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slmkit.codec.base import CodecSpec
from slmkit.data.index import ShardIndex, index_path, shard_name
from slmkit.data.ledger import Failure
from slmkit.data.shards import Sample, ShardWriter
from slmkit.errors import UserError
from slmkit.files import provenance, read_json, write_json
from slmkit.jobs import check_same
from slmkit.log import get_logger

JOB = "job.json"
log = get_logger(__name__)


class CorpusJob:
    """The corpus `name` in the making."""

    def __init__(self, directory: str | Path, name: str, codec: CodecSpec, settings: dict[str, Any]) -> None:
        """Start or go on. Raises UserError when the directory belongs to another job, or to none and is not empty."""
        self.directory, self.name, self.codec, self.settings = Path(directory), name, codec, settings
        work = {"codec": codec.to_dict(), "settings": settings}
        path = self.directory / JOB
        foreign = self.directory.exists() and _holds_more_than_parts(self.directory)  # looked at before job.json
        if path.exists():
            check_same(self.directory, _flat(read_json(path)), _flat(work))
            return
        if foreign:
            raise UserError(
                f"{self.directory} is not an empty directory and holds no {JOB}",
                next_step="give a new directory for the shards",
            )
        write_json(path, {**work, "made_by": provenance()}, replace=True)

    @staticmethod
    def open(directory: str | Path) -> "CorpusJob":
        """The job that a directory was begun with. Raises UserError when it holds none."""
        path = Path(directory) / JOB
        if not path.is_file():
            raise UserError(
                f"{directory} holds no job: {JOB} is missing",
                next_step="give the directory that `slmkit tokenize plan` or `run` wrote",
            )
        stored = read_json(path)
        try:
            codec, settings = CodecSpec.from_dict(stored["codec"]), dict(stored["settings"])
            return CorpusJob(directory, str(settings["corpus"]), codec, settings)
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{path} is not the file of a job: {error}") from error

    def is_done(self, shard: int) -> bool:
        """Whether this shard is finished."""
        return self.index_path(shard).exists()

    def index_path(self, shard: int) -> Path:
        """Where the index of this shard stands, or will."""
        return index_path(self.directory, shard_name(self.name, shard))

    def write(self, shard: int, results: Iterable[Sample | Failure], plan_sha256: str = "") -> ShardIndex:
        """Write a shard and its part of the ledger. Raises UserError when the disk refuses; done shards stay."""
        writer = ShardWriter(self.directory, self.name, shard)
        failures = []
        for result in results:
            if isinstance(result, Failure):
                failures.append(result)
            else:
                writer.add(result)
        index = writer.commit(failures, plan_sha256)
        log.info("%s: %d samples, %.2f h, %d failed", index.tar, len(index), index.seconds / 3600, len(failures))
        return index

    def made_by(self) -> dict[str, Any]:
        """The versions that began the job, and its settings."""
        return {**read_json(self.directory / JOB)["made_by"], "config": self.settings}


def _holds_more_than_parts(path: Path) -> bool:
    """Whether `path` is not a directory, or has anything in it but unfinished writes and the job file of a sibling."""
    return not path.is_dir() or any(p.suffix != ".part" and p.name != JOB for p in path.iterdir())


def _flat(work: Any) -> dict[str, Any]:
    """{"codec.name": ..., "settings.corpus": ...} of what decides the shards' bytes."""
    groups = {group: work.get(group) for group in ("codec", "settings")} if isinstance(work, dict) else {}
    return {f"{group}.{name}": v for group, d in groups.items() if isinstance(d, dict) for name, v in d.items()}
