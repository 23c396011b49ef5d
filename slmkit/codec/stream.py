"""Decoding codes while they come, so that the pieces joined are the wave of all codes at once.

Each piece is decoded in a window: its frames, and on both sides the frames they depend on (`Codec.reach_frames`). What
depends on everything before, such as an LSTM, carries a state (`stages.py`). A piece is given out as soon as the last
frame of its window is there. The first has 8 frames; then each is twice the one
before, up to 128, so that sound begins early and the context costs less and less. Where pieces begin and end depends on
nothing but their number: the joined wave is the same to the bit however the codes were handed over.

    codec      waits for    decodes for each frame given out
    FACodec    36 frames    4.5 for the first piece, 1.4 in the long run
    melvq      83 frames    10.4 for the first piece, 2.2 in the long run

A stream runs without a gap when generating and decoding together take at most half as long as the sound lasts.

Bound: the joined wave is that of `Codec.decode` of all codes within `JOINED_BOUND`, one step of 16-bit audio. What is
left is float32 rounding, since kernels add in another order for another length. Measured on a CPU: FACodec with seeded
weights and random codes 0.9e-5, melvq 0.

Shapes: K streams (of the language model, or with the detail streams), t frames, n = t * hop samples, D speaker width.

Example:
    stream = StreamDecoder(codec, speaker)
    for codes in parts:  # int [K, t]
        play(stream.push(codes))
    play(stream.finish())
"""

from collections.abc import Sequence

import torch

from slmkit.codec.base import Codec, Reach, check_codes
from slmkit.codec.single import limited
from slmkit.codec.stages import Chain, Stage, StagedCodec, Windowed, reach_of
from slmkit.errors import UserError
from slmkit.precision import exact_float32

FIRST_FRAMES = 8  # of the first piece
MOST_FRAMES = 128  # of a piece
JOINED_BOUND = 2.0**-15  # of a sample in [-1, 1]


class StreamDecoder:
    """See the module. One utterance."""

    def __init__(
        self,
        codec: Codec,
        speaker: torch.Tensor,
        *,
        first_frames: int = FIRST_FRAMES,
        most_frames: int = MOST_FRAMES,
    ) -> None:
        """`speaker` float32 [D].

        Raises ValueError for pieces without frames, and UserError for a codec that decodes only what is complete.
        """
        if not 1 <= first_frames <= most_frames:
            raise ValueError(f"got pieces of {first_frames} to {most_frames} frames, expected 1 or more, and growing")
        stages = decoding_stages(codec, speaker)
        after = reach_of(stages).after
        if after is None:
            raise UserError(
                f"the codec {codec.spec.name} cannot decode a stream: each sample depends on the whole utterance",
                next_step="wait for the whole answer: leave --stream out",
            )
        self._codec, self._chain, self._after = codec, Chain(stages), after
        self._piece, self._most = first_frames, most_frames
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
        while self._given + self._piece + self._after <= self.num_frames:
            self._given += self._piece
            waves.append(self._decode(self._given + self._after))
            self._piece = min(2 * self._piece, self._most)
        return torch.cat(waves) if waves else self._silence()

    def finish(self) -> torch.Tensor:
        """The samples float32 [n] that are left. Raises ValueError when called again."""
        if self._is_finished:
            raise ValueError("the stream is finished")
        self._is_finished = True
        return self._decode(self.num_frames, is_last=True) if self._given < self.num_frames else self._silence()

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


def decoding_stages(codec: Codec, speaker: torch.Tensor) -> Sequence[Stage]:
    """From codes int [1, K, t] to a wave [1, 1, t * hop] in the voice of `speaker`, float32 [D]."""
    hop = codec.spec.hop_samples
    if isinstance(codec, StagedCodec):
        return (*codec.decoding_stages(), Windowed(limited, Reach(0, 0), hop, hop))
    voice, reach = speaker[None].to(codec.device), codec.reach_frames
    bounded = None if None in reach else reach
    return (Windowed(lambda codes: codec.decode(codes, voice)[:, None], bounded, outputs_per_frame=hop),)
