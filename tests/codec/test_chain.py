"""Every codec and every architecture of a base through the whole chain, to sentences known by heart.

One way of predicting for each; `bash tests/chains.sh` tries all three.
"""

from pathlib import Path

import pytest
from codec.chain import GROUPS, chain, chain_names

NAMES = chain_names()


@pytest.mark.full
@pytest.mark.parametrize(("name", "group"), [(name, GROUPS[i % len(GROUPS)]) for i, name in enumerate(NAMES)])
def test_sentences_are_known_by_heart_and_spoken(name: str, group: int, tmp_path: Path) -> None:
    (learned,) = chain(name, tmp_path / "out", (group,))
    assert learned.is_whole, learned
