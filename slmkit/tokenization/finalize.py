"""The end of a job: every shard is compared with what was planned, and the directory becomes a corpus.

`failures.jsonl` (what the plan refused, then what could not be encoded, shard by shard), `outliers.jsonl` and, last,
`manifest.json` are written. A corpus with holes is refused, and they are named; nothing that is done is lost.

Invariant: items of the source = samples in the shards + lines in failures.jsonl.

Example:
    finalize(CorpusJob.open("out"), plan.shards, refused=plan.refused, max_failure_share=0.05)
"""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from slmkit.data.index import INDEX_SUFFIX, ShardIndex, ShardList, ShardSummary, write_manifest
from slmkit.errors import UserError
from slmkit.files import atomic_write
from slmkit.log import get_logger
from slmkit.tokenization.corpus_job import CorpusJob
from slmkit.tokenization.outliers import find_outliers
from slmkit.tokenization.plan import INTENDED, ShardPlan

FAILURES, OUTLIERS = "failures.jsonl", "outliers.jsonl"
SHOWN_REASONS = 5
SHOWN_SHARDS = 20  # ranges of missing shards that an error names
log = get_logger(__name__)


def finalize(
    job: CorpusJob,
    planned: Sequence[ShardPlan],
    *,
    refused: Mapping[str, int] | None = None,
    refused_lines: Path | None = None,
    max_failure_share: float,
) -> None:
    """Check the shards, write ledger, outliers and manifest. `refused` and `refused_lines` are the plan's own ledger.

    Raises UserError when shards are missing, are not what was planned, or nothing or too little of the source could be
    used: then the shards and the ledger stay, and no manifest is written.
    """
    _check_all_there(job, len(planned))
    with atomic_write(job.directory / FAILURES, replace=True) as ledger:
        if refused_lines is not None:
            with open(refused_lines, "rb") as lines:
                shutil.copyfileobj(lines, ledger)
        summaries = [_check_shard(job, shard, planned[shard], ledger) for shard in range(len(planned))]
    reasons = Counter(refused or {})
    for summary in summaries:
        reasons.update(summary.failures)
    samples = sum(summary.samples for summary in summaries)
    _check_share(job, samples, reasons, max_failure_share)
    outliers = _write_outliers(job, summaries)
    for part in job.directory.glob(f".{job.name}-*.part"):  # of tasks that were killed
        part.unlink(missing_ok=True)
    made_by = job.made_by()
    write_manifest(job.directory, job.name, job.codec, summaries, made_by, refused=refused, outliers=outliers)
    hours = sum(summary.seconds for summary in summaries) / 3600
    shape = f"{samples} samples, {hours:.2f} h in {len(planned)} shards"
    log.info("%s: %s; %d in %s, %d in %s", job.directory, shape, reasons.total(), FAILURES, outliers.total(), OUTLIERS)


def missing_shards(job: CorpusJob, num_shards: int) -> list[int]:
    """The shards of 0 .. num_shards - 1 that are not done."""
    suffix = len(INDEX_SUFFIX)
    done = {path.name[:-suffix] for path in job.directory.glob(f"{job.name}-*{INDEX_SUFFIX}")}
    return [shard for shard in range(num_shards) if job.index_path(shard).name[:-suffix] not in done]


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
    if missing := missing_shards(job, num_shards):
        raise UserError(
            f"{job.directory} has holes: {len(missing)} of {num_shards} shards are missing",
            got=f"no shard {ranges(missing)}",
            next_step="run the tasks again that lack them (`slmkit tokenize run`); what is done is kept",
        )
    found = len(list(job.directory.glob(f"{job.name}-*{INDEX_SUFFIX}")))
    if found != num_shards:
        raise UserError(
            f"{job.directory} holds shards that were not planned",
            got=f"{found} shards",
            expected=num_shards,
            next_step="if the source has changed, tokenize it into a new directory",
        )


def _check_shard(job: CorpusJob, shard: int, planned: ShardPlan, ledger: IO[bytes]) -> ShardSummary:
    """Compare a shard with its plan and write its lines of the ledger."""
    path = job.index_path(shard)
    index = ShardIndex.read(path)
    items = len(index) + len(index.failures)
    if items != planned.items or index.plan_sha256 != planned.sha256:
        raise UserError(
            f"{path} was not made of what is planned",
            got=f"{items} items, plan {index.plan_sha256[:12]}",
            expected=f"{planned.items} items, plan {planned.sha256[:12]}",
            next_step="remove this index and run its task again",
        )
    tar = job.directory / index.tar
    if not tar.is_file():
        raise UserError(f"{path} has no tar beside it", got=tar, next_step="remove this index and run its task again")
    ledger.writelines(failure.line() for failure in index.failures)
    return index.summary


def _check_share(job: CorpusJob, samples: int, reasons: Counter[str], max_failure_share: float) -> None:
    """Filters are meant to leave items out; all else counts as failed."""
    failed = sum(count for reason, count in reasons.items() if reason not in INTENDED)
    total = failed + samples
    if samples and failed <= max_failure_share * total:
        return
    common = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(SHOWN_REASONS))
    raise UserError(
        f"{failed} of {total} items of the source failed",
        got=common or "an empty source",
        expected=f"a share of at most {max_failure_share}",
        next_step=f"see {job.directory / FAILURES}; to accept the loss, run `slmkit tokenize finalize` with a larger "
        "max_failure_share (what is done is kept)",
    )


def _write_outliers(job: CorpusJob, summaries: Sequence[ShardSummary]) -> Counter[str]:
    """List the utterances whose checks stand out; count them by check."""
    shards = ShardList(job.directory, [(one.tar, one.sha256, one.samples) for one in summaries])
    found: Counter[str] = Counter()
    with atomic_write(job.directory / OUTLIERS, replace=True) as file:
        for outlier in find_outliers(shards):
            found[outlier.check] += 1
            file.write((json.dumps(outlier._asdict(), sort_keys=True, ensure_ascii=False) + "\n").encode())
    return found
