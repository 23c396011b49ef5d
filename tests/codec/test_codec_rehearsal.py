"""Codecs on a GPU, rehearsed without one (`rehearsal`): between the waves and the codes nothing waits for the device.

Weights have no content here, or are zeros: sizes are those of tiny networks, of FACodec the published ones.
"""

import contextlib
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from codec.families import family_directory, family_names
from codec.tiny_snac import CONFIGS
from inference_rehearsal import inference_rehearsal
from rehearsal import DEVICE, Slip

from slmkit.codec.added import Added, open_added
from slmkit.codec.bigcodec import checkpoint as bigcodec
from slmkit.codec.bigcodec.codec import BigCodec
from slmkit.codec.facodec.checkpoint import published_layout
from slmkit.codec.facodec.codec import FACodec
from slmkit.codec.melvq import NUM_BANDS, MelVQ
from slmkit.codec.open import codec_families
from slmkit.codec.quantizers import ResidualQuantizer
from slmkit.codec.snac.codec import SnacConfig
from slmkit.codec.snac.codec import build as build_snac
from slmkit.codec.snake import activation
from slmkit.codec.speechtokenizer import checkpoint as speechtokenizer
from slmkit.codec.speechtokenizer.codec import SpeechTokenizer
from slmkit.codec.weights import Layout, Weights, fold, folded_layout
from slmkit.config.load import from_dict, to_dict

LENGTHS = ([900, 700, 500], [900, 900])  # samples of the utterances of a batch: ragged, and all alike
NUM_FRAMES = 5
# Their networks come from transformers, or look at the sound on the host before (xcodec2).
OF_TRANSFORMERS = [name for name in family_names() if name not in ("bigcodec", "speechtokenizer", "xcodec2")]


@pytest.fixture(autouse=True)
def without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch knows none for the device of a rehearsal."""
    monkeypatch.setattr(torch, "autocast", lambda device_type, enabled: contextlib.nullcontext())


def zeros(shapes: Layout) -> dict[str, torch.Tensor]:
    return {key: torch.zeros(shape) for key, shape in shapes.items()}


@functools.cache
def facodec() -> FACodec:
    parts = {
        part: Weights(fold({key: torch.empty(shape, device=DEVICE) for key, shape in layout.items()}))
        for part, layout in published_layout().items()
    }
    return FACodec(**parts, device=DEVICE, detail=True)


def melvq() -> MelVQ:
    return MelVQ(torch.zeros(3, 8, NUM_BANDS), torch.zeros(NUM_BANDS), DEVICE)


def tiny_bigcodec() -> BigCodec:
    sizes = {"width": 2, "strides": (4, 5, 5), "lstm_layers": 1, "latent": 12, "codebook_size": 16, "code_dim": 4}
    config = bigcodec.BigCodecConfig(**sizes)
    weights = zeros(folded_layout(bigcodec.layout(config)))
    return BigCodec(Added(streams=1, config=to_dict(config), weights=weights), DEVICE)


def tiny_speechtokenizer() -> SpeechTokenizer:
    config = speechtokenizer.SpeechTokenizerConfig(
        n_filters=2, strides=(4, 5, 4), dimension=12, lstm_layers=1, codebook_size=16, n_q=3
    )
    weights = zeros(folded_layout(speechtokenizer.layout(config, 3)))
    return SpeechTokenizer(Added(streams=3, config=to_dict(config), weights=weights), DEVICE)


def tiny_snac() -> Any:
    config = from_dict(SnacConfig, CONFIGS["windows"])
    network = config.network(len(config.vq_strides))
    weights = zeros({name: tuple(tensor.shape) for name, tensor in network.state_dict().items()})
    return build_snac(Added(streams=config.stream_numbers[-1], config=CONFIGS["windows"], weights=weights), DEVICE)


OWN: dict[str, Callable[[], Any]] = {
    "facodec": facodec,
    "melvq": melvq,
    "bigcodec": tiny_bigcodec,
    "speechtokenizer": tiny_speechtokenizer,
    "snac": tiny_snac,
}


def encode(codec: Any, counts: list[int]) -> list[str]:
    """What it copies to the device. Raises AssertionError where it reads from it."""
    waves, lengths = torch.zeros(len(counts), max(counts)), torch.tensor(counts)
    with inference_rehearsal() as watch:
        encoded = codec.encode(waves, lengths)
    assert not watch.reads
    most = max(codec.num_frames(count) for count in counts)
    assert encoded.codes.shape == (len(counts), len(codec.spec.streams), most)
    assert {tensor.device for tensor in encoded} == {DEVICE}
    return watch.uploads


def decode(codec: Any, device: torch.device) -> tuple[list[str], list[str]]:
    """Of codes on `device`: what it reads from the device of the codec, and what it copies to it."""
    codes = torch.zeros(2, len(codec.spec.streams), NUM_FRAMES, dtype=torch.int32, device=device)
    speaker = torch.zeros(2, codec.spec.speaker_dim, device=device)
    with inference_rehearsal() as watch:
        waves = codec.decode(codes, speaker)
    assert waves.shape == (2, NUM_FRAMES * codec.spec.hop_samples)
    assert waves.device == DEVICE
    return watch.reads, watch.uploads


FEW = ("facodec", "melvq")


@pytest.mark.parametrize("name", [name if name in FEW else pytest.param(name, marks=pytest.mark.full) for name in OWN])
def test_nothing_waits_for_the_device_between_waves_and_codes(name: str) -> None:
    """Waves and lengths are sent before; codes that lie on the device are read once, to see whether they are codes."""
    codec, counts = OWN[name](), LENGTHS[0]
    assert len(encode(codec, counts)) <= len(counts) + 1
    reads, _ = decode(codec, torch.device("cpu"))
    assert not reads
    reads, _ = decode(codec, DEVICE)
    assert len(reads) == 1
    assert "base.py" in reads[0], "check_codes"


def test_facodec_sends_a_batch_and_its_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no more, however deep the network: the ends of utterances within it are computed where they are needed.

    With a stand-in for the fused activation that looks at what it is given.
    """
    shapes = set()

    def activate(x: torch.Tensor, *others: Any) -> torch.Tensor:
        *parameters, counts, margin = others
        assert {part.device for part in (x, *parameters)} == {DEVICE}
        assert {part.dtype for part in (x, *parameters)} == {torch.float32}
        assert counts is None or (counts.device == DEVICE and counts.shape == x.shape[:1])
        shapes.add((x.shape[1], counts is None))
        return x.new_empty(*x.shape[:2], x.shape[2] + 2 * margin)

    monkeypatch.setattr(activation, "fused_on", lambda device: SimpleNamespace(activate=activate))
    codec = facodec()
    assert codec.items_at_once is None, "a batch runs as one"
    ragged, even = LENGTHS
    assert len(encode(codec, ragged)) == 3  # waves, samples, frames
    assert len(encode(codec, even)) == 2  # waves, frames
    _, uploads = decode(codec, torch.device("cpu"))
    assert len(uploads) == 2  # codes, speaker vectors
    assert len(shapes) > 4


def test_a_read_and_a_tensor_of_the_host_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, quantize = facodec(), ResidualQuantizer.quantize

    def looked_at(self: ResidualQuantizer, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert latents.abs().amax().item() == 0
        return quantize(self, latents)

    with monkeypatch.context() as patch:
        patch.setattr(ResidualQuantizer, "quantize", looked_at)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            encode(codec, LENGTHS[0])
    with monkeypatch.context() as patch:
        patch.setattr(codec._mel_encoder, "position", torch.zeros(codec._mel_encoder.position.shape))
        with pytest.raises(Slip, match="several devices"):
            encode(codec, LENGTHS[0])


@pytest.mark.full
@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_networks_of_transformers_wait_for_nothing(name: str) -> None:
    codec = open_added(family_directory(name), DEVICE, codec_families())
    encode(codec, [4000])
    reads, _ = decode(codec, torch.device("cpu"))
    assert not reads
