"""FACodec V2 (NaturalSpeech 3, arXiv 2403.03100) behind the `Codec` interface.

16 kHz, 80 frames per second. Streams in the language model's order: content_1, content_2, prosody; with `detail=True`
also detail_1 to detail_3, which serve reconstruction only. The speaker vector has 256 numbers.

All work is done in float32, whatever autocast or TF32 setting is on around it. On a CPU utterances run one by one,
since a batch there shares no work and padding costs; elsewhere a batch runs as one.

Invariant (law): codes and speaker vector of an utterance do not depend on the batch it travels in, its place there, or
its padding. Latents agree to float32 rounding (kernels may add in another order for another batch shape); a code can
differ only where two entries are equally near to that rounding.

Not done: encoding hours in bounded memory. Prosody and speaker vector come of attention over the whole utterance.

Example:
    codec = FACodec.from_directory("models/facodec")
    codes, num_frames, speaker = codec.encode(waves, num_samples)
    waves = codec.decode(codes, speaker)
"""

import dataclasses
import functools
from pathlib import Path

import torch
import torch.nn.functional as F

from slmkit.audio.mel import Grid, LogMel
from slmkit.codec.base import CodecSpec, Encoded, Reach, Stream, check_codes, check_waves
from slmkit.codec.facodec.checkpoint import hash_files, load_weights
from slmkit.codec.facodec.dimensions import (
    CODEBOOK_SIZE,
    CODEBOOKS,
    ENCODER_STRIDES,
    FFT,
    HOP,
    LATENT,
    MAGNITUDE_EPSILON,
    MEL_BANDS_USED,
    MEL_FLOOR,
    MEL_PADDING,
    SAMPLE_RATE,
    WINDOW,
)
from slmkit.codec.facodec.network import ConvDecoder, ConvEncoder, Transformer, decoder_reach
from slmkit.codec.quantizers import ResidualQuantizer
from slmkit.codec.snake.activation import Ends, strided_length
from slmkit.codec.stages import Windowed, run_in_pieces
from slmkit.codec.weights import Weights
from slmkit.precision import exact_float32

LM_STREAMS = (
    Stream("content_1", CODEBOOK_SIZE, "content"),
    Stream("content_2", CODEBOOK_SIZE, "content"),
    Stream("prosody", CODEBOOK_SIZE, "prosody"),
)
PIECE_FRAMES = 2400  # decoded at once
DETAIL_STREAMS = tuple(Stream(f"detail_{i}", CODEBOOK_SIZE, "detail") for i in (1, 2, 3))


class FACodec:
    """FACodec V2 on one device."""

    def __init__(
        self,
        encoder: Weights,
        decoder: Weights,
        device: torch.device,
        *,
        detail: bool = False,
        weights_sha256: str = "",
    ) -> None:
        """Build from folded weights on `device`; `from_directory` reads them from the published files."""
        self.device = device
        self.spec = CodecSpec(
            name="facodec",
            sample_rate=SAMPLE_RATE,
            hop_samples=HOP,
            streams=LM_STREAMS + (DETAIL_STREAMS if detail else ()),
            speaker_dim=LATENT,
            weights_sha256=weights_sha256,
        )
        # Detail that was encoded is decoded by a codec that encodes none, too: its networks are the same.
        self._whole_spec = dataclasses.replace(self.spec, streams=LM_STREAMS + DETAIL_STREAMS)
        self.items_at_once = 1 if device.type == "cpu" else None  # utterances that run as one batch; None: all
        self._encoder, self._decoder = ConvEncoder(encoder), ConvDecoder(decoder / "model")
        mel_basis, window = encoder["mel_transform.mel_basis"], encoder["mel_transform.hann_window"]
        grid = Grid(n_fft=FFT, window=WINDOW, hop=HOP)
        self._log_mel = LogMel(
            grid=grid,
            window=grid.centred(window),
            bank=mel_basis[:MEL_BANDS_USED],
            floor=MEL_FLOOR,
            power_epsilon=MAGNITUDE_EPSILON,
        )
        self._mel_linear, self._mel_encoder = decoder / "melspec_linear", Transformer(decoder / "melspec_encoder")
        self._timbre_encoder, self._timbre_linear = Transformer(decoder / "timbre_encoder"), decoder / "timbre_linear"
        self._prosody, self._content, self._detail = (
            ResidualQuantizer(decoder / f"quantizer.{i}", count) for i, count in enumerate(CODEBOOKS)
        )

    @staticmethod
    def from_directory(path: str | Path, device: torch.device | str = "cpu") -> "FACodec":
        """Load the two published files in `path`.

        Raises UserError when a file is missing, unreadable, carries code, or is not FACodec V2.
        """
        weights = load_weights(path, device)
        device = weights["encoder"]["mel_transform.hann_window"].device
        return FACodec(weights["encoder"], weights["decoder"], device, weights_sha256=hash_files(path))

    @property
    def reach_frames(self) -> Reach:
        """As `Codec.reach_frames`: 28 to each side, for any weights. The decoder has nothing but convolutions."""
        return decoder_reach()

    def num_frames(self, num_samples: int) -> int:
        """Frames that `num_samples` samples give; 0 up to 412, too few for the reflection around the spectrogram."""
        if num_samples <= MEL_PADDING:
            return 0
        for stride in ENCODER_STRIDES:
            num_samples = strided_length(num_samples, stride)
        return num_samples

    @torch.inference_mode()
    def encode(self, waves: torch.Tensor, num_samples: torch.Tensor) -> Encoded:
        """Codes of `waves`, float32 [B, N] in [-1, 1], of which utterance i has num_samples[i] (int64 [B]) samples.

        Raises ValueError when an utterance is too short to give a frame, or longer than its row.
        """
        counts = num_samples.tolist()
        num_frames = check_waves(self, waves, counts)
        shape = len(counts), len(self.spec.streams), max(num_frames, default=0)
        codes = torch.zeros(shape, dtype=torch.int32, device=self.device)
        speaker = torch.zeros(len(counts), LATENT, device=self.device)
        on_device = torch.tensor(num_frames, device=self.device)  # now: later it would wait for the networks
        step = self.items_at_once or max(1, len(counts))
        with exact_float32(self.device):
            for start in range(0, len(counts), step):
                some = slice(start, start + step)
                part = waves[some, : max(counts[some])].to(self.device, torch.float32)
                found, speaker[some] = self._encode(part, Ends(counts[some], self.device))
                codes[some, :, : found.shape[2]] = found
        return Encoded(codes, on_device, speaker)

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        """Waves float32 [B, 200 * T] in [-1, 1] of codes int [B, 3 or 6, T] and speaker vectors float32 [B, 256].

        With three streams the detail is left out. Raises ValueError when a code is outside its stream's codebook.
        """
        check_codes(codes, self._whole_spec)
        if list(speaker.shape) != [len(codes), LATENT]:
            raise ValueError(f"speaker {list(speaker.shape)} is not [{len(codes)}, {LATENT}]")
        codes, speaker = codes.to(self.device, torch.int64), speaker.to(self.device, torch.float32)
        step = self.items_at_once or max(1, len(codes))
        waves = torch.zeros(len(codes), HOP * codes.shape[2], device=self.device)
        if waves.numel():
            with exact_float32(self.device):
                for start in range(0, len(codes), step):
                    some = slice(start, start + step)
                    decode = functools.partial(self._decode, speaker=speaker[some])
                    stage = Windowed(decode, self.reach_frames, outputs_per_frame=HOP)
                    waves[some] = run_in_pieces([stage], codes[some], piece_frames=PIECE_FRAMES)[:, 0]
        return waves

    def _encode(self, waves: torch.Tensor, ends: Ends) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [B, K, T], 0 beyond an utterance, and speaker [B, D] of waves [B, N]."""
        inside = ends.valid()
        waves = waves if inside is None else waves.where(inside[:, 0], 0)
        latents, frame_ends = self._encoder(waves, ends)
        latents, valid = latents.transpose(1, 2), frame_ends.valid()
        mel = fit_frames(self._mel(waves, ends), latents.shape[1], ends)
        prosody_in = F.linear(mel, self._mel_linear["weight"], self._mel_linear["bias"])
        prosody, quantized_prosody = self._prosody.quantize(self._mel_encoder(prosody_in, valid))
        content, quantized_content = self._content.quantize(latents)
        codes = [content, prosody]
        if len(self.spec.streams) > len(LM_STREAMS):
            codes.append(self._detail.quantize(latents - (quantized_prosody + quantized_content))[0])
        joined, timbre = torch.cat(codes, dim=1), self._timbre_encoder(latents, valid)
        if valid is None:
            return joined, timbre.mean(dim=1)
        return joined.where(valid, 0), timbre.where(valid.transpose(1, 2), 0).sum(dim=1) / frame_ends.per_row()

    def _mel(self, waves: torch.Tensor, ends: Ends) -> torch.Tensor:
        """Log-mel frames [B, T, bands] of waves [B, N], each utterance reflected at its own ends."""
        at = torch.arange(-MEL_PADDING, waves.shape[1] + MEL_PADDING, device=self.device).abs()
        last = ends.per_row() - 1
        places = (last - (last - at).abs()).clamp(min=0)  # [B, N + 824], or one row for all
        return self._log_mel(waves.gather(1, places.expand(len(waves), -1)))

    def _decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        """[B, K, T] -> waves [B, 1, HOP * T]."""
        books = self._content.codebooks + self._prosody.codebooks + self._detail.codebooks
        entries = [F.embedding(codes[:, k], books[k].table) for k in range(codes.shape[1])]
        latents = torch.stack(entries).sum(dim=0)
        timbre = F.linear(speaker, self._timbre_linear["weight"], self._timbre_linear["bias"])[:, None]
        scale, shift = timbre.chunk(2, dim=2)
        return self._decoder((F.layer_norm(latents, (LATENT,)) * scale + shift).transpose(1, 2))[:, None]


def fit_frames(mel: torch.Tensor, num_frames: int, ends: Ends) -> torch.Tensor:
    """[B, T', bands] -> [B, num_frames, bands]: zeros after each utterance's own spectrogram frames."""
    inside = torch.arange(num_frames, device=mel.device) < ends.per_row() // HOP  # [B, num_frames], or one row for all
    mel = F.pad(mel, (0, 0, 0, num_frames - mel.shape[1]))
    return mel.where(inside[..., None], 0)
