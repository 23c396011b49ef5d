"""Codecs whose networks are classes of transformers, one family a file."""

from slmkit.codec.hf import dac, encodec, mimi, wavtokenizer, xcodec, xcodec2

__all__ = ["dac", "encodec", "mimi", "wavtokenizer", "xcodec", "xcodec2"]
