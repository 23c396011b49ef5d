"""Turn a checkpoint of a run into a directory that stands alone: weights, config, tokenizer, vocabulary, codec spec.

  slmkit consolidate RUN MODEL                                          the newest complete checkpoint, float32
  slmkit consolidate RUN MODEL --step 5000 --dtype bfloat16
  slmkit consolidate MODEL OTHER --format published                     an export in another format or float type

Formats:
  slmkit      for slmkit: any model; loads with SpeechLM.from_pretrained
  hf          for transformers, and for servers built on it (vLLM and its kind), without slmkit and without code of its
              own; only next-token models without speaker input and with the full softmax can be written so
  published   model.safetensors with the keys of the paper's code; `slmkit import-model` is the way back

A model in format hf answers the published prompt; for reading aloud,
  <|im_start|>[Human]: Read this sentence: SENTENCE.\\n [Assistant]:
with SENTENCE as in training (lower case, the first letter a capital; the full stop follows whatever it ends with). Its
chat template makes the prompt from the user message "Read this sentence: SENTENCE.". What comes is words and speech
tokens, <a..><b..><c..> in turn, up to <|endoftext|>. Ask the server for token ids (they are in vocab_layout.json), or
for text with its special tokens (skip_special_tokens: false). A server knows no grammar: it may leave the turn of the
streams where slmkit's own decoding cannot.

What was written is compared with the checkpoint before the directory takes its name. DeepSpeed's checkpoints are
pickles: use this only on runs that you trust.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", metavar="RUN", help="directory of the run, or an export to write anew")
    parser.add_argument("out_dir", metavar="OUT", help="directory to write; must not exist")
    parser.add_argument("--step", type=int, help="checkpoint to take; default: the newest complete one")
    parser.add_argument(
        "--format",
        choices=("slmkit", "hf", "published"),
        default="slmkit",
        help="see above (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights; default: float32 of a run, that of an export",
    )


def run(args: argparse.Namespace) -> int:
    from slmkit.errors import UserError
    from slmkit.export.consolidate import consolidate, convert, is_export

    if is_export(args.run_dir):
        if args.step is not None:
            raise UserError("an export has no steps", got=f"--step {args.step}", next_step="give the run, or no step")
        dtype = convert(args.run_dir, args.out_dir, format=args.format, dtype=args.dtype)
        print(f"{args.out_dir}: weights of {args.run_dir} in {dtype}, read back and equal")
        return 0
    dtype = args.dtype or "float32"
    checkpoint = consolidate(args.run_dir, args.out_dir, step=args.step, format=args.format, dtype=dtype)
    print(f"{args.out_dir}: weights of {checkpoint.path} in {dtype}, read back and equal")
    return 0
