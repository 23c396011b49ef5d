"""Whatever is chosen among what is allowed, the output decodes to whole frames."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.data.vocab import VocabLayout
from slmkit.infer.grammar import Grammar, make_grammar

SIZES = (4, 5, 6)


def layout_for(group: int) -> VocabLayout:
    kind = "mtp" if group else "ntp"
    return VocabLayout.published(kind, base_size=20, bos_id=1, eos_id=0, codebook_sizes=SIZES)


def started(group: int) -> tuple[Grammar, VocabLayout]:
    layout = layout_for(group)
    grammar = make_grammar(layout, group)
    grammar.accept_text(layout.id_of("<sosp>"))
    assert grammar.mode == "speech"
    return grammar, layout


@given(st.lists(st.integers(0, 10_000), max_size=60))
def test_interleaved_speech_is_whole_frames(draws: list[int]) -> None:
    grammar, layout = started(0)
    ids = []
    for draw in draws:
        allowed = grammar.allowed(grammar.state)
        assert grammar.accept_speech([allowed[draw % len(allowed)]]) == [allowed[draw % len(allowed)]]
        ids.append(allowed[draw % len(allowed)])
        if grammar.mode == "text":
            break
    codes = grammar.codes()
    assert codes.shape[0] == 3
    assert (codes >= 0).all()
    assert (codes < np.array(SIZES)[:, None]).all()
    if grammar.mode == "text":
        assert ids.pop() == layout.id_of("<eosp>")
        assert len(ids) == codes.size
    expected = [layout.code_id(k, int(c)) for frame in codes.T for k, c in enumerate(frame)]
    assert ids[: codes.size] == expected


def test_a_pad_ends_the_frames_of_its_step() -> None:
    grammar, layout = started(12)
    pad = layout.id_of("<|speech_pad|>")
    ids = grammar.accept_speech([1, 2, 3, 0, 0, 0, 1, 6, 1, 2, 2, 2])
    assert grammar.codes().T.tolist() == [[1, 2, 3], [0, 0, 0]]
    assert ids[:3] == [layout.code_id(k, c) for k, c in enumerate([1, 2, 3])]
    assert ids[6:] == [pad] * 6
    assert grammar.mode == "speech"


@pytest.mark.parametrize("head", range(6))
def test_the_end_from_any_head_voids_the_step(head: int) -> None:
    grammar, layout = started(6)
    grammar.accept_speech([0, 0, 0, 1, 1, 1])
    classes = [2] * 6
    classes[head] = SIZES[head % 3]
    assert grammar.accept_speech(classes) == [layout.id_of("<eosp>")] * 6
    assert grammar.codes().T.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert grammar.mode == "text"


def test_end_of_text_ends_the_answer() -> None:
    grammar, layout = started(3)
    grammar.mode = "text"
    grammar.accept_text(layout.eos_id)
    assert grammar.mode == "end"


@pytest.mark.parametrize(("group", "marks"), [(0, ["[ta]", "[ua]"]), (3, [])])
def test_text_has_no_codes_and_the_marks_of_an_answer_where_they_are_tokens(group: int, marks: list[str]) -> None:
    """What `allowed` lists rises, as rows of the vocabulary do."""
    layout = layout_for(group)
    grammar = make_grammar(layout, group)
    expected = sorted(layout.id_of(token) for token in ["<sosp>", *marks])
    assert grammar.allowed(grammar.state) == [*range(layout.base_size), *expected]
    for mark in marks:
        grammar.accept_text(layout.id_of(mark))
    assert grammar.text_ids == [layout.id_of(mark) for mark in marks]
