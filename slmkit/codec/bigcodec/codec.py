"""BigCodec (arXiv 2409.05377) behind the `Codec` interface.

16 kHz, 80 frames per second, one stream of 8192 entries. Encoder and decoder are convolutional stages as FACodec has
them, with an LSTM from left to right at the frame rate. Encoding appends zeros up to the next whole frame, or a whole
frame of zeros where the utterance ends with one.

Shapes: N samples, T frames, C channels, D width of the latents; B is 1.

Invariant (law): codes of an utterance do not depend on the batch it travels in, its place there, or its padding.

Example:
    codec = open_codec("codecs/bigcodec")
    codes = codec.encode(waves, num_samples).codes  # [B, 1, T]
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from slmkit.codec.added import Added, identity
from slmkit.codec.base import CodecSpec, Reach, Stream
from slmkit.codec.bigcodec.checkpoint import LAST_KERNEL, BigCodecConfig, layout
from slmkit.codec.fields import Layer, reach
from slmkit.codec.lstm import Lstm, with_skip
from slmkit.codec.quantizers import Codebook
from slmkit.codec.single import SingleCodec
from slmkit.codec.snake.activation import Activation
from slmkit.codec.snake.units import ACTIVATED, SIDE, WIDE, DownStage, UpStage, down_layers, uniform, up_layers
from slmkit.codec.stages import Stage, Windowed
from slmkit.codec.weights import Weights, check_layout, folded_layout
from slmkit.config.load import from_dict

SAMPLE_RATE = 16000  # Hz


class BigCodec(SingleCodec):
    """BigCodec on one device."""

    def __init__(self, added: Added, device: torch.device) -> None:
        """Raises UserError where settings or weights are damaged."""
        wrong = "the directory does not hold BigCodec as it was added"
        config = from_dict(BigCodecConfig, added.config, wrong)
        tensors = check_layout(added.weights, folded_layout(layout(config)), wrong)
        weights = Weights({key: value.to(device) for key, value in tensors.items()})
        spec = CodecSpec(
            name="bigcodec",
            sample_rate=SAMPLE_RATE,
            hop_samples=config.hop,
            streams=(Stream("code", config.codebook_size, "coupled"),),
            speaker_dim=0,
            weights_sha256=identity(added),
        )
        super().__init__(spec, device)
        self._encoder = Encoder(weights / "CodecEnc", config)
        self._decoder = Decoder(weights / "generator" / "model", config)
        self._codebook = Codebook(weights / "generator" / "quantizer" / "layers" / 0)

    def num_frames(self, num_samples: int) -> int:
        return num_samples // self.spec.hop_samples + 1 if num_samples > 0 else 0

    def encoding_stages(self) -> Sequence[Stage]:
        return self._encoder.stages

    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        return self._codebook.nearest(latents.transpose(1, 2))

    def decoding_stages(self) -> Sequence[Stage]:
        lstm, grow = self._decoder.stages
        return Windowed(self._first, Reach(SIDE, SIDE)), lstm, grow

    def _first(self, codes: torch.Tensor) -> torch.Tensor:
        return self._decoder.widen(F.embedding(codes[:, 0], self._codebook.table).transpose(1, 2))


class Encoder:
    """Waves to latents."""

    def __init__(self, weights: Weights, config: BigCodecConfig) -> None:
        depth = len(config.strides)
        self.hop, self.first = config.hop, weights / "block.0"
        self.down = [DownStage(weights / f"block.{1 + i}", stride) for i, stride in enumerate(config.strides)]
        self.lstm = Lstm(weights / f"block.{depth + 1}.lstm", config.lstm_layers)
        self.activation = Activation(weights / f"block.{depth + 2}")
        self.last = weights / f"block.{depth + 3}"
        layers = [WIDE, *(layer for stride in config.strides for layer in down_layers(stride))]
        last = [ACTIVATED, Layer(LAST_KERNEL, 1, LAST_KERNEL // 2, LAST_KERNEL // 2)]
        self.stages = (
            Windowed(self.shrink, reach(layers, config.hop, 1), inputs_per_frame=config.hop),
            with_skip(self.lstm),
            Windowed(self.narrow, reach(last, 1, 1)),
        )

    def shrink(self, waves: torch.Tensor) -> torch.Tensor:
        """[1, 1, N] -> [1, C, N // hop + 1]."""
        extra = self.hop - waves.shape[2] % self.hop
        x = F.conv1d(F.pad(waves, (SIDE, SIDE + extra)), self.first["weight"], self.first["bias"])
        ends = uniform(x)
        for stage in self.down:
            x, ends = stage(x, ends)
        return x

    def narrow(self, x: torch.Tensor) -> torch.Tensor:
        """[1, C, T] -> [1, D, T]."""
        x = self.activation(x, uniform(x), LAST_KERNEL // 2)
        return F.conv1d(x, self.last["weight"], self.last["bias"])


class Decoder:
    """Latents to waves."""

    def __init__(self, weights: Weights, config: BigCodecConfig) -> None:
        depth, strides = len(config.strides), config.strides[::-1]
        self.first = weights / 0
        self.lstm = Lstm(weights / "1.lstm", config.lstm_layers)
        self.up = [UpStage(weights / (2 + i), stride) for i, stride in enumerate(strides)]
        self.activation, self.last = Activation(weights / (depth + 2)), weights / (depth + 3)
        layers = [*(layer for stride in strides for layer in up_layers(stride)), ACTIVATED, WIDE]
        self.stages = (
            with_skip(self.lstm),
            Windowed(self.grow, reach(layers, 1, config.hop), outputs_per_frame=config.hop),
        )

    def widen(self, latents: torch.Tensor) -> torch.Tensor:
        """[1, D, T] -> [1, C, T]."""
        return F.conv1d(latents, self.first["weight"], self.first["bias"], padding=SIDE)

    def grow(self, x: torch.Tensor) -> torch.Tensor:
        """[1, C, T] -> waves [1, 1, T * hop]."""
        for stage in self.up:
            x = stage(x)
        x = self.activation(x, uniform(x), SIDE)
        return torch.tanh(F.conv1d(x, self.last["weight"], self.last["bias"]))
