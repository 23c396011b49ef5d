"""Recipes, DeepSpeed files and scripts are found by name, listed and copied."""

from pathlib import Path

import pytest

from slmkit.assets import assets, config_file, deepspeed_file
from slmkit.cli.main import main
from slmkit.config.load import load_config
from slmkit.config.tokenize import TokenizeConfig
from slmkit.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def test_every_file_has_a_name_of_its_own_and_a_summary() -> None:
    found = assets()
    assert len({asset.name for asset in found}) == len(found)
    sources = [*ROOT.glob("launch/**/*.yaml"), *ROOT.glob("ds_configs/*"), *ROOT.glob("tokenize_jobs/*.yaml")]
    sources += [*ROOT.glob("launch/*.sbatch"), *ROOT.glob("tokenize_jobs/*.sbatch")]
    assert {asset.path for asset in found} == set(sources)
    assert all(5 < len(asset.summary) < 120 for asset in found)


def test_they_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipe", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    rows = [line.split(maxsplit=2) for line in lines if not line.startswith(" ")]
    assert [row[0] for row in rows] == [asset.name for asset in assets()]
    assert ["zero2_offload_bf16", "deepspeed", "ZeRO-2 in bf16, optimizer in host memory"] in rows
    assert ["libritts_ntp", "train", "Text to speech on LibriTTS, one token a"] in rows


def test_one_is_copied_and_nothing_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipe", "copy", "libritts_mtp12"]) == 0
    source = ROOT / "launch" / "recipes" / "libritts_mtp12.yaml"
    assert (tmp_path / "libritts_mtp12.yaml").read_bytes() == source.read_bytes()
    assert "next: slmkit train --config libritts_mtp12.yaml --dry-run" in capsys.readouterr().out
    assert main(["recipe", "copy", "libritts_mtp12"]) == 2
    assert "the file already exists" in capsys.readouterr().err
    (tmp_path / "d").mkdir()
    assert main(["recipe", "copy", "zero2_bf16", "d"]) == 0
    assert (tmp_path / "d" / "zero2_bf16.json").is_file()
    assert main(["recipe", "copy", "array.sbatch", "mine.sbatch"]) == 0
    assert (tmp_path / "mine.sbatch").is_file()
    assert main(["recipe", "copy", "libritts_mtp21"]) == 2
    assert "expected: libritts_mtp12?" in capsys.readouterr().err


def test_names_stand_for_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the working directory comes first."""
    monkeypatch.chdir(tmp_path)
    assert deepspeed_file("zero2_bf16") == ROOT / "ds_configs" / "zero2_bf16.json"
    recipe = config_file("kaldi")
    assert load_config(TokenizeConfig, recipe, ["source=s", "codec=c", "out=o"]).kind == "kaldi"
    (tmp_path / "kaldi").mkdir()
    assert config_file("kaldi") == recipe
    (tmp_path / "kaldi").rmdir()
    (tmp_path / "kaldi").write_text("")
    assert config_file("kaldi") == "kaldi"
    with pytest.raises(UserError, match=r"no such DeepSpeed file(.|\n)*zero2_fp32"):
        deepspeed_file("ds_configs/zero2_bf16.json")
    with pytest.raises(UserError, match=r"no file of this name(.|\n)*zero2_bf16\?"):
        deepspeed_file("zero2_bf61")
    with pytest.raises(UserError, match="there is no such config file"):
        config_file("gone/kaldi.yaml")
    with pytest.raises(UserError, match="a directory is no config file"):
        config_file(str(tmp_path))
