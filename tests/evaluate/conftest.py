"""The parts of an evaluation, opened from the directory that a test file's fixture `chain` made (see evaluated.py)."""

from pathlib import Path

import pytest

from slmkit.codec.melvq import MelVQ
from slmkit.codec.open import open_codec
from slmkit.data.index import Corpus
from slmkit.infer.synthesizer import Synthesizer


@pytest.fixture(scope="module")
def corpus(chain: Path) -> Corpus:
    return Corpus.open(chain / "corpus")


@pytest.fixture(scope="module")
def codec(chain: Path) -> MelVQ:
    opened = open_codec(chain / "codec")
    assert isinstance(opened, MelVQ)
    return opened


@pytest.fixture(scope="module")
def synthesizer(chain: Path) -> Synthesizer:
    return Synthesizer.load(chain / "model", chain / "codec", num_slots=2)
