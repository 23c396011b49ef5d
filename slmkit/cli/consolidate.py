"""Export a checkpoint of a run as a model directory: weights, config, tokenizer, vocabulary and codec spec.

  slmkit consolidate RUN OUT                                   the newest complete checkpoint, in float32
  slmkit consolidate RUN OUT --step 5000 --dtype bfloat16      a certain checkpoint, in bfloat16
  slmkit consolidate MODEL OUT --format published              an export in another format
  slmkit consolidate RUN OUT --with-codec                      together with its codec, to be moved elsewhere

OUT knows where its codec is and holds a few voices of the corpus, so that `slmkit synthesize OUT "Hello."` needs no
more; put vectors or audio files of your own into OUT/voices.

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
from typing import Any

from slmkit import log
from slmkit.errors import UserError
from slmkit.files import check_directory, check_new_directory
from slmkit.hub import local_path


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
    parser.add_argument(
        "--codec", metavar="CODEC", help="codec of the model, a directory or a hub id (default: that of the corpus)"
    )
    parser.add_argument("--with-codec", action="store_true", help="copy the codec into OUT")


def run(args: argparse.Namespace) -> int:
    log.set_up()
    source = local_path(args.run_dir, what="the run or export")
    check_directory("the run or export", source)
    check_new_directory(args.out_dir)
    codec = local_path(args.codec, what="the codec") if args.codec else None
    from slmkit.export import consolidate, convert, is_export

    beside: dict[str, Any] = {"codec": codec, "with_codec": args.with_codec}
    if is_export(source):
        if args.step is not None:
            raise UserError(
                "an export has no steps", got=f"--step {args.step}", next_step="give the run, or leave out --step"
            )
        dtype = convert(source, args.out_dir, format=args.format, dtype=args.dtype, **beside)
        print(f"{args.out_dir}: weights of {args.run_dir} in {dtype}, read back and equal")
        _tell_companions(args.out_dir)
        return 0
    dtype = args.dtype or "float32"
    checkpoint = consolidate(source, args.out_dir, step=args.step, format=args.format, dtype=dtype, **beside)
    print(f"{args.out_dir}: weights of {checkpoint.path} in {dtype}, read back and equal")
    _tell_companions(args.out_dir)
    return 0


def _tell_companions(out_dir: str) -> None:
    from slmkit.model.companions import codec_source, voices_beside

    voices = ", ".join(voices_beside(out_dir)) or "none"
    print(f"codec: {codec_source(out_dir) or 'not known; give it with --codec'}; voices: {voices}")
