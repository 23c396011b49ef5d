"""Groups of any size: what was learnt comes out, and an answer alone, in a batch and streamed has the same codes."""

import dataclasses
import functools
import os
import random

import numpy as np
import pytest
import torch
from memorising import BASE, memorise, one_batch, small_model
from synthetic import codec_spec
from tiny_models import BASE_SIZE, talkative_model
from twins.generate import Limits, generate, prompt_example

from slmkit.codec.base import CodecSpec, Reach, to_codes
from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer
from slmkit.infer.engine import Engine
from slmkit.infer.passage import Passage
from slmkit.infer.request import Request, from_ids
from slmkit.infer.sampling import Sampling
from slmkit.infer.stream import Speaking
from slmkit.model.slm import SpeechLM

MIXED = (16, 9, 12, 4, 4, 4, 7, 16)
SHAPES = [
    *(((8,) * 8, 3), ((8,) * 8, 6), ((8,) * 8, 12), (MIXED, 3), (MIXED, 12)),
    *(((16,) * 3, 2), ((16, 9, 12), 2), ((16, 9, 12), 4), ((16,), 12), ((16,) * 3, 7)),
]
OTHERS = [shape for shape in SHAPES if shape not in SHAPES[2:8:2]]
STREAMS = ((16,), (16,) * 3, (16, 9, 12), (8,) * 4, (8,) * 5, (8,) * 7, (8,) * 8, MIXED, (4,) * 15, (4,) * 32)
ARCHITECTURES = ("qwen2", "qwen3", "llama", "smollm3")
TEXTS = ("The river froze.", "Nobody had told him.")


class Spelling:
    """The wave of a frame is its codes, one sample each; it is certain three frames later."""

    device, reach_frames = torch.device("cpu"), Reach(2, 3)

    def __init__(self, spec: CodecSpec) -> None:
        self.spec = spec

    def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        return codes.transpose(1, 2).flatten(1).float()


def requests(seed: int, max_sec: float) -> list[Request]:
    rng = np.random.default_rng(seed)
    warm = Sampling(temperature=1.0, top_p=0.95, repetition_penalty=1.3)
    return [
        Request(
            prompt=tuple(rng.integers(0, BASE_SIZE - 2, rng.integers(1, 16)).tolist()),
            speech_sampling=Sampling() if i == 0 else warm,
            seed=i,
            max_sec=max_sec,
            max_text_tokens=24,
        )
        for i in range(3)
    ]


@pytest.mark.parametrize(
    ("sizes", "group"), [*SHAPES[2:8:2], *(pytest.param(*shape, marks=pytest.mark.full) for shape in OTHERS)]
)
def test_alone_in_a_batch_and_streamed_the_same_codes(sizes: tuple[int, ...], group: int) -> None:
    assert spoken_alike(talkative_model(group, sizes=sizes), sizes, group) > 0


@pytest.mark.full
def test_a_random_sample_of_settings() -> None:
    """Codecs of 1 to 32 streams, every kind of head, every architecture of a base; some of all their combinations.

    `SETTINGS=100 bash tests/run.sh --all -k random_sample` tries 100.
    """
    rng, num_frames = random.Random(0), 0
    for _ in range(int(os.environ.get("SETTINGS", "25"))):
        sizes, group = rng.choice(STREAMS), rng.choice((0, 1, 2, 3, 4, 6, 7, 12))
        options = {"arch": rng.choice(ARCHITECTURES), "fusion": rng.choice(("mean", "mlp"))}
        options["head"] = rng.choice(("linear", "mlp", "transformer"))
        if group == 0:
            options["softmax"] = rng.choice(("full", "stream"))
        frames = spoken_alike(talkative_model(group, sizes=sizes, **options), sizes, group, max_sec=0.05)
        num_frames += frames
    assert num_frames > 0


def spoken_alike(model: SpeechLM, sizes: tuple[int, ...], group: int, max_sec: float = 0.15) -> int:
    """Frames of three answers, whose codes are the same alone, in a batch, streamed, and by a plain loop."""
    engine = Engine(model, num_slots=3, num_positions=256)
    asked = requests(group, max_sec)
    together = engine.generate(asked)
    codec = Spelling(dataclasses.replace(codec_spec(sizes), hop_samples=len(sizes)))
    for request, output in zip(asked, together, strict=True):
        assert (sizes > output.codes.T).all()
        assert np.array_equal(engine.generate([request])[0].codes, output.codes)
        if output.codes.shape[1]:
            wave = np.concatenate([*Speaking(engine, codec, Passage.of("", request), np.zeros(8, np.float32))])
            assert np.array_equal(wave.reshape(-1, len(sizes)).T, output.codes)
    for request, output in zip(asked[:1], together, strict=False):
        if not output.codes.size:
            continue
        limits = Limits(max_frames=output.codes.shape[1], max_text_tokens=24)
        plain = generate(model, from_ids(request.prompt, model.layout, group), limits=limits)
        assert np.array_equal(plain.codes, output.codes)
    return sum(output.codes.shape[1] for output in together)


@functools.cache
def tokenizer() -> TextTokenizer:
    return TextTokenizer.load(BASE)


@pytest.mark.parametrize(
    ("sizes", "group"), [(MIXED, 3), *(pytest.param(*shape, marks=pytest.mark.full) for shape in SHAPES[1:])]
)
def test_memorised_codes_come_out(sizes: tuple[int, ...], group: int) -> None:
    rng, limits = np.random.default_rng(7), np.array(sizes)[:, None]
    samples = [
        Sample(text, to_codes(rng.integers(0, limits, (len(sizes), length))), None, {"text": text})
        for text, length in zip(TEXTS, (5, 8), strict=True)
    ]
    model = small_model(tokenizer(), codec_spec(sizes), group, hidden_size=48)
    memorise(model, one_batch(model, tokenizer(), samples))
    starts = [prompt_example(tokenizer(), model.layout, text, group=group, speaker=False) for text in TEXTS]
    outputs = Engine(model, num_slots=2, num_positions=256).generate([Request(prompt=start) for start in starts])
    for output, sample in zip(outputs, samples, strict=True):
        assert output.reason == "end"
        assert np.array_equal(output.codes, sample.codes)
