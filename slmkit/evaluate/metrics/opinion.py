"""Opinion scores by networks whose weights come with Python packages: nothing is fetched. DNSMOS comes with the
extra `eval`; DistillMOS is installed by itself (`INSTALL`).

 - DistillMOS (Stahl and Gamper 2025, package distillmos) predicts how natural speech sounds, 1 to 5. The network was
   distilled from one on XLS-R. It tells a person from a synthesizer, and both from noise.
 - DNSMOS P.835 (`slmkit.audio.dnsmos`) predicts how clean it is. It does not tell a clean synthesizer from a person.

The package distillmos wants torchaudio, for its own command line alone. A torchaudio that does not fit the installed
torch keeps transformers from loading, so the package is installed without it, and an empty module stands in for it.

Invariant: the score of an utterance depends on its own samples only.

Example:
    DistillMos.load().score(wave, 16000)        # 4.1
"""

import contextlib
import io
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from slmkit.audio.io import resampled
from slmkit.errors import BadSample, UserError
from slmkit.evaluate.metrics import Metric, Scores, measures, single
from slmkit.evaluate.spoken import Spoken

INSTALL = "pip install --no-deps distillmos xls-r-sqa"
DISTILLMOS_RATE = 16_000  # Hz
WINDOW_SAMPLES, HOP_SAMPLES = 122_880, 16_000  # what the network hears at once, and the most between two windows
SHORTEST_SAMPLES = 1600


@measures(
    Metric(
        name="distillmos",
        label="DistillMOS",
        better="higher",
        digits=2,
        order=51,
        note="Predicted naturalness, 1 to 5; no speech: left out.",
    ),
    needs=["distillmos"],
)
def naturalness(spoken: Spoken) -> Scores:
    assert spoken.tools.distillmos is not None, "the registry asks for it"
    return {"distillmos": single(spoken.measured(spoken.tools.distillmos.score))}


@measures(
    Metric(
        name="dnsmos",
        label="DNSMOS",
        better="higher",
        digits=2,
        order=52,
        note="Predicted quality, DNSMOS P.835 overall, 1 to 5: how clean it is, not how natural. No speech: left out.",
    ),
    needs=["dnsmos"],
)
def cleanness(spoken: Spoken) -> Scores:
    assert spoken.tools.dnsmos is not None, "the registry asks for it"
    found = spoken.measured(spoken.tools.dnsmos.scores)
    if found is None:
        return {"dnsmos": None}
    parts = {f"dnsmos:{name}": single(value) for name, value in found._asdict().items() if name != "overall"}
    return {"dnsmos": single(found.overall), **parts}


class DistillMos:
    """See the module."""

    def __init__(self, network: Any, device: str | torch.device = "cpu") -> None:
        """Of a ConvTransformerSQAModel of the package."""
        self.network, self.device = network.eval().to(device), torch.device(device)

    @staticmethod
    def load(device: str | torch.device = "cpu") -> "DistillMos":
        """The network of the installed package. Raises UserError when it is not installed."""
        with contextlib.redirect_stdout(io.StringIO()), _empty_in_place_of("torchaudio"):
            try:
                import distillmos
            except ImportError as error:
                what = "DistillMOS scores need the package distillmos"
                raise UserError(what, got=error, next_step=INSTALL) from error
            return DistillMos(distillmos.ConvTransformerSQAModel(), device)

    @torch.inference_mode()
    def score(self, wave: np.ndarray, sample_rate: int) -> float:
        """How natural `wave` sounds, float [samples] at `sample_rate` Hz. Raises BadSample "too_short" below 0.1 s.

        The mean over windows of 7.7 s, as the package has it, but one at a time, so that memory is bounded.
        """
        heard = resampled(wave, sample_rate, DISTILLMOS_RATE)
        if len(heard) < SHORTEST_SAMPLES:
            seconds = len(wave) / sample_rate
            raise BadSample("too_short", "the wave is too short for DistillMOS", got=f"{seconds:.3f} s")
        beyond = max(0, len(heard) - WINDOW_SAMPLES)
        num_windows = -(-beyond // HOP_SAMPLES) + 1
        starts = [int(share * beyond) for share in np.linspace(0, 1, num_windows)]
        windows = (torch.from_numpy(heard[start : start + WINDOW_SAMPLES])[None].to(self.device) for start in starts)
        return float(np.mean([float(self.network(window)) for window in windows]))


@contextlib.contextmanager
def _empty_in_place_of(name: str) -> Iterator[None]:
    """Imports inside get an empty module, unless the real one is imported already."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = types.ModuleType(name)
    try:
        yield
    finally:
        del sys.modules[name]
