"""Laws of the model: packed equals unpacked, cut as you like, cached equals whole, every parameter has a gradient."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_models import tiny_batch, tiny_config, tiny_layout, tiny_model
from transformers import DynamicCache
from twins.generate import head_logits

from slmkit.errors import UserError
from slmkit.model.config import SpeechLMConfig
from slmkit.model.losses import candidates
from slmkit.model.slm import SpeechLM

KINDS: dict[str, dict[str, Any]] = {
    "ntp": {"group": 0},
    "ntp_speaker": {"group": 0, "speaker_dim": 8},
    "ntp_stream": {"group": 0, "softmax": "stream"},
    "ntp_untied": {"group": 0, "backbone": {"tie_word_embeddings": False}},
    "mtp3_linear": {"group": 3},
    "mtp3_mlp_fused": {"group": 3, "head": "mlp", "fusion": "mlp"},
    "mtp6_transformer_speaker": {"group": 6, "head": "transformer", "speaker_dim": 8},
    "mtp12_linear": {"group": 12},
    "qwen3_mtp3": {"group": 3, "arch": "qwen3", "head": "transformer"},
    "llama_ntp": {"group": 0, "arch": "llama"},
    "smollm3_mtp6": {"group": 6, "arch": "smollm3", "head": "transformer"},
    "mtp4_mlp_unequal_codebooks": {"group": 4, "head": "mlp", "sizes": (16, 5, 9)},
    "mtp3_eight_streams": {"group": 3, "sizes": (8,) * 8, "fusion": "mlp", "speaker_dim": 8},
}
FRAMES = (9, 4, 0, 13)


def gradients(model: SpeechLM) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    assert found.keys() == dict(model.named_parameters()).keys(), "a parameter has no gradient"
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", KINDS)
def test_packed_equals_unpacked(name: str) -> None:
    """Losses and gradients of four utterances in one row, and of each in a micro-batch of its own."""
    model = tiny_model(**KINDS[name])
    packed = tiny_batch(model.config, FRAMES)
    whole = model(packed)
    whole.loss.backward()
    expected = gradients(model)
    single = [single_of(packed, i) for i in range(len(FRAMES))]
    parts = [model(batch) for batch in single]
    sum(part.loss for part in parts).backward()
    torch.testing.assert_close(torch.stack([p.loss for p in parts]).sum(), whole.loss)
    torch.testing.assert_close(torch.stack([p.sums for p in parts]).sum(0), whole.sums, atol=1e-4, rtol=1e-5)
    assert torch.equal(torch.stack([p.correct for p in parts]).sum(0), whole.correct)
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(
            gradient, expected[key], atol=2e-6, rtol=1e-4, msg=lambda text, k=key: f"{k}: {text}"
        )


def single_of(batch: Any, i: int) -> Any:
    """Utterance i of a micro-batch as a micro-batch, with the global counts of the whole."""
    start, stop = batch.cu_seqlens[i].item(), batch.cu_seqlens[i + 1].item()
    fields: dict[str, Any] = {
        name: getattr(batch, name)[start:stop] for name in ("tokens", "speech_mask", "position_ids")
    }
    of_positions = {
        "speaker_positions": ("speaker",),
        "lm_positions": ("lm_targets", "lm_groups"),
        "head_positions": ("head_targets",),
    }
    for name, others in of_positions.items():
        positions = getattr(batch, name)
        here = (positions >= start) & (positions < stop)
        fields[name] = positions[here] - start
        fields.update({other: getattr(batch, other)[here] for other in others})
    borders = torch.tensor([0, stop - start], dtype=torch.int32)
    fields["lengths"] = (stop - start,)
    fields["lm_counts"] = tuple(fields["lm_groups"].bincount(minlength=len(batch.lm_counts)).tolist())
    phases = np.repeat(np.arange(len(batch.head_counts)), batch.head_counts)
    here = ((batch.head_positions >= start) & (batch.head_positions < stop)).numpy()
    fields["head_counts"] = tuple(np.bincount(phases[here], minlength=len(batch.head_counts)).tolist())
    return dataclasses.replace(batch, cu_seqlens=borders, **fields)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("frames", [(0, 0), (7,)], ids=["no speech", "speech"])
def test_every_parameter_gets_a_gradient(name: str, frames: tuple[int, ...]) -> None:
    model = tiny_model(**KINDS[name])
    output = model(tiny_batch(model.config, frames))
    output.loss.backward()
    found = gradients(model)
    assert torch.isfinite(output.loss)
    assert all(torch.isfinite(gradient).all() for gradient in found.values())
    for key, gradient in found.items():
        if key.startswith(("speech_heads", "fusion")):
            assert gradient.any() == (frames != (0, 0)), key


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_without_any_target(name: str) -> None:
    """What a rank gets when the global batch has no row for it."""
    model = tiny_model(**KINDS[name])
    batch = tiny_batch(model.config, (), counts=torch.full((model.config.num_terms,), 5.0, dtype=torch.float64))
    output = model(batch)
    output.loss.backward()
    assert output.loss == 0
    assert not output.sums.any()
    assert not any(gradient.any() for gradient in gradients(model).values())


@pytest.mark.parametrize("name", KINDS)
def test_a_weight_is_there_in_its_modules_forward_only(name: str) -> None:
    """What ZeRO-3 does to the weights; and it needs every micro-batch to run the same modules in the same order."""
    model = tiny_model(**KINDS[name])
    counts = torch.full((model.config.num_terms,), 5.0, dtype=torch.float64)
    batches = [tiny_batch(model.config, frames, counts=counts) for frames in (FRAMES, (0, 0), ())]
    with torch.no_grad():
        expected = [model(batch).loss for batch in batches]
        whole = {parameter: parameter.data for parameter in model.parameters()}
        called: list[torch.nn.Module] = []

        def fetch(module: torch.nn.Module, _: Any) -> None:
            called.append(module)
            for parameter in module.parameters(recurse=False):
                parameter.data = whole[parameter]

        def release(module: torch.nn.Module, *_: Any) -> None:
            for parameter in module.parameters(recurse=False):
                parameter.data = torch.empty(0)

        for module in model.modules():
            module.register_forward_pre_hook(fetch)
            module.register_forward_hook(release)
            release(module)
        sequences = []
        for batch, loss in zip(batches, expected, strict=True):
            called.clear()
            assert torch.equal(model(batch).loss, loss)
            sequences.append(list(called))
    assert sequences[0] == sequences[1] == sequences[2]


def test_only_text_or_only_speech_targets() -> None:
    """MTP micro-batches in which one of the two losses has nothing to count."""
    model = tiny_model(3)
    whole = tiny_batch(model.config, (6, 6))
    none = torch.zeros(0, dtype=torch.int64)
    no_text = dataclasses.replace(whole, lm_positions=none, lm_targets=none, lm_groups=none, lm_counts=(0,) * 4)
    no_speech = dataclasses.replace(whole, head_positions=none, head_targets=none.reshape(0, 3), head_counts=(0,) * 3)
    total = model(whole)
    parts = [model(no_text), model(no_speech)]
    for part in parts:
        part.loss.backward()
        gradients(model)
    torch.testing.assert_close(parts[0].loss + parts[1].loss, total.loss)


@pytest.mark.parametrize("name", ["ntp", "ntp_stream", "mtp6_transformer_speaker"])
def test_a_step_asks_the_device_for_no_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would wait for all that is computed before."""
    model = tiny_model(**KINDS[name])
    batch = tiny_batch(model.config, FRAMES)

    def refuse(tensor: torch.Tensor, *args: Any) -> Any:
        raise AssertionError("the device is asked for a number")

    for asks in ("tolist", "item", "numpy", "nonzero", "bincount", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, asks, refuse)
    loss = model(batch).loss
    monkeypatch.undo()
    assert loss.item() > 0


@pytest.mark.parametrize("name", ["ntp", "ntp_stream", "mtp6_transformer_speaker"])
def test_losses_equal_plain_logits(name: str) -> None:
    """The loss from logits of all positions, computed by the pieces that inference uses."""
    model = tiny_model(**KINDS[name])
    batch = tiny_batch(model.config, (11,))
    embedded = model.embed(batch.tokens, batch.speech_mask, batch.speaker, batch.speaker_positions)[None]
    hidden = model.hidden(embedded, batch.position_ids[None])
    logits = model.lm_model.lm_head(hidden)[0, batch.lm_positions]
    if model.config.softmax == "stream":
        allowed = torch.zeros(model.config.num_terms, logits.shape[1], dtype=torch.bool)
        for term, ranges in enumerate(candidates(model.layout, logits.shape[1], "stream")):
            for start, stop in ranges:
                allowed[term, start:stop] = True
        logits = logits.masked_fill(~allowed[batch.lm_groups], -torch.inf)
    nll = F.cross_entropy(logits, batch.lm_targets, reduction="none")
    sums = [nll[batch.lm_groups == term].sum() for term in range(model.config.num_terms)]
    for i, of_head in enumerate(head_logits(model, hidden, batch.position_ids[None])):
        sums[1 + i] = F.cross_entropy(of_head[0, batch.head_positions], batch.head_targets[:, i], reduction="sum")
    output = model(batch)
    torch.testing.assert_close(output.sums, torch.stack(sums), atol=1e-4, rtol=1e-5)
    counts = batch.global_counts.float()
    if model.group:
        means = output.sums / counts
        expected = 0.2 * means[0] + 0.8 * means[1:].mean()
    else:
        expected = output.sums.sum() / counts.sum()
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("name", KINDS)
def test_cached_decoding_equals_the_whole_sequence(name: str) -> None:
    """Prefill of a part, then position by position, as generation does."""
    model = tiny_model(**KINDS[name]).eval()
    batch = tiny_batch(model.config, (6,))
    positions = batch.position_ids[None]
    embedded = model.embed(batch.tokens, batch.speech_mask, batch.speaker, batch.speaker_positions)[None]
    with torch.no_grad():
        hidden = model.hidden(embedded, positions)
        heads = head_logits(model, hidden, positions)
        cache = DynamicCache()
        for start, stop in [(0, 5), (5, 7), *((i, i + 1) for i in range(7, batch.num_tokens))]:
            part = model.hidden(embedded[:, start:stop], positions[:, start:stop], cache=cache)
            torch.testing.assert_close(part, hidden[:, start:stop], atol=1e-4, rtol=1e-4)
            of_heads = head_logits(model, part, positions[:, start:stop], cache=cache)
            for got, expected in zip(of_heads, heads, strict=True):
                torch.testing.assert_close(got, expected[:, start:stop], atol=1e-4, rtol=1e-4)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = tiny_model(6, head="transformer")
    batch = tiny_batch(model.config, FRAMES)
    model(batch).loss.backward()
    expected = gradients(model)
    model.gradient_checkpointing_enable()
    model.train()
    model(batch).loss.backward()
    for key, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[key])


def test_the_tied_embedding_learns_from_both_ends() -> None:
    """Its gradient is the sum of what the input and the output side bring."""
    model = tiny_model(0)
    batch = tiny_batch(model.config, FRAMES)
    model(batch).loss.backward()
    tied = gradients(model)["lm_model.model.embed_tokens.weight"]
    apart = tiny_model(0, backbone={"tie_word_embeddings": False})
    state = model.state_dict()
    apart.load_state_dict(state)
    apart(batch).loss.backward()
    found = gradients(apart)
    both = found["lm_model.model.embed_tokens.weight"] + found["lm_model.lm_head.weight"]
    torch.testing.assert_close(tied, both)


def test_fusion_reads_every_token_of_a_step() -> None:
    for fusion in ("mean", "mlp"):
        model = tiny_model(3, fusion=fusion)
        tokens = torch.tensor([[[40, 56, 72], [41, 56, 72], [40, 57, 72], [40, 56, 73]]])
        steps = model.embed(tokens, torch.ones(1, 4, dtype=torch.bool))[0]
        assert len(torch.unique(steps, dim=0)) == 4
        text = model.embed(tokens, torch.zeros(1, 4, dtype=torch.bool))[0]
        assert torch.equal(text, model.lm_model.model.embed_tokens(tokens[0, :, 0]))


def test_mean_fusion_is_the_published_mean() -> None:
    model = tiny_model(3)
    tokens = torch.tensor([[44, 60, 80]])
    table = model.lm_model.model.embed_tokens.weight
    torch.testing.assert_close(model.embed(tokens, torch.tensor([True]))[0], table[tokens[0]].mean(0))


def test_the_speaker_takes_its_place_alone() -> None:
    model = tiny_model(0, speaker_dim=8)
    tokens = torch.zeros(2, 3, 1, dtype=torch.int64)
    speaker = torch.randn(2, 8)
    plain = model.embed(tokens)
    spoken = model.embed(tokens, None, speaker, torch.tensor([1, 5]))
    changed = (plain != spoken).any(-1).reshape(-1)
    assert changed.tolist() == [False, True, False, False, False, True]
    torch.testing.assert_close(spoken.reshape(6, -1)[[1, 5]], model.spk_emb_proj(speaker))


def test_rotary_frequencies_stay_exact_in_half_precision() -> None:
    """In bfloat16 they would have 3 significant digits: position 4000 would be wrong by many radians."""
    model = tiny_model(0)
    exact = model.lm_model.model.rotary_emb.inv_freq.clone()
    half = model.bfloat16()
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.lm_model.model.rotary_emb.inv_freq, exact)


def test_bfloat16_is_near_float32() -> None:
    for options in (KINDS["ntp_stream"], KINDS["mtp6_transformer_speaker"]):
        model = tiny_model(**options)
        batch = tiny_batch(model.config, FRAMES)
        exact = model(batch).loss.item()
        output = model.bfloat16()(batch)
        output.loss.backward()
        gradients(model)
        assert output.loss.dtype == torch.float32
        assert output.loss.item() == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": -3}, "the group size is out of range"),
        ({"group": 3, "softmax": "stream"}, "stream softmax is for next-token prediction"),
        ({"group": 3, "head": "conv"}, "unknown head of the model"),
        ({"backbone": {"vocab_size": 50}}, "fewer rows than the vocabulary"),
        ({"backbone": {"use_sliding_window": True}}, "does not fit: it has sliding-window attention"),
    ],
)
def test_parts_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SpeechLM(tiny_config(**options))


def test_layout_and_codec_must_match() -> None:
    values = tiny_config().to_dict()
    with pytest.raises(UserError, match="needs a vocabulary of kind mtp"):
        SpeechLM(SpeechLMConfig(**{**values, "group": 3}))
    with pytest.raises(UserError, match="codebooks of codec and vocabulary differ"):
        SpeechLM(SpeechLMConfig(**{**values, "layout": tiny_layout(0, (16, 8, 16)).to_dict()}))


def test_a_batch_of_another_model_is_refused() -> None:
    model = tiny_model(3, speaker_dim=8)
    with pytest.raises(UserError, match="tokens per position: the batch was made for another model"):
        model.embed(torch.zeros(5, 1, dtype=torch.int64))
    tokens, place = torch.zeros(5, 3, dtype=torch.int64), torch.tensor([0])
    with pytest.raises(UserError, match="speaker vector: the batch was made for another model"):
        model.embed(tokens, None, torch.zeros(1, 4), place)
    with pytest.raises(UserError, match="speaker vector: the batch was made for another model"):
        tiny_model(3).embed(tokens, None, torch.zeros(1, 8), place)
