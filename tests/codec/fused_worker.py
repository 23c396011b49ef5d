"""The fused activation in a process of its own: `python fused_worker.py interpret | compile | refuse`.

Triton decides at import whether its kernels run in its interpreter (TRITON_INTERPRET=1).
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.errors import OutOfResources
from twins.facodec import Activation as PlainActivation

from slmkit.codec.snake import fused
from slmkit.codec.snake.activation import Activation, Ends
from slmkit.codec.weights import Weights

CHANNELS = 2
LANES = 32  # of a program here, so that an utterance takes several; each writes all but the borders
RUN = LANES - 2 * fused.REACH
MARGINS = (0, 1, 2, 3, 9, 27)  # that the networks ask for
CASES = [
    ([1], 0),  # utterance lengths, margin
    ([2, 1], 3),
    ([100, 26, 27, 1], 3),
    ([70, 70], 27),
    # The last position, margins included, is the last of a program, the one before it, and the first of the next.
    *(([RUN * (1 + 2 * margin // RUN) - 2 * margin + i for i in (0, -1, 1)], margin) for margin in MARGINS),
]


def interpret() -> None:
    """The kernel against its twin, where utterances and runs of positions begin and end."""
    fused.LANES = LANES
    torch.manual_seed(0)
    module = PlainActivation(CHANNELS)
    module.act.alpha.data.normal_()
    module.act.beta.data.normal_()
    activation = Activation(Weights({key: value.detach() for key, value in module.state_dict().items()}))
    for counts, margin in CASES:
        x = torch.randn(len(counts), CHANNELS, 5 + max(counts))[..., 5:]
        got = activation.fused(fused, x, Ends(counts, x.device), margin)
        twin = activation.plain(x, Ends(counts, x.device), margin)
        assert got.shape == twin.shape
        for row, count in enumerate(counts):
            here = got[row, :, : count + 2 * margin]
            torch.testing.assert_close(here, twin[row, :, : count + 2 * margin], atol=1e-5, rtol=1e-5)
            assert not got[row, :, margin + count :].any(), "zeros after an utterance"
            alone = activation.fused(fused, x[row : row + 1, :, :count], Ends([count], x.device), margin)
            assert torch.equal(here, alone[0]), "the batch law, to the bit"
    spread = torch.randn(2, 5, CHANNELS).transpose(1, 2)  # positions apart in memory
    ends = Ends([5, 3], spread.device)
    got = activation.fused(fused, spread, ends, 1)
    assert torch.equal(got, activation.fused(fused, spread.contiguous(), ends, 1))


def compile_for_gpus() -> None:
    """The kernel is built for a GPU, which needs none."""
    constants = {"ragged": True, "lanes": fused.LANES, "taps": 12, "reach": 3, "stride": 1}
    pointers = dict.fromkeys(("x", "out", "alpha", "height", "up_taps", "down_taps"), "*fp32") | {"counts": "*i64"}
    names = fused._kernel.arg_names
    types = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    for capability in (80, 90):
        source = ASTSource(fn=fused._kernel, signature=types, constexprs=places)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


def refuse() -> None:
    """Where triton finds no GPU, or cannot build or run the kernel there, the twin is used."""
    assert not fused.works_on(torch.device("cpu"))

    def failing(*_: object) -> None:
        raise OutOfResources(2**17, 2**16, "shared memory")

    fused.works_on.cache_clear()
    fused.activate = failing
    assert not fused.works_on(torch.device("cpu"))


if __name__ == "__main__":
    {"interpret": interpret, "compile": compile_for_gpus, "refuse": refuse}[sys.argv[1]]()
