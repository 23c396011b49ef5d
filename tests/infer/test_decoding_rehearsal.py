"""Generation on a GPU, rehearsed without one: what a prompt and a step send, read and mix up (`inference_rehearsal`).

Every architecture, kind of head and fusion, in bfloat16, with the branches of a GPU and its graphs (`cuda_graphs`).
"""

import functools
from collections.abc import Callable

import cuda_graphs
import pytest
import torch
from inference_rehearsal import inference_rehearsal
from rehearsal import DEVICE, on_device
from tiny_models import tiny_config

from slmkit.infer.decoder import GraphReplay, SlotDecoder
from slmkit.infer.engine import Engine
from slmkit.infer.grammar import TEXT
from slmkit.infer.request import Request
from slmkit.infer.sampling import Sampling
from slmkit.model.architecture import TESTED

KINDS = [
    {"group": 0, "arch": "qwen2", "softmax": "stream", "speaker_dim": 8},
    {"group": 3, "arch": "qwen3", "head": "linear", "speaker_dim": 8},
    {"group": 6, "arch": "llama", "head": "mlp", "fusion": "mlp"},
    {"group": 4, "arch": "smollm3", "head": "transformer", "fusion": "mlp", "sizes": (16, 5, 9)},
]
NUM_SLOTS, SPARE_ROWS = 2, 2
DRAWN = Sampling(temperature=0.8, top_k=5, top_p=0.9, repetition_penalty=1.3, repetition_window=4)


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[cuda_graphs.Graph]:
    """The graphs that are recorded.

    `rows_needed` compares numbers when an engine is made, which needs a device that has some. Its answer here: more
    rows than slots.
    """
    monkeypatch.setattr("slmkit.infer.decoder.WARM_UP_RUNS", 1)
    monkeypatch.setattr("slmkit.infer.decoder.rows_needed", lambda weights, num_slots, product: num_slots + SPARE_ROWS)
    return cuda_graphs.stand_in(monkeypatch)


def engine_on_device(options: dict) -> Engine:
    """Whose answers begin to speak at once, and say code 0 until they come to a limit."""
    model = on_device(tiny_config(**options)).eval()
    with inference_rehearsal():
        engine = Engine(model, num_slots=NUM_SLOTS, num_positions=64)
    sosp = model.layout.id_of("<sosp>")

    def meant(state: int, chosen: int) -> int:
        assert chosen == 0, "a rehearsal reads zeros"
        return sosp if state == TEXT else Engine._meant(engine, state, chosen)

    engine._meant = meant
    return engine


def request(engine: Engine, i: int) -> Request:
    """Numbers 1, 3, ... draw, with a penalty. They differ in length, so that some slots begin while others speak."""
    model = engine.model
    ids = [*range(i + 1)]
    if model.config.speaker_dim:
        ids.append(model.layout.id_of("<|placeholder|>"))
    return Request(
        prompt=tuple(ids),
        speaker=torch.ones(8) if model.config.speaker_dim else None,
        speech_sampling=DRAWN if i % 2 else Sampling(),
        seed=i,
        max_steps=3 + i,
    )


def rehearse(engine: Engine, num_requests: int = 4) -> int:
    """Answer requests; the number of steps. Raises AssertionError for what a GPU would wait for beyond what is known:
    a prompt reads nothing, a step reads once."""
    waiting, num_steps = [request(engine, i) for i in range(num_requests)], 0
    while waiting or engine.num_free < NUM_SLOTS:
        while waiting and engine.num_free:
            with inference_rehearsal() as watch:
                engine.admit(waiting.pop(0), num_requests)
            assert not watch.reads, "; ".join(watch.reads)
        with inference_rehearsal() as watch:
            engine.step()
        goes_on = engine.num_free < NUM_SLOTS
        assert len(watch.reads) == 1, "; ".join(watch.reads)
        assert not watch.uploads, "; ".join(watch.uploads)
        assert watch.num_sent == (2 if goes_on else 1)  # settings of the choices; what was chosen
        num_steps += 1
    return num_steps


def test_all_architectures_are_rehearsed() -> None:
    assert {options["arch"] for options in KINDS} == set(TESTED)


@pytest.mark.parametrize(
    "options", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.full) for kind in KINDS[1:3]), KINDS[3]], ids=str
)
def test_a_step_reads_from_the_device_once(
    options: dict, gpu: list[cuda_graphs.Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_on_device(options)
    decoder = engine._decoder
    assert isinstance(decoder._run, GraphReplay)
    assert isinstance(decoder._run_heads, GraphReplay)
    assert not decoder._rows.one_by_one
    assert decoder.num_rows > NUM_SLOTS
    num_steps = rehearse(engine)
    assert num_steps > 6
    assert len(gpu) == (2 if options["group"] else 1)
    assert max(graph.num_replays for graph in gpu) == num_steps - 1  # the last one advances nothing
    assert all(tensor.device == DEVICE for tensor in (decoder._hidden, *decoder._states))


def slips(change: Callable[[Engine, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, match: str) -> None:
    engine = engine_on_device(KINDS[1])
    with monkeypatch.context() as patch:
        change(engine, patch)
        with pytest.raises(AssertionError, match=match):
            rehearse(engine, num_requests=1)


def test_a_read_anywhere_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    compute, heads = SlotDecoder._compute, SlotDecoder.head_logits
    prefill, choose = SlotDecoder.prefill, Engine._choose

    def after(run: Callable, look: Callable) -> Callable:
        def both(*args: object) -> object:
            found = run(*args)
            look(found)
            return found

        return both

    def in_a_graph(engine: Engine, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(SlotDecoder, "_compute", after(compute, lambda found: found[0].sum().item()))

    def behind_a_graph(engine: Engine, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(SlotDecoder, "head_logits", after(heads, lambda found: bool(found[0].isfinite().all())))

    def in_a_choice(engine: Engine, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(Engine, "_choose", after(choose, lambda found: found.tolist()))

    def in_a_prompt(engine: Engine, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(SlotDecoder, "prefill", after(prefill, lambda _: engine._decoder._hidden.amax().item()))

    slips(in_a_graph, monkeypatch, "across a read of the device")
    slips(behind_a_graph, monkeypatch, "_local_scalar_dense")
    slips(in_a_choice, monkeypatch, "_to_copy")
    slips(in_a_prompt, monkeypatch, "_local_scalar_dense")


def test_a_tensor_of_the_host_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def a_table(engine: Engine, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(engine._decoder, "_cos", torch.zeros(engine._decoder._cos.shape))

    def a_mask(engine: Engine, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(engine, "_classes", torch.ones(engine._classes.shape, dtype=torch.bool))

    def a_list(engine: Engine, patch: pytest.MonkeyPatch) -> None:
        choose = functools.partial(Engine._choose, engine)
        patch.setattr(engine, "_choose", lambda *args: choose(*args) + torch.tensor([0] * len(args[1]), device=DEVICE))

    for change, match in ((a_table, "several devices"), (a_mask, "several devices"), (a_list, "tensor: ")):
        slips(change, monkeypatch, match)
