"""SpeechTokenizer (arXiv 2308.16692): 16 kHz, 50 frames per second, 8 residual streams, the first of them semantic."""

from slmkit.codec.open import Preset, register_codec
from slmkit.codec.speechtokenizer.checkpoint import read
from slmkit.codec.speechtokenizer.codec import SpeechTokenizer

PRESETS = (Preset("fnlp/SpeechTokenizer", 16000, 320, "1 to 8 of 1024", True, "Apache 2.0"),)
register_codec("speechtokenizer", read=read, build=SpeechTokenizer, presets=PRESETS)
