"""The two jobs that make a corpus: audio through a codec, and published codes as they are.

`plan_corpus` fixes what goes where, `encode_share` writes a task's shards, `finalize_corpus` makes a corpus of them,
and `tokenize` does all three; `import_codes` is the other job.

Decoding runs ahead in processes of its own, which also measure what filters go by (see screen), so that what is refused
is not encoded. The codec runs in the main thread, and a shard is written by another thread while the next one is
encoded.

Invariant (law): the same input gives byte-identical tars, whatever the number of workers or batches or interruptions.

Example:
    config = load_config(TokenizeConfig, "libritts.yaml", ["source=LibriTTS", "codec=melvq", "out=shards"])
    tokenize(open_codec(config.codec, config.devices[0]), config)
"""

import contextlib
import itertools
import json
import os
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from pathlib import Path

from tqdm import tqdm

from slmkit.audio.units import seconds_to_samples
from slmkit.codec.base import Codec, CodecSpec
from slmkit.config.tokenize import ImportConfig, TokenizeConfig
from slmkit.corpora import published
from slmkit.corpora.base import key_refusal, one_line
from slmkit.corpora.layouts import LAYOUTS, ReadOptions, other_layout, read_parts
from slmkit.data.index import ShardIndex
from slmkit.data.ledger import FAILURES_FILE, Failure
from slmkit.data.shards import Sample
from slmkit.errors import UserError
from slmkit.files import atomic_write
from slmkit.hub import source_of
from slmkit.jobs import JOB, ProgressBar
from slmkit.log import get_logger
from slmkit.tokenization.corpus_job import CorpusJob, check_share, finalize, num_failed
from slmkit.tokenization.decode import Decoding, decode_in_order
from slmkit.tokenization.encode import encode_in_order
from slmkit.tokenization.plan import INTENDED, Rules, ShardPlan, Sifted, TokenizationPlan, make_plan, sift_parts
from slmkit.tokenization.progress import LINE_EVERY_SEC, Progress
from slmkit.tokenization.screen import Screen, job_settings

log = get_logger(__name__)


def tokenize(codec: Codec, config: TokenizeConfig, *, show: bool = True) -> None:
    """All three in this process; of several tasks, the encoding alone. Raises UserError as they do."""
    if config.num_tasks == 1:
        plan_corpus(codec.spec, config)
    encode_share(codec, config, show=show)
    if config.num_tasks == 1:
        finalize_corpus(config.out, config.max_failure_share)


def plan_corpus(codec: CodecSpec, config: TokenizeConfig) -> TokenizationPlan:
    """Begin the job, or find it begun, and plan its source unless that is done.

    Raises UserError when the directory belongs to another job, as `make_plan` does, and when the plan refuses more than
    `max_failure_share` of the source: then its ledger stays, and a new plan of it is not taken for the old one.
    """
    job = _job(config, codec)
    source = Path(config.source).absolute()  # tasks may run elsewhere
    options = ReadOptions(columns=config.columns, language=config.language, max_sec=config.max_sec)
    if TokenizationPlan.exists(config.out):
        plan = TokenizationPlan.open(config.out)
        _check_refused(job, plan, config, source, options)
        return plan
    rules = Rules(
        min_sec=config.min_sec,
        max_sec=config.max_sec,
        screen=Screen.of(config),
        languages=frozenset(config.filters.languages),
        sources=config.filters.sources,
    )
    parts = read_parts(config.kind, source, options)
    with tqdm(desc="planning", unit=" items", unit_scale=True, disable=None) as bar:
        chunks = sift_parts(parts, rules, num_workers=config.num_workers)
        try:
            plan = make_plan(config.out, _counted(chunks, bar), shard_samples=config.shard_samples)
        except UserError as error:
            if instead := other_layout(config.kind, source, options):
                raise UserError(
                    error.what, got=error.got, expected=error.expected, next_step=f"did you mean {instead}?"
                ) from error
            raise
    _check_refused(job, plan, config, source, options)
    refused = ", ".join(f"{reason} {count}" for reason, count in plan.refused.items()) or "none"
    log.info("planned: %d utterances in %d shards; refused: %s", plan.num_items, len(plan.shards), refused)
    return plan


def _job(config: TokenizeConfig, codec: CodecSpec) -> CorpusJob:
    return CorpusJob(config.out, config.corpus, codec, job_settings(config), codec_source=source_of(config.codec))


def _check_refused(
    job: CorpusJob, plan: TokenizationPlan, config: TokenizeConfig, source: Path, options: ReadOptions
) -> None:
    """Raise UserError where the plan alone refuses too much for the corpus ever to be finished. Unless shards of it are
    written already, its ledger becomes the job's, and the plan is removed: the next start makes a new one."""
    reasons = Counter(plan.refused)
    failed = num_failed(reasons)
    if plan.num_items and failed <= config.max_failure_share * (failed + plan.num_items):
        return
    counted = [reason for reason in reasons if reason not in INTENDED] or list(reasons)
    usual = max(counted, key=reasons.__getitem__, default="")
    with plan.open_refused() as lines:
        example = next((line["detail"] for line in map(json.loads, lines) if line["reason"] == usual), "")
    ledger = job.directory / FAILURES_FILE
    next_step = f"see {ledger}; mend the source, or accept the loss with a larger max_failure_share, and start again"
    if not plan.num_items:
        forms = textwrap.indent(LAYOUTS[config.kind].files, "    ")
        next_step = f"see {ledger}; a source of the kind {config.kind} is\n{forms}"
    if 2 * failed > failed + plan.num_items and (instead := other_layout(config.kind, source, options)):
        next_step = f"did you mean {instead}?"
        if usual == "missing_transcript":
            next_step = f"no transcripts; {next_step}"
    if len(job.missing(len(plan.shards))) == len(plan.shards):
        with plan.open_refused() as lines, atomic_write(ledger, replace=True) as file:
            shutil.copyfileobj(lines, file)
        shutil.rmtree(plan.directory)
    check_share(
        plan.num_items,
        reasons,
        config.max_failure_share,
        next_step,
        example=example and f"such as: {one_line(example)[:300]}",
    )


def encode_share(codec: Codec, config: TokenizeConfig, *, show: bool = True) -> None:
    """Write the shards of `config.task` that are not done. Goes on where an earlier run ended.

    With `show`, the screen says how far it is. Raises UserError for everything that is not slmkit's fault: a directory
    of another job, no plan, a full disk.
    """
    job = _job(config, codec.spec)
    plan = TokenizationPlan.open(config.out)
    mine = [s for s in range(config.task, len(plan.shards), config.num_tasks) if not job.is_done(s)]
    decoding = Decoding(
        sample_rate=codec.spec.sample_rate,
        min_sec=config.min_sec,
        max_sec=config.max_sec,
        limit_sec=config.decode_limit_sec,
        screen=Screen.of(config),
    )
    batch_samples = seconds_to_samples(config.batch_sec, codec.spec.sample_rate)
    with contextlib.ExitStack() as stack:
        bar = None
        if show and mine:
            num_items = sum(plan.shards[shard].items for shard in mine)
            bar = stack.enter_context(ProgressBar(num_items, "utterances", log, line_every_sec=LINE_EVERY_SEC))
        progress = stack.enter_context(
            Progress(config.out, plan, mine, task=config.task, num_tasks=config.num_tasks, bar=bar)
        )
        # Decoding runs ahead across the borders of shards, and a shard is written while the next one is encoded.
        items = ((shard, item) for shard in mine for item in plan.items(shard))
        decoded = stack.enter_context(
            contextlib.closing(decode_in_order(items, decoding, num_workers=config.num_workers, ahead=config.window))
        )
        writing = stack.enter_context(ThreadPoolExecutor(1))
        before: Future[ShardIndex] | None = None
        for shard, group in itertools.groupby(decoded, key=itemgetter(0)):
            results = (result for _, result in group)
            encoded = encode_in_order(
                codec, results, window=config.window, batch_samples=batch_samples, advance=progress.advance
            )
            samples = list(encoded)
            if before is not None:
                before.result()
                progress.shard_done()
            before = writing.submit(job.write, shard, samples, plan.shards[shard].sha256)
        if before is not None:
            before.result()
            progress.shard_done()


def finalize_corpus(out: str | Path, max_failure_share: float) -> None:
    """Check the job in `out` against its plan and make it a corpus. Raises UserError as `finalize` does."""
    ledger = Path(out) / FAILURES_FILE
    if not TokenizationPlan.exists(out) and os.path.isfile(ledger) and os.path.isfile(Path(out) / JOB):
        raise UserError(
            f"{out} holds no plan: too many items of its source were refused when it was planned",
            expected="a plan that is encoded",
            next_step=f"see {ledger}; to accept the loss, give `slmkit tokenize run` again, as before and with a "
            "larger max_failure_share",
        )
    plan = TokenizationPlan.open(out)
    job = CorpusJob.open(out)
    with plan.open_refused() as lines:
        finalize(job, plan.shards, refused=plan.refused, refused_lines=lines, max_failure_share=max_failure_share)


def import_codes(config: ImportConfig) -> None:
    """Bring published JSONL files into shards. Raises UserError like the jobs above."""
    job = CorpusJob(config.out, config.corpus, published.SPEC, config.settings())
    records = itertools.chain.from_iterable(published.read_published(path) for path in config.source)
    seen: set[str] = set()
    items = (item if isinstance(item, Failure) else key_refusal(item.key, seen) or item for item in records)
    planned: list[ShardPlan] = []
    while chunk := list(itertools.islice(items, config.shard_samples)):
        shard = len(planned)
        planned.append(ShardPlan(len(chunk), 0.0, 0, 0, ""))
        if job.is_done(shard):
            _check_same_items(job.index_path(shard), chunk)
        else:
            job.write(shard, chunk)
    finalize(job, planned, max_failure_share=config.max_failure_share)


def _counted(chunks: Iterable[Sifted], bar: tqdm) -> Iterator[Sifted]:
    for chunk in chunks:
        yield chunk
        bar.update(len(chunk.keys))


def _check_same_items(path: Path, items: list[Sample | Failure]) -> None:
    index = ShardIndex.read(path)
    done = sorted([*index.keys, *(failure.key for failure in index.failures)])
    if done != sorted(item.key for item in items):
        raise UserError(
            f"{path}: the source has changed since this job was begun",
            got=f"{len(items)} items, other than before",
            expected=f"the {len(done)} items of the first run",
            next_step="restore the source, or import into a new directory",
        )
