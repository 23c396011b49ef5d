"""Every codec and every architecture of a base through the whole chain, to sentences known by heart.

One way of predicting for each; `bash tests/chains.sh` tries all three.
"""

from pathlib import Path

import pytest
from codec.chain import ARCHITECTURES, GROUPS, chain
from codec.families import family_names

NAMES = [*family_names(), *ARCHITECTURES]


@pytest.mark.full
@pytest.mark.parametrize(("name", "group"), [(name, GROUPS[i % len(GROUPS)]) for i, name in enumerate(NAMES)])
def test_sentences_are_known_by_heart(name: str, group: int, tmp_path: Path) -> None:
    assert chain(name, tmp_path / "out", (group,)) == [1.0]
