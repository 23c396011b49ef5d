"""A kind of head that is registered here alone goes through everything: training, files, decoding, counting."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memorising import BASE
from safetensors.torch import save_file
from synthetic import codec_spec
from tiny_models import BASE_SIZE, talkative_model, tiny_batch, tiny_config, tiny_model
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from twins.generate import Limits, generate

from slmkit.errors import UserError
from slmkit.infer.engine import Engine
from slmkit.infer.request import Request, from_ids
from slmkit.infer.sampling import Sampling
from slmkit.model.flops import BatchSizes, Flops
from slmkit.model.heads.base import OutputLayer, RowArithmetic, SpeechHead
from slmkit.model.heads.kinds import HEADS
from slmkit.model.pretrained import extended_tokenizer, from_base, load, save
from slmkit.model.published import from_published, to_published


class GatedHead(SpeechHead):
    """One decoder layer, a gated perceptron, a linear map."""

    published_key = "head_gate.weight"
    num_layers = 1

    def __init__(self, config: Any, *, num_classes: int, layers: nn.ModuleList) -> None:
        super().__init__(config, num_classes=num_classes, layers=layers)
        self.head_gate = nn.Linear(config.hidden_size, 24)
        self.head_up = nn.Linear(config.hidden_size, 24, bias=False)
        self.head_down = OutputLayer(24, num_classes)

    @property
    def output(self) -> OutputLayer:
        return self.head_down

    def features(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(self.head_gate(states)) * self.head_up(states)

    def step_features(self, states: torch.Tensor, rows: RowArithmetic) -> torch.Tensor:
        gate = rows.activation(nn.functional.silu, rows.linear(self.head_gate, states))
        return gate * rows.linear(self.head_up, states)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "gated", GatedHead)


def test_it_learns() -> None:
    model = tiny_model(6, head="gated")
    batch = tiny_batch(model.config, (9, 4, 0, 13))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        output = model(batch)
        output.loss.backward()
        assert all(weight.grad is not None and weight.grad.any() for weight in model.speech_heads.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_files_hold_it(tmp_path: Path) -> None:
    model = from_base(BASE, codec=codec_spec(), group=3, head="gated", seed=1)
    save(model, tmp_path / "out", tokenizer=extended_tokenizer(BASE, model.layout))
    save_file(to_published(model), tmp_path / "published.safetensors")
    for back in (
        load(tmp_path / "out"),
        from_published(tmp_path / "published.safetensors", base_dir=BASE, codec=codec_spec()),
    ):
        assert back.config.head == "gated"
        assert all(isinstance(head, GatedHead) for head in back.heads)
        assert back.state_dict().keys() == model.state_dict().keys()
        assert all(torch.equal(back.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_the_engine_decodes_it_alone_and_in_company() -> None:
    model, rng = talkative_model(6, head="gated"), np.random.default_rng(0)
    prompts = [tuple(rng.integers(0, BASE_SIZE - 2, rng.integers(1, 16)).tolist()) for _ in range(6)]
    engine = Engine(model, num_slots=5, num_positions=128)
    greedy = [Request(prompt=prompt, max_sec=0.15, max_text_tokens=24) for prompt in prompts]
    outputs = engine.generate(greedy)
    for prompt, output in zip(prompts, outputs, strict=True):
        plain = generate(model, from_ids(prompt, model.layout, 6), limits=Limits(max_frames=12, max_text_tokens=24))
        assert np.array_equal(output.codes, plain.codes)
    assert sum(output.codes.shape[1] for output in outputs) > 0
    warm = Sampling(temperature=1.0, top_p=0.9)
    drawn = [replace(one, speech_sampling=warm, text_sampling=warm, seed=i) for i, one in enumerate(greedy)]
    alone = [engine.generate([one])[0].codes.tolist() for one in drawn]
    assert [output.codes.tolist() for output in engine.generate(drawn)] == alone


def test_its_operations_are_counted() -> None:
    config = tiny_config(6, head="gated")
    model, batch = tiny_model(6, head="gated"), tiny_batch(config, (5, 0, 12))
    sizes = BatchSizes.of(batch)
    squares = int(torch.diff(batch.cu_seqlens).long().square().sum())  # torch counts the masked half, too
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch)
    parts = Flops(model).parts(replace(sizes, attention_pairs=squares))
    assert sum(parts.values()) == counter.get_total_flops()


def test_a_kind_that_is_not_registered_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown head of the model(.|\n)*linear, mlp, transformer, gated"):
        tiny_model(3, head="conv")
