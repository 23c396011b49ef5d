"""Whatever is chosen among what is allowed, the output decodes to whole frames."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twins.generate import allowed_classes

from slmkit.data.sequence import speech_tokens
from slmkit.data.vocab import VocabLayout
from slmkit.infer.grammar import Grammar, make_grammar

SIZES = (4, 5, 6)


def layout_for(group: int, sizes: tuple[int, ...] = SIZES) -> VocabLayout:
    kind = "mtp" if group else "ntp"
    return VocabLayout.published(kind, base_size=20, bos_id=1, eos_id=0, codebook_sizes=sizes)


def started(group: int, sizes: tuple[int, ...] = SIZES) -> tuple[Grammar, VocabLayout]:
    layout = layout_for(group, sizes)
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


SHAPES = [(SIZES, 3), (SIZES, 4), (SIZES, 2), (SIZES, 12), ((9, 4, 5, 6, 7, 8, 3, 2), 3), ((7,) * 8, 6), ((5,), 12)]


@pytest.mark.parametrize(("sizes", "group"), SHAPES)
@given(num_frames=st.integers(0, 20), seed=st.integers(0, 1000))
def test_what_is_built_is_read_back(sizes: tuple[int, ...], group: int, num_frames: int, seed: int) -> None:
    grammar, layout = started(group, sizes)
    codes = np.random.default_rng(seed).integers(0, np.array(sizes)[:, None], (len(sizes), num_frames))
    ids, phases, classes = speech_tokens(codes, layout, group)
    for step_ids, phase, step_classes in zip(ids, phases, classes, strict=True):
        assert grammar.phase == phase
        assert grammar.accept_speech(step_classes.tolist()) == step_ids.tolist()
    assert grammar.mode == "text"
    assert np.array_equal(grammar.codes(), codes)


@pytest.mark.parametrize(("sizes", "group"), SHAPES)
@given(draws=st.lists(st.lists(st.integers(0, 10_000), min_size=12, max_size=12), max_size=12))
def test_grouped_speech_is_whole_frames(sizes: tuple[int, ...], group: int, draws: list[list[int]]) -> None:
    """Frames that lack a code are left out, all others are there; what is fed back is a row of codes and pads."""
    grammar, layout = started(group, sizes)
    tokens: list[int] = []
    for draw in draws:
        phase = len(tokens) % len(sizes)
        assert grammar.phase == phase
        allowed = [allowed_classes(layout, group, phase, head) for head in range(group)]
        chosen = [list(ids)[d % len(ids)] for ids, d in zip(allowed, draw, strict=False)]
        got = grammar.accept_speech(chosen)
        if grammar.mode == "text":
            assert got == [layout.id_of("<eosp>")] * group
            break
        named = [ids[c] for ids, c in zip(allowed, chosen, strict=True)]
        pad = layout.id_of("<|speech_pad|>")
        void = named.index(pad) if pad in named else group
        void = max(0, void - (phase + void) % len(sizes)) if void < group else group
        assert got == [*named[:void], *[pad] * (group - void)]
        tokens += got
    owners = {layout.code_id(k, code): (k, code) for k, size in enumerate(sizes) for code in range(size)}
    frames = [tokens[i : i + len(sizes)] for i in range(0, len(tokens) - len(sizes) + 1, len(sizes))]
    whole = [[owners[i] for i in frame] for frame in frames if all(i in owners for i in frame)]
    assert all([k for k, _ in frame] == list(range(len(sizes))) for frame in whole)
    assert grammar.codes().T.tolist() == [[code for _, code in frame] for frame in whole]


def test_a_frame_that_is_not_whole_when_speech_ends_is_void_and_speech_begins_anew() -> None:
    grammar, layout = started(4, (8, 8, 8))
    grammar.accept_speech([1, 2, 3, 4])
    assert (grammar.phase, grammar.frames) == (1, [[1, 2, 3]])
    assert grammar.recent(0, 5) == [1, 4]
    assert grammar.recent(1, 5) == [2]
    grammar.accept_speech([8, 0, 0, 0])
    assert grammar.mode == "text"
    grammar.accept_text(layout.id_of("<sosp>"))
    grammar.accept_speech([5, 6, 7, 0])
    assert grammar.frames == [[1, 2, 3], [5, 6, 7]]


def test_a_pad_within_a_frame_voids_what_earlier_steps_had_of_it() -> None:
    grammar, layout = started(2, (8, 8, 8))
    pad = layout.id_of("<|speech_pad|>")
    assert grammar.accept_speech([1, 2])[0] == layout.code_id(0, 1)
    assert grammar.accept_speech([3, 9]) == [layout.code_id(2, 3), pad]
    assert grammar.frames == [[1, 2, 3]]
    assert grammar.accept_speech([5, 6]) == [layout.code_id(1, 5), layout.code_id(2, 6)]
    assert grammar.frames == [[1, 2, 3]]
    assert grammar.accept_speech([1, 1])
    assert grammar.accept_speech([1, 2])
    assert grammar.frames == [[1, 2, 3], [1, 1, 1]]
