"""Convert a published checkpoint, or a model in the format of transformers, into a model directory of slmkit.

  slmkit import-model model.safetensors OUT --base Qwen2.5-0.5B
  slmkit import-model DIR OUT

The first form converts a checkpoint of the published code (arXiv 2506.12537), the second a directory that
`slmkit consolidate --format hf` wrote, trained further or not.

Tokens per step (1, 3, 6 or 12), kind of heads and speaker input of a published checkpoint are found from its weights.
The float type stays. `slmkit consolidate OUT DIR --format published` (or hf) converts back.
"""

import argparse
from pathlib import Path

from slmkit.errors import UserError
from slmkit.files import check_directory, check_new_directory

FACODEC_SPEAKER_DIM = 256  # width of FACodec's timbre vector, which speaker-aware checkpoints take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", help="model.safetensors, a torch file of tensors only, or a directory of format hf"
    )
    parser.add_argument("out", metavar="OUT", help="new directory to write")
    parser.add_argument(
        "--base", metavar="DIR", help="text model that a published checkpoint started from, for tokenizer and config"
    )
    parser.add_argument("--codec", metavar="DIR", help="codec of a published checkpoint; its hash is recorded")


def run(args: argparse.Namespace) -> int:
    is_hf = Path(args.checkpoint).is_dir()
    if not Path(args.checkpoint).exists():
        raise UserError("the checkpoint does not exist", got=args.checkpoint, next_step="check the path")
    if is_hf and (args.base or args.codec):
        raise UserError(
            "a directory of format hf has its own tokenizer and codec", next_step="leave out --base and --codec"
        )
    if not is_hf and args.base is None:
        raise UserError("a published checkpoint needs the text model it started from", next_step="give it with --base")
    for what, path in (("the base model", args.base), ("the codec", args.codec)):
        if path is not None:
            check_directory(what, path)
    check_new_directory(args.out)
    import dataclasses

    from slmkit.codec.open import open_codec
    from slmkit.corpora.published import SPEC
    from slmkit.export import from_causal_lm
    from slmkit.model.pretrained import extended_tokenizer, save
    from slmkit.model.published import from_published

    if is_hf:
        model = from_causal_lm(args.checkpoint)
        source, base = {"causal_lm": args.checkpoint}, args.checkpoint
    else:
        codec = dataclasses.replace(SPEC, speaker_dim=FACODEC_SPEAKER_DIM)
        codec = open_codec(args.codec).spec if args.codec else codec
        model = from_published(args.checkpoint, base_dir=args.base, codec=codec)
        source, base = {"published": args.checkpoint, "base": args.base}, args.base
    save(model, args.out, tokenizer=extended_tokenizer(base, model.layout), source=source)
    speaker = "with" if model.config.speaker_dim else "without"
    kind = f"MTP-{model.group}, {model.config.head} heads" if model.group else "NTP"
    print(f"{args.out}: {kind}, {speaker} speaker input")
    return 0
