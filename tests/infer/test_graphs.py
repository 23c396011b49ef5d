"""A decoding step as a CUDA graph, played by a stand-in: the graph gives what the function gives, and says when not.

tests/gpu/test_engine_gpu.py runs real graphs.
"""

import functools
from collections.abc import Callable

import cuda_graphs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import BASE_SIZE, talkative_model

from slmkit.infer.decoder import WARM_UP_RUNS, GraphReplay, SlotDecoder
from slmkit.infer.engine import Engine
from slmkit.infer.request import Request, from_ids
from slmkit.infer.sampling import Sampling
from slmkit.model.slm import SpeechLM

CPU = torch.device("cpu")
KINDS = [
    (0, {}),
    (3, {"head": "transformer", "fusion": "mlp", "arch": "qwen3"}),
    (6, {"head": "mlp", "arch": "smollm3"}),
    (4, {"head": "linear", "sizes": (16, 5, 9), "arch": "llama"}),
]
NUM_SLOTS = 2
ROUNDING = 1e-4  # of slots that attend together beside slots that attend apart


@functools.cache
def talkative(kind: int) -> SpeechLM:
    group, options = KINDS[kind]
    return talkative_model(group, **options)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[cuda_graphs.Graph]:
    """Those that are recorded. Products are torch's, as on a GPU: a recording does not hold others."""
    monkeypatch.setattr("slmkit.infer.decoder.fastest_product", lambda weight: F.linear)
    return cuda_graphs.stand_in(monkeypatch)


def decoder_of(kind: int, *, graph: bool) -> SlotDecoder:
    model = talkative(kind)
    rows = [model.lm_model.lm_head.weight]
    return SlotDecoder(model, num_slots=NUM_SLOTS, num_positions=64, lm_rows=rows, together=True, graph=graph)


def ends_of(decoder: SlotDecoder) -> list[torch.Tensor]:
    """What is computed of the last position of each slot."""
    results = [decoder.lm_logits(0), *(decoder.head_logits() if decoder.model.group else ())]
    return [result[:NUM_SLOTS].clone() for result in results]


@torch.inference_mode()
def walk(decoder: SlotDecoder, between: Callable[[], object] = lambda: None) -> list[torch.Tensor]:
    """Two prompts, two steps, another prompt in a slot that was used, two steps of one slot and of both."""
    layout, group = decoder.model.layout, decoder.model.group
    seen: list[torch.Tensor] = []

    def begin(slot: int, *ids: int) -> None:
        decoder.prefill(slot, from_ids(ids, layout, group), None)
        seen.append(torch.cat([end[slot] for end in ends_of(decoder)]))

    def go_on(token: int, *slots: int) -> None:
        ids = [layout.code_id(i % layout.num_streams, token % 5) for i in range(max(1, group))]
        decoder.advance(dict.fromkeys(slots, (ids, True)))
        ends = ends_of(decoder)
        seen.extend(torch.cat([end[slot] for end in ends]) for slot in slots)

    begin(0, 1, 2, 3, 4)
    begin(1, 5)
    for token in (1, 2):
        go_on(token, 0, 1)
        between()
    begin(1, 6, 7, 8)
    go_on(3, 0, 1)
    go_on(4, 1)
    return seen


def furthest(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest difference, relative to the largest number."""
    pairs = list(zip(ours, theirs, strict=True))
    return float(max((a - b).abs().max() for a, b in pairs) / max(b.abs().max() for _, b in pairs))


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_replays_give_what_the_function_gives(kind: int, graphs: list[cuda_graphs.Graph]) -> None:
    """Also behind a prompt that was read between two of them, into a slot whose memory is used again."""
    plain, replayed = (decoder_of(kind, graph=graph) for graph in (False, True))
    places = replayed._hidden.data_ptr(), [states.data_ptr() for states in replayed._states]
    assert furthest(walk(replayed), walk(plain)) == 0
    assert [graph.num_replays for graph in graphs] == ([7, 4] if KINDS[kind][0] else [4])
    assert places == (replayed._hidden.data_ptr(), [states.data_ptr() for states in replayed._states])
    assert memory_read(graphs) <= memory_of(replayed)
    made = [str(func) for graph in graphs for func, *_ in graph.calls]
    assert made.count("aten.scalar_tensor.default") <= 2, "the mask is made once, not in every layer"


def memory_read(graphs: list[cuda_graphs.Graph]) -> set[int]:
    return set().union(*(graph.memory_read() for graph in graphs))


def memory_of(decoder: SlotDecoder) -> set[int]:
    """Addresses of all that a step may read."""
    cache, model = decoder._cache, decoder.model
    own = [decoder._cos, decoder._sin, decoder._hidden, *decoder._states, cache._slots, *cache._keys, *cache._values]
    assert isinstance(decoder._run, GraphReplay)
    tensors = [*own, *decoder._run._inputs, *model.parameters(), *model.buffers()]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def test_a_number_of_the_host_stays_that_of_the_recording(graphs: list[cuda_graphs.Graph]) -> None:
    """The lengths of slots that attend by themselves: right without a graph, and seen to be wrong with one."""
    expected = walk(decoder_of(1, graph=False))
    apart, kept = (decoder_of(1, graph=graph) for graph in (False, True))
    apart._together = kept._together = False
    assert furthest(walk(apart), expected) < ROUNDING
    assert furthest(walk(kept), expected) > 10 * ROUNDING


def test_memory_in_the_place_of_other_memory_is_not_seen(graphs: list[cuda_graphs.Graph]) -> None:
    def replace_memory() -> None:
        for each in (plain, moved):
            each._cache._keys = [keys.clone() for keys in each._cache._keys]

    plain, moved = (decoder_of(1, graph=graph) for graph in (False, True))
    expected = walk(plain, replace_memory)
    assert furthest(walk(moved, replace_memory), expected) > 10 * ROUNDING
    assert not memory_read(graphs) <= memory_of(moved)


def test_a_read_of_the_device_cannot_be_recorded(graphs: list[cuda_graphs.Graph]) -> None:
    reads = GraphReplay(lambda x: [x * x.sum().item()], CPU)
    with pytest.raises(AssertionError, match="recorded across a read of the device"):
        reads(torch.ones(3))


def test_inputs_and_results_stay_where_they_are(graphs: list[cuda_graphs.Graph]) -> None:
    calls = 0

    def compute(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        nonlocal calls
        calls += 1
        return [x + y, (x * calls).view(-1)]

    replay, places = GraphReplay(compute, CPU), set()
    for i in range(4):
        x = torch.full((2, 3), float(i))
        first, second = replay(x, torch.ones(3))
        assert torch.equal(first, x + 1)
        assert torch.equal(second, (x * (WARM_UP_RUNS + 1)).view(-1)), "a number is that of the recording"
        places.add((id(first), id(second), *(held.data_ptr() for held in replay._inputs)))
    assert calls == WARM_UP_RUNS + 1
    assert len(places) == 1
    assert graphs[0].num_replays == 4


def test_an_engine_says_the_same_with_graphs_and_without(
    graphs: list[cuda_graphs.Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More requests than slots, of different lengths, so that prompts are read between steps."""
    model, rng = talkative(3), np.random.default_rng(3)
    warm = Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.3)
    requests = [
        Request(
            prompt=tuple(rng.integers(0, BASE_SIZE - 2, 3 + 2 * i).tolist()),
            speech_sampling=warm if i % 2 else Sampling(),
            seed=i,
            max_steps=4 + 3 * i,
            max_text_tokens=6,
        )
        for i in range(5)
    ]
    told = []
    for graph in (False, True):
        made = functools.partial(SlotDecoder, together=True, graph=graph)
        monkeypatch.setitem(Engine.__init__.__globals__, "SlotDecoder", made)
        outputs = Engine(model, num_slots=NUM_SLOTS, num_positions=64).generate(requests)
        told.append([(output.codes.tolist(), output.text_ids, output.num_steps) for output in outputs])
    assert told[0] == told[1]
    assert sum(graph.num_replays for graph in graphs) > 0
