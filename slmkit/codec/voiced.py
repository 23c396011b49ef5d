"""A codec without speaker vectors of its own, beside a voice encoder that gives them.

The vectors are for the language model alone: decoding knows nothing of them. The spec names the encoder by its hash, so
that codes with vectors of one encoder are not mixed with those of another.

Invariant (law): codes and speaker vector of an utterance do not depend on the batch it travels in, its place there, or
its padding.

Example:
    codec = with_voice(open_codec("codecs/mimi"), open_voice("wavlm-base-plus-sv"))
    codec.encode(waves, num_samples).speaker        # float32 [B, 512]
"""

import dataclasses
from collections.abc import Sequence

import torch

from slmkit.codec.base import Codec, CodecSpec, Encoded, Reach
from slmkit.codec.stages import Stage, StagedCodec
from slmkit.errors import UserError
from slmkit.voice.base import VoiceEncoder, is_long_enough


class VoicedCodec:
    """See the module; and `Codec` for what its methods do."""

    def __init__(self, codec: Codec, voice: VoiceEncoder) -> None:
        """Both on one device. The codec must have no speaker vectors; `with_voice` says so."""
        self.codec, self.voice = codec, voice
        self.spec: CodecSpec = dataclasses.replace(codec.spec, speaker_dim=voice.dim, speaker_sha256=voice.sha256)
        self.device: torch.device = codec.device

    @property
    def reach_frames(self) -> Reach:
        return self.codec.reach_frames

    def num_frames(self, num_samples: int) -> int:
        """0 also for a wave that gives frames, but is too short for a speaker vector."""
        enough = is_long_enough(self.voice, num_samples, self.spec.sample_rate)
        return self.codec.num_frames(num_samples) if enough else 0

    @torch.inference_mode()
    def encode(self, waves: torch.Tensor, num_samples: torch.Tensor) -> Encoded:
        """As `Codec.encode`; each vector is made of its own samples alone."""
        counts = num_samples.tolist()
        if shortest := [count for count in counts if self.num_frames(count) < 1]:
            raise ValueError(f"an utterance of {min(shortest)} samples is too short for a frame and a speaker vector")
        encoded = self.codec.encode(waves, num_samples)
        vectors = [
            torch.from_numpy(self.voice.vector(wave[:count].float().cpu().numpy(), self.spec.sample_rate))
            for wave, count in zip(waves, counts, strict=True)
        ]
        return encoded._replace(speaker=torch.stack(vectors).to(self.device))

    def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        """As `Codec.decode`; the speaker vector says nothing to this codec."""
        return self.codec.decode(codes, torch.zeros(len(codes), 0, device=self.device))


class _StagedVoicedCodec(VoicedCodec):
    """Of a codec that decodes piece by piece."""

    def decoding_stages(self) -> Sequence[Stage]:
        assert isinstance(self.codec, StagedCodec), "with_voice looks"
        return self.codec.decoding_stages()


def with_voice(codec: Codec, voice: VoiceEncoder) -> VoicedCodec:
    """`codec` with the speaker vectors of `voice`, on the same device, in place of those of another voice encoder.

    Raises UserError when the codec has vectors of its own.
    """
    refuse_own_vectors(codec.spec)
    codec = codec.codec if isinstance(codec, VoicedCodec) else codec
    return (_StagedVoicedCodec if isinstance(codec, StagedCodec) else VoicedCodec)(codec, voice)


def refuse_own_vectors(spec: CodecSpec) -> None:
    """Raise UserError for the spec of a codec that makes speaker vectors itself."""
    if spec.decodes_voice:
        raise UserError(
            f"the codec {spec.name} has speaker vectors of its own, and takes no others",
            got=f"vectors of width {spec.speaker_dim}",
            next_step="use it as it is, without --speaker",
        )
