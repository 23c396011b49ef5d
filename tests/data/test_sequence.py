"""Examples for NTP and every group size: golden lengths and ids, a naive twin, sizes known beforehand."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_examples import TEXTS, published_codes
from twins.generate import allowed_classes
from twins.groups import PAD, steps_of

from slmkit.data import prompt
from slmkit.data.sequence import (
    build,
    head_classes,
    measure,
    speech_size,
    speech_tokens,
    term_counts,
    text_size,
    tokenize,
)
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout

BASE = Path(__file__).resolve().parent.parent / "golden" / "slm" / "tiny_base"
SIZES = (4, 5, 6)


def make_layout(group: int, sizes: tuple[int, ...] = SIZES, base_size: int = 300) -> VocabLayout:
    kind = "mtp" if group else "ntp"
    return VocabLayout.published(kind, base_size=base_size, bos_id=1, eos_id=0, codebook_sizes=sizes)


def encode(text: str) -> list[int]:
    return list(text.encode())


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.load(BASE)


@pytest.mark.parametrize("speaker", [0, 1])
@pytest.mark.parametrize("group", [0, 3, 6, 12])
def test_lengths_and_ids_equal_the_golden_ones(
    group: int, speaker: int, golden_dir: Path, tokenizer: TextTokenizer
) -> None:
    name = f"mtp{group}_linear_spk{speaker}" if group else f"ntp_spk{speaker}"
    golden = json.loads((golden_dir / "slm" / "golden_synthetic.json").read_text())[name]
    layout = VocabLayout.published(
        "mtp" if group else "ntp",
        base_size=tokenizer.base_size,
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        codebook_sizes=(1024,) * 3,
    )
    for i, expected in enumerate(golden):
        codes = published_codes(i)
        pieces = tokenize(prompt.tts(TEXTS[i], speaker=bool(speaker)), tokenizer.encode, layout)
        example = build(pieces, codes, layout, group)
        assert len(example.tokens) == expected["n"]
        if group:
            assert len(example.head_positions) == expected["n_speech"]
        else:
            assert len(example.lm_targets) == expected["n_label"]
            assert example.tokens[:40, 0].tolist() == expected["head_ids"]


@pytest.mark.parametrize("speaker", [False, True])
@pytest.mark.parametrize("group", [0, 3, 12])
def test_only_the_answer_to_a_question_is_learnt(group: int, speaker: bool, tokenizer: TextTokenizer) -> None:
    """The targets, read as a text, are the answer in words and in speech to its last token, and nothing else."""
    layout = make_layout(group, base_size=tokenizer.base_size)
    codes = np.random.default_rng(0).integers(0, 4, (3, 7))
    segments = prompt.qa("Who wrote it?", "Anna Bell.", speaker=speaker)
    example = build(tokenize(segments, tokenizer.encode, layout), codes, layout, group)
    assert example.lm_targets.tolist() == example.tokens[example.lm_positions + 1, 0].tolist()
    before = [i for text in (" ", "[ta]", " Anna bell. ", "[ua]", " ") for i in answer_ids(text, tokenizer, layout)]
    before.append(layout.id_of("<sosp>"))
    after = [*tokenizer.encode("\n\n"), layout.eos_id]
    spoken, _, classes = speech_tokens(codes, layout, group)
    said = [] if group else spoken[:, 0].tolist()
    assert example.lm_targets.tolist() == [*before, *said, *after]
    first = int(example.lm_positions[0]) + 1
    assert len(example.tokens) == first + len(before) + len(spoken) + len(after)
    assert tokenizer.decode([int(example.tokens[first - 1, 0])]) == ":"  # of [Assistant]
    if group:
        assert np.array_equal(example.head_targets, classes)
        place = first + len(before) - 1  # of `<sosp>`, from which the first step is predicted
        assert example.head_positions.tolist() == list(range(place, place + len(spoken)))


def answer_ids(text: str, tokenizer: TextTokenizer, layout: VocabLayout) -> list[int]:
    """Ids of a text, or of a mark where the vocabulary has it."""
    specials = dict(layout.specials)
    return [specials[text]] if text in specials else tokenizer.encode(text)


def naive_example(text: str, codes: np.ndarray, layout: VocabLayout, group: int) -> list[tuple[list[int], bool, bool]]:
    """(ids, is speech step, is labelled) of each position, spelled out token by token."""
    width = max(1, group)
    out = []

    def word(ids: list[int], labelled: bool) -> None:
        out.extend(([i] * width, False, labelled) for i in ids)

    word([layout.bos_id, layout.id_of("[Human]")], False)
    word(encode(f": Read this sentence: {text}.\n "), False)
    word([layout.id_of("[Assistant]"), ord(":")], False)
    word([*encode(" The speech is: "), layout.id_of("<sosp>")], True)
    eosp, pad = layout.id_of("<eosp>"), layout.id_of("<|speech_pad|>") if group else 0
    if group == 0:
        for frame in codes.T:
            word([layout.code_id(k, int(code)) for k, code in enumerate(frame)], True)
        word([eosp], True)
    else:
        for step in steps_of(codes, group):
            out.append(([pad if token is PAD else layout.code_id(*token) for token in step], True, True))
        out.append(([eosp] * group, True, True))
    word([*encode(".\n\n"), layout.eos_id], True)
    return out


SHAPES = st.tuples(st.lists(st.integers(1, 6), min_size=1, max_size=9).map(tuple), st.integers(0, 14))


@given(SHAPES | st.tuples(st.just(SIZES), st.sampled_from([0, 3, 6, 12])), st.integers(0, 40), st.integers(0, 10_000))
def test_naive_twin(shape: tuple[tuple[int, ...], int], num_frames: int, seed: int) -> None:
    sizes, group = shape
    layout, num_streams = make_layout(group, sizes), len(sizes)
    codes = np.random.default_rng(seed).integers(0, np.array(sizes)[:, None], (num_streams, num_frames))
    pieces = tokenize(prompt.tts("Hi"), encode, layout)
    example = build(pieces, codes, layout, group)
    twin = naive_example("Hi", codes, layout, group)
    assert example.tokens.tolist() == [ids for ids, _, _ in twin]
    assert example.speech_mask.tolist() == [speech for _, speech, _ in twin]
    targets = {t - 1: ids for t, (ids, speech, label) in enumerate(twin) if label and not speech}
    assert dict(zip(example.lm_positions.tolist(), example.lm_targets.tolist(), strict=True)) == {
        t: ids[0] for t, ids in targets.items()
    }
    heads = {t - 1: ids for t, (ids, speech, label) in enumerate(twin) if label and speech}
    assert example.head_positions.tolist() == list(heads)
    assert example.head_phases.tolist() == [step * group % num_streams for step in range(len(heads))]
    for row, phase, ids in zip(example.head_targets, example.head_phases, heads.values(), strict=True):
        for head, (target, token) in enumerate(zip(row, ids, strict=True)):
            assert allowed_classes(layout, group, int(phase), head)[target] == token


def test_a_head_has_one_stream_or_serves_several_in_turn() -> None:
    """(streams, codes of the largest codebook, whether there is a pad) of each head."""
    assert [tuple(head) for head in head_classes(6, SIZES)] == [
        *(((k,), size, False) for k, size in enumerate(SIZES)),
        *(((k,), size, True) for k, size in enumerate(SIZES)),
    ]
    assert [tuple(head) for head in head_classes(2, SIZES)] == [((0, 1, 2), 6, False), ((0, 1, 2), 6, True)]
    eight = head_classes(6, (9, 2, 3, 4, 5, 6, 7, 8))
    assert [head.streams for head in eight] == [(0, 2, 4, 6), (1, 3, 5, 7)] * 3
    assert [head.num_codes for head in eight] == [9, 8] * 3
    assert [head.may_pad for head in eight] == [False, False, True, True, True, True]
    assert [head.may_pad for head in head_classes(4, (2,) * 8)] == [False] * 4  # a frame is two whole steps
    assert [head.size for head in head_classes(3, (4,))] == [5, 6, 6]
    assert head_classes(0, SIZES) == []


@given(st.sampled_from(["tts", "asr", "text", "qa"]), st.sampled_from([0, 1, 2, 3, 4, 6, 7, 12]), st.integers(0, 60))
def test_sizes_are_known_beforehand(task: str, group: int, num_frames: int) -> None:
    layout = make_layout(group)
    meta = {"text": "Hello", "question": "Who?", "turns": [["Hi", "Hello"], ["a", "b"]]}
    segments = prompt.example(task, meta, speaker=False)
    pieces = tokenize(segments, encode, layout)
    codes = np.zeros((3, num_frames), dtype=np.uint16)
    example = build(pieces, codes, layout, group)
    speech = tuple(segment.labelled for segment in segments if segment.kind == "speech")
    assert speech == prompt.TASKS[task]
    assert speech_size(pieces) == (len(speech), sum(speech))
    size = measure(*text_size(pieces), *speech_size(pieces), num_frames, num_streams=3, group=group)
    assert size.positions == len(example.tokens)
    counts = term_counts(np.array([size, size]), 3, group)
    groups = np.bincount(example.lm_groups, minlength=4)
    expected = [groups[0], *([len(example.head_positions)] * group if group else groups[1:])]
    assert counts.tolist() == [2 * n for n in expected]
    assert size.frames == (num_frames if task in ("tts", "qa") else 0)


def test_answer_markers_are_tokens_where_the_vocabulary_has_them_and_text_elsewhere() -> None:
    segments = [prompt.Segment("marker", "[ta]", True)]
    ntp, mtp = make_layout(0), make_layout(3)
    assert tokenize(segments, encode, ntp)[0].ids == (ntp.id_of("[ta]"),)
    assert tokenize(segments, encode, mtp)[0].ids == tuple(encode("[ta]"))


def test_ntp_targets_carry_their_stream() -> None:
    layout = make_layout(0)
    example = build(tokenize(prompt.tts("x"), encode, layout), np.array([[1, 2], [3, 4], [5, 0]]), layout, 0)
    speech = example.lm_targets[example.lm_groups > 0].tolist()
    assert speech == [*(layout.code_id(k, c) for k, c in [(0, 1), (1, 3), (2, 5), (0, 2), (1, 4), (2, 0)]), 300 + 16]
    assert example.lm_groups[example.lm_groups > 0].tolist() == [1, 2, 3, 1, 2, 3, 1]


def test_the_speaker_slot_is_found() -> None:
    layout = make_layout(3)
    example = build(tokenize(prompt.tts("x", speaker=True), encode, layout), np.zeros((3, 2)), layout, 3)
    assert example.tokens[example.speaker_positions, 0].tolist() == [layout.id_of("<|placeholder|>")]


def test_refusals() -> None:
    layout = make_layout(3)
    with pytest.raises(ValueError, match=r"codes of shape \(2, 5\), expected \[3, frames\]"):
        speech_tokens(np.zeros((2, 5)), layout, 3)
    with pytest.raises(ValueError, match="codes outside 0"):
        speech_tokens(np.full((3, 1), 5), layout, 3)
    with pytest.raises(ValueError, match="no codes were given"):
        build(tokenize(prompt.tts("x"), encode, layout), None, layout, 3)
