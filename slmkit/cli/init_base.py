"""Make a tiny base model with random weights, to try slmkit without a pretrained one.

It trains a byte-pair tokenizer on the text of a tokenized corpus, or of a text file with one text per line. OUT loads
wherever a directory of Qwen2.5 does, or of the architecture that --arch names: Qwen3, Llama 3.2, SmolLM3. The same
text, architecture, sizes and seed give the same files.
"""

import argparse
import os
from collections.abc import Iterator

from slmkit.errors import UserError
from slmkit.files import check_directory, check_new_directory
from slmkit.texts import positive, seed

ARCHITECTURES = ("qwen2", "qwen3", "llama", "smollm3")  # those of model/init_base.py, which imports torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="new directory for the base model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", metavar="DIR", help="tokenized corpus whose text trains the tokenizer")
    source.add_argument("--text", metavar="FILE", help="UTF-8 text file, one text per line")
    parser.add_argument("--arch", default=ARCHITECTURES[0], choices=ARCHITECTURES, help="default: %(default)s")
    sizes = [
        ("--hidden-size", 256, "width of the model"),
        ("--num-layers", 6, "decoder layers"),
        ("--vocab-size", 4096, "largest number of tokens, 259 or more"),
    ]
    for name, default, meaning in sizes:
        parser.add_argument(name, type=positive, default=default, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--num-heads", type=positive, help="attention heads (default: one per 64 of the width)")
    parser.add_argument("--num-key-value-heads", type=positive, help="key-value heads (default: half the heads)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of the random weights (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    check_new_directory(args.out)
    if args.corpus:
        check_directory("the corpus", args.corpus)
    elif not os.path.exists(args.text):
        raise UserError(f"cannot read {args.text}: there is no such file", next_step="check the path")
    from slmkit.model.init_base import init_base

    init_base(
        texts(args.corpus, args.text),
        args.out,
        arch=args.arch,
        hidden_size=args.hidden_size,
        num_layers=args.num_layers,
        num_heads=args.num_heads,
        num_key_value_heads=args.num_key_value_heads,
        vocab_size=args.vocab_size,
        seed=args.seed,
    )
    print(f"wrote a base model with random weights to {args.out}")
    return 0


def texts(directory: str | None, path: str | None) -> Iterator[str]:
    """The texts of the corpus in `directory`, or without one the lines of the file `path`. Raises UserError."""
    if directory is None:
        assert path is not None, "argparse takes one of the two"
        try:
            with open(path, encoding="utf-8-sig") as file:
                yield from file
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path} as text: {error}", expected="a UTF-8 text file") from error
        return
    from slmkit.data.index import Corpus
    from slmkit.data.prompt import normalize_text
    from slmkit.data.shards import ShardReader

    corpus = Corpus.open(directory)
    reader = ShardReader(corpus)
    for i in range(len(corpus)):
        yield normalize_text(reader.read_meta(i)["text"])
