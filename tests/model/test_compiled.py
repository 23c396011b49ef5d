"""Compiled and recomputed decoder layers against plain ones: losses, gradients, how often is compiled, what is kept."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from tiny_models import tiny_batch, tiny_model
from torch._dynamo.utils import counters
from transformers import DynamicCache
from twins.attention import SCALE, naive, packing_of, qkv

from slmkit.errors import UserError
from slmkit.model import compiled, kernels
from slmkit.model.attention import Execution
from slmkit.model.slm import SpeechLM

# Frames of the utterances of ten micro-batches: of one and of several, of text alone, of speech alone.
SIZES = ((9, 4, 0, 13), (3,), (20, 1), (0,), (7, 7, 7, 7, 7), (31,), (1, 1), (0, 0, 2), (12, 5), (40, 2, 9))
MODEL = {"group": 1, "head": "transformer", "speaker_dim": 4}


@pytest.fixture(autouse=True)
def _begun_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are made as for inductor, and run without a compiler, unless a test takes another backend."""
    use(monkeypatch, "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    compiled._compiled_layer.cache_clear()
    torch._dynamo.reset()


def use(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr(compiled, "BACKEND", backend)
    compiled._compiled_layer.cache_clear()


def gradients(model: SpeechLM, frames: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, dict[str, Any]]:
    """Loss and gradients of a micro-batch."""
    model.zero_grad()
    loss = model(tiny_batch(model.config, frames, seed=seed)).loss
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}


def check_equal(model: SpeechLM, plain: SpeechLM, frames: tuple[int, ...], seed: int = 0) -> None:
    (loss, ours), (expected, theirs) = gradients(model, frames, seed), gradients(plain, frames, seed)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.full
def test_the_first_micro_batch_compiles_for_all() -> None:
    check_compiled(MODEL, SIZES, num_graphs=1)


@pytest.mark.full
def test_it_does_so_for_layers_of_two_kinds() -> None:
    """SmolLM3 has layers without rotary positions."""
    check_compiled({**MODEL, "arch": "smollm3"}, SIZES[:4], num_graphs=2)


def check_compiled(options: dict[str, Any], sizes: Sequence[tuple[int, ...]], num_graphs: int) -> None:
    """Losses and gradients are those of plain layers. There is one graph (or `num_graphs`) for the layers of the
    backbone and of all heads, whatever the micro-batches, one more for evaluation, and no part of a layer outside.

    Gradients always come in one order: DeepSpeed sums those that come at the same time in several processes. Names of
    weights stay, and a prompt is read by the plain layers.
    """
    plain = tiny_model(**options)
    model = copy.deepcopy(plain)
    model.execution = Execution(compiled=True)
    order, orders = list[str](), set[tuple[str, ...]]()
    for name, weight in model.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda weight, name=name: order.append(name))
    for seed, frames in enumerate((*sizes, ())):  # the last one is a single position
        with torch._dynamo.config.patch(error_on_recompile=seed > 0):
            order.clear()
            check_equal(model, plain, frames, seed)
            orders.add(tuple(order))
    assert len(orders) == 1
    assert len(order) == len(list(model.parameters()))
    assert counters["stats"]["unique_graphs"] == num_graphs
    with torch._dynamo.config.patch(error_on_recompile=True):
        model.execution = Execution(compiled=True, recomputed=True)
        check_equal(model, plain, sizes[2])
    model.eval(), plain.eval()
    for frames in sizes[:3]:
        batch = tiny_batch(model.config, frames)
        with torch.no_grad():
            torch.testing.assert_close(model(batch).loss, plain(batch).loss)
    assert counters["stats"]["unique_graphs"] == 2 * num_graphs
    assert list(model.state_dict()) == list(plain.state_dict())
    prompt = torch.arange(5)[:, None].expand(-1, model.group)
    read = [
        each.hidden(each.embed(prompt)[None], torch.arange(5)[None], cache=DynamicCache()) for each in (model, plain)
    ]
    assert torch.equal(*read)
    assert counters["stats"]["unique_graphs"] == 2 * num_graphs
    assert not counters["graph_break"]


@pytest.mark.full
def test_what_cannot_be_compiled_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not a step on other ways: what torch.compile cannot trace, and a kind of call more than its limit."""
    model = tiny_model()
    model.execution = Execution(compiled=True)
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(UserError, match=r"torch\.compile cannot"):
        gradients(model, (3,))
        model.eval()(tiny_batch(model.config, (3,)))

    def look(query: Any, key: Any, value: Any, borders: Any, longest: int, scaling: float) -> Any:
        torch._dynamo.graph_break()

    monkeypatch.setattr(compiled, "_attend_on", lambda layer, hidden: look)
    with pytest.raises(UserError, match=r"torch\.compile cannot make one graph"):
        model(tiny_batch(model.config, (3,)))


def test_recomputed_activations_are_not_kept() -> None:
    """And not a bit of the gradients differs."""
    plain = tiny_model(**MODEL)
    model = copy.deepcopy(plain)
    model.execution = Execution(recomputed=True)
    (loss, ours), (expected, theirs) = gradients(model, SIZES[0]), gradients(plain, SIZES[0])
    assert torch.equal(loss, expected)
    assert all(torch.equal(ours[name], gradient) for name, gradient in theirs.items())
    assert kept_bytes(model) < 0.3 * kept_bytes(plain)


def kept_bytes(model: SpeechLM) -> int:
    """Bytes that the forward pass keeps for the backward pass, without weights; each tensor counts once."""
    weights = {weight.data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tiny_batch(model.config, SIZES[0])).loss
    assert loss.requires_grad  # the tensors are still alive: no two of them had one address
    return sum(kept.values())


def test_the_operator_is_the_attention_and_its_gradient() -> None:
    for lengths in ([8], [4, 1, 3]):
        inputs, packing = qkv(8), packing_of(lengths)
        rows = [x[0].transpose(0, 1) for x in inputs]
        got = compiled.by_utterance(*rows, packing.cu_seqlens, packing.num_positions, SCALE)[None]
        expected = naive(*inputs, lengths)
        torch.testing.assert_close(got, expected)
        upstream = torch.randn_like(expected)
        pairs = zip(
            torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
        )
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_the_kernel_of_torch_is_a_part_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, as far as there is none: the graph is made, and not run."""
    kernel = kernels._torch_varlen()
    assert kernel is not None
    monkeypatch.setattr(compiled, "_attend_on", lambda layer, hidden: kernel.attend)
    graphs = []

    def note(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return lambda *inputs: (torch.zeros_like(next(x for x in inputs if torch.is_tensor(x) and x.ndim == 3)),)

    use(monkeypatch, note)
    model = tiny_model()
    model.execution = Execution(compiled=True)
    with torch.no_grad():
        for frames in SIZES[:3]:
            model(tiny_batch(model.config, frames))
    assert len(graphs) == 1
    assert sum("_varlen_attn" in name for name in graphs[0]) == 1
    assert not counters["graph_break"]


@pytest.mark.full
def test_inductor_gives_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real compiler; recomputed too."""
    use(monkeypatch, "inductor")
    plain = tiny_model()
    model = copy.deepcopy(plain)
    model.execution = Execution(compiled=True)
    check_equal(model, plain, SIZES[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        check_equal(model, plain, SIZES[1])
        model.execution = Execution(compiled=True, recomputed=True)
        check_equal(model, plain, SIZES[2])
