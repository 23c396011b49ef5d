"""The training benchmark at its toy shape: it compares what it claims to compare."""

import argparse
import json

import numpy as np
import pytest
import torch
from twins.padded import Padded, pad

from slmkit.bench import train


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return parser.parse_args(words)


def test_equal_losses_on_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.run(arguments("--quick", "--batches", "1", "--json", "--optimizer", "--peak-tflops", "2")) == 0
    result = json.loads(capsys.readouterr().out)
    assert [case["case"] for case in result["cases"]] == ["NTP", "NTP, stream softmax", "MTP-3"]
    for case in result["cases"]:
        assert case["ratio"] == pytest.approx(case["packed_frames_per_sec"] / case["padded_frames_per_sec"])
        if case["case"] == "NTP, stream softmax":
            assert case["loss_difference"] is None
        else:
            assert case["loss_difference"] < 1e-5
    for case in result["cases"]:
        assert case["mfu"] == pytest.approx(case["tflops"] / 2)
        more = case["tokens_per_sec"] / case["positions_per_sec"]
        assert more > 1.5 if case["case"] == "MTP-3" else more == pytest.approx(1)
    assert "required" in train.describe(result)


@pytest.mark.parametrize("group", [0, 3])
def test_gradients_of_the_baseline_are_ours(group: int) -> None:
    """So that neither side leaves work out."""
    case = next(case for case in train.CASES if case.group == group)
    torch.manual_seed(0)
    model = train.SpeechLM(train.model_config(train.TOY, case.group, case.softmax))
    batch = train.make_batch(model, [0.2, 0.7], seed=0)
    padded = Padded(model)
    torch.testing.assert_close(train.packed_step(model, batch), padded.step(batch))
    theirs = dict(padded.lm.named_parameters())
    for name, weight in model.lm_model.named_parameters():
        torch.testing.assert_close(weight.grad, theirs[name].grad, atol=1e-6, rtol=1e-3, msg=name)
    for head, other in zip(model.heads, padded.heads, strict=True):
        torch.testing.assert_close(head.output.weight.grad, other.weight.grad, atol=1e-6, rtol=1e-3)


def test_lengths_are_those_stated() -> None:
    seconds = np.array(train.batch_seconds(40, 5, seed=1))
    assert seconds.shape == (40, 5)
    assert np.median(seconds) == pytest.approx(5.5, rel=0.02)
    assert np.log(seconds).std() == pytest.approx(0.7, rel=0.05)
    assert seconds.max() == 20.0
    assert train.batch_seconds(2, 5, seed=1) != train.batch_seconds(2, 5, seed=2)


def test_padding_keeps_every_token() -> None:
    model = train.SpeechLM(train.model_config(train.TOY, 0))
    batch = train.make_batch(model, [0.1, 0.3], seed=0)
    tokens, mask, places = pad(batch)
    assert torch.equal(tokens.flatten(0, 1)[places], batch.tokens)
    assert mask.sum() == batch.num_tokens
    assert mask.shape[0] == 2
