"""Fused kernels behind a stand-in for liger-kernel that computes the same with torch; tests/gpu runs the real ones."""

import copy
import inspect
import sys
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from liger_stand_in import NAMES, stand_in
from tiny_models import tiny_batch, tiny_model

from slmkit.errors import UserError
from slmkit.infer.rows import Rows, step_layer
from slmkit.model.architecture import TESTED
from slmkit.model.fused import fuse, liger_kernels
from slmkit.model.slm import SpeechLM

FRAMES = (9, 4, 0, 13)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each function of the stand-in was called."""
    counted: Counter[str] = Counter()
    for name, module in stand_in(counted).items():
        monkeypatch.setitem(sys.modules, name, module)
    return counted


def trained(model: SpeechLM) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients."""
    loss = model(tiny_batch(model.config, FRAMES)).loss
    return loss.detach(), list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("arch", TESTED)
def test_losses_and_gradients_are_those_of_the_plain_modules(calls: Counter[str], arch: str) -> None:
    plain = tiny_model(group=3, head="transformer", arch=arch)
    model = copy.deepcopy(plain)
    fuse(model, liger_kernels(on_gpu=True))
    torch.testing.assert_close(trained(model), trained(plain), atol=1e-5, rtol=1e-4)
    layers = [*model.backbone.layers, *(layer for head in model.heads for layer in head.head_layers)]
    num_norms = 4 if arch == "qwen3" else 2  # qwen3 has those of queries and keys
    num_rotated = sum(getattr(layer.self_attn, "use_rope", 1) for layer in layers)  # smollm3 has layers without
    assert calls == {"norm": 1 + num_norms * len(layers), "rotation": num_rotated, "swiglu": len(layers)}
    assert list(model.state_dict()) == list(plain.state_dict())
    assert "Fused" not in repr(plain)


def test_nothing_is_fused_outside_training(calls: Counter[str]) -> None:
    """Nor in a decoding step, whose layers are made of those in training; copies are whole models of their own."""
    plain = tiny_model().eval()
    model = copy.deepcopy(plain)
    fuse(model, liger_kernels(on_gpu=True))
    batch = tiny_batch(model.config, FRAMES)
    assert torch.equal(model(batch).loss, plain(batch).loss)
    rows = Rows(F.linear, one_by_one=True)
    hidden, turn = torch.randn(3, 1, 32), model.backbone.rotary_emb(torch.zeros(1), torch.arange(3)[:, None])
    stepped = [
        step_layer(each.backbone.layers[0], rows, attention="sdpa")(hidden, position_embeddings=turn)
        for each in (model, plain)
    ]
    assert torch.equal(*stepped)
    assert not calls
    copied = copy.deepcopy(model).train()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    plain.train()
    torch.testing.assert_close(trained(copied)[0], trained(plain)[0])
    assert calls


def test_it_is_refused_where_it_cannot_be(calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="run on a GPU"):
        liger_kernels(on_gpu=False)
    model = tiny_model()
    monkeypatch.setattr(model.backbone.config, "hidden_act", "gelu")
    with pytest.raises(UserError, match="not known that they fit this base model"):
        fuse(model, liger_kernels(on_gpu=True))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.rope", None)
    with pytest.raises(UserError, match=r"liger-kernel cannot be loaded(.|\n)*slmkit\[liger\]"):
        liger_kernels(on_gpu=True)


def test_the_stand_in_has_the_signatures_of_liger_kernel(calls: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    standing_in = liger_kernels(on_gpu=True)
    for name in (*NAMES, "liger_kernel.transformers.rope"):
        monkeypatch.delitem(sys.modules, name)
    pytest.importorskip("liger_kernel")
    for ours, theirs in zip(standing_in, liger_kernels(on_gpu=True), strict=True):
        known = inspect.signature(theirs).parameters
        assert list(inspect.signature(ours).parameters) == list(known)[: len(inspect.signature(ours).parameters)]
