"""Decoding codes while they come, so that the pieces joined are the wave of all codes at once.

Each piece is decoded in a window: its frames, and on both sides the frames they depend on (`Codec.reach_frames`). What
depends on everything before, such as an LSTM, carries a state (`stages.py`). A piece is given out as soon as the last
frame of its window is there. Where pieces begin and end depends on nothing but their number: the joined wave is the
same to the bit however the codes were handed over.

The first piece has `FIRST_SEC` of sound. Each further one is longer than it by a twelfth (`GROWTH_DIVISOR`) of all that
was given out before, up to `MOST_SEC`: at 80 frames a second 12, 13, 14, 15, 16, ... 128 frames.

No gaps: if making each piece (steps of the model, and decoding its window) takes at most 12/13 of the time it sounds, a
listener who plays each piece as it comes never waits. Proof: let S be the frames given out before a piece, and F those
of the first. The piece ends at frame S + F + S / 12 at most. Since the first piece was there, S + S / 12 frames were
made at most, which takes no longer than S frames sound; and so long the listener has sound. Larger steps lose this:
pieces that double need twice the speed of real time, and have four gaps, 0.8 s in all, at 1.3 times.

What a window costs beside its piece counts, too. How many times real time must model and codec be in the long run
(pieces of `MOST_SEC`), for a stream without a gap, where the codec alone, on one long wave, is so many times real time?

    codec      waits for    any speed  200    100    50     20       decodes for each frame given out
    FACodec    40 frames    1.09       1.10   1.12   1.16   1.30     3.3 for the first piece, 1.4 in the long run
    melvq      87 frames    1.09       1.13   1.17   1.26   1.68     7.3 for the first piece, 2.2 in the long run

Bound: the joined wave is that of `Codec.decode` of all codes within `JOINED_BOUND`, one step of 16-bit audio. What is
left is float32 rounding, since kernels add in another order for another length. Measured on a CPU: FACodec with seeded
weights and random codes 0.9e-5, melvq 0.

Several streams are decoded one after the other, not in a batch. On a CPU there is little to win: FACodec decodes 16
windows of 40 frames 1.13 times as fast in one batch, and 16 windows of 68 frames 0.90 times as fast (one thread, CPU
time). And it would cost equality: kernels add in another order for a batch, so the sound of a stream would depend on
who else listens, there by up to 1.4e-4. Not measured: a GPU, where a batch would save launches of kernels.

Shapes: K streams (of the language model, or with the detail streams), t frames, n = t * hop samples, D speaker width.

Example:
    stream = StreamDecoder(codec, speaker)
    for codes in parts:  # int [K, t]
        play(stream.push(codes))
    play(stream.finish())
"""

import math
from collections.abc import Sequence

import torch

from slmkit.codec.base import Codec, CodecSpec, Reach, check_codes
from slmkit.codec.single import limited
from slmkit.codec.stages import Chain, Stage, StagedCodec, Windowed, reach_of
from slmkit.errors import UserError
from slmkit.precision import exact_float32

FIRST_SEC = 0.15  # of the first piece: shorter ones cost more context than they save of the wait
MOST_SEC = 1.6  # of a piece: longer ones save little context
GROWTH_DIVISOR = 12  # a piece grows by one part in so many of what was given out
JOINED_BOUND = 2.0**-15  # of a sample in [-1, 1]


class StreamDecoder:
    """See the module. One utterance."""

    def __init__(
        self,
        codec: Codec,
        speaker: torch.Tensor,
        *,
        first_frames: int | None = None,
        most_frames: int | None = None,
    ) -> None:
        """`speaker` float32 [D]. Frames of the first piece and of the longest: by default what the module says.

        Raises ValueError for pieces without frames, and UserError for a codec that decodes only what is complete.
        """
        first = first_piece_frames(codec.spec) if first_frames is None else first_frames
        most = max(first, frames_of(MOST_SEC, codec.spec)) if most_frames is None else most_frames
        if not 1 <= first <= most:
            raise ValueError(f"got pieces of {first} to {most} frames, expected 1 or more, and growing")
        stages = decoding_stages(codec, speaker)
        after = reach_of(stages).after
        if after is None:
            raise UserError(
                f"the codec {codec.spec.name} cannot decode a stream: each sample depends on the whole utterance",
                next_step="wait for the whole answer: leave --stream out",
            )
        self._codec, self._chain, self._after = codec, Chain(stages), after
        self._first, self._most = first, most
        self._waiting: torch.Tensor | None = None  # codes [1, K, t] that the chain has not taken
        self._taken = self._given = 0  # frames that the chain has taken; frames given out
        self._is_finished = False

    @property
    def num_frames(self) -> int:
        """Frames taken."""
        return self._taken + (0 if self._waiting is None else self._waiting.shape[2])

    def push(self, codes: torch.Tensor) -> torch.Tensor:
        """The samples float32 [n] that codes int [K, t] complete, often none.

        Raises ValueError for another number of streams than before, after `finish`, and as `Codec.decode`.
        """
        if self._is_finished:
            raise ValueError("the stream is finished")
        if isinstance(self._codec, StagedCodec):
            check_codes(codes[None], self._codec.spec)
        if self._waiting is None:
            self._waiting = codes[None]
        elif codes.ndim != 2 or len(codes) != self._waiting.shape[1]:
            raise ValueError(f"codes {list(codes.shape)} do not continue a stream of {self._waiting.shape[1]}")
        else:
            self._waiting = torch.cat([self._waiting, codes[None].to(self._waiting)], dim=2)
        waves = []
        while self._given + (piece := self._piece_frames()) + self._after <= self.num_frames:
            self._given += piece
            waves.append(self._decode(self._given + self._after))
        return torch.cat(waves) if waves else self._silence()

    def finish(self) -> torch.Tensor:
        """The samples float32 [n] that are left. Raises ValueError when called again."""
        if self._is_finished:
            raise ValueError("the stream is finished")
        self._is_finished = True
        return self._decode(self.num_frames, is_last=True) if self._given < self.num_frames else self._silence()

    def _piece_frames(self) -> int:
        """Of the next piece."""
        return min(self._first + self._given // GROWTH_DIVISOR, self._most)

    @torch.inference_mode()
    def _decode(self, stop: int, *, is_last: bool = False) -> torch.Tensor:
        """The samples that the codes up to frame `stop` complete."""
        assert self._waiting is not None
        number = stop - self._taken
        piece, self._waiting = self._waiting[..., :number], self._waiting[..., number:]
        self._taken = stop
        with exact_float32(self._codec.device):
            wave = self._chain.push(piece.to(self._codec.device), is_last=is_last)
        return self._silence() if wave is None else wave[0, 0].float()

    def _silence(self) -> torch.Tensor:
        return torch.zeros(0, device=self._codec.device)


def frames_of(seconds: float, spec: CodecSpec) -> int:
    """The fewest frames that last so long."""
    return math.ceil(seconds * spec.frame_rate)


def first_piece_frames(spec: CodecSpec) -> int:
    """Frames of the first piece of a stream."""
    return frames_of(FIRST_SEC, spec)


def decoding_stages(codec: Codec, speaker: torch.Tensor) -> Sequence[Stage]:
    """From codes int [1, K, t] to a wave [1, 1, t * hop] in the voice of `speaker`, float32 [D]."""
    hop = codec.spec.hop_samples
    if isinstance(codec, StagedCodec):
        return (*codec.decoding_stages(), Windowed(limited, Reach(0, 0), hop, hop))
    voice, reach = speaker[None].to(codec.device), codec.reach_frames
    bounded = None if None in reach else reach
    return (Windowed(lambda codes: codec.decode(codes, voice)[:, None], bounded, outputs_per_frame=hop),)
