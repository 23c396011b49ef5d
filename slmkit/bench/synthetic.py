"""What benchmarks run on where no model or corpus is given: configurations of any size, and utterances like LibriTTS's.

Lengths: seconds log-normal around 5.5 (sigma 0.7, limited to 0.5 to 20), 80 frames and 15 text tokens a second, 25
tokens around them.

Example:
    model = SpeechLM(model_config(QWEN, group=12))
"""

from dataclasses import dataclass
from typing import Any, Literal

from slmkit.codec.base import CodecSpec, Stream
from slmkit.data.vocab import VocabLayout
from slmkit.model.config import SpeechLMConfig

MEDIAN_SEC, SIGMA, SHORTEST_SEC, LONGEST_SEC = 5.5, 0.7, 0.5, 20.0
FRAME_RATE, TEXT_RATE = 80, 15  # per second of speech
PROMPT_TOKENS, ANSWER_TOKENS = 18, 7  # around the text; the answer's are labelled
NUM_STREAMS = 3


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Size of a backbone and of its codebooks."""

    base_tokens: int = 151_665  # Qwen2.5
    codebook: int = 1024
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_shared: int  # key-value heads


QWEN = ModelShape(hidden_size=896, intermediate_size=4864, num_layers=24, num_heads=14, num_shared=2)  # Qwen2.5-0.5B


def codec_spec(codebook: int = 1024, *, speaker_dim: int = 0) -> CodecSpec:
    """Three streams at FACodec's rate."""
    streams = tuple(Stream(f"stream_{i}", codebook, "coupled") for i in range(NUM_STREAMS))
    return CodecSpec(
        name="bench", sample_rate=16_000, hop_samples=200, streams=streams, speaker_dim=speaker_dim, weights_sha256=""
    )


def model_config(
    shape: ModelShape, group: int, softmax: Literal["full", "stream"] = "full", **options: Any
) -> SpeechLMConfig:
    """A model of this shape with tied embeddings and without a speaker input. `options`: others of SpeechLMConfig."""
    layout = VocabLayout.published(
        "mtp" if group else "ntp",
        base_size=shape.base_tokens,
        bos_id=0,
        eos_id=1,
        codebook_sizes=(shape.codebook,) * NUM_STREAMS,
    )
    backbone = {
        "vocab_size": layout.size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_shared,
        "tie_word_embeddings": True,
    }
    spec = codec_spec(shape.codebook)
    return SpeechLMConfig(
        backbone=backbone, layout=layout.to_dict(), codec=spec.to_dict(), group=group, softmax=softmax, **options
    )
