"""SpeechTokenizer (arXiv 2308.16692) behind the `Codec` interface.

16 kHz, 50 frames per second, up to 8 residual streams of 1024 entries. The first says what is said; the others add what
it leaves out. With fewer streams the entries of the first ones are decoded.

The encoder's LSTM goes both ways, so each code depends on the whole utterance. One of up to 10 minutes is encoded
whole, as published, which takes 1 MB of memory for each second. A longer one is encoded in pieces of 10 minutes, each
with half a minute of audio on both sides; its codes may be others than those of the whole. Decoding goes from left to
right.

Shapes: N samples, K streams, T frames, D width of the latents; B is 1.

Invariant (law): codes of an utterance do not depend on the batch it travels in, its place there, or its padding.

Example:
    codec = open_codec("codecs/speechtokenizer-5")
    codes = codec.encode(waves, num_samples).codes  # [B, 5, T]
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from slmkit.codec.added import Added, identity
from slmkit.codec.base import CodecSpec, Stream
from slmkit.codec.quantizers import EuclideanCodebook
from slmkit.codec.single import SingleCodec
from slmkit.codec.speechtokenizer.checkpoint import SpeechTokenizerConfig, codebook_key, layout
from slmkit.codec.speechtokenizer.network import Decoder, Encoder
from slmkit.codec.stages import Stage
from slmkit.codec.weights import Weights, check_layout, folded_layout
from slmkit.config.load import from_dict


class SpeechTokenizer(SingleCodec):
    """SpeechTokenizer on one device."""

    def __init__(self, added: Added, device: torch.device) -> None:
        """Raises UserError where settings or weights are damaged."""
        wrong = "the directory does not hold SpeechTokenizer as it was added"
        config = from_dict(SpeechTokenizerConfig, added.config, wrong)
        tensors = check_layout(added.weights, folded_layout(layout(config, added.streams)), wrong)
        weights = Weights({key: value.to(device) for key, value in tensors.items()})
        semantic = Stream("semantic", config.codebook_size, "semantic")
        rest = (Stream(f"residual_{i}", config.codebook_size, "coupled") for i in range(1, added.streams))
        spec = CodecSpec(
            name="speechtokenizer",
            sample_rate=config.sample_rate,
            hop_samples=config.hop,
            streams=(semantic, *rest),
            speaker_dim=0,
            weights_sha256=identity(added),
        )
        super().__init__(spec, device)
        self._encoder = Encoder(weights / "encoder.model", config)
        self._decoder = Decoder(weights / "decoder.model", config)
        self._codebooks = [EuclideanCodebook(weights[codebook_key(i)]) for i in range(added.streams)]

    def encoding_stages(self) -> Sequence[Stage]:
        return self._encoder.stages

    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        """In parts: the encoder gives the latents of an utterance all at once."""
        return torch.cat([self._nearest(part[0].T) for part in latents.split(self.piece_frames, dim=2)], dim=1)

    def _nearest(self, left: torch.Tensor) -> torch.Tensor:
        """Codes [K, t] of latents [t, D]: each codebook takes what the ones before left."""
        codes = []
        for codebook in self._codebooks:
            codes.append(codebook.nearest(left))
            left = left - F.embedding(codes[-1], codebook.table)
        return torch.stack(codes)

    def decoding_stages(self) -> Sequence[Stage]:
        first, lstm, back = self._decoder.stages
        return first._replace(run=lambda codes: first.run(self._sum(codes))), lstm, back

    def _sum(self, codes: torch.Tensor) -> torch.Tensor:
        """The entries of all streams, added: [1, D, T] of codes [1, K, T]."""
        found = [F.embedding(codes[:, k], book.table) for k, book in enumerate(self._codebooks)]
        return torch.stack(found).sum(dim=0).transpose(1, 2)
