"""A step of the decoder as a CUDA graph: hundreds of small kernels started by one call.

Invariant: what is played is what was recorded: the same kernels on the same memory, with new inputs.

Example:
    step = Replay(compute)
    hidden, *others = step(tokens, speech, where)       # the first call records, the others play
"""

from collections.abc import Callable

import torch

WARM_UP_RUNS = 3  # libraries take their work space before the recording; a step may be run twice without harm


class Replay:
    """A function of tensors, always of the same shapes, that does not look at their values on the host.

    The tensors it returns are the same in every call, with new content.
    """

    def __init__(self, compute: Callable[..., list[torch.Tensor]]) -> None:
        self._compute = compute
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[torch.Tensor] = []
        self._outputs: list[torch.Tensor] = []

    def __call__(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        if self._graph is None:
            self._record(inputs)
        assert self._graph is not None
        for held, given in zip(self._inputs, inputs, strict=True):
            held.copy_(given)
        self._graph.replay()
        return self._outputs

    def _record(self, inputs: tuple[torch.Tensor, ...]) -> None:
        self._inputs = [given.clone() for given in inputs]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP_RUNS):
                self._compute(*self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._outputs = self._compute(*self._inputs)
        self._graph = graph
