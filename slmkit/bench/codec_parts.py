"""Where FACodec's time goes, and how little it could be.

The parts of a codec are replaced one by one, on a codec made for it: by the same part under a clock, which gives the
shares of a run, or by nothing, which leaves the convolutions. These are the floor: their products cannot be saved, and
the same calls of the same shapes are timed, with activations that hand out a ready tensor.

Invariant: a codec under the clock gives the codes it gave without; a bare one gives none that mean anything.

Example:
    spent = clocked(codec)
    shares(lambda: codec.encode(waves, num_samples), spent, 3, device)["activations"]  # 0.45
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from slmkit.codec.facodec.activation import Activation, Ends
from slmkit.codec.facodec.codec import FACodec, exact_float32
from slmkit.codec.facodec.network import ConvDecoder, ConvEncoder

NETWORK = "convolutions"  # the encoder or the decoder, less its activations
ACTIVATIONS = "activations"
REST = "rest"  # what no clock saw: padding, checks, copies
Spent = dict[str, float]  # seconds


def clock(device: torch.device) -> float:
    """Seconds, after all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Clocked:
    """A part that adds the seconds of each call to `spent[name]`; with `inside`, it takes them from there."""

    def __init__(self, part: Any, name: str, spent: Spent, device: torch.device, *, inside: str = "") -> None:
        self.part, self.name, self.spent, self.device, self.inside = part, name, spent, device, inside

    def __call__(self, *arguments: Any) -> Any:
        start = clock(self.device)
        result = self.part(*arguments)
        seconds = clock(self.device) - start
        for name, change in ((self.name, seconds), (self.inside, -seconds)):
            if name:
                self.spent[name] = self.spent.get(name, 0.0) + change
        return result


class Ready:
    """Stands for an activation and computes nothing: a tensor of the right shape, made once and shared."""

    def __init__(self, made: dict[tuple[int, ...], torch.Tensor]) -> None:
        self.made = made

    def __call__(self, x: torch.Tensor, ends: Ends, margin: int) -> torch.Tensor:
        shape = (*x.shape[:2], x.shape[2] + 2 * margin)
        if shape not in self.made:
            self.made[shape] = torch.randn(shape, device=x.device)
        return self.made[shape]


def replace_activations(network: ConvEncoder | ConvDecoder, make: Callable[[Activation], Any]) -> None:
    """Put `make(activation)` where each activation is."""
    network.activation = make(network.activation)
    for stage in network.stages:
        stage.activation = make(stage.activation)
        for residual in stage.residuals:
            first, second = residual.activations
            residual.activations = make(first), make(second)


def clocked(codec: FACodec) -> Spent:
    """Put clocks on the parts of `codec`; the seconds of later calls are added up in what is returned."""
    spent: Spent = {}
    parts: Any = codec  # mypy knows the parts by their own types

    def under(part: Any, name: str, inside: str = "") -> Clocked:
        return Clocked(part, name, spent, codec.device, inside=inside)

    for name in ("_encoder", "_decoder"):
        network = getattr(parts, name)
        replace_activations(network, lambda activation: under(activation, ACTIVATIONS, NETWORK))
        setattr(parts, name, under(network, NETWORK))
    for quantizer in (parts._prosody, parts._content, parts._detail):
        quantizer.quantize = under(quantizer.quantize, "quantizers")
    for name, part in (("_mel_encoder", "transformers"), ("_timbre_encoder", "transformers"), ("_mel", "spectrogram")):
        setattr(parts, name, under(getattr(parts, name), part))
    return spent


def shares(work: Callable[[], Any], spent: Spent, repeats: int, device: torch.device) -> dict[str, float]:
    """Part -> share of the time of `work`, which uses a codec under clocks; over `repeats` runs after one untimed."""
    work()
    spent.clear()
    start = clock(device)
    for _ in range(repeats):
        work()
    total = clock(device) - start
    return {**{name: seconds / total for name, seconds in spent.items()}, REST: 1 - sum(spent.values()) / total}


def bare(codec: FACodec) -> FACodec:
    """`codec`, whose networks are left with their convolutions."""
    made: dict[tuple[int, ...], torch.Tensor] = {}
    for network in (codec._encoder, codec._decoder):
        replace_activations(network, lambda activation: Ready(made))
    return codec


@torch.inference_mode()
def convolve_waves(codec: FACodec, waves: torch.Tensor, num_samples: torch.Tensor) -> None:
    """The encoder's network alone, on the batches that `FACodec.encode` makes."""
    counts = num_samples.tolist()
    step = codec.items_at_once or len(counts)
    with exact_float32(codec.device):
        for start in range(0, len(counts), step):
            some = counts[start : start + step]
            codec._encoder(waves[start : start + step, : max(some)], Ends(some, codec.device))


@torch.inference_mode()
def convolve_latents(codec: FACodec, latents: torch.Tensor) -> None:
    """The decoder's network alone, of latents [B, D, T]."""
    with exact_float32(codec.device):
        for part in latents.split(codec.items_at_once or len(latents)):
            codec._decoder(part)


def count_gflop(work: Callable[[], Any]) -> float:
    """Products and sums of the convolutions and matrix products in `work`, in 1e9."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: _baddbmm_flop}) as counter:
        work()
    return counter.get_total_flops() / 1e9


def _baddbmm_flop(total: Sequence[int], left: Sequence[int], right: Sequence[int], **_: Any) -> int:
    """Of the product that adds in place, which the counter does not know; from the shapes."""
    return 2 * math.prod(left) * right[-1]
