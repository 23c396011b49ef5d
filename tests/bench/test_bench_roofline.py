"""The arithmetic of a step: what is counted is what the model does, and grows as it should."""

import argparse
import json
from typing import Any

import pytest
from tiny_models import tiny_batch, tiny_config
from torch.utils.flop_counter import FlopCounterMode

from slmkit.bench import roofline
from slmkit.bench.roofline import Ceilings, Part
from slmkit.bench.train import TOY
from slmkit.model.flops import TRAINING_PASSES, BatchSizes, Flops

FRAMES = (5, 0, 12, 7)
NAMES = {  # of `Flops.parts`
    roofline.PROJECTIONS: "attention projections",
    roofline.MLP: "mlp",
    roofline.TEXT: "text logits",
    roofline.HEADS: "speech heads",
    roofline.FUSION: "fusion",
}


@pytest.mark.parametrize("options", [{}, {"group": 3}, {"group": 6, "head": "mlp", "fusion": "mlp"}])
def test_the_products_are_those_of_a_training_step_by_part(options: dict[str, Any]) -> None:
    """Exactly: those that `model.flops` computes, and those that torch counts."""
    config = tiny_config(**options)
    batch, model = tiny_batch(config, FRAMES), roofline.new_model(config)
    parts, expected = roofline.counted(model, batch).parts, Flops(model).parts(BatchSizes.of(batch))
    assert {name: part.flops for name, part in parts.items() if part.flops} == {
        ours: TRAINING_PASSES * expected[theirs] for ours, theirs in NAMES.items() if expected[theirs]
    }
    with FlopCounterMode(display=False) as counter:
        model(batch.to("meta")).loss.backward()
    assert counter.get_total_flops() == sum(part.flops for part in parts.values())


def test_kernels_depend_on_the_layers_and_bytes_on_the_positions() -> None:
    found, positions = {}, {}
    for layers in (1, 2):
        for times in (1, 2):
            config = tiny_config(3, backbone={"num_hidden_layers": layers})
            batch = tiny_batch(config, FRAMES * times)
            found[layers, times] = roofline.counted(roofline.new_model(config), batch)
            positions[times] = batch.num_tokens
    part = {key: counter.parts[roofline.ELEMENTWISE] for key, counter in found.items()}
    assert part[1, 1].launches == part[1, 2].launches == part[2, 1].launches / 2 > 50
    assert part[2, 1].bytes == 2 * part[1, 1].bytes
    per_position = [part[1, times].bytes / positions[times] for times in (1, 2)]
    assert 0.9 < per_position[1] / per_position[0] < 1  # weights of norms are read once
    kept = {key: sum(counter.kept.values()) for key, counter in found.items()}
    assert kept[2, 1] > kept[1, 1]
    assert kept[2, 2] > kept[2, 1]
    assert found[2, 1].forward_launches == 2 * found[1, 1].forward_launches


def test_a_part_takes_as_long_as_what_bounds_it() -> None:
    at = Ceilings(tflops=1.0, tb_per_sec=2.0)
    assert Part(flops=4e12, bytes=2e12).seconds(at) == 4.0
    assert Part(flops=4e12, bytes=10e12).seconds(at) == 5.0
    assert Part(flops=4e12, bytes=10e12).seconds(at, share=0.5) == 8.0


def test_the_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "QWEN", TOY)
    parser = argparse.ArgumentParser()
    roofline.add_arguments(parser)
    assert roofline.run(parser.parse_args(["--groups", "0", "12", "--positions", "100", "--gpus", "8"])) == 0
    shown = capsys.readouterr().out
    assert "| MTP-12 |" in shown
    assert "\nNTP, " in shown
    assert "exchange between GPUs" in shown
    assert roofline.run(parser.parse_args(["--groups", "3", "--positions", "300", "--json"])) == 0
    values = json.loads(capsys.readouterr().out)
    ((eager, fused),) = values["training"]
    assert abs(eager["positions"] - 300) < 20
    assert fused["useful_flops"] == eager["useful_flops"] > 0
    moved = [step["parts"][roofline.ELEMENTWISE]["bytes"] for step in (eager, fused)]
    assert 0 < moved[1] < moved[0]
    assert eager["exchange_sec"] == 0
    caches = [step["cache_bytes"] for step in values["decoding"]]
    assert caches[1] == 8 * caches[0]
