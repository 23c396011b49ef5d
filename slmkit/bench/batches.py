"""Training batches of random codes and text, in lengths like LibriTTS's (`synthetic.py`).

Example:
    batch = make_batch(model, [5.5, 2.0], seed=0)
    micro_batches = full_batches(model, micro_batches=2, micro_rows=1, row_tokens=8192, time_scale=1.0, seed=0)
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from slmkit.bench.synthetic import (
    ANSWER_TOKENS,
    FRAME_RATE,
    LONGEST_SEC,
    MEDIAN_SEC,
    NUM_STREAMS,
    PROMPT_TOKENS,
    SHORTEST_SEC,
    SIGMA,
    TEXT_RATE,
)
from slmkit.data.batch import Batch
from slmkit.data.examples import ExampleFormat
from slmkit.data.loader import collate
from slmkit.data.sequence import Example, Piece, build
from slmkit.data.shards import Sample
from slmkit.model.slm import SpeechLM

MISFITS = 20  # utterances in a row that fit into no row any more: then the rows count as full
Utterance = tuple[Example, Sample]


def make_utterance(model: SpeechLM, seconds: float, rng: np.random.Generator) -> Utterance:
    """An utterance of so many seconds."""
    layout = model.layout
    num_frames, num_words = max(1, round(seconds * FRAME_RATE)), round(seconds * TEXT_RATE)
    codes = rng.integers(0, min(layout.codebook_sizes), (layout.num_streams, num_frames))
    prompt = tuple(rng.integers(0, layout.base_size, PROMPT_TOKENS + num_words).tolist())
    answer = tuple(rng.integers(0, layout.base_size, ANSWER_TOKENS).tolist())
    pieces = [Piece(prompt, "text", False), Piece(answer, "text", True), Piece((), "speech", True)]
    return build(pieces, codes, layout, model.group), Sample("", codes.astype(np.uint16), None, {})


def make_batch(model: SpeechLM, lengths: Sequence[float], seed: int) -> Batch:
    """Utterances of so many seconds as a packed batch; a global batch of its own."""
    rng = np.random.default_rng(seed)
    utterances = [make_utterance(model, seconds, rng) for seconds in lengths]
    return _joined(model, utterances, _target_counts(model, utterances))


def full_batches(
    model: SpeechLM, *, micro_batches: int, micro_rows: int, row_tokens: int, time_scale: float, seed: int
) -> list[Batch]:
    """The micro-batches of a step of one process, their rows filled by best fit with utterances of random lengths.

    time_scale: shortens every utterance.
    """
    rng, num_rows = np.random.default_rng(seed), micro_batches * micro_rows
    room, rows = [row_tokens] * num_rows, [list[Utterance]() for _ in range(num_rows)]
    misfits = 0
    while misfits < MISFITS:
        seconds = np.clip(math.exp(rng.normal(math.log(MEDIAN_SEC), SIGMA)), SHORTEST_SEC, LONGEST_SEC)
        utterance = make_utterance(model, time_scale * float(seconds), rng)
        size = len(utterance[0].tokens)
        fitting = [row for row, left in enumerate(room) if left >= size]
        if not fitting:
            misfits += 1
            continue
        best = min(fitting, key=room.__getitem__)
        room[best] -= size
        rows[best].append(utterance)
        misfits = 0
    counts = _target_counts(model, [utterance for row in rows for utterance in row])
    batches = []
    for start in range(0, num_rows, micro_rows):
        some = [utterance for row in rows[start : start + micro_rows] for utterance in row]
        batches.append(_joined(model, some, counts, row_tokens=micro_rows * row_tokens))
    return batches


def num_tokens(batch: Batch, group: int) -> int:
    """Tokens of text and speech in a batch in host memory: a speech step of MTP holds up to `group`, `<eosp>` counts as
    one. For NTP these are the positions."""
    if not group:
        return batch.num_tokens
    num_utterances = len(batch.cu_seqlens) - 1
    return batch.num_tokens - int(batch.speech_mask.sum()) + NUM_STREAMS * batch.num_frames + num_utterances


def _target_counts(model: SpeechLM, utterances: Sequence[Utterance]) -> npt.NDArray[np.float64]:
    """Targets per term of the loss, float64 [1 + T]."""
    terms = np.concatenate([np.zeros(0, dtype=np.int64), *(example.lm_groups for example, _ in utterances)])
    counts = np.bincount(terms, minlength=model.config.num_terms).astype(np.float64)
    if model.group:
        counts[1:] = sum(len(example.head_positions) for example, _ in utterances)
    return counts


def _joined(
    model: SpeechLM, utterances: Sequence[Utterance], counts: npt.NDArray[np.float64], *, row_tokens: int = 0
) -> Batch:
    return collate(
        utterances,
        model.layout,
        ExampleFormat(task="tts", group=model.group, speaker=False),
        speaker_dim=0,
        global_counts=counts,
        num_frames=sum(sample.codes.shape[1] for _, sample in utterances),
        row_tokens=row_tokens,
    )
