"""How natural speech sounds, without a reference: UTMOS (arXiv 2204.02152), on the scale of opinion scores 1 to 5.

The model is the "strong learner" of UTMOS22: wav2vec 2.0, a bidirectional LSTM over its frames with a domain and a
judge, and the mean over time. Its weights are read from the file that the project SpeechMOS publishes for it
(`utmos22_strong_step7459_v1.pt`, MIT licence), a plain state dict, with torch's reader for weights alone. The original
Lightning checkpoint and TorchScript files are refused: reading them runs what is in them.

What was checked: names and sizes are those of SpeechMOS's public code, and the arithmetic agrees with that written out
by hand, on random weights. The published file itself was not at hand, so no published score was reproduced.

Invariant: the score of an utterance depends on its own samples only.

Example:
    Utmos.load("utmos22_strong_step7459_v1.pt").score(wave, 16000)      # 3.9
"""

import pickle
import re
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from slmkit.audio.io import resampled
from slmkit.errors import BadSample, UserError
from slmkit.evaluate.metrics import Metric, Scores, measures, single
from slmkit.evaluate.spoken import Spoken

UTMOS_RATE = 16_000  # Hz
STRIDES = (5, 2, 2, 2, 2, 2, 2)  # of wav2vec 2.0's convolutions, as in every published one
SHORTEST_SAMPLES = 400  # what one of its frames spans
ATTENTION_HEAD_WIDTH = 64  # of its attention
CENTRE, HALF_RANGE = 3.0, 2.0  # of the scores that the network gives as -1 to 1
WEIGHT_NORM = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
RENAMED = (  # names in the file, as fairseq has them, to those of transformers
    (r"^(feature_extractor\.conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"^(feature_extractor\.conv_layers\.0)\.2\.", r"\1.layer_norm."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^encoder\.pos_conv\.0\.weight_g$", f"{WEIGHT_NORM}0"),
    (r"^encoder\.pos_conv\.0\.weight_v$", f"{WEIGHT_NORM}1"),
    (r"^encoder\.pos_conv\.0\.bias$", "encoder.pos_conv_embed.conv.bias"),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)
SSL, UNUSED = "wav2vec2.", "wav2vec2.mask_emb"  # the latter serves training only


@measures(
    Metric(
        name="utmos",
        label="UTMOS",
        better="higher",
        digits=2,
        order=50,
        note="Predicted naturalness, 1 to 5; no speech: left out.",
    ),
    needs=["utmos"],
)
def naturalness(spoken: Spoken) -> Scores:
    utmos = spoken.tools.utmos
    assert utmos is not None, "the registry asks for it"
    return {"utmos": single(spoken.measured(utmos.score))}


class Utmos:
    """See the module."""

    def __init__(self, network: nn.Module, device: str | torch.device = "cpu") -> None:
        self.network, self.device = network.eval().to(device), torch.device(device)

    @staticmethod
    def load(path: str | Path, device: str | torch.device = "cpu") -> "Utmos":
        """The model whose state dict is the file `path`. Raises UserError when it is another file."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise _not_utmos(path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
        if not isinstance(state, dict) or not all(isinstance(weight, torch.Tensor) for weight in state.values()):
            raise _not_utmos(path, "not a state dict")
        try:
            network = network_of({str(name): weight.float() for name, weight in state.items()})
        except (KeyError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
            raise _not_utmos(path, f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        return Utmos(network, device)

    @torch.inference_mode()
    def score(self, wave: np.ndarray, sample_rate: int) -> float:
        """How natural `wave` sounds, float [samples] at `sample_rate` Hz. Raises BadSample "too_short" below 25 ms."""
        heard = resampled(wave, sample_rate, UTMOS_RATE)
        if len(heard) < SHORTEST_SAMPLES:
            seconds = len(wave) / sample_rate
            raise BadSample("too_short", "the wave is too short for UTMOS", got=f"{seconds:.3f} s")
        return float(self.network(torch.from_numpy(heard)[None].to(self.device))[0])


class _Network(nn.Module):
    """wav2vec 2.0, domain and judge, LSTM, two layers. Takes waves [B, N], gives scores [B]."""

    def __init__(self, config: Wav2Vec2Config, domain: int, judge: int, memory: int, inner: int) -> None:
        super().__init__()
        self.wav2vec2 = Wav2Vec2Model(config)
        self.domain_emb, self.judge_emb = nn.Parameter(torch.zeros(1, domain)), nn.Parameter(torch.zeros(1, judge))
        width = config.hidden_size + domain + judge
        self.blstm = nn.LSTM(width, memory, batch_first=True, bidirectional=True)
        self.projection = nn.Sequential(nn.Linear(2 * memory, inner), nn.ReLU(), nn.Linear(inner, 1))

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        frames = self.wav2vec2(waves).last_hidden_state
        known = torch.cat([self.domain_emb, self.judge_emb], dim=1).expand(*frames.shape[:2], -1)
        scores = self.projection(self.blstm(torch.cat([frames, known], dim=2))[0])
        return CENTRE + HALF_RANGE * scores.mean(dim=(1, 2))


def network_of(state: dict[str, torch.Tensor]) -> nn.Module:
    """The network with the weights of `state`, sizes read from their shapes."""
    convolutions = [state[f"{SSL}feature_extractor.conv_layers.{i}.0.weight"] for i in range(len(STRIDES))]
    position = state[f"{SSL}encoder.pos_conv.0.weight_v"]
    hidden, num_layers = position.shape[0], sum(name.endswith(".fc1.weight") for name in state)
    config = Wav2Vec2Config(
        hidden_size=hidden,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden // ATTENTION_HEAD_WIDTH,
        intermediate_size=state[f"{SSL}encoder.layers.0.fc1.weight"].shape[0],
        conv_dim=tuple(weight.shape[0] for weight in convolutions),
        conv_kernel=tuple(weight.shape[2] for weight in convolutions),
        conv_stride=STRIDES,
        num_conv_pos_embeddings=position.shape[2],
        num_conv_pos_embedding_groups=hidden // position.shape[1],
        mask_time_prob=0.0,
    )
    with torch.device("meta"):
        network = _Network(
            config,
            domain=state["domain_emb"].shape[1],
            judge=state["judge_emb"].shape[1],
            memory=state["blstm.weight_hh_l0"].shape[1],
            inner=state["projection.0.weight"].shape[0],
        )
    renamed = {}
    for name, weight in state.items():
        if name.startswith(SSL):
            inner = name.removeprefix(SSL)
            for pattern, replacement in RENAMED:
                inner = re.sub(pattern, replacement, inner)
            renamed[SSL + inner] = weight
        else:
            renamed[name] = weight
    del renamed[UNUSED]
    network.load_state_dict(renamed, assign=True)
    return network


def _not_utmos(path: str | Path, reason: str) -> UserError:
    return UserError(
        f"{path} does not hold the weights of UTMOS22-strong",
        got=reason,
        expected="the state dict that SpeechMOS publishes, utmos22_strong_step7459_v1.pt",
    )
