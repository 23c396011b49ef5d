"""The model on a GPU: the kernels it picks there against the plain arithmetic of the CPU.

bfloat16 has 3 significant digits; losses are means over many targets and agree closer than that.
"""

import copy

import pytest
import torch
from tiny_models import tiny_batch, tiny_model
from transformers import DynamicCache

from slmkit.model import losses
from slmkit.model.attention import Packing, packed_attention
from slmkit.model.fused import fuse, liger_kernels
from slmkit.model.kernels import packed_kernel
from slmkit.model.losses import TargetSpan, cross_entropy
from slmkit.model.slm import SpeechLM

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
FRAMES = (9, 4, 0, 13)
LENGTHS = [70, 1, 300, 129]
KINDS = [
    {"group": 0},
    {"group": 0, "softmax": "stream", "speaker_dim": 8},
    {"group": 6, "head": "transformer", "speaker_dim": 8},
    {"group": 3, "fusion": "mlp", "head": "mlp"},
]


def gradients(model: SpeechLM) -> dict[str, torch.Tensor]:
    return {name: weight.grad.float().cpu() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_float32_equals_the_cpu(options: dict) -> None:
    model = tiny_model(**options)
    batch = tiny_batch(model.config, FRAMES)
    expected = model(batch)
    expected.loss.backward()
    wanted = gradients(model)
    model.zero_grad()
    output = model.cuda()(batch.to("cuda"))
    output.loss.backward()
    torch.testing.assert_close(output.sums.cpu(), expected.sums, atol=1e-3, rtol=1e-4)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-2, msg=name)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_bfloat16_is_near_float32(options: dict) -> None:
    model = tiny_model(**options)
    batch = tiny_batch(model.config, FRAMES)
    expected = model(batch).loss.item()
    half = model.cuda().bfloat16()
    output = half(batch.to("cuda"))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(expected, rel=0.02)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(half).values())


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_a_batch_without_targets(options: dict) -> None:
    model = tiny_model(**options).cuda().bfloat16()
    batch = tiny_batch(model.config, (), counts=torch.full((model.config.num_terms,), 5.0, dtype=torch.float64))
    output = model(batch.to("cuda"))
    output.loss.backward()
    assert output.loss.item() == 0
    assert not any(gradient.any() for gradient in gradients(model).values())


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_the_packed_kernel_equals_one_utterance_at_a_time(shared: int) -> None:
    assert packed_kernel(64) is not None, "neither flash-attn nor torch's kernel is there"
    torch.manual_seed(0)
    borders = torch.tensor([0, *LENGTHS]).cumsum(0).int().cuda()
    packing = Packing(borders, int(borders[-1]))
    shapes = [(1, heads, sum(LENGTHS), 64) for heads in (4, shared, shared)]
    exact = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
    half = [x.detach().bfloat16().requires_grad_() for x in exact]
    got, _ = packed_attention(torch.nn.Module(), *half, None, scaling=0.2, packing=packing)
    expected, _ = packed_attention(torch.nn.Module(), *exact, None, scaling=0.2, packing=packing)
    torch.testing.assert_close(got.float(), expected, atol=0.02, rtol=0.02)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    got.backward(upstream.bfloat16())
    for a, b in zip(half, exact, strict=True):
        assert (a.grad.float() - b.grad).norm() < 0.02 * b.grad.norm()


def test_cross_entropy_adds_up_in_float32() -> None:
    """Sums over many slices in bfloat16 weights: the gradient must not lose what each slice adds."""
    torch.manual_seed(0)
    num_targets, width, rows = 4096, 64, 5000
    hidden = torch.randn(num_targets, width, device="cuda").bfloat16()
    weight = (torch.randn(rows, width, device="cuda") / 8).bfloat16()
    targets = torch.randint(rows, (num_targets,), device="cuda")
    scales = torch.full((num_targets,), 1 / num_targets, device="cuda")

    def run(dtype: torch.dtype, slice_bytes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inputs = [x.to(dtype).requires_grad_() for x in (hidden, weight)]
        spans = [TargetSpan(num_targets, ((0, rows),))]
        result = cross_entropy(inputs[0], inputs[1], None, targets, scales, spans, slice_bytes)
        return result.nll, *(g.float() for g in torch.autograd.grad(result.loss, inputs))

    exact = run(torch.float64, losses.SLICE_BYTES)
    for slice_bytes in (2**20, losses.SLICE_BYTES):
        nll, of_hidden, of_weight = run(torch.bfloat16, slice_bytes)
        torch.testing.assert_close(nll, exact[0].float(), atol=1e-3, rtol=1e-3)
        assert (of_hidden - exact[1]).norm() < 0.01 * exact[1].norm()
        assert (of_weight - exact[2]).norm() < 0.01 * exact[2].norm()
    whole, sliced = run(torch.bfloat16, losses.SLICE_BYTES), run(torch.bfloat16, 2**20)
    torch.testing.assert_close(whole[2], sliced[2], atol=1e-6, rtol=0.01)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_no_sync_within_a_step(options: dict) -> None:
    """Nothing in forward or backward waits for the device, so that launches run ahead of it. Some of torch's kernels,
    such as an embedding's gradient, are others for more than some thousand positions."""
    model = tiny_model(**options).cuda().bfloat16()
    batch = tiny_batch(model.config, (900, 1300, 0, 1200)).to("cuda")
    model(batch).loss.backward()
    torch.cuda.set_sync_debug_mode("error")  # waiting for the device raises an error from here on
    try:
        loss = model(batch).loss
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


def test_cached_decoding() -> None:
    model = tiny_model(6, head="transformer").cuda().eval()
    batch = tiny_batch(model.config, (6,)).to("cuda")
    positions = batch.position_ids[None]
    embedded = model.embed(batch.tokens, batch.speech_mask)[None]
    with torch.no_grad():
        whole = model.hidden(embedded, positions)
        cache = DynamicCache()
        steps = [
            model.hidden(embedded[:, i : i + 1], positions[:, i : i + 1], cache=cache) for i in range(len(embedded[0]))
        ]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "smollm3"])
def test_fused_kernels_give_the_plain_losses_and_gradients(arch: str) -> None:
    pytest.importorskip("liger_kernel")
    plain = tiny_model(group=3, head="transformer", arch=arch).cuda()
    model = copy.deepcopy(plain)
    fuse(model, liger_kernels())
    batch = tiny_batch(model.config, FRAMES).to("cuda")
    losses = [each(batch).loss for each in (model, plain)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)
    wanted = gradients(plain)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5, rtol=1e-2, msg=name)
