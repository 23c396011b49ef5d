"""One example as arrays: token ids, speech steps and shifted targets, for NTP and every MTP group size.

The same codes serve every layout of the sequence: nothing of it is stored. The tokens of the K streams are interleaved
frame by frame (a1 b1 c1 a2 b2 c2 ...), and a speech step holds the next G of them: one for NTP (group 0), `group` for
MTP, whose last step is filled with `<|speech_pad|>`. `<eosp>` is a speech step of its own.

The phase of a step is the stream of its first token: step n of an utterance has phase n G mod K. Token h of a step,
which head h predicts, is of stream (phase + h) mod K. Where G is a multiple of K the phase is always 0 and a head has
one stream; else it serves several in turn, and its classes are the codes of the largest of their codebooks.

Shapes: S positions, G = max(1, group) ids per position, K streams, T frames, H = group heads.

Invariant: `measure` tells what `build` will give, from lengths alone.

Example:
    pieces = tokenize(tts("hello"), tokenizer.encode, layout)
    build(pieces, codes, layout, group=3)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from slmkit.data.prompt import Segment
from slmkit.data.vocab import VocabLayout

IntArray = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """A segment with its token ids. A speech piece has none before its codes are known."""

    ids: tuple[int, ...]
    kind: str  # "text" (special tokens included), "speech" or "speaker"
    labelled: bool


class Size(NamedTuple):
    """What an example costs and how many targets it brings, known from lengths alone: ints, or int arrays [n]."""

    positions: Any
    text_targets: Any
    frames: Any  # labelled codec frames
    steps: Any  # labelled speech steps of MTP, <eosp> included; 0 for NTP
    endings: Any  # labelled <eosp>


class Example(NamedTuple):
    """One example. See `Batch` for the meaning of the fields; positions count from the example's first."""

    tokens: IntArray  # [S, G]
    speech_mask: npt.NDArray[np.bool_]  # [S]
    speaker_positions: IntArray  # [P]
    lm_positions: IntArray  # [M]
    lm_targets: IntArray  # [M]
    lm_groups: IntArray  # [M]
    head_positions: IntArray  # [Q]
    head_targets: IntArray  # [Q, H]
    head_phases: IntArray  # [Q]


class HeadClasses(NamedTuple):
    """What a head chooses among: class c is code c of the stream at hand, then `<eosp>`, then perhaps the pad."""

    streams: tuple[int, ...]  # that the head serves, by phase in turn
    num_codes: int  # entries of the largest of their codebooks
    may_pad: bool  # whether `<|speech_pad|>` can stand here

    @property
    def eosp(self) -> int:
        """The class of `<eosp>`."""
        return self.num_codes

    @property
    def pad(self) -> int:
        """The class of `<|speech_pad|>`."""
        return self.num_codes + 1

    @property
    def size(self) -> int:
        """Classes in all."""
        return self.num_codes + 1 + self.may_pad

    def candidates(self, codebook_size: int) -> tuple[tuple[int, int], ...]:
        """(first, behind last) of the classes that compete for a token of a stream with `codebook_size` entries."""
        if codebook_size == self.num_codes:
            return ((0, self.size),)
        return ((0, codebook_size), (self.num_codes, self.size))


def tokenize(
    segments: Sequence[Segment], encode: Callable[[str], Sequence[int]], layout: VocabLayout
) -> tuple[Piece, ...]:
    """Token ids of every segment but speech. Raises UserError for a special token the layout lacks."""
    named = {"bos": layout.bos_id, "eos": layout.eos_id}
    pieces = []
    for segment in segments:
        has_token = segment.kind != "marker" or segment.value in dict(layout.specials)
        if segment.kind == "text" or not has_token:
            ids = tuple(encode(segment.value))
        elif segment.kind == "speech":
            ids = ()
        else:
            ids = (named[segment.value] if segment.value in named else layout.id_of(segment.value),)
        kind = segment.kind if segment.kind in ("speech", "speaker") else "text"
        pieces.append(Piece(ids, kind, segment.labelled))
    return tuple(pieces)


def phases(group: int, num_streams: int) -> range:
    """The phases that steps of `group` tokens have, each as often as any other."""
    return range(0, num_streams, math.gcd(group, num_streams))


def head_classes(group: int, codebook_sizes: Sequence[int]) -> list[HeadClasses]:
    """The classes of every head, [H]; none for NTP."""
    num_streams = len(codebook_sizes)
    found = phases(group, num_streams)
    heads = []
    for head in range(group):
        streams = tuple(sorted((phase + head) % num_streams for phase in found))
        # The last step is filled from where a frame begins; of all phases that is earliest at head `found.step`.
        heads.append(HeadClasses(streams, max(codebook_sizes[stream] for stream in streams), head >= found.step))
    return heads


def speech_size(pieces: Sequence[Piece]) -> tuple[int, int]:
    """Number of speech pieces, and of those that are labelled."""
    spoken = [piece for piece in pieces if piece.kind == "speech"]
    return len(spoken), sum(piece.labelled for piece in spoken)


def text_size(pieces: Sequence[Piece]) -> tuple[int, int]:
    """Positions of all pieces that are not speech, and those of them that are labelled."""
    written = [piece for piece in pieces if piece.kind != "speech"]
    return sum(len(p.ids) for p in written), sum(len(p.ids) for p in written if p.labelled)


def measure(
    text_positions: Any,
    text_targets: Any,
    num_speech: Any,
    num_labelled: Any,
    num_frames: Any,
    *,
    num_streams: int,
    group: int,
) -> Size:
    """Size of the example that `build` makes: its `text_size`, its speech pieces and those labelled, its frames.

    Numbers may be ints, or int arrays [n] that measure n examples at once.
    """
    positions = -(-num_frames * num_streams // max(1, group)) + 1
    return Size(
        positions=text_positions + num_speech * positions,
        text_targets=text_targets,
        frames=num_labelled * num_frames,
        steps=num_labelled * positions if group else 0 * positions,
        endings=num_labelled + 0 * positions,
    )


def term_counts(sizes: npt.NDArray[Any], num_streams: int, group: int) -> npt.NDArray[np.float64]:
    """Valid targets per loss term, float64 [1 + T], of examples whose `Size` rows are `sizes`, int [n, 5].

    Terms: text, then for NTP one per stream (`<eosp>` counts with the first), for MTP one per head.
    """
    _, text, frames, steps, endings = sizes.reshape(-1, len(Size._fields)).sum(axis=0)
    speech = [steps] * group if group else [frames + endings] + [frames] * (num_streams - 1)
    return np.array([text, *speech], dtype=np.float64)


def speech_tokens(codes: npt.NDArray[Any], layout: VocabLayout, group: int) -> tuple[IntArray, IntArray, IntArray]:
    """Token ids [S, G] of the speech positions of codes [K, T], `<eosp>` included; the phase of each [S], which for NTP
    is the stream of its token (the first for `<eosp>`); and the classes of the heads [S, H].

    Raises ValueError when a code is outside its codebook or the streams do not match the layout.
    """
    codes = np.asarray(codes, dtype=np.int64)
    sizes = np.array(layout.codebook_sizes)
    if codes.ndim != 2 or codes.shape[0] != layout.num_streams:
        raise ValueError(f"codes of shape {codes.shape}, expected [{layout.num_streams}, frames]")
    if (codes < 0).any() or (codes >= sizes[:, None]).any():
        raise ValueError(f"codes outside 0 .. {sizes - 1}")
    first = np.array([start for _, start, _ in layout.streams])
    width, num_tokens = max(1, group), codes.size
    num_steps = -(-num_tokens // width)  # without <eosp>
    ids = np.full(num_steps * width + width, layout.id_of("<eosp>"))
    ids[:num_tokens] = (codes + first[:, None]).T.reshape(-1)
    if num_tokens < num_steps * width:
        ids[num_tokens : num_steps * width] = layout.id_of("<|speech_pad|>")
    step_phases = np.arange(num_steps + 1) * width % layout.num_streams
    heads = head_classes(group, layout.codebook_sizes)
    classes = np.tile(np.array([head.pad for head in heads], dtype=np.int64), (num_steps + 1, 1))
    classes[-1] = [head.eosp for head in heads]
    if group:
        classes.reshape(-1)[:num_tokens] = codes.T.reshape(-1)
    return ids.reshape(-1, width), step_phases, classes


def build(pieces: Sequence[Piece], codes: npt.NDArray[Any] | None, layout: VocabLayout, group: int) -> Example:
    """The example of `pieces` with `codes`, int [K, T] (None where no piece is speech)."""
    width = max(1, group)
    tokens, masks, labels, phases, speaker_positions = [], [], [], [], []
    classes = [np.zeros((0, group), dtype=np.int64)]
    position = 0
    for piece in pieces:
        if piece.kind == "speech":
            ids, of_speech, of_heads = speech_tokens(_required(codes), layout, group)
            phases.append(of_speech)
            classes += [of_heads] if piece.labelled and group else []
        else:
            ids = np.repeat(np.array(piece.ids, dtype=np.int64)[:, None], width, axis=1)
            phases.append(np.full(len(ids), -1))
        if piece.kind == "speaker":
            speaker_positions.append(position)
        tokens.append(ids)
        masks.append(np.full(len(ids), piece.kind == "speech" and group > 0))
        labels.append(np.full(len(ids), piece.labelled))
        position += len(ids)
    ids, mask, label, phase = (np.concatenate(parts) for parts in (tokens, masks, labels, phases))
    lm = np.flatnonzero(label & ~mask)
    head = np.flatnonzero(label & mask)
    return Example(
        tokens=ids,
        speech_mask=mask,
        speaker_positions=np.array(speaker_positions, dtype=np.int64),
        lm_positions=lm - 1,
        lm_targets=ids[lm, 0],
        lm_groups=phase[lm] + 1,
        head_positions=head - 1,
        head_targets=np.concatenate(classes),
        head_phases=phase[head],
    )


def _required(codes: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    if codes is None:
        raise ValueError("the prompt has a speech part but no codes were given")
    return codes
