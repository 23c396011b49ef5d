"""The words of an answer, from whatever a model writes, in both vocabularies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memorising import BASE

from slmkit.data.prompt import MARKS, qa
from slmkit.data.sequence import tokenize
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.infer.request import Words, answer_words

TOKENIZER = TextTokenizer.load(BASE)
LAYOUTS = {
    kind: VocabLayout.published(
        kind,
        base_size=TOKENIZER.base_size,
        bos_id=TOKENIZER.bos_id,
        eos_id=TOKENIZER.eos_id,
        codebook_sizes=(16, 16, 16),
    )
    for kind in ("ntp", "mtp")
}


def ids_of(kind: str, *parts: str) -> list[int]:
    """Ids of texts and marks, each encoded by itself, as prompts are."""
    tokens = dict(LAYOUTS[kind].specials)
    ids = []
    for part in parts:
        ids += [tokens[part]] if part in MARKS and part in tokens else TOKENIZER.encode(part)
    return ids


def words(kind: str, *parts: str) -> Words:
    return answer_words(ids_of(kind, *parts), LAYOUTS[kind], TOKENIZER.decode)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("answer", ["Anna Bell.", "Zażółć, 3 µm", "🎉", 'He said "no"\nand left'])
def test_what_the_prompt_writes_is_what_comes_out(kind: str, answer: str) -> None:
    """The labelled part of a training example, without speech and end, is what a trained model writes."""
    pieces = tokenize(qa("Who?", answer), TOKENIZER.encode, LAYOUTS[kind])
    special = {LAYOUTS[kind].id_of("<sosp>"), LAYOUTS[kind].eos_id}
    ids = [i for piece in pieces if piece.labelled for i in piece.ids if i not in special]
    expected = answer[:1] + answer[1:].lower()
    assert answer_words(ids, LAYOUTS[kind], TOKENIZER.decode) == Words(expected, True)


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], Words("", False)),
        ([" \n\n"], Words("", False)),
        ([" The speech is: ", "."], Words("The speech is: .", False)),
        (["[ta]"], Words("", False)),
        (["[ua]"], Words("", False)),
        (["[ta]", "[ua]"], Words("", True)),
        (["[ta]", " Bob"], Words("Bob", False)),
        ([" Bob ", "[ua]", " ", "\n\n"], Words("Bob", False)),
        (["[ua]", " Bob ", "[ta]", " Ann"], Words("Ann", False)),
        (["[ua]", " Bob ", "[ta]", " Ann ", "[ua]"], Words("Ann", True)),
        ([" so: ", "[ta]", " Bob ", "[ta]", " Ann ", "[ua]", " ", "[ta]", " Eve ", "[ua]"], Words("Bob Ann", True)),
        (["[ta]", " [TA] [ua ua] ", "[ua]"], Words("[TA] [ua ua]", True)),
    ],
)
def test_odd_answers(kind: str, parts: list[str], expected: Words) -> None:
    assert words(kind, *parts) == expected


def test_a_word_that_looks_like_a_mark_is_one_only_where_marks_are_words() -> None:
    ids = TOKENIZER.encode(" say [ua] now ")
    marked = [*ids_of("ntp", "[ta]"), *ids, *ids_of("ntp", "[ua]")]
    assert answer_words(marked, LAYOUTS["ntp"], TOKENIZER.decode) == Words("say [ua] now", True)
    assert words("mtp", "[ta]", " say [ua] now ", "[ua]") == Words("say", True)


@given(kind=st.sampled_from(sorted(LAYOUTS)), ids=st.lists(st.integers(0, LAYOUTS["ntp"].size + 9), max_size=30))
def test_any_ids_give_words(kind: str, ids: list[int]) -> None:
    found = answer_words(ids, LAYOUTS[kind], TOKENIZER.decode)
    assert found.text == found.text.strip()
