"""Both published layouts, and the comparison that names the first difference."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError


def layout(kind: str = "mtp", base_size: int = 771, sizes: tuple[int, ...] = (1024,) * 3) -> VocabLayout:
    return VocabLayout.published(kind, base_size=base_size, bos_id=769, eos_id=768, codebook_sizes=sizes)


@pytest.mark.parametrize(("kind", "entry"), [("ntp", "ntp"), ("mtp", "mtp3"), ("mtp", "mtp12")])
def test_ids_equal_the_published_ones(kind: str, entry: str, golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "slm" / "golden_synthetic.json").read_text())[f"{entry}_new_token_ids"]
    ids = {token: 771 + i for i, token in enumerate(layout(kind).added_tokens())}
    assert {token: ids[token] for token in golden} == golden
    assert len(ids) == {"ntp": 3079, "mtp": 3078}[kind]


@given(st.sampled_from(["ntp", "mtp"]), st.integers(3, 200_000), st.lists(st.integers(1, 2048), min_size=1, max_size=6))
def test_ids_have_no_gap_and_round_trip(kind: str, base_size: int, sizes: list[int]) -> None:
    made = layout(kind, base_size, tuple(sizes))
    tokens = made.added_tokens()
    assert len(set(tokens)) == len(tokens) == made.size - base_size
    assert VocabLayout.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert tokens[made.code_id(0, sizes[0] - 1) - base_size] == f"<a{sizes[0] - 1}>"


def test_the_first_difference_is_named() -> None:
    layout().check_equal(layout(), this="a", that="b")
    with pytest.raises(UserError, match="vocabulary of the data is not the vocabulary of the model: kind differs"):
        layout("mtp").check_equal(layout("ntp"), this="the model", that="the data")
    with pytest.raises(UserError, match="base_size differs"):
        layout().check_equal(layout(base_size=772), this="a", that="b")
    with pytest.raises(UserError, match="codebook size of stream b differs"):
        layout(sizes=(8, 8, 8)).check_equal(layout(sizes=(8, 9, 7)), this="a", that="b")


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"the ntp vocabulary has no token <\|speech_pad\|>"):
        layout("ntp").id_of("<|speech_pad|>")
    with pytest.raises(ValueError, match="code 1024 is outside stream 0"):
        layout().code_id(0, 1024)
    good = layout().to_dict()
    huge = [["a", good["streams"][0][1], 10**12]]
    for broken in (
        *({}, {"specials": 3}, {**good, "extra": 1}, {**good, "base_size": 5}, {**good, "kind": "wild"}),
        *(
            {**good, "streams": huge},
            {**good, "bos_id": "769"},
            {**good, "base_size": float("inf")},
            {**good, "streams": 9},
        ),
        {**good, "specials": [[3, 771], *good["specials"][1:]]},
        {**good, "streams": [["a", good["streams"][0][1], 1000], *good["streams"][1:]]},
        {**good, "streams": [["a", good["streams"][0][1], 1025], *good["streams"][1:]]},
        {**good, "specials": [*good["specials"][:1], *good["specials"]]},
    ):
        with pytest.raises(UserError, match="not a vocabulary layout"):
            VocabLayout.from_dict(broken)


def test_more_streams_than_letters_are_refused() -> None:
    assert layout(sizes=(2,) * 32).num_streams == 32
    with pytest.raises(UserError, match=r"the vocabulary has too many streams for a language model\n.*33 streams"):
        layout(sizes=(2,) * 33)
    streams = [[f"s{i}", 771 + 2 * i, 2] for i in range(33)]
    with pytest.raises(UserError, match="too many streams"):
        VocabLayout.from_dict({**layout().to_dict(), "streams": streams})


@pytest.mark.parametrize("kind", ["ntp", "mtp"])
def test_32_streams_of_65536_entries(kind: str) -> None:
    made = layout(kind, 151_665, (2**16,) * 32)
    assert VocabLayout.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert made.size == 151_665 + 32 * 2**16 + len(made.specials)
    assert [made.streams[k][0] for k in (0, 25, 26, 31)] == ["a", "z", "aa", "af"]
    assert made.code_id(31, 2**16 - 1) - made.code_id(0, 0) == 32 * 2**16 - 1
    with pytest.raises(UserError, match="not a vocabulary layout"):
        VocabLayout.from_dict({**made.to_dict(), "base_size": 2**23})


def test_tokens_of_many_streams_are_told_apart() -> None:
    tokens = layout(sizes=(30,) * 32).added_tokens()
    assert len(set(tokens)) == len(tokens)
    assert {"<a29>", "<z0>", "<aa0>", "<af29>"} <= set(tokens)
