"""Whatever the logits say, the output decodes to whole frames."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slmkit.data.vocab import VocabLayout
from slmkit.infer.grammar import Grammar, make_grammar

SIZES = (4, 5, 6)


def layout_for(group: int) -> VocabLayout:
    kind = "mtp" if group else "ntp"
    return VocabLayout.published(kind, base_size=20, bos_id=1, eos_id=0, codebook_sizes=SIZES)


def choose(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


def started(group: int) -> tuple[Grammar, VocabLayout]:
    layout = layout_for(group)
    grammar = make_grammar(layout, group, layout.size + 7)
    wants_sosp = torch.zeros(layout.size + 7)
    wants_sosp[layout.id_of("<sosp>")] = 1
    assert grammar.text_step(choose, wants_sosp) == layout.id_of("<sosp>")
    assert grammar.mode == "speech"
    return grammar, layout


@given(st.integers(0, 10_000))
def test_text_never_holds_codes_or_rows_beyond_the_vocabulary(seed: int) -> None:
    layout = layout_for(3)
    grammar = make_grammar(layout, 3, layout.size + 7)
    token = grammar.text_step(choose, torch.randn(layout.size + 7, generator=torch.Generator().manual_seed(seed)))
    assert token < layout.base_size or token == layout.id_of("<sosp>")


@given(st.integers(0, 10_000))
def test_interleaved_speech_is_whole_frames(seed: int) -> None:
    grammar, layout = started(0)
    generator = torch.Generator().manual_seed(seed)
    ids = []
    while grammar.mode == "speech" and len(ids) < 60:
        (token,) = grammar.speech_step(choose, [torch.randn(layout.size + 7, generator=generator)])
        ids.append(token)
    codes = grammar.codes()
    assert codes.shape[0] == 3
    assert (codes >= 0).all()
    assert (codes < np.array(SIZES)[:, None]).all()
    if grammar.mode == "text":
        assert ids.pop() == layout.id_of("<eosp>")
        assert len(ids) == codes.size
    expected = [layout.code_id(k, int(c)) for frame in codes.T for k, c in enumerate(frame)]
    assert ids[: codes.size] == expected


def head_logits(classes: list[int], group: int) -> list[torch.Tensor]:
    """Logits that choose the given classes; frames behind the first of a step have the pad class too."""
    sizes = [SIZES[h % 3] + 1 + (h >= 3) for h in range(group)]
    return [torch.nn.functional.one_hot(torch.tensor(c), n).float() for c, n in zip(classes, sizes, strict=True)]


def test_a_pad_ends_the_frames_of_its_step() -> None:
    grammar, layout = started(12)
    pad = layout.id_of("<|speech_pad|>")
    ids = grammar.speech_step(choose, head_logits([1, 2, 3, 0, 0, 0, 1, 6, 1, 2, 2, 2], 12))
    assert grammar.codes().T.tolist() == [[1, 2, 3], [0, 0, 0]]
    assert ids[:3] == [layout.code_id(k, c) for k, c in enumerate([1, 2, 3])]
    assert ids[6:] == [pad] * 6
    assert grammar.mode == "speech"


@pytest.mark.parametrize("head", range(6))
def test_the_end_from_any_head_voids_the_step(head: int) -> None:
    grammar, layout = started(6)
    grammar.speech_step(choose, head_logits([0, 0, 0, 1, 1, 1], 6))
    classes = [2] * 6
    classes[head] = SIZES[head % 3]
    assert grammar.speech_step(choose, head_logits(classes, 6)) == [layout.id_of("<eosp>")] * 6
    assert grammar.codes().T.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert grammar.mode == "text"


def test_end_of_text_ends_the_answer() -> None:
    grammar, layout = started(3)
    grammar.mode = "text"
    logits = torch.zeros(layout.size + 7)
    logits[layout.eos_id] = 1
    assert grammar.text_step(choose, logits) == layout.eos_id
    assert grammar.mode == "end"


def test_text_has_the_marks_of_an_answer_where_they_are_tokens() -> None:
    """Whichever is wanted is chosen; what `allowed` lists rises, as rows of the vocabulary do."""
    for group, expected in ((0, ["<sosp>", "[ta]", "[ua]"]), (3, ["<sosp>"])):
        layout = layout_for(group)
        grammar = make_grammar(layout, group, layout.size + 7)
        allowed = grammar.allowed(grammar.state)
        assert allowed == [*range(layout.base_size), *sorted(layout.id_of(token) for token in expected)]
    layout = layout_for(0)
    grammar = make_grammar(layout, 0, layout.size + 7)
    for token in ("[ta]", "[ua]"):
        wanted = torch.zeros(layout.size + 7)
        wanted[layout.id_of(token)] = 1
        assert grammar.text_step(choose, wanted) == layout.id_of(token)
    assert grammar.text_ids == [layout.id_of("[ta]"), layout.id_of("[ua]")]
