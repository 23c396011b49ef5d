"""FACodec V2, the speech codec of NaturalSpeech 3 (arXiv 2403.03100)."""

from slmkit.codec.facodec.checkpoint import FILES
from slmkit.codec.facodec.codec import FACodec
from slmkit.codec.open import Preset, register_codec

PRESETS = (Preset("facodec", 16000, 200, "3 of 1024", True, "Apache 2.0"),)
register_codec("facodec", tuple(FILES.values()), FACodec.from_directory, presets=PRESETS)
