"""What is said where an exported model is wanted and something else is given."""

from pathlib import Path

import pytest

from slmkit.config.run_dir import check_model_directory
from slmkit.errors import UserError


def test_a_run_in_place_of_a_model_is_told_how_to_export_it(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-5").mkdir(parents=True)
    (tmp_path / "run" / "model").mkdir()
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"run is a run, not an export(?s:.*)run `slmkit consolidate .*run MODEL`"):
        check_model_directory(tmp_path / "run")
    for part in ("model", "checkpoints", "checkpoints/step-5"):
        with pytest.raises(UserError, match=r"is a part of a run(?s:.*)run `slmkit consolidate .*run MODEL`"):
            check_model_directory(tmp_path / "run" / part)


def test_an_export_beside_the_checkpoints_of_a_run_is_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "export").mkdir()
    check_model_directory(tmp_path / "export")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the model does not exist"):
        check_model_directory(tmp_path / "nothing")
