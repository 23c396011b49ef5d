"""The benchmark of training steps in a toy shape: full rows, equal batches of all variants, kernels of a step."""

import argparse
import json
import os
import subprocess
import sys

import pytest
import torch
from gpu.parts import Output, of_steps
from train.ranks import ROOT

from slmkit.bench import steps
from slmkit.bench.batches import full_batches, make_batch, num_tokens
from slmkit.bench.synthetic import NUM_STREAMS, model_config
from slmkit.bench.train import TOY
from slmkit.errors import ConfigError, UserError
from slmkit.model.slm import SpeechLM
from slmkit.world import World


@pytest.fixture(scope="module", params=[0, 12])
def model(request: pytest.FixtureRequest) -> SpeechLM:
    return SpeechLM(model_config(TOY, request.param))


def test_rows_are_full_and_counted_as_a_whole(model: SpeechLM) -> None:
    options = {"micro_batches": 2, "micro_rows": 3, "row_tokens": 512, "time_scale": 0.1}
    batches = full_batches(model, **options, seed=0)
    assert [batch.row_tokens for batch in batches] == [1536, 1536]
    for batch in batches:
        assert batch.num_tokens <= 1536
        assert int(batch.cu_seqlens.diff().max()) <= 512
        assert torch.equal(batch.global_counts, batches[0].global_counts)
    assert sum(batch.num_tokens for batch in batches) > 0.8 * 2 * 1536
    targets = sum(len(batch.lm_targets) + batch.head_targets.numel() for batch in batches)
    assert batches[0].global_counts.sum() == targets
    other = full_batches(model, **options, seed=1)
    assert not torch.equal(other[0].tokens[:40], batches[0].tokens[:40])
    assert torch.equal(full_batches(model, **options, seed=0)[1].tokens, batches[1].tokens)


def test_tokens_are_text_and_codes(model: SpeechLM) -> None:
    batch = make_batch(model, [0.5, 0.4], seed=0)
    text = int((~batch.speech_mask).sum()) if model.group else batch.num_tokens - NUM_STREAMS * batch.num_frames - 2
    assert num_tokens(batch, model.group) == text + NUM_STREAMS * batch.num_frames + 2  # <eosp> of each


def test_a_recipe_is_cut_to_the_share_of_one_gpu() -> None:
    path = steps.config_file("libritts_ntp", "train")
    changed = ["global_rows=64", "micro_rows=2"]
    assert steps.share_of_one(path, changed, World()).global_rows == 8
    assert steps.share_of_one(path, changed, World(size=2)).global_rows == 16
    assert steps.share_of_one(path, ["global_rows=2", "micro_rows=2"], World()).global_rows == 2


def test_time_in_which_nothing_ran_is_what_no_kernel_covers() -> None:
    assert list(steps.merged([])) == []
    assert list(steps.merged([(0, 2), (1, 1.5), (2, 3), (5, 6)])) == [(0, 3), (5, 6)]


def test_kernels_by_their_time() -> None:
    matrix = torch.ones(200, 200)
    look = steps.look_at(lambda: [matrix @ matrix for _ in range(3)], torch.device("cpu"))
    products = [kernel for kernel in look["kernels"] if kernel["name"] == "aten::mm"]
    assert [kernel["calls"] for kernel in products] == [3]
    assert look["launches"] >= 6  # each within a matmul
    assert 0 < look["busy_sec"] <= look["span_sec"]
    assert 0 <= look["idle_share"] < 1


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--variant", "model.group=-1"], ConfigError, "model.group"),
        (["no_such_recipe"], UserError, "no file of this name"),
    ],
)
def test_refusals(words: list[str], error: type[UserError], said: str) -> None:
    parser = argparse.ArgumentParser()
    steps.add_arguments(parser)
    with pytest.raises(error, match=said):
        steps.run(parser.parse_args(words))


@pytest.mark.full
def test_two_variants_of_a_recipe() -> None:
    """In a process of its own, which ends its process group."""
    command = [sys.executable, "-m", "slmkit", "bench", "steps", "libritts_mtp12", "--quick", "--laps", "1", "--json"]
    command += ["--variant", "peak_tflops=1", "--variant", "model.text_loss_weight=0.2,model.fusion=mean"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert first["precision"] == "bf16"
    assert first["tokens_per_sec"] > 2 * first["positions_per_sec"]
    assert first["mfu"] == pytest.approx(first["tflops"])
    assert (first["ratio"], first["loss_difference"], second["mfu"]) == (1, 0, None)
    assert second["loss_difference"] > 0  # another fusion
    assert second["positions_per_step"] == first["positions_per_step"]
    assert len(first["loss"]) == 2 * steps.STEPS
    assert "launches" in steps.describe(second)
    speeds, kernels = of_steps(Output(done.stdout, [first, second]))
    assert [row["MFU"] for row in speeds.rows] == [f"{first['mfu']:.1%}", "-"]
    assert len(kernels.rows) == 16
