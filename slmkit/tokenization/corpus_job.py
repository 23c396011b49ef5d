"""The directory of a job that writes a corpus: its settings, its shards, and how it becomes a corpus.

`job.json` is written first and says what the job is: another job, or another codec, is refused. A shard is done when
its index exists; it is written whole or not at all, so that a job may be stopped at any moment, and two processes that
write the same shard do no harm.

`finalize` compares every shard with what was planned and writes `failures.jsonl` (what the plan refused, then what
could not be encoded, shard by shard), `outliers.jsonl` and, last, `manifest.json`. A corpus with holes is refused, and
they are named; nothing that is done is lost.

It knows nothing of audio and codecs: it takes samples and ledger lines. torch is imported when a shard is written.

Invariant: items of the source = samples in the shards + lines in failures.jsonl.

Example:
    job = CorpusJob("out", "libritts", spec, settings)
    if not job.is_done(shard):
        job.write(shard, (encode(item) for item in items))
    finalize(job, plan.shards, refused=plan.refused, max_failure_share=0.05)
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from slmkit.codec.base import CodecSpec
from slmkit.config.tokenize import CORPUS_NAME
from slmkit.data.index import INDEX_SUFFIX, ShardIndex, ShardSummary, index_path, shard_name, write_manifest
from slmkit.data.ledger import FAILURES_FILE, Failure, most_common
from slmkit.errors import UserError
from slmkit.files import atomic_write, clean_parts, provenance, read_json, write_json
from slmkit.jobs import JOB, check_same, is_free
from slmkit.log import get_logger
from slmkit.tokenization.outliers import OutlierSearch
from slmkit.tokenization.plan import INTENDED, ShardPlan

if TYPE_CHECKING:
    from slmkit.data.shards import Sample

OUTLIERS, TASKS = "outliers.jsonl", "tasks"
SHOWN_SHARDS = 20  # ranges of missing shards that an error names
log = get_logger(__name__)


class CorpusJob:
    """The corpus `name` in the making."""

    def __init__(
        self, directory: str | Path, name: str, codec: CodecSpec, settings: dict[str, Any], *, codec_source: str = ""
    ) -> None:
        """Start or go on. `codec_source` says where the codec is; that of the first start is kept.

        Raises UserError when the directory belongs to another job, or to none and is not empty.
        """
        self.directory, self.name, self.codec, self.settings = Path(directory), name, codec, settings
        work = {"codec": codec.to_dict(), "settings": settings}
        stored = check_job_directory(self.directory, work)
        if stored is None:
            stored = {**work, "codec_source": codec_source, "made_by": provenance()}
            write_json(self.directory / JOB, stored, replace=True)
        else:
            clean_parts(self.directory)  # of processes that were killed
            clean_parts(self.directory / TASKS)
        self.codec_source = str(stored.get("codec_source", ""))  # where it was then; "" where that is not known
        self._made_by = stored.get("made_by")

    @staticmethod
    def open(directory: str | Path) -> "CorpusJob":
        """The job that a directory was begun with. Raises UserError when it holds none."""
        path = Path(directory) / JOB
        if not os.path.isfile(path):
            raise UserError(
                f"{directory} holds no job: {JOB} is missing",
                next_step="give the directory that `slmkit tokenize plan` or `run` wrote",
            )
        stored = read_json(path)
        try:
            codec, settings, made_by = CodecSpec.from_dict(stored["codec"]), stored["settings"], stored["made_by"]
            if not isinstance(settings, dict) or not isinstance(made_by, dict):
                raise TypeError("settings or made_by is no mapping")
            if not isinstance(settings["corpus"], str) or not CORPUS_NAME.fullmatch(settings["corpus"]):
                raise ValueError(f"corpus is {settings['corpus']!r:.100}")
            return CorpusJob(directory, settings["corpus"], codec, settings)
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{path} is not the file of a job: {error}") from error

    def is_done(self, shard: int) -> bool:
        """Whether this shard is finished."""
        return os.path.exists(self.index_path(shard))

    def index_path(self, shard: int) -> Path:
        """Where the index of this shard stands, or will."""
        return index_path(self.directory, shard_name(self.name, shard))

    def missing(self, num_shards: int) -> list[int]:
        """The shards of 0 .. num_shards - 1 that are not done. Looks at the directory once."""
        done = {path.name for path in self.directory.glob(f"{self.name}-*{INDEX_SUFFIX}")}
        return [shard for shard in range(num_shards) if self.index_path(shard).name not in done]

    def write(self, shard: int, results: "Iterable[Sample | Failure]", plan_sha256: str = "") -> ShardIndex:
        """Write a shard and its part of the ledger. Raises UserError when the disk refuses; done shards stay."""
        from slmkit.data.shards import ShardWriter

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
        """The versions that began the job, and its settings. Raises UserError where the job does not say them."""
        if not isinstance(self._made_by, dict):
            raise UserError(f"{self.directory / JOB} is not the file of a job: it does not say what made it")
        return {**self._made_by, "config": self.settings}


def check_job_directory(directory: str | Path, work: dict[str, Any]) -> dict[str, Any] | None:
    """What job.json says where a job of this `work` ("settings", and "codec" where it is known) was begun; else None.

    Raises UserError when another job was, or it holds no job and is not empty.
    """
    directory, path = Path(directory), Path(directory) / JOB
    may_begin = is_free(directory)
    if os.path.exists(path):
        found = read_json(path)
        stored: dict[str, Any] = found if isinstance(found, dict) else {}
        check_same(directory, _flat({group: stored.get(group) for group in work}), _flat(work))
        return stored
    if not may_begin:
        raise UserError(
            f"{directory} is not an empty directory and holds no {JOB}",
            next_step="give a new directory for the shards",
        )
    return None


def _flat(work: dict[str, Any]) -> dict[str, Any]:
    """{"codec.name": ..., "settings.corpus": ...} of what decides the shards' bytes."""
    return {f"{group}.{name}": v for group, d in work.items() if isinstance(d, dict) for name, v in d.items()}


def finalize(
    job: CorpusJob,
    planned: Sequence[ShardPlan],
    *,
    refused: Mapping[str, int] | None = None,
    refused_lines: IO[bytes] | None = None,
    max_failure_share: float,
) -> None:
    """Check the shards, write ledger, outliers and manifest. `refused` and `refused_lines` are the plan's own ledger.

    Raises UserError when shards are missing, are not what was planned, or nothing or too little of the source could be
    used: then the shards and the ledger stay, and no manifest is written.
    """
    _check_all_there(job, len(planned))
    with atomic_write(job.directory / FAILURES_FILE, replace=True) as ledger:
        if refused_lines is not None:
            shutil.copyfileobj(refused_lines, ledger)
        search = OutlierSearch()
        summaries = [_check_shard(job, shard, planned[shard], ledger, search) for shard in range(len(planned))]
    reasons = Counter(refused or {})
    for summary in summaries:
        reasons.update(summary.failures)
    samples = sum(summary.samples for summary in summaries)
    ledger_path = job.directory / FAILURES_FILE
    advice = "to accept the loss, run `slmkit tokenize finalize` with a larger max_failure_share (what is done is kept)"
    check_share(samples, reasons, max_failure_share, f"see {ledger_path}; {advice}")
    outliers = _write_outliers(job, search)
    for part in job.directory.glob(f".{job.name}-*.part"):  # of tasks that were killed: none runs any more
        part.unlink(missing_ok=True)
    made_by = job.made_by()
    write_manifest(
        job.directory,
        job.name,
        job.codec,
        summaries,
        made_by,
        codec_source=job.codec_source,
        refused=refused,
        outliers=outliers,
    )
    hours = sum(summary.seconds for summary in summaries) / 3600
    shape = f"{samples} samples, {hours:.2f} h in {len(planned)} shards"
    log.info(
        "%s: %s; %d in %s, %d in %s", job.directory, shape, reasons.total(), FAILURES_FILE, outliers.total(), OUTLIERS
    )


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in words, such as "0, 3 to 7"; the first `SHOWN_SHARDS` stretches."""
    stretches: list[list[int]] = []
    for number in numbers:
        if stretches and number == stretches[-1][1] + 1:
            stretches[-1][1] = number
        else:
            stretches.append([number, number])
    words = [f"{first}" if first == last else f"{first} to {last}" for first, last in stretches]
    return ", ".join(words[:SHOWN_SHARDS]) + (", ..." if len(words) > SHOWN_SHARDS else "")


def _check_all_there(job: CorpusJob, num_shards: int) -> None:
    if missing := job.missing(num_shards):
        raise UserError(
            f"{job.directory} is incomplete: {len(missing)} of {num_shards} shards are missing",
            got=f"no shard {ranges(missing)}",
            next_step="start the tasks of these shards again (`slmkit tokenize run`); finished shards are kept",
        )
    found = len(list(job.directory.glob(f"{job.name}-*{INDEX_SUFFIX}")))
    if found != num_shards:
        raise UserError(
            f"{job.directory} holds shards that were not planned",
            got=f"{found} shards",
            expected=num_shards,
            next_step="if the source has changed, tokenize it into a new directory",
        )


def _check_shard(
    job: CorpusJob, shard: int, planned: ShardPlan, ledger: IO[bytes], search: OutlierSearch
) -> ShardSummary:
    """Compare a shard with its plan, write its lines of the ledger and look at its checks."""
    path = job.index_path(shard)
    index = ShardIndex.read(path)
    items = len(index) + len(index.failures)
    if items != planned.items or index.plan_sha256 != planned.sha256:
        raise UserError(
            f"{path} does not match the plan",
            got=f"{items} items, plan {index.plan_sha256[:12]}",
            expected=f"{planned.items} items, plan {planned.sha256[:12]}",
            next_step="remove this index and run its task again",
        )
    tar = job.directory / index.tar
    if not os.path.isfile(tar):
        raise UserError(f"{path} has no tar beside it", got=tar, next_step="remove this index and run its task again")
    ledger.writelines(failure.line() for failure in index.failures)
    search.add(index)
    return index.summary


def check_share(
    samples: int, reasons: Counter[str], max_failure_share: float, next_step: str, *, example: str = ""
) -> None:
    """Raise UserError where there are no samples, or too many items beside them failed; `example` tells of one.

    Filters are meant to leave items out; all else counts as failed.
    """
    failed = num_failed(reasons)
    total = failed + samples
    if samples and failed <= max_failure_share * total:
        return
    if not total and reasons:
        got = "; ".join(filter(None, (most_common(reasons), example)))
        instead = f"see {FAILURES_FILE}; change the filters, and tokenize into another directory"
        raise UserError("the filters leave nothing of the source", got=got, next_step=instead)
    raise UserError(
        f"{failed} of {total} items of the source failed",
        got="; ".join(filter(None, (most_common(reasons) or "an empty source", example))),
        expected=f"a share of at most {max_failure_share}",
        next_step=next_step,
    )


def num_failed(reasons: Mapping[str, int]) -> int:
    """How many items failed, without those that filters left out."""
    return sum(count for reason, count in reasons.items() if reason not in INTENDED)


def _write_outliers(job: CorpusJob, search: OutlierSearch) -> Counter[str]:
    """List the utterances whose checks stand out; count them by check."""
    found: Counter[str] = Counter()
    with atomic_write(job.directory / OUTLIERS, replace=True) as file:
        for outlier in search.outliers():
            found[outlier.check] += 1
            file.write(outlier.line())
    return found
