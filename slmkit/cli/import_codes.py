"""Write codes in the published JSONL format (NTP or MTP) into shards. Needs neither audio nor codec.

  slmkit import train_ntp.jsonl more.jsonl OUT --corpus demo

Records that cannot be used are listed in OUT/failures.jsonl.
"""

import argparse

from slmkit import log


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="+", help="JSONL files of NTP or MTP codes")
    parser.add_argument("out", help="directory for the shards")
    parser.add_argument("--corpus", default="imported", help="name of the corpus (default: %(default)s)")
    parser.add_argument("--shard-samples", type=int, default=1000, help="records per shard (default: %(default)s)")
    parser.add_argument(
        "--max-failure-share",
        type=float,
        default=0.05,
        help="largest share of bad records that is no error (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    from slmkit.config.load import from_dict
    from slmkit.config.tokenize import ImportConfig

    names = ("out", "source", "corpus", "shard_samples", "max_failure_share")
    config = from_dict(ImportConfig, {name: getattr(args, name) for name in names}, "slmkit import")
    log.set_up()
    from slmkit.tokenization.job import import_codes

    import_codes(config)
    return 0
