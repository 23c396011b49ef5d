"""Convert a published checkpoint, or a model in the format of transformers, into a model directory of slmkit.

  slmkit import-model model.safetensors OUT --base Qwen2.5-0.5B
  slmkit import-model DIR OUT

The first form converts a checkpoint of the published code (arXiv 2506.12537), the second a directory that
`slmkit consolidate --format hf` wrote, trained further or not.

Tokens per step (1, 3, 6 or 12), kind of heads and speaker input of a published checkpoint are found from its weights.
The float type stays. `slmkit consolidate OUT DIR --format published` (or hf) converts back.
"""

import argparse
import os

from slmkit import log
from slmkit.errors import UserError
from slmkit.files import check_new_directory, disk_errors_named, new_directory
from slmkit.hub import local_path, shown, source_of

FACODEC_SPEAKER_DIM = 256  # width of FACodec's timbre vector, which speaker-aware checkpoints take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", help="model.safetensors, a torch file of tensors only, or a directory of format hf"
    )
    parser.add_argument("out", metavar="OUT", help="new directory to write")
    parser.add_argument(
        "--base",
        metavar="BASE",
        help="text model that a published checkpoint started from, for tokenizer and config: a directory or a hub id",
    )
    parser.add_argument(
        "--codec", metavar="CODEC", help="codec of a published checkpoint, a directory or a hub id; it is noted"
    )


def run(args: argparse.Namespace) -> int:
    log.set_up()
    checkpoint = local_path(args.checkpoint, what="the checkpoint")
    is_hf = os.path.isdir(checkpoint)
    if is_hf and (args.base or args.codec):
        raise UserError(
            "a directory of format hf has its own tokenizer and codec", next_step="leave out --base and --codec"
        )
    if not is_hf and args.base is None:
        raise UserError("a published checkpoint needs the text model it started from", next_step="give it with --base")
    base, codec_dir = (
        None if name is None else local_path(name, what=what)
        for what, name in (("the base model", args.base), ("the codec", args.codec))
    )
    check_new_directory(args.out)
    import dataclasses

    from slmkit.codec.open import open_codec
    from slmkit.corpora.published import SPEC
    from slmkit.export import from_causal_lm
    from slmkit.model.companions import copy_companions, write_companions
    from slmkit.model.pretrained import extended_tokenizer, write_model
    from slmkit.model.published import from_published
    from slmkit.model.trained_on import TrainedOn

    if is_hf:
        model = from_causal_lm(checkpoint)
        source, described = {"causal_lm": shown(args.checkpoint, checkpoint)}, checkpoint
    else:
        assert base is not None, "checked above"
        codec = dataclasses.replace(SPEC, speaker_dim=FACODEC_SPEAKER_DIM)
        codec = open_codec(codec_dir).spec if codec_dir else codec
        model = from_published(checkpoint, base_dir=base, codec=codec)
        source = {"published": shown(args.checkpoint, checkpoint), "base": shown(args.base, base)}
        described = base
    with new_directory(args.out) as out:
        with disk_errors_named(args.out):
            write_model(model, out, tokenizer=extended_tokenizer(described, model.layout), source=source)
        if is_hf:
            copy_companions(checkpoint, out)
            trained_on = TrainedOn.read(out)
            if trained_on is not None:  # and perhaps on more, by another program
                dataclasses.replace(trained_on, is_all=False).write(out)
        elif codec_dir is not None:
            write_companions(out, model.config.codec_spec, codec_source=source_of(codec_dir))
    speaker = "with" if model.config.speaker_dim else "without"
    kind = f"MTP-{model.group}, {model.config.head} heads" if model.group else "NTP"
    print(f"{args.out}: {kind}, {speaker} speaker input")
    return 0
