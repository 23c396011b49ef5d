"""Turn a model of another program into a directory that slmkit loads.

  slmkit import-model model.safetensors OUT --base Qwen2.5-0.5B     a checkpoint of the published code (2506.12537)
  slmkit import-model DIR OUT      a directory of `slmkit consolidate --format hf`, perhaps trained on elsewhere

A published checkpoint says by itself whether it predicts one token or 3, 6, 12 a step, its kind of heads and whether it
takes a speaker vector. The float type stays. The way back is `slmkit consolidate OUT DIR --format published` (or hf).
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from slmkit.model.slm import SpeechLM

FACODEC_SPEAKER_DIM = 256  # width of FACodec's timbre vector, which speaker-aware checkpoints take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", help="model.safetensors, a torch file that holds nothing but tensors, or a directory of format hf"
    )
    parser.add_argument("out", help="directory to write; must not exist")
    parser.add_argument(
        "--base", help="directory of the text model a published checkpoint grew on, for tokenizer and config"
    )
    parser.add_argument("--codec", help="directory of its codec, to record which weights it is for")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from slmkit.errors import UserError
    from slmkit.export.hf import from_causal_lm
    from slmkit.model.pretrained import extended_tokenizer, save

    if Path(args.checkpoint).is_dir():
        if args.base or args.codec:
            raise UserError(
                "a directory of format hf names its own tokenizer and codec", next_step="leave out --base and --codec"
            )
        model = from_causal_lm(args.checkpoint)
        source, base = {"causal_lm": args.checkpoint}, args.checkpoint
    elif args.base is None:
        raise UserError("a published checkpoint needs the text model it grew on", next_step="give it with --base")
    else:
        model, source, base = _published(args), {"published": args.checkpoint, "base": args.base}, args.base
    save(model, args.out, tokenizer=extended_tokenizer(base, model.layout), source=source)
    speaker = "with" if model.config.speaker_dim else "without"
    kind = f"MTP-{model.group}, {model.config.head} heads" if model.group else "NTP"
    print(f"{args.out}: {kind}, {speaker} speaker input")
    return 0


def _published(args: argparse.Namespace) -> "SpeechLM":
    import dataclasses

    from slmkit.codec.open import open_codec
    from slmkit.corpora.published import SPEC
    from slmkit.model.published import from_published

    published = dataclasses.replace(SPEC, speaker_dim=FACODEC_SPEAKER_DIM)
    codec = open_codec(args.codec).spec if args.codec else published
    return from_published(args.checkpoint, base_dir=args.base, codec=codec)
