"""A published checkpoint through the command and back."""

import dataclasses
from pathlib import Path

import pytest
import torch
from memorising import BASE, small_model
from safetensors.torch import load_file, save_file

from slmkit.cli.main import main
from slmkit.corpora.published import SPEC
from slmkit.data.text import TextTokenizer
from slmkit.model.pretrained import load
from slmkit.model.published import to_published

CODEC = dataclasses.replace(SPEC, speaker_dim=256)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"group": 0}, "NTP, without speaker input"),
        ({"group": 3, "head": "mlp", "speaker_dim": 256}, "MTP-3, mlp heads, with speaker input"),
        ({"group": 12, "head": "transformer"}, "MTP-12, transformer heads, without speaker input"),
    ],
)
def test_there_and_back(options: dict, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small_model(TextTokenizer.load(BASE), CODEC, **options, like=BASE)
    save_file(to_published(model), tmp_path / "model.safetensors")
    assert main(["import-model", str(tmp_path / "model.safetensors"), str(tmp_path / "out"), "--base", str(BASE)]) == 0
    assert said in capsys.readouterr().out
    again = to_published(load(tmp_path / "out"))
    original = load_file(tmp_path / "model.safetensors")
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], original[name]) for name in original)


def test_what_is_no_checkpoint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not one")
    assert main(["import-model", str(tmp_path / "x.safetensors"), str(tmp_path / "out"), "--base", str(BASE)]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
