"""Turn a checkpoint of the published code (arXiv 2506.12537) into a directory that slmkit loads.

  slmkit import-model model.safetensors OUT --base Qwen2.5-0.5B

The checkpoint says by itself whether it predicts one token or 3, 6, 12 a step, its kind of heads and whether it takes a
speaker vector. The way back is `slmkit consolidate --format published`.
"""

import argparse

SUMMARY = "published checkpoint to a model directory"
FACODEC_SPEAKER_DIM = 256  # width of FACodec's timbre vector, which speaker-aware checkpoints take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="model.safetensors, or a torch file that holds nothing but tensors")
    parser.add_argument("out", help="directory to write; must not exist")
    parser.add_argument(
        "--base", required=True, help="directory of the text model it grew on, for tokenizer and config"
    )
    parser.add_argument("--codec", help="directory of its codec, to record which weights it is for")


def run(args: argparse.Namespace) -> int:
    import dataclasses

    from slmkit.codec.open import open_codec
    from slmkit.data.importers.published import SPEC
    from slmkit.model.pretrained import extended_tokenizer, save
    from slmkit.model.published import from_published

    published = dataclasses.replace(SPEC, speaker_dim=FACODEC_SPEAKER_DIM)
    codec = open_codec(args.codec).spec if args.codec else published
    model = from_published(args.checkpoint, base_dir=args.base, codec=codec)
    tokenizer = extended_tokenizer(args.base, model.layout)
    save(model, args.out, tokenizer=tokenizer, source={"published": args.checkpoint, "base": args.base})
    speaker = "with" if model.config.speaker_dim else "without"
    kind = f"MTP-{model.group}, {model.config.head} heads" if model.group else "NTP"
    print(f"{args.out}: {kind}, {speaker} speaker input")
    return 0
