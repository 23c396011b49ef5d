"""Decoding codes while they come, so that the pieces joined are the wave of all codes at once.

Each piece is decoded in a window: its frames, and on both sides the frames they depend on (`Codec.reach_frames`). A
piece is given out as soon as the last frame of its window is there. The first has 8 frames; then each is twice the one
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
    for codes in parts:  # int16 [K, t]
        play(stream.push(codes))
    play(stream.finish())
"""

import torch

from slmkit.codec.base import Codec

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
        """`speaker` float32 [D]. Raises ValueError for pieces without frames."""
        if not 1 <= first_frames <= most_frames:
            raise ValueError(f"got pieces of {first_frames} to {most_frames} frames, expected 1 or more, and growing")
        self._codec, self._speaker = codec, speaker[None].to(codec.device)
        self._before, self._after = codec.reach_frames
        self._piece, self._most = first_frames, most_frames
        self._kept: torch.Tensor | None = None  # codes [1, K, ...] from frame `_first` on
        self._first = self._given = 0  # the first frame kept; frames given out
        self._is_finished = False

    @property
    def num_frames(self) -> int:
        """Frames taken."""
        return self._first + (0 if self._kept is None else self._kept.shape[2])

    def push(self, codes: torch.Tensor) -> torch.Tensor:
        """The samples float32 [n] that codes int [K, t] complete, often none.

        Raises ValueError for another number of streams than before, after `finish`, and as `Codec.decode`.
        """
        if self._is_finished:
            raise ValueError("the stream is finished")
        if self._kept is None:
            self._kept = codes[None]
        elif codes.ndim != 2 or len(codes) != self._kept.shape[1]:
            raise ValueError(f"codes {list(codes.shape)} do not continue a stream of {self._kept.shape[1]}")
        else:
            self._kept = torch.cat([self._kept, codes[None].to(self._kept)], dim=2)
        waves = []
        while self._given + self._piece + self._after <= self.num_frames:
            waves.append(self._decode(self._given + self._piece))
            self._piece = min(2 * self._piece, self._most)
        return torch.cat(waves) if waves else self._silence()

    def finish(self) -> torch.Tensor:
        """The samples float32 [n] that are left. Raises ValueError when called again."""
        if self._is_finished:
            raise ValueError("the stream is finished")
        self._is_finished = True
        return self._decode(self.num_frames) if self._given < self.num_frames else self._silence()

    def _decode(self, stop: int) -> torch.Tensor:
        """Samples of the frames from what is given out to `stop`; afterwards what no later frame needs is let go."""
        assert self._kept is not None
        hop = self._codec.spec.hop_samples
        window = self._kept[..., : stop + self._after - self._first].to(self._codec.device)
        wave = self._codec.decode(window, self._speaker)[0, (self._given - self._first) * hop :]
        wave = wave[: (stop - self._given) * hop].float()
        self._given = stop
        first = max(0, stop - self._before)
        self._kept, self._first = self._kept[..., first - self._first :], first
        return wave

    def _silence(self) -> torch.Tensor:
        return torch.zeros(0, device=self._codec.device)
