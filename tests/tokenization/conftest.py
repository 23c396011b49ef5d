"""A codec for the tests of whole jobs."""

from pathlib import Path

import pytest

from slmkit.cli.main import main

SAMPLES = Path(__file__).resolve().parents[2] / "tokenize_jobs" / "sample_corpus"


@pytest.fixture(scope="session")
def codec_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a melvq codec fitted to the sample corpus."""
    path = tmp_path_factory.mktemp("codec") / "melvq"
    assert main(["codec", "fit", str(SAMPLES), str(path)]) == 0
    return path
