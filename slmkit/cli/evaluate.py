"""Score a model on sentences of a corpus: speak them, then compare with the corpus.

Prints, and writes to OUT/scores.json: how many answers ended by themselves, the share of frames whose codes equal the
corpus's in each stream, the log-mel distance to the codec's copy synthesis, the real-time factor. The spoken WAV files
and their codes stay in OUT.
"""

import argparse

SUMMARY = "speak sentences of a corpus and score them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory that `slmkit consolidate` wrote")
    parser.add_argument("--corpus", required=True, help="tokenized corpus with the true codes")
    parser.add_argument("--codec", required=True, help="directory of the codec")
    parser.add_argument("--out", required=True, help="new directory for waves, codes and scores")
    parser.add_argument(
        "--limit", type=int, default=8, help="how many sentences, from the first (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from slmkit.data.index import Corpus
    from slmkit.evaluate.speech import generate_outputs, score_outputs, summary_lines
    from slmkit.infer.synthesizer import Synthesizer

    corpus, out = Corpus.open(args.corpus), Path(args.out)
    synthesizer = Synthesizer.load(args.model, args.codec, args.device)
    generate_outputs(synthesizer, corpus, range(min(args.limit, len(corpus))), out)
    print(f"scores of {args.model} on {args.corpus}, waves in {out / 'wavs'}")
    print(summary_lines(score_outputs(out, corpus, synthesizer)))
    return 0
