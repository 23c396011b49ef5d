"""The engine on a GPU: a step as a CUDA graph, all slots attending at once, against the plain loop on the same GPU.

float32, so that a near tie between two classes is rare; the seeds are fixed.
"""

import functools
import warnings

import numpy as np
import pytest
import torch
from tiny_models import BASE_SIZE, talkative_model
from twins.generate import Limits, generate

from slmkit.infer.engine import Engine
from slmkit.infer.request import Output, Request, from_ids
from slmkit.infer.sampling import Sampling
from slmkit.model.slm import SpeechLM

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
KINDS = [
    (0, {}),
    (3, {"head": "linear"}),
    (6, {"head": "mlp", "fusion": "mlp"}),
    (12, {"head": "transformer"}),
    (0, {"arch": "qwen3"}),
    (3, {"arch": "llama", "head": "transformer"}),
    (6, {"arch": "smollm3"}),
]


@functools.cache
def model_of(kind: int) -> SpeechLM:
    group, options = KINDS[kind]
    return talkative_model(group, **options).cuda()


def prompts(count: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(0, BASE_SIZE - 2, rng.integers(1, 16)).tolist()) for _ in range(count)]


def told(output: Output) -> tuple:
    return output.codes.tolist(), output.text_ids, output.num_steps, output.limit


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_batched_greedy_is_the_plain_loop(kind: int) -> None:
    model = model_of(kind)
    asked = [Request(prompt=prompt, max_sec=0.15, max_text_tokens=24) for prompt in prompts(12)]
    for request, output in zip(asked, Engine(model, num_slots=5, num_positions=128).generate(asked), strict=True):
        start = from_ids(request.prompt, model.layout, model.group)
        plain = generate(model, start, limits=Limits(max_frames=12, max_text_tokens=24))
        assert np.array_equal(output.codes, plain.codes)
        assert output.text_ids == plain.text_ids


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_alone_and_in_batches_the_same_tokens(kind: int) -> None:
    warm = Sampling(temperature=1.0, top_p=0.9)
    engine = Engine(model_of(kind), num_slots=5, num_positions=128)
    asked = [
        Request(prompt=prompt, text_sampling=warm, speech_sampling=warm, seed=i, max_sec=0.15, max_text_tokens=20)
        for i, prompt in enumerate(prompts(30))
    ]
    alone = [told(engine.generate([request])[0]) for request in asked]
    assert [told(output) for output in engine.generate(asked)] == alone
    assert [told(output) for output in engine.generate(asked[::-1])] == alone[::-1]


def test_a_step_waits_for_the_device_once() -> None:
    """For what all answers chose. Its copies to the device, and the graphs, wait for nothing."""
    warm = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.2)
    engine = Engine(model_of(2), num_slots=3, num_positions=128)
    for number, prompt in enumerate(prompts(3)):
        engine.admit(Request(prompt=prompt, text_sampling=warm, speech_sampling=warm, seed=number), number)
    for _ in range(4):  # graphs are recorded, and memory is taken
        engine.step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            engine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in seen if "synchronizing" in str(one.message)]) == 1
