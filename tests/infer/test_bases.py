"""The engine on each architecture beside transformers' own generation, and what a step shares with the model."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ARCHITECTURES, BASE_SIZE, talkative_model
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from slmkit.errors import UserError
from slmkit.infer.decoder import SlotDecoder
from slmkit.infer.engine import Engine
from slmkit.infer.grammar import make_grammar
from slmkit.infer.product import fastest_product
from slmkit.infer.request import Request
from slmkit.infer.rows import Rows, step_layer
from slmkit.infer.slots import STEP_ATTENTION
from slmkit.model.architecture import TESTED
from slmkit.model.slm import SpeechLM

MAX_STEPS = 30


def plain_generation(model: SpeechLM, prompt: tuple[int, ...]) -> list[int]:
    """Greedy tokens of transformers' `generate` with its own attention and cache, bound to the grammar alone."""
    values = {**(model.config.backbone or {}), "attn_implementation": "eager"}
    config = AutoConfig.for_model(values.pop("model_type", "qwen2"), **values)
    plain: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)  # type: ignore[misc]
    plain.load_state_dict(model.lm_model.state_dict())
    plain.generation_config.eos_token_id = model.layout.eos_id
    plain.generation_config.pad_token_id = model.layout.eos_id

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        grammar = make_grammar(model.layout, 0)
        for token in ids[len(prompt) :].tolist():
            if grammar.mode == "speech":
                grammar.accept_speech([token])
            else:
                grammar.accept_text(token)
        return grammar.allowed(grammar.state)

    out = plain.eval().generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=MAX_STEPS,
        prefix_allowed_tokens_fn=allowed,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_engine_says_what_transformers_generates(arch: str) -> None:
    model, rng = talkative_model(0, arch=arch), np.random.default_rng(7)
    prompts = [tuple(rng.integers(0, BASE_SIZE - 2, 4 + 5 * i).tolist()) for i in range(3)]
    asked = [Request(prompt=prompt, max_steps=MAX_STEPS, max_text_tokens=99, max_sec=9) for prompt in prompts]
    outputs = Engine(model, num_slots=3, num_positions=128).generate(asked)
    for one, output in zip(asked, outputs, strict=True):
        grammar = make_grammar(model.layout, 0)
        for token in plain_generation(model, one.prompt):
            if grammar.mode == "speech":
                grammar.accept_speech([token])
            else:
                grammar.accept_text(token)
        assert output.codes.tolist() == grammar.codes().tolist()
        assert output.text_ids == tuple(grammar.text_ids)
    assert sum(output.num_steps for output in outputs) > MAX_STEPS


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_step_runs_the_layers_of_the_model_with_its_weights(arch: str) -> None:
    """The same classes in the same places, but for linear layers and activations; no weight is copied or changed."""
    model = talkative_model(3, arch=arch)
    layer = model.backbone.layers[1]
    before = {name: type(module) for name, module in layer.named_modules()}
    twin = step_layer(layer, Rows(fastest_product(model.backbone.embed_tokens.weight), one_by_one=True), attention="x")
    assert {name: type(module) for name, module in layer.named_modules()} == before
    theirs = dict(twin.named_parameters())
    assert theirs.keys() == dict(layer.named_parameters()).keys()
    assert all(theirs[name] is weight for name, weight in layer.named_parameters())
    changed = {name for name, module in twin.named_modules() if before.get(name) is not type(module)}
    projections = {f"self_attn.{name}_proj" for name in "qkvo"} | {
        f"mlp.{name}_proj" for name in ("gate", "up", "down")
    }
    assert changed == projections | {"mlp.act_fn", "mlp.act_fn._function"}
    assert twin.self_attn.config._attn_implementation == "x"
    assert layer.self_attn.config._attn_implementation != STEP_ATTENTION


def untested(model_type: str) -> SpeechLM:
    model = talkative_model(3, backbone={"model_type": model_type, "pad_token_id": None})
    assert model.config.backbone_config.model_type not in TESTED
    return model


def test_an_architecture_that_is_not_among_the_tested_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step must give what a prompt gives, in every slot the same."""
    model = untested("olmo2")  # norms behind attention and MLP, and of all queries of a position together
    engine = Engine(model, num_slots=3, num_positions=64)
    asked = [Request(prompt=(1, 2, i), max_steps=8) for i in range(3)]
    together = [output.codes.tolist() for output in engine.generate(asked)]
    assert together == [engine.generate([one])[0].codes.tolist() for one in asked]
    run = SlotDecoder._compute

    def off_by(change: Any) -> Any:
        def compute(self: SlotDecoder, *args: torch.Tensor) -> list[torch.Tensor]:
            return [change(states) for states in run(self, *args)]

        return compute

    rows = torch.arange(3)[:, None]
    for change in (lambda states: states * 1.01, lambda states: states + 1e-6 * rows):
        monkeypatch.setattr(SlotDecoder, "_compute", off_by(change))
        with pytest.raises(UserError, match="does not fit: a decoding step gives other numbers than a prompt"):
            Engine(model, num_slots=3, num_positions=64)


def test_an_architecture_whose_attention_is_told_too_little_is_refused() -> None:
    """StableLM passes nothing on to the attention function."""
    with pytest.raises(UserError, match=r"stablelm does not fit: a decoding step fails: .*missing"):
        Engine(untested("stablelm"), num_slots=2, num_positions=64)
