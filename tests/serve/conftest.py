"""One model for all tests of the server."""

from pathlib import Path

import pytest
from serve.serving import make_chain

from slmkit.infer.synthesizer import Synthesizer


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="session")
def synthesizer(chain: Path) -> Synthesizer:
    return Synthesizer.load(chain / "model", chain / "codec", num_slots=2)
