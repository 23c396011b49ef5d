"""`slmkit bench memory`: a row for each codec, of real commands."""

import json
from pathlib import Path

import numpy as np
import pytest

from slmkit.bench.memory import describe
from slmkit.cli.main import main
from slmkit.codec.melvq import MelVQ


@pytest.mark.full
def test_the_memory_of_two_lengths(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    MelVQ.fit([noise], 0, num_entries=16).save(tmp_path / "codec")
    assert main(["bench", "memory", str(tmp_path / "codec"), "--minutes", "0.1", "0.3", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["minutes"] == [0.1, 0.3]
    assert min(found["peak_mib"]) > 20
    assert describe(found).split()[:3] == ["melvq", "codec", "16000"]


def test_lengths_that_cannot_be_compared_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["bench", "memory", str(tmp_path), "--minutes", "3", "2"]) == 2
    assert "there is nothing to compare" in capsys.readouterr().err
