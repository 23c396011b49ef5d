"""One example as arrays: token ids, speech steps and shifted targets, for NTP and every MTP group size.

The same codes serve every layout of the sequence: nothing of it is stored. For NTP (group 0) the K streams are
interleaved frame by frame, one token per position. For MTP a speech step holds `group` tokens of n = group / K frames
(a1 b1 c1 a2 b2 c2 ...); the last group is filled with `<|speech_pad|>`, and `<eosp>` is a speech step of its own.

Shapes: S positions, G = max(1, group) ids per position, K streams, T frames, H = group heads.

Invariant: `measure` tells what `build` will give, from lengths alone.

Example:
    pieces = tokenize(tts("hello"), tokenizer.encode, layout)
    build(pieces, codes, layout, group=3)
"""

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


def frames_per_step(group: int, num_streams: int) -> int:
    """Codec frames of one MTP step. Raises ValueError unless `group` is a positive multiple of the streams."""
    if group < 1 or group % num_streams:
        raise ValueError(f"group {group} is not a multiple of {num_streams} streams")
    return group // num_streams


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
    per_step = frames_per_step(group, num_streams) if group else 0
    positions = -(-num_frames // per_step) + 1 if group else num_frames * num_streams + 1
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


def speech_tokens(
    codes: npt.NDArray[Any], layout: VocabLayout, group: int
) -> tuple[IntArray, IntArray, IntArray | None]:
    """Token ids of the speech positions, `<eosp>` included, of codes [K, T].

    Returns ids [S, G], the NTP stream number of each position [S] (-1 for MTP), and for MTP the head classes [S, H].
    Raises ValueError when a code is outside its codebook or the streams do not match the layout.
    """
    codes = np.asarray(codes, dtype=np.int64)
    sizes = np.array(layout.codebook_sizes)
    if codes.ndim != 2 or codes.shape[0] != layout.num_streams:
        raise ValueError(f"codes of shape {codes.shape}, expected [{layout.num_streams}, frames]")
    if (codes < 0).any() or (codes >= sizes[:, None]).any():
        raise ValueError(f"codes outside 0 .. {sizes - 1}")
    first = np.array([start for _, start, _ in layout.streams])
    eosp = layout.id_of("<eosp>")
    num_streams, num_frames = codes.shape
    if group == 0:
        ids = np.append((codes + first[:, None]).T.reshape(-1), eosp)
        streams = np.append(np.tile(np.arange(num_streams), num_frames), 0)
        return ids[:, None], streams, None
    per_step = frames_per_step(group, num_streams)
    steps = -(-num_frames // per_step)
    grid = np.full((num_streams, steps * per_step), -1, dtype=np.int64)
    grid[:, :num_frames] = codes
    by_step = grid.T.reshape(steps, group)
    head_sizes, head_first = np.tile(sizes, per_step), np.tile(first, per_step)
    filled = by_step < 0
    pad = layout.id_of("<|speech_pad|>") if filled.any() else 0
    ids = np.where(filled, pad, by_step + head_first)
    classes = np.where(filled, head_sizes + 1, by_step)
    ids = np.concatenate([ids, np.full((1, group), eosp)])
    classes = np.concatenate([classes, head_sizes[None]])
    return ids, np.full(steps + 1, -1), classes


def build(pieces: Sequence[Piece], codes: npt.NDArray[Any] | None, layout: VocabLayout, group: int) -> Example:
    """The example of `pieces` with `codes`, int [K, T] (None where no piece is speech)."""
    width = max(1, group)
    tokens, masks, labels, streams, speaker_positions = [], [], [], [], []
    head_classes: list[IntArray] = []
    position = 0
    for piece in pieces:
        if piece.kind == "speech":
            ids, stream, classes = speech_tokens(_required(codes), layout, group)
            head_classes += [classes] if classes is not None and piece.labelled else []
        else:
            ids = np.repeat(np.array(piece.ids, dtype=np.int64)[:, None], width, axis=1)
            stream = np.full(len(ids), -1)
        if piece.kind == "speaker":
            speaker_positions.append(position)
        tokens.append(ids)
        streams.append(stream)
        masks.append(np.full(len(ids), piece.kind == "speech" and group > 0))
        labels.append(np.full(len(ids), piece.labelled))
        position += len(ids)
    ids, mask, label, stream = (np.concatenate(parts) for parts in (tokens, masks, labels, streams))
    lm = np.flatnonzero(label & ~mask)
    head = np.flatnonzero(label & mask)
    return Example(
        tokens=ids,
        speech_mask=mask,
        speaker_positions=np.array(speaker_positions, dtype=np.int64),
        lm_positions=lm - 1,
        lm_targets=ids[lm, 0],
        lm_groups=stream[lm] + 1,
        head_positions=head - 1,
        head_targets=np.concatenate(head_classes) if head_classes else np.zeros((0, group), dtype=np.int64),
    )


def _required(codes: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    if codes is None:
        raise ValueError("the prompt has a speech part but no codes were given")
    return codes
