"""Runs on bases of other architectures: resumed, on other numbers of processes, in each stage of ZeRO, consolidated."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import untied
from train.place import Place
from train.ranks import ROOT
from transformers import AutoModelForCausalLM

from slmkit.export import consolidate
from slmkit.model.pretrained import check_export, config_on_base, from_export, load

pytestmark = pytest.mark.full
STEPS = 6
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"group": 3, "head": "transformer", "speaker": True},
    "llama": {"group": 0},  # its output layer is not tied to the embedding
    "smollm3": {"group": 3, "head": "transformer"},
}
STAGES = ("zero1", "zero3")  # the other runs are of ZeRO-2


def task(
    place: Place, run: str, *, rows: int, save: int, at: int | None = None, stage: str = "zero2"
) -> dict[str, Any]:
    config = place.config(
        run,
        model=MODELS[place.directory.name],
        deepspeed=str(ROOT / "ds_configs" / f"{stage}_fp32.json"),
        global_rows=12,
        micro_rows=rows,
        save_every_steps=save,
        steps=STEPS,
    )
    return {"kind": "train_noting_samples", "at": at, "config": config}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Place]:
    """For each base the runs "whole", "elastic" (2, 1, then 3 processes), "alone", "resumed" and one per stage."""
    root = tmp_path_factory.mktemp("bases")
    places = {}
    for arch in MODELS:
        (root / arch).mkdir()
        places[arch] = Place.make(root / arch, arch=arch, num_layers=4)
    shutil.move(root / "llama" / "base", root / "llama" / "tied")
    untied(root / "llama" / "tied", root / "llama" / "base")
    shared, all_of = Place(root), list(places.values())
    two = [task(place, "whole", rows=3, save=STEPS) for place in all_of]
    two += [task(place, "elastic", rows=3, save=2, at=2) for place in all_of]
    two += [task(place, stage, rows=3, save=STEPS, stage=stage) for stage in STAGES for place in all_of]
    shared.run(2, two)
    one = [task(place, "elastic", rows=6, save=4, at=4) for place in all_of]
    one += [task(place, "alone", rows=6, save=STEPS) for place in all_of]
    one += [task(place, "resumed", rows=6, save=3, at=at) for at in (3, None) for place in all_of]
    shared.run(1, one)
    shared.run(3, [task(place, "elastic", rows=2, save=STEPS) for place in all_of])
    return places


def losses(place: Place, run: str) -> list[float]:
    records = place.metrics(run)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return [record[name] for record in records for name in ("loss", "optimizer/grad_norm")]


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("run", ["elastic", "alone", *STAGES])
def test_the_losses_are_those_of_an_uninterrupted_run_of_zero_2(run: str, arch: str, places: dict[str, Place]) -> None:
    """Float32: sums in another order."""
    whole = losses(places[arch], "whole")
    assert whole[-2] < whole[0] - 0.02
    assert losses(places[arch], run) == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("arch", MODELS)
def test_resumed_not_a_bit_differs(arch: str, places: dict[str, Place]) -> None:
    assert places[arch].metrics("resumed") == places[arch].metrics("alone")


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("run", ["elastic", *STAGES])
def test_checkpoints_consolidate(run: str, arch: str, places: dict[str, Place], tmp_path: Path) -> None:
    """To the weights of the uninterrupted run, tied or not; and another run begins with them."""
    place = places[arch]
    for name in (run, "whole"):
        consolidate(place.directory / name, tmp_path / name)
    model, whole = load(tmp_path / run), load(tmp_path / "whole")
    for name, weight in model.state_dict().items():
        assert torch.allclose(weight, whole.state_dict()[name], atol=1e-4), name
    tables = model.lm_model.lm_head.weight, model.backbone.embed_tokens.weight
    assert (tables[0] is tables[1]) == torch.equal(*tables) == (arch != "llama")
    assert model.config.backbone_config.model_type == arch
    base, options = place.directory / "base", MODELS[arch]
    config = config_on_base(base, codec=model.config.codec_spec, **options)
    assert check_export(tmp_path / run, config, base_dir=base) == []
    again = from_export(tmp_path / run, config, seed=0).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())


def test_a_run_on_llama_is_exported_for_transformers(places: dict[str, Place], tmp_path: Path) -> None:
    consolidate(places["llama"].directory / "elastic", tmp_path / "hf", format="hf")
    plain, ours = AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), load(tmp_path / "hf")
    ids = torch.randint(0, ours.layout.size, (1, 50))
    hidden = ours.hidden(ours.embed(ids[..., None]), torch.arange(50)[None])
    torch.testing.assert_close(plain(ids).logits, ours.lm_model.lm_head(hidden), atol=1e-5, rtol=1e-5)
