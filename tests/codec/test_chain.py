"""Codecs of each nature and an architecture of a base through the whole chain, to sentences known by heart.

A few, each with one way of predicting; `bash tests/chains.sh` tries all of them with all three.
"""

from pathlib import Path

import pytest
from codec.chain import chain

CHAINS = [("encodec", 0), ("speechtokenizer", 3), ("wavtokenizer", 12), ("qwen3", 3)]


@pytest.mark.full
@pytest.mark.parametrize(("name", "group"), CHAINS)
def test_sentences_are_known_by_heart_and_spoken(name: str, group: int, tmp_path: Path) -> None:
    (learned,) = chain(name, tmp_path / "out", (group,))
    assert learned.is_whole, learned
