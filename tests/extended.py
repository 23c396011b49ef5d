"""A codec, a reader, a head kind and a metric that are defined here alone, and the chain run with them.

    python extended.py AUDIO_DIR OUT

AUDIO_DIR holds a.wav beside a.words. OUT gets codec, shards, base, run, model and scores.
"""

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from slmkit.cli.main import main
from slmkit.codec.base import CodecSpec, Encoded, Reach, Stream
from slmkit.codec.open import register_codec
from slmkit.corpora.base import Audio, Failure, SourcePart, Utterance
from slmkit.corpora.layouts import ReadOptions, layout
from slmkit.evaluate.metrics import Metric, Scores, measures, single
from slmkit.model.heads.base import OutputLayer, RowArithmetic, SpeechHead
from slmkit.model.heads.kinds import HEADS

SPEC = CodecSpec(
    name="blocks",
    sample_rate=8000,
    hop_samples=400,
    streams=(Stream("loudness", 16, "coupled"), Stream("crossings", 16, "coupled"), Stream("peak", 16, "coupled")),
    speaker_dim=3,
    weights_sha256="0" * 64,
)


class Blocks:
    """Three numbers for each block of 50 ms; decoded as a tone of that loudness."""

    spec, device, reach_frames = SPEC, torch.device("cpu"), Reach(0, 0)

    def num_frames(self, num_samples: int) -> int:
        return num_samples // SPEC.hop_samples

    def encode(self, waves: torch.Tensor, num_samples: torch.Tensor) -> Encoded:
        num_frames = num_samples // SPEC.hop_samples
        codes = torch.zeros(len(waves), 3, int(num_frames.max()), dtype=torch.int32)
        speaker = torch.zeros(len(waves), 3)
        for i, count in enumerate(num_frames.tolist()):
            blocks = waves[i, : count * SPEC.hop_samples].view(count, SPEC.hop_samples)
            crossings = (blocks[:, 1:].sign() != blocks[:, :-1].sign()).float().mean(1)
            rows = torch.stack([blocks.abs().mean(1) * 30, crossings * 40, blocks.abs().amax(1) * 15])
            codes[i, :, :count] = rows.clamp(0, 15).to(torch.int32)
            speaker[i] = codes[i, :, :count].float().mean(1) / 16
        return Encoded(codes, num_frames, speaker)

    def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        loudness = codes[:, 0].repeat_interleave(SPEC.hop_samples, dim=1) / 30
        return loudness * torch.sin(torch.arange(loudness.shape[1]) * 0.3 * (1 + speaker[:, :1]))


class BiasedHead(SpeechHead):
    """A linear map of twice the hidden state."""

    published_key = "head_twice.weight"

    def __init__(self, config: Any, *, num_classes: int, layers: nn.ModuleList) -> None:
        super().__init__(config, num_classes=num_classes, layers=layers)
        self.head_twice = OutputLayer(config.hidden_size, num_classes)

    @property
    def output(self) -> OutputLayer:
        return self.head_twice

    def features(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * states

    def step_features(self, states: torch.Tensor, rows: RowArithmetic) -> torch.Tensor:
        return 2 * states


def read_pairs(source: Path, options: ReadOptions) -> Iterator[Utterance | Failure]:
    for path in sorted(source.glob("*.wav")):
        text = path.with_suffix(".words").read_text()
        yield Utterance(key=path.stem, audio=Audio(str(path)), text=text, source=path.name, speaker=path.stem[0])


def register() -> None:
    """Enter the four."""
    register_codec("blocks", ("blocks.txt",), lambda path, device: Blocks())
    HEADS["twice"] = BiasedHead

    @layout("pairs", files="DIR/a.wav beside DIR/a.words")
    def pairs(source: Path, options: ReadOptions) -> Iterable[SourcePart]:
        return [partial(read_pairs, source, options)]

    @measures(Metric(name="loudest", label="loudest", note="The largest sample.", order=900, digits=2))
    def loudest(spoken: Any) -> Scores:
        return {"loudest": single(float(abs(spoken.wave).max())) if spoken.record.frames else None}


def chain(audio: Path, out: Path) -> None:
    """From audio to scores, each step the command that users give."""
    (out / "codec").mkdir(parents=True)
    (out / "codec" / "blocks.txt").touch()
    codec, shards, base = (str(out / name) for name in ("codec", "shards", "base"))
    config = {
        "run_dir": str(out / "run"),
        "base": base,
        "deepspeed": "zero2_fp32",
        "data": {"corpus": shards, "row_tokens": 256, "num_workers": 0},
        "model": {"group": 3, "head": "twice", "speaker": True},
        "optimizer": {"lr": 1e-2},
        "steps": 80,
        "global_rows": 2,
        "micro_rows": 2,
        "save_every_steps": 80,
    }
    (out / "run.yaml").write_text(yaml.safe_dump(config))
    for words in (
        ["tokenize", "run", str(audio), codec, shards, "kind=pairs", "num_workers=0"],
        ["init-base", base, "--corpus", shards, "--hidden-size", "32", "--num-layers", "1"],
        ["train", "--config", str(out / "run.yaml")],
        ["consolidate", str(out / "run"), str(out / "model"), "--with-codec"],
        [
            "synthesize",
            str(out / "model"),
            "One two.",
            "--out",
            str(out / "a.wav"),
            "--max-sec",
            "1",
        ],
        [
            "evaluate",
            str(out / "model"),
            "--trained",
            "--corpus",
            shards,
            "--out",
            str(out / "scores"),
            "--limit",
            "2",
            "--max-sec",
            "1",
        ],
    ):
        code = main(words)
        assert code == 0, (words, code)


if __name__ == "__main__":
    register()
    chain(Path(sys.argv[1]), Path(sys.argv[2]))
