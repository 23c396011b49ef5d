"""Codec directories of the real sizes, with seeded weights, for `slmkit bench codecs` and `slmkit bench memory`.

    python tests/real_size_codecs.py OUT [NAME ...]      # default: all, about 9 GB
    slmkit bench codecs OUT/*

What lies in OUT already stays. Codebooks are drawn from the codec's own latents, so that codes vary.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import seeded_codecs
import seeded_facodec
import torch
import transformers
from codec import tiny_snac, tiny_transformers

from slmkit.bench.tokenize import random_melvq
from slmkit.codec.added import add_codec

COMMON_SNAC = {"codebook_size": 4096, "codebook_dim": 8, "noise": True, "latent_dim": None, "depthwise": True}
SNAC_24 = {
    **COMMON_SNAC,
    "sampling_rate": 24000,
    "encoder_dim": 48,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "vq_strides": [4, 2, 1],
}
SNAC_44 = {
    **COMMON_SNAC,
    "sampling_rate": 44100,
    "encoder_dim": 64,
    "encoder_rates": [2, 3, 8, 8],
    "decoder_dim": 1536,
    "decoder_rates": [8, 8, 3, 2],
    "attn_window_size": 32,
    "vq_strides": [8, 4, 2, 1],
}
Write = Callable[[Path], Any]


def network(make: Callable[..., Any], config: str, **values: Any) -> Write:
    """Writes what `make` makes of a config of transformers, whose sizes are the published ones."""
    return lambda place: make(config=getattr(transformers, config)(**values)).save_pretrained(place)


PUBLISHED: dict[str, tuple[Write, int | None]] = {  # what `codec add` is given, and the streams to use
    "encodec": (network(tiny_transformers.make_encodec, "EncodecConfig"), 8),
    "dac_16khz": (
        network(tiny_transformers.make_dac, "DacConfig", downsampling_ratios=[2, 4, 5, 8], n_codebooks=12),
        12,
    ),
    "dac_44khz": (
        lambda place: tiny_transformers.make_dac(
            44100, config=transformers.DacConfig(sampling_rate=44100, n_codebooks=9)
        ).save_pretrained(place),
        9,
    ),
    "mimi": (network(tiny_transformers.make_mimi, "MimiConfig"), 8),
    "wavtokenizer": (network(tiny_transformers.make_wavtokenizer, "WavTokenizerConfig"), None),
    "xcodec": (network(tiny_transformers.make_xcodec, "XcodecConfig"), None),
    "xcodec2": (network(tiny_transformers.make_xcodec2, "Xcodec2Config"), None),
    "speechtokenizer": (lambda place: seeded_codecs.write_published("speechtokenizer", place), None),
    "bigcodec": (lambda place: seeded_codecs.write_published("bigcodec", place), None),
    "snac_24khz": (lambda place: tiny_snac.write_published(place, SNAC_24), None),
    "snac_44khz": (lambda place: tiny_snac.write_published(place, SNAC_44), None),
}
AS_THEY_ARE: dict[str, Write] = {
    "facodec": seeded_facodec.write_files,
    "melvq": lambda place: random_melvq().save(place),
}


def make(name: str, out: Path) -> None:
    """The codec `name` in the new directory `out`."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        place = Path(temporary) / "published"
        place.mkdir()
        if name in AS_THEY_ARE:
            AS_THEY_ARE[name](place)
            os.rename(place, out)
            return
        write, streams = PUBLISHED[name]
        write(place)
        add_codec(place, out, num_streams=streams)


if __name__ == "__main__":
    names = [*PUBLISHED, *AS_THEY_ARE]
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)} (default: all)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or names:
        if not (args.out / name).exists():
            make(name, args.out / name)
        print(args.out / name, flush=True)
