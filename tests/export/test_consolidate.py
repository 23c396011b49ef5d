"""Exports of real ZeRO-2 checkpoints of two processes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from synthetic import WORDS, write_corpus
from train.ranks import ROOT, run_ranks
from transformers import AutoModelForCausalLM, AutoTokenizer

from slmkit import export as module
from slmkit.cli.main import main
from slmkit.config.run_dir import MODEL, read
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.export import consolidate, merged_weights
from slmkit.files import read_json
from slmkit.model.companions import rates_beside
from slmkit.model.init_base import init_base
from slmkit.model.pretrained import load
from slmkit.model.published import from_published
from slmkit.model.slm import SpeechLM
from slmkit.model.trained_on import TrainedOn

WORKER = ROOT / "tests" / "train" / "train_worker.py"
MODELS: dict[str, dict[str, Any]] = {"ntp": {"group": 0}, "mtp": {"group": 6, "head": "mlp", "speaker": True}}
EMBEDDING, LM_HEAD = "lm_model.model.embed_tokens.weight", "lm_model.lm_head.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs "ntp" and "mtp" with checkpoints of steps 2 and 3, trained by two processes."""
    place = tmp_path_factory.mktemp("export")
    write_corpus(place / "corpus", 12, frames=(4, 12))
    init_base([" ".join(WORDS)] * 3, place / "base", hidden_size=32, num_layers=1, vocab_size=280)
    tasks = [
        {
            "kind": "train",
            "config": {
                "run_dir": str(place / name),
                "base": str(place / "base"),
                "deepspeed": str(ROOT / "ds_configs" / "zero2_fp32.json"),
                "data": {"corpus": str(place / "corpus"), "row_tokens": 160, "num_workers": 0},
                "model": model,
                "optimizer": {"lr": 1e-2},
                "global_rows": 2,
                "steps": 3,
                "save_every_steps": 2,
            },
        }
        for name, model in MODELS.items()
    ]
    (place / "tasks.json").write_text(json.dumps(tasks))
    run_ranks(2, [str(WORKER), str(place / "tasks.json"), str(place / "results.json")])
    return place


def trained_weights(place: Path, name: str, step: int) -> dict[str, torch.Tensor]:
    """The weights as the first process held them, without DeepSpeed's own way of putting ranks together."""
    file = place / name / "checkpoints" / f"step-{step}" / "mp_rank_00_model_states.pt"
    return torch.load(file, weights_only=False)["module"]


def assert_equal_states(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", MODELS)
def test_the_export_holds_the_trained_weights_and_stands_alone(place: Path, tmp_path: Path, name: str) -> None:
    assert consolidate(place / name, tmp_path / "out").step == 3
    model = load(tmp_path / "out")
    trained_on = TrainedOn.read(tmp_path / "out")
    assert trained_on is not None
    assert trained_on.has_keys(["utterance-0000", "utterance-0011", "utterance-0012"]).tolist() == [True, True, False]
    trained = trained_weights(place, name, 3)
    assert_equal_states(model.state_dict(), trained)
    assert model.lm_model.lm_head.weight is model.lm_model.model.embed_tokens.weight
    written = load_file(tmp_path / "out" / "model.safetensors").values()
    assert sum(value.shape == trained[EMBEDDING].shape for value in written) == 1, "the tied weight stands once"
    layout = VocabLayout.from_dict(read_json(tmp_path / "out" / "vocab_layout.json"))
    assert layout == model.layout
    assert AutoTokenizer.from_pretrained(tmp_path / "out").convert_tokens_to_ids("<a3>") == layout.code_id(0, 3)
    assert read_json(tmp_path / "out" / "codec_spec.json")["name"] == "random"
    source = read_json(tmp_path / "out" / "provenance.json")["config"]
    assert (source["step"], source["facts"]["processes"]) == (3, 2)
    rates = rates_beside(tmp_path / "out")
    assert rates is not None
    assert rates == rates_beside(place / name / MODEL)
    assert not list(tmp_path.glob(".*"))


def test_an_older_step_and_another_float_type(place: Path, tmp_path: Path) -> None:
    consolidate(place / "mtp", tmp_path / "out", step=2, dtype="bfloat16")
    expected = {name: value.bfloat16() for name, value in trained_weights(place, "mtp", 2).items()}
    assert_equal_states(load(tmp_path / "out").state_dict(), expected)
    assert not torch.equal(expected[EMBEDDING], trained_weights(place, "mtp", 3)[EMBEDDING].bfloat16())


def test_a_next_token_model_loads_without_slmkit(place: Path, tmp_path: Path) -> None:
    consolidate(place / "ntp", tmp_path / "out", format="hf")
    foreign, ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval(), load(tmp_path / "out")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        hidden = ours.hidden(ours.embed(tokens[..., None]), torch.arange(12)[None])
        assert torch.allclose(foreign(tokens).logits, ours.lm_model.lm_head(hidden), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "hf"}, "AutoModelForCausalLM cannot load a model with speech heads"),
        ({"codec": "{place}/base"}, "is not a codec directory"),
        ({"with_codec": True}, "does not say where its codec is"),
    ],
)
def test_what_does_not_fit_is_named_before_weights_are_read(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    for name in ("check_contents", "merged_weights"):
        monkeypatch.delattr(module, name)
    options = {name: value.format(place=place) if name == "codec" else value for name, value in options.items()}
    with pytest.raises(UserError, match=message):
        consolidate(place / "mtp", tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_published_format_reads_back_as_the_same_model(place: Path, tmp_path: Path) -> None:
    consolidate(place / "mtp", tmp_path / "out", format="published")
    codec = load_codec(place)
    back = from_published(tmp_path / "out" / "model.safetensors", base_dir=place / "base", codec=codec)
    assert_equal_states(back.state_dict(), trained_weights(place, "mtp", 3))


def load_codec(place: Path) -> Any:
    from slmkit.codec.base import CodecSpec

    return CodecSpec.from_dict(read_json(place / "mtp" / MODEL / "codec_spec.json"))


def test_the_command_says_what_it_did_and_replaces_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["consolidate", str(place / "ntp"), str(out), "--step", "2"]) == 0
    assert "step-2 in float32, read back and equal" in capsys.readouterr().out
    assert main(["consolidate", str(place / "ntp"), str(out)]) == 2
    assert "the directory already exists" in capsys.readouterr().err


def copied(place: Path, tmp_path: Path, name: str = "ntp") -> Path:
    return Path(shutil.copytree(place / name, tmp_path / "run"))


def test_a_checkpoint_without_marker_is_refused(place: Path, tmp_path: Path) -> None:
    run = copied(place, tmp_path)
    (run / "checkpoints" / "step-3" / "complete.json").unlink()
    with pytest.raises(UserError, match=r"save of the checkpoint was interrupted(.|\n)*newest complete: .*step-2"):
        consolidate(run, tmp_path / "out", step=3)
    assert consolidate(run, tmp_path / "out").step == 2
    (run / "checkpoints" / "step-2" / "complete.json").unlink()
    with pytest.raises(UserError, match="the run has no complete checkpoint"):
        consolidate(run, tmp_path / "other")


def test_files_that_do_not_fit_are_refused(place: Path, tmp_path: Path) -> None:
    run = copied(place, tmp_path)
    shutil.rmtree(run / MODEL)
    with pytest.raises(UserError, match="cannot read the description of the model"):
        consolidate(run, tmp_path / "out")
    shutil.copytree(place / "mtp" / MODEL, run / MODEL)
    with pytest.raises(UserError, match=r"is not that of .*step-3"):
        consolidate(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_of_garbage_is_named(place: Path, tmp_path: Path) -> None:
    run = copied(place, tmp_path)
    shard = run / "checkpoints" / "step-3" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(UserError, match=r"step-3 is damaged: zero_pp_rank_1(.|\n)*does not hold what was written"):
        consolidate(run, tmp_path / "out")


def test_weights_of_another_model_are_refused(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = merged_weights(read(place / "ntp", 3))
    monkeypatch.setattr(module, "merged_weights", lambda checkpoint: state | {"extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"the weights of .*step-3 are not those of its model"):
        consolidate(place / "ntp", tmp_path / "out")
    monkeypatch.setattr(module, "merged_weights", lambda checkpoint: state | {LM_HEAD: state[LM_HEAD] + 1})
    with pytest.raises(UserError, match="differs from the checkpoint"):
        consolidate(place / "ntp", tmp_path / "out")


def test_weights_that_are_not_finite_are_named(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that diverged, or made infinite by a smaller float type."""
    state = merged_weights(read(place / "ntp", 3))
    name = next(name for name in state if "q_proj.weight" in name)
    for value, dtype, message in (
        (torch.nan, "float32", "the weights in .*step-3 are not finite"),
        (1e30, "float16", "the weights in ntp, as float16, are not finite"),
    ):
        wild = {**state, name: state[name] * 0 + value}
        monkeypatch.setattr(module, "merged_weights", lambda checkpoint, wild=wild: wild)
        with pytest.raises(UserError, match=message):
            consolidate(place / "ntp", tmp_path / "out", dtype=dtype)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["slmkit", "published"])
def test_a_write_that_went_wrong_leaves_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: Any
) -> None:
    """One bit of one weight differs between what is written and what is compared."""
    write_model, norm = module.write_model, "lm_model.model.norm.weight"

    def spoiled(model: SpeechLM, *args: Any, **kwargs: Any) -> None:
        weight = model.lm_model.model.norm.weight.data
        weight[0] += 1e-3
        write_model(model, *args, **kwargs)
        weight[0] -= 1e-3

    monkeypatch.setattr(module, "write_model", spoiled)
    monkeypatch.setattr(module, "save_file", lambda state, path: save_file({**state, norm: state[norm] + 1e-3}, path))
    with pytest.raises(UserError, match=r"norm.weight differs from the checkpoint"):
        consolidate(place / "ntp", tmp_path / "out", format=format)
    assert list(tmp_path.iterdir()) == []

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_model", "save_file"):
        monkeypatch.setattr(module, name, full)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        consolidate(place / "ntp", tmp_path / "out", format=format)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_weight_is_named(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_file", lambda path: {})
    with pytest.raises(UserError, match=r"embed_tokens.weight is missing|lm_head.weight is missing"):
        consolidate(place / "ntp", tmp_path / "out", format="published")
