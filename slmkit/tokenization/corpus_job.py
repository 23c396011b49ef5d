"""The directory of a job that writes a corpus: what is done, what remains, and the end of it.

Item i of the source belongs to shard i // shard_samples, whether it is good or not, so the shards do not depend on how
often the job was interrupted or how many processes share it. `job.json` is written first and says what the job is; a
shard is done when its index exists; `failures.jsonl` and `manifest.json` follow when all are.

It knows nothing of audio or codecs: it takes samples and ledger lines.

Invariant: items of the source = samples in the shards + lines in failures.jsonl.

Example:
    job = CorpusJob("out", "libritts", spec, settings, shard_samples=1000)
    for shard, items in job.remaining(source):
        job.write(shard, (encode(item) for item in items))
    job.finish(max_failure_share=0.05)
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from slmkit.codec.base import CodecSpec
from slmkit.data.importers.base import Keyed
from slmkit.data.index import INDEX_SUFFIX, ShardIndex, index_path, shard_name, write_manifest
from slmkit.data.ledger import Failure
from slmkit.data.shards import Sample, ShardWriter
from slmkit.errors import UserError
from slmkit.files import atomic_write, provenance, read_json, write_json
from slmkit.log import get_logger

JOB = "job.json"
FAILURES = "failures.jsonl"
SHOWN_REASONS = 5
log = get_logger(__name__)
K = TypeVar("K", bound=Keyed)


class CorpusJob:
    """One process's share (`task` of `num_tasks`) in writing the corpus `name` to `directory`."""

    def __init__(
        self,
        directory: str | Path,
        name: str,
        codec: CodecSpec,
        settings: dict[str, Any],
        *,
        shard_samples: int,
        task: int = 0,
        num_tasks: int = 1,
    ) -> None:
        """Start or go on. Raises UserError when the directory belongs to another job, or to none and is not empty."""
        self.directory, self.name, self.codec = Path(directory), name, codec
        self.shard_samples, self.task, self.num_tasks = shard_samples, task, num_tasks
        self.num_shards: int | None = None  # known when the source has been read to its end
        self._start({"codec": codec.to_dict(), "settings": settings})

    def _start(self, work: dict[str, Any]) -> None:
        path = self.directory / JOB
        foreign = self.directory.exists() and _holds_more_than_parts(self.directory)  # looked at before job.json
        if path.exists():
            _check_same_work(self.directory, read_json(path), work)
            return
        if foreign:
            raise UserError(
                f"{self.directory} is not an empty directory and holds no {JOB}",
                next_step="give a new directory for the shards",
            )
        write_json(path, {**work, "made_by": provenance()}, replace=True)

    def remaining(self, items: Iterable[K | Failure]) -> Iterator[tuple[int, list[K | Failure]]]:
        """(shard, its items) of this task's shards that are not done, in order; what a killed run left is removed.

        Raises UserError when a finished shard was made of other items: the source has changed.
        """
        items = iter(items)
        for shard in itertools.count():
            chunk = list(itertools.islice(items, self.shard_samples))
            if not chunk:
                self.num_shards = shard
                return
            path = self._index_path(shard)
            if path.exists():
                _check_same_items(path, chunk)
            elif shard % self.num_tasks == self.task:
                self._remove_remains(shard)
                yield shard, chunk

    def write(self, shard: int, results: Iterable[Sample | Failure]) -> ShardIndex:
        """Write a shard and its part of the ledger. Raises UserError when the disk refuses; done shards stay."""
        writer = ShardWriter(self.directory, self.name, shard)
        failures = []
        for result in results:
            if isinstance(result, Failure):
                failures.append(result)
            else:
                writer.add(result)
        index = writer.commit(failures)
        log.info("%s: %d samples, %.2f h, %d failed", index.tar, len(index), index.seconds / 3600, len(failures))
        return index

    def finish(self, max_failure_share: float) -> bool:
        """Write ledger and manifest if every shard is done; False when other tasks still work on theirs.

        Raises UserError when nothing or too little of the source could be used; the shards and the ledger stay.
        """
        assert self.num_shards is not None
        paths = [self._index_path(shard) for shard in range(self.num_shards)]
        if not all(path.exists() for path in paths):
            log.info("this task's shards are done; the task that finishes last writes the manifest")
            return False
        found = len(list(self.directory.glob(f"{self.name}-*{INDEX_SUFFIX}")))
        if found != self.num_shards:
            raise _source_changed(self.directory, f"{found} shards", f"{self.num_shards} shards")
        shards = [ShardIndex.read(path) for path in paths]
        with atomic_write(self.directory / FAILURES, replace=True) as file:
            file.writelines(failure.line() for shard in shards for failure in shard.failures)
        self._check_share(shards, max_failure_share)
        job = read_json(self.directory / JOB)
        made_by = {**job["made_by"], "config": job["settings"]}
        write_manifest(self.directory, self.name, self.codec, shards, made_by)
        num_samples, seconds = sum(map(len, shards)), math.fsum(shard.seconds for shard in shards)
        log.info("%s: %d samples, %.2f h in %d shards", self.directory, num_samples, seconds / 3600, len(shards))
        return True

    def _index_path(self, shard: int) -> Path:
        return index_path(self.directory, shard_name(self.name, shard))

    def _remove_remains(self, shard: int) -> None:
        tar = shard_name(self.name, shard)
        (self.directory / tar).unlink(missing_ok=True)
        for part in self.directory.glob(f".{tar.removesuffix('.tar')}.*.part"):
            part.unlink(missing_ok=True)

    def _check_share(self, shards: list[ShardIndex], max_failure_share: float) -> None:
        reasons = Counter(failure.reason for shard in shards for failure in shard.failures)
        failed, total = reasons.total(), reasons.total() + sum(map(len, shards))
        if failed <= max_failure_share * total and failed < total:
            return
        common = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(SHOWN_REASONS))
        raise UserError(
            f"{failed} of {total} items of the source failed",
            got=common or "an empty source",
            expected=f"a share of at most {max_failure_share}",
            next_step=f"see {self.directory / FAILURES}; to accept the loss, run again with a larger max_failure_share "
            "(what is done is kept)",
        )


def _holds_more_than_parts(path: Path) -> bool:
    """Whether `path` is not a directory, or has anything in it but unfinished writes and the job file of a sibling."""
    return not path.is_dir() or any(p.suffix != ".part" and p.name != JOB for p in path.iterdir())


def _check_same_work(directory: Path, stored: Any, work: dict[str, Any]) -> None:
    before, now = (_flat(side) for side in (stored, work))
    for name in now:
        if before.get(name) != now[name]:
            raise UserError(
                f"{directory} holds another job: {name} differs",
                got=now[name],
                expected=before.get(name, "absent"),
                next_step="give a new directory for the shards, or the settings that this one was begun with",
            )


def _flat(work: Any) -> dict[str, Any]:
    """{"codec.name": ..., "settings.corpus": ...} of what decides the shards' bytes."""
    groups = {group: work.get(group) for group in ("codec", "settings")} if isinstance(work, dict) else {}
    return {f"{group}.{name}": v for group, d in groups.items() if isinstance(d, dict) for name, v in d.items()}


def _check_same_items(path: Path, items: list[Any]) -> None:
    index = ShardIndex.read(path)
    done = sorted([*index.keys, *(failure.key for failure in index.failures)])
    if done != sorted(item.key for item in items):
        raise _source_changed(path, f"{len(items)} items, other than before", f"the {len(done)} items of the first run")


def _source_changed(path: Path, got: str, expected: str) -> UserError:
    return UserError(
        f"{path}: the source has changed since this job was begun",
        got=got,
        expected=expected,
        next_step="restore the source, or tokenize into a new directory",
    )
