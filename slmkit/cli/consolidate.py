"""Export a checkpoint of a run as a model directory: weights, config, tokenizer, vocabulary and codec spec.

  slmkit consolidate RUN OUT                                   the newest complete checkpoint, in float32
  slmkit consolidate RUN OUT --step 5000 --dtype bfloat16      a certain checkpoint, in bfloat16
  slmkit consolidate MODEL OUT --format published              an export in another format

Formats:

  slmkit      for slmkit: any model; loads with SpeechLM.from_pretrained
  hf          for transformers and servers built on it (such as vLLM), without slmkit; only for next-token models
              without speaker input and with the full softmax
  published   model.safetensors with the keys of the paper's code; `slmkit import-model` converts back

A model in format hf takes the published prompt. To read a sentence aloud, it is
  <|im_start|>[Human]: Read this sentence: SENTENCE.\\n [Assistant]:
where SENTENCE is written as in training: in lower case with a capital first letter; the full stop follows whatever it
ends with. The chat template makes this prompt from the user message "Read this sentence: SENTENCE.". The model answers
with words and speech tokens, <a..><b..><c..> in turn, up to <|endoftext|>. On a base without <|im_start|> the prompt
begins with the base's own begin-of-text token, and an answer ends with its end-of-text token.

Ask the server for token ids (vocab_layout.json explains them), or for text with special tokens
(skip_special_tokens: false). A server does not know the order of the streams and may break it; slmkit's own decoding
keeps it.

The files of the checkpoint are compared with what was written then, and the weights of the export with them. Nothing of
a checkpoint is run, although DeepSpeed writes pickles.
"""

import argparse

from slmkit.errors import UserError
from slmkit.files import check_directory, check_new_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", help="directory of a run or of an export")
    parser.add_argument("out_dir", metavar="OUT", help="new directory to write")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest complete one)")
    parser.add_argument(
        "--format",
        choices=("slmkit", "hf", "published"),
        default="slmkit",
        help="see above (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="float type of the weights (default: float32 for a run, unchanged for an export)",
    )


def run(args: argparse.Namespace) -> int:
    check_directory("the run or export", args.run_dir)
    check_new_directory(args.out_dir)
    from slmkit.export import consolidate, convert, is_export

    if is_export(args.run_dir):
        if args.step is not None:
            raise UserError(
                "an export has no steps", got=f"--step {args.step}", next_step="give the run, or leave out --step"
            )
        dtype = convert(args.run_dir, args.out_dir, format=args.format, dtype=args.dtype)
        print(f"{args.out_dir}: weights of {args.run_dir} in {dtype}, read back and equal")
        return 0
    dtype = args.dtype or "float32"
    checkpoint = consolidate(args.run_dir, args.out_dir, step=args.step, format=args.format, dtype=dtype)
    print(f"{args.out_dir}: weights of {checkpoint.path} in {dtype}, read back and equal")
    return 0
