"""Make a tiny base model, for where Qwen2.5-0.5B is not at hand.

Trains a byte-pair tokenizer on the text of a tokenized corpus, or of a text file with one text per line, and writes it
with random weights to OUT, which loads wherever a Qwen2.5 directory does. It has learnt nothing: use it to try things
out. Equal text, sizes and seed give equal files.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from slmkit.errors import UserError
from slmkit.files import check_directory, check_new_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="OUT", help="new directory for the base model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--corpus", metavar="DIR", help="tokenized corpus whose text trains the tokenizer")
    source.add_argument("--text", metavar="FILE", help="UTF-8 text file, one text per line")
    sizes = [
        ("--hidden-size", 256, "width of the model"),
        ("--num-layers", 6, "decoder layers"),
        ("--vocab-size", 4096, "largest number of tokens, 259 or more"),
        ("--seed", 0, "of the random weights"),
    ]
    for name, default, meaning in sizes:
        parser.add_argument(name, type=int, default=default, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--num-heads", type=int, help="attention heads (default: one per 64 of the width)")
    parser.add_argument("--num-key-value-heads", type=int, help="key-value heads (default: half the heads)")


def run(args: argparse.Namespace) -> int:
    check_new_directory(args.out)
    if args.corpus:
        check_directory("the corpus", args.corpus)
    elif not Path(args.text).exists():
        raise UserError(f"cannot read {args.text}: there is no such file", next_step="check the path")
    from slmkit.model.init_base import init_base

    init_base(
        _text_lines(Path(args.text)) if args.text else _corpus_texts(args.corpus),
        args.out,
        hidden_size=args.hidden_size,
        num_layers=args.num_layers,
        num_heads=args.num_heads,
        num_key_value_heads=args.num_key_value_heads,
        vocab_size=args.vocab_size,
        seed=args.seed,
    )
    print(f"wrote a base model with random weights to {args.out}")
    return 0


def _text_lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as text: {error}", expected="a UTF-8 text file") from error


def _corpus_texts(directory: str) -> Iterator[str]:
    from slmkit.data.index import Corpus
    from slmkit.data.prompt import normalize_text
    from slmkit.data.shards import ShardReader

    corpus = Corpus.open(directory)
    reader = ShardReader(corpus)
    for i in range(len(corpus)):
        yield normalize_text(reader.read_meta(i)["text"])
