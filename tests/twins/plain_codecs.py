"""Converted codecs without slmkit: one utterance after the other through the public implementation, module by module.

Example:
    plain = PLAIN["encodec"](Path("codecs/encodec-8"))
    codes = plain.encode(wave)  # int64 [K, T] of float32 [N]
    wave = plain.decode(codes)  # float32 [N']
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch.nn import functional

from slmkit.bench.race import twin


class Plain(Protocol):
    """A codec that takes one utterance."""

    def encode(self, wave: torch.Tensor) -> torch.Tensor: ...

    def decode(self, codes: torch.Tensor) -> torch.Tensor: ...


CLASSES = {
    "encodec": "Encodec",
    "dac": "Dac",
    "mimi": "Mimi",
    "xcodec": "Xcodec",
    "xcodec2": "Xcodec2",
    "wavtokenizer": "WavTokenizer",
}


class PlainTransformers:
    """transformers' own `encode` and `decode`, weight norm computed in every call."""

    def __init__(self, kind: str, network: Any, num_streams: int) -> None:
        self.kind, self.network, self.num_streams = kind, network, num_streams

    @classmethod
    def from_directory(cls, directory: Path, device: torch.device | str = "cpu") -> "PlainTransformers":
        """Of what `slmkit codec add` wrote."""
        import transformers

        described = json.loads((directory / "codec.json").read_text())
        name = CLASSES[described["kind"]]
        config = getattr(transformers, f"{name}Config").from_dict(described["config"])
        weights = safetensors.torch.load_file(directory / "model.safetensors")
        before = transformers.utils.logging.get_verbosity()
        transformers.utils.logging.set_verbosity_error()  # what only training counts is not there
        network = getattr(transformers, f"{name}Model").from_pretrained(None, config=config, state_dict=weights)
        transformers.utils.logging.set_verbosity(before)
        return cls(described["kind"], network.eval().to(device), described["streams"])

    @torch.inference_mode()
    def encode(self, wave: torch.Tensor) -> torch.Tensor:
        wave = wave[None, None]
        if self.kind == "encodec":
            found = self.network.encode(wave, bandwidth=self.network.config.target_bandwidths[-1]).audio_codes[0]
        elif self.kind == "dac" or self.kind == "xcodec":
            found = self.network.encode(self._filled(wave, self.network.config.hop_length)).audio_codes
        elif self.kind == "xcodec2":
            found = self._encode_with_mel(wave)
        else:
            found = self.network.encode(wave).audio_codes
        return found[0, : self.num_streams]

    def _encode_with_mel(self, wave: torch.Tensor) -> torch.Tensor:
        """As transformers' feature extractor prepares it, which needs torchaudio."""
        from transformers import SeamlessM4TFeatureExtractor

        hop = self.network.config.hop_length
        wave = self._filled(functional.pad(wave, (0, 1)), hop)
        extractor = SeamlessM4TFeatureExtractor(feature_size=80, num_mel_bins=80, padding_value=1.0)
        around = functional.pad(wave, (hop // 2, hop // 2))[0, 0].cpu().numpy()
        mel = extractor(around, sampling_rate=16000, return_tensors="pt").to(wave.device)
        return self.network.encode(wave, mel["input_features"], input_features_mask=mel["attention_mask"]).audio_codes

    @staticmethod
    def _filled(wave: torch.Tensor, hop: int) -> torch.Tensor:
        return functional.pad(wave, (0, -wave.shape[2] % hop))

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        if self.kind == "encodec":
            return self.network.decode(codes[None, None], [None]).audio_values[0, 0]
        return self.network.decode(audio_codes=codes[None]).audio_values.flatten()


PLAIN: dict[str, Callable[..., Plain]] = {
    **dict.fromkeys(CLASSES, PlainTransformers.from_directory),
    "bigcodec": twin("bigcodec").PlainBigCodec.from_directory,
    "snac": twin("snac").PlainSnac.from_directory,
    "speechtokenizer": twin("speechtokenizer").PlainSpeechTokenizer.from_directory,
}
