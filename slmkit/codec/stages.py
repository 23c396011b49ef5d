"""A network over time as a chain of stages, so that it can run piece by piece: in bounded memory, or while input comes.

A stage is either a window (`Windowed`: what comes out at a frame depends on the input of some frames around it) or
recurrent (`Recurrent`: it goes from left to right and carries a state). Convolutions are windows; an LSTM, or attention
with a cache of what it has seen, is recurrent. A stage that looks at everything (`reach` None) runs when the input is
at its end.

Input and output have a fixed number of vectors per frame: an encoder's first stage takes `hop` samples a frame and
gives one vector. The input may end within a frame.

Shapes: C channels, t vectors in time; B is 1, or a number of inputs of one length for stages that are all windows.

Invariant: where pieces begin and end does not change the result but for the order in which kernels add; equal pieces
give equal bits.

Example:
    stages = (Windowed(conv, Reach(3, 3)), Recurrent(lstm), Windowed(upsample, Reach(2, 2), outputs_per_frame=320))
    wave = run_in_pieces(stages, latents, piece_frames=1500)
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch

from slmkit.codec.base import Reach


class Windowed(NamedTuple):
    """A stage that depends on a bounded part of its input."""

    run: Callable[..., torch.Tensor]  # [1, C, t * inputs] -> [1, C', t * outputs], with its own padding at both ends
    reach: Reach | None  # blocks; None: everything
    inputs_per_frame: int = 1
    outputs_per_frame: int = 1
    block_frames: int = 1  # frames that go together, counted from the first of all: input begins where a block does
    least_blocks: int = 1  # that are given out at a time, until the end: an input of no more runs whole
    placed: bool = False  # `run` takes the number of its first frame, too: what comes out depends on the place in time


class Recurrent(NamedTuple):
    """A stage that goes from left to right."""

    run: Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]]  # input and state (None at the start) -> output, state
    inputs_per_frame: int = 1
    outputs_per_frame: int = 1


Stage = Windowed | Recurrent


@runtime_checkable
class StagedCodec(Protocol):
    """A codec that says how its decoding goes on piece by piece."""

    def decoding_stages(self) -> Sequence[Stage]:
        """From codes int [1, K, T] to a wave [1, 1, T * hop]."""
        ...


def reach_of(stages: Sequence[Stage]) -> Reach:
    """What the whole chain depends on, in frames; None on a side where it is everything."""
    windows = [(stage.reach, stage.block_frames) for stage in stages if isinstance(stage, Windowed)]
    if any(reach is None for reach, _ in windows):
        return Reach(None, None)
    before, after = (
        sum(((reach[side] or 0) + 1) * block - 1 for reach, block in windows if reach is not None) for side in (0, 1)
    )
    return Reach(None if any(isinstance(stage, Recurrent) for stage in stages) else before, after)


class Chain:
    """The stages at work on one input, which comes in pieces of whole frames; only the last piece may be ragged."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._workers = [_Window(stage) if isinstance(stage, Windowed) else _Loop(stage) for stage in stages]

    def push(self, piece: torch.Tensor, *, is_last: bool = False) -> torch.Tensor | None:
        """What `piece`, [1, C, t], completes; None where it is nothing. `is_last`: the input ends with it."""
        found: torch.Tensor | None = piece
        for worker in self._workers:
            found = worker.push(found, is_last=is_last)
        return found


class _Window:
    """Keeps the input that later output depends on."""

    def __init__(self, stage: Windowed) -> None:
        self._stage = stage
        self._kept: torch.Tensor | None = None
        self._first = self._given = 0  # blocks: the first that is kept; those given out

    def push(self, piece: torch.Tensor | None, *, is_last: bool) -> torch.Tensor | None:
        stage = self._stage
        inputs, outputs = (n * stage.block_frames for n in (stage.inputs_per_frame, stage.outputs_per_frame))
        if piece is not None:
            self._kept = piece if self._kept is None else torch.cat([self._kept, piece], dim=2)
        if self._kept is None or (stage.reach is None and not is_last):
            return None
        before, after = (0, 0) if stage.reach is None else (stage.reach.before or 0, stage.reach.after or 0)
        stop = self._first + self._kept.shape[2] // inputs - after
        if not is_last and stop - self._given < stage.least_blocks:
            return None
        place = (self._first * stage.block_frames,) if stage.placed else ()
        found = stage.run(self._kept, *place)[..., (self._given - self._first) * outputs :]
        if is_last:
            self._kept = None
            return found if found.shape[2] else None
        found = found[..., : (stop - self._given) * outputs]
        self._given = stop
        first = max(0, stop - before)
        self._kept, self._first = self._kept[..., (first - self._first) * inputs :], first
        return found


class _Loop:
    """Carries the state."""

    def __init__(self, stage: Recurrent) -> None:
        self._run, self._state = stage.run, None

    def push(self, piece: torch.Tensor | None, *, is_last: bool) -> torch.Tensor | None:
        if piece is None:
            return None
        found, self._state = self._run(piece, self._state)
        return found


def run_in_pieces(stages: Sequence[Stage], whole: torch.Tensor, *, piece_frames: int) -> torch.Tensor:
    """The output [1, C', t'] of `whole`, [1, C, t], of which `piece_frames` frames are taken at a time.

    An input of no more frames than that runs in one piece.
    """
    chain, step = Chain(stages), piece_frames * stages[0].inputs_per_frame
    found = []
    for start in range(0, whole.shape[2], step):
        part = chain.push(whole[..., start : start + step], is_last=start + step >= whole.shape[2])
        if part is not None:
            found.append(part)
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)
