"""The two jobs that make a corpus: audio through a codec, and published codes as they are.

Invariant (law): the same input gives byte-identical tars, whatever the number of workers or batches or interruptions.

Example:
    config = load_config(TokenizeConfig, "libritts.yaml", ["source=LibriTTS", "codec=melvq", "out=shards"])
    tokenize(open_codec(config.codec), config)
"""

import contextlib
import itertools
from collections.abc import Generator, Iterable, Iterator
from operator import itemgetter

from tqdm import tqdm

from slmkit.audio.units import seconds_to_samples
from slmkit.codec.base import Codec
from slmkit.config.tokenize import ImportConfig, TokenizeConfig
from slmkit.data.importers import published
from slmkit.data.importers.base import Utterance, with_sound_keys
from slmkit.data.importers.libritts import read_folder
from slmkit.data.importers.manifest import read_manifest
from slmkit.data.ledger import Failure
from slmkit.data.shards import Sample
from slmkit.tokenization.corpus_job import CorpusJob
from slmkit.tokenization.decode import Decoded, Decoding, decode_in_order
from slmkit.tokenization.encode import encode_in_order


def tokenize(codec: Codec, config: TokenizeConfig) -> None:
    """Encode a corpus with an open codec. Goes on where an earlier run of the same job ended.

    Raises UserError for everything that is not slmkit's fault: paths, a directory of another job, a full disk, too
    many bad items.
    """
    job = CorpusJob(
        config.out,
        config.corpus,
        codec.spec,
        config.settings(),
        shard_samples=config.shard_samples,
        task=config.task,
        num_tasks=config.num_tasks,
    )
    with tqdm(desc=config.corpus, unit=" s of audio", unit_scale=True, disable=None) as progress:
        batch_samples = seconds_to_samples(config.batch_sec, codec.spec.sample_rate)
        with contextlib.closing(_decode_by_shard(job, codec, config)) as decoded:
            for shard, group in itertools.groupby(decoded, key=itemgetter(0)):
                results = (result for _, result in group)
                encoded = encode_in_order(codec, results, window=config.window, batch_samples=batch_samples)
                job.write(shard, _counted(encoded, progress))
    job.finish(config.max_failure_share)


def import_codes(config: ImportConfig) -> None:
    """Bring published JSONL files into shards. Raises UserError like `tokenize`."""
    job = CorpusJob(config.out, config.corpus, published.SPEC, config.settings(), shard_samples=config.shard_samples)
    records = itertools.chain.from_iterable(published.read_published(path) for path in config.source)
    for shard, items in job.remaining(with_sound_keys(records)):
        job.write(shard, items)
    job.finish(config.max_failure_share)


def read_source(config: TokenizeConfig) -> Iterator[Utterance | Failure]:
    """The items of the corpus, in their fixed order."""
    if config.kind == "libritts":
        return read_folder(config.source, config.language)
    return read_manifest(config.source, config.columns, config.language)


def _decode_by_shard(
    job: CorpusJob, codec: Codec, config: TokenizeConfig
) -> Generator[tuple[int, Decoded | Failure], None, None]:
    """(shard, decoded item) of every item that remains; decoding runs ahead across the borders of shards."""
    remaining = job.remaining(with_sound_keys(read_source(config)))
    decoding = Decoding(
        sample_rate=codec.spec.sample_rate,
        min_sec=config.min_sec,
        max_sec=config.max_sec,
        limit_sec=config.decode_limit_sec,
    )
    tagged = ((shard, item) for shard, items in remaining for item in items)
    return decode_in_order(tagged, decoding, num_workers=config.num_workers, ahead=config.window)


def _counted(results: Iterable[Sample | Failure], progress: tqdm) -> Iterator[Sample | Failure]:
    """The results; the bar shows seconds of audio, and per second how many of them."""
    for result in results:
        if isinstance(result, Sample):
            progress.update(result.meta["seconds"])
        yield result
