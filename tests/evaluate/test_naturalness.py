"""UTMOS: names and sizes as in the published file, the arithmetic against the layers written out one by one."""

import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from slmkit.errors import BadSample, UserError
from slmkit.evaluate.metrics.naturalness import STRIDES, Utmos, network_of

RATE = 16000
KERNELS = (10, 3, 3, 3, 3, 2, 2)
TINY = {"conv": 16, "hidden": 128, "ffn": 48, "layers": 2, "position": 16, "groups": 4, "emb": 8, "memory": 12}
PUBLISHED = {"conv": 512, "hidden": 768, "ffn": 3072, "layers": 12, "position": 128, "groups": 16, "emb": 128}
PUBLISHED |= {"memory": 512, "inner": 2048}


def state_of(conv, hidden, ffn, layers, position, groups, emb, memory, inner=20):
    """Random weights under the names that SpeechMOS's public code gives them."""
    shapes = {f"feature_extractor.conv_layers.{i}.0.weight": (conv, conv if i else 1, k) for i, k in enumerate(KERNELS)}
    shapes |= {f"feature_extractor.conv_layers.0.2.{kind}": (conv,) for kind in ("weight", "bias")}
    shapes |= {f"layer_norm.{kind}": (conv,) for kind in ("weight", "bias")}
    shapes |= {"post_extract_proj.weight": (hidden, conv), "post_extract_proj.bias": (hidden,), "mask_emb": (hidden,)}
    shapes |= {"encoder.pos_conv.0.weight_g": (1, 1, position), "encoder.pos_conv.0.bias": (hidden,)}
    shapes |= {"encoder.pos_conv.0.weight_v": (hidden, hidden // groups, position)}
    shapes |= {f"encoder.layer_norm.{kind}": (hidden,) for kind in ("weight", "bias")}
    for i in range(layers):
        linear = {f"self_attn.{name}_proj": (hidden, hidden) for name in ("q", "k", "v", "out")}
        linear |= {"fc1": (ffn, hidden), "fc2": (hidden, ffn)}
        for name, shape in linear.items():
            shapes |= {f"encoder.layers.{i}.{name}.weight": shape, f"encoder.layers.{i}.{name}.bias": shape[:1]}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"encoder.layers.{i}.{name}.{kind}": (hidden,) for kind in ("weight", "bias")}
    shapes = {f"wav2vec2.{name}": shape for name, shape in shapes.items()}
    shapes |= {"domain_emb": (1, emb), "judge_emb": (1, emb)}
    for end in ("", "_reverse"):
        shapes |= {f"blstm.weight_ih_l0{end}": (4 * memory, hidden + 2 * emb)}
        shapes |= {f"blstm.weight_hh_l0{end}": (4 * memory, memory)}
        shapes |= {f"blstm.bias_{kind}_l0{end}": (4 * memory,) for kind in ("ih", "hh")}
    shapes |= {"projection.0.weight": (inner, 2 * memory), "projection.0.bias": (inner,)}
    shapes |= {"projection.2.weight": (1, inner), "projection.2.bias": (1,)}
    return {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return state_of(**TINY)


@pytest.fixture(scope="module")
def path(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("utmos") / "utmos.pt"
    torch.save(state, path)
    return path


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.2, num_samples).astype(np.float32)


def twin(state, wave):
    """Layer by layer from the description in the paper of wav2vec 2.0 (arXiv 2006.11477) and of UTMOS."""
    x = torch.from_numpy(wave)[None, None]
    w = {name.removeprefix("wav2vec2."): weight for name, weight in state.items()}
    for i, stride in enumerate(STRIDES):
        x = F.conv1d(x, w[f"feature_extractor.conv_layers.{i}.0.weight"], stride=stride)
        if i == 0:
            x = (x - x.mean(2, keepdim=True)) / (x.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
            scale, shift = (w[f"feature_extractor.conv_layers.0.2.{kind}"][:, None] for kind in ("weight", "bias"))
            x = x * scale + shift
        x = F.gelu(x)
    x = norm(x[0].T, w, "layer_norm") @ w["post_extract_proj.weight"].T + w["post_extract_proj.bias"]
    g, v = w["encoder.pos_conv.0.weight_g"], w["encoder.pos_conv.0.weight_v"]
    kernel = g * v / v.square().sum((0, 1), keepdim=True).sqrt()
    placed = F.conv1d(x.T[None], kernel, w["encoder.pos_conv.0.bias"], padding=TINY["position"] // 2, groups=4)
    x = norm(x + F.gelu(placed[0, :, :-1]).T, w, "encoder.layer_norm")
    for i in range(TINY["layers"]):
        layer = f"encoder.layers.{i}."
        q, k, v = (linear(x, w, f"{layer}self_attn.{name}_proj") for name in "qkv")
        heads = [(q[:, s] @ k[:, s].T / 8).softmax(1) @ v[:, s] for s in (slice(h * 64, h * 64 + 64) for h in range(2))]
        x = norm(x + linear(torch.cat(heads, 1), w, f"{layer}self_attn.out_proj"), w, f"{layer}self_attn_layer_norm")
        inner = F.gelu(linear(x, w, f"{layer}fc1"))
        x = norm(x + linear(inner, w, f"{layer}fc2"), w, f"{layer}final_layer_norm")
    x = torch.cat([x, w["domain_emb"].expand(len(x), -1), w["judge_emb"].expand(len(x), -1)], 1)
    both = torch.cat([lstm(x, w, ""), lstm(x.flip(0), w, "_reverse").flip(0)], 1)
    scores = linear(F.relu(linear(both, w, "projection.0")), w, "projection.2")
    return float(scores.mean() * 2 + 3)


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(x, w, name):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def lstm(x, w, end):
    h = c = torch.zeros(TINY["memory"])
    out = []
    for row in x:
        gates = w[f"blstm.weight_ih_l0{end}"] @ row + w[f"blstm.bias_ih_l0{end}"]
        i, f, g, o = (gates + w[f"blstm.weight_hh_l0{end}"] @ h + w[f"blstm.bias_hh_l0{end}"]).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out)


@pytest.mark.parametrize("num_samples", [400, 5000, 5321])
def test_naive_twin(state, path, num_samples):
    utmos, wave = Utmos.load(path), noise(num_samples)
    expected = twin(state, wave)
    assert utmos.score(wave, RATE) == pytest.approx(expected, abs=1e-4)
    other = utmos.score(noise(3000, 1), RATE)
    assert utmos.score(wave, RATE) == pytest.approx(expected, abs=1e-4) != other


def test_any_rate(path):
    utmos = Utmos.load(path)
    slow = np.sin(np.arange(6000) / 20).astype(np.float32)
    fast = np.sin(np.arange(18000) / 60).astype(np.float32)
    assert utmos.score(fast, 48000) == pytest.approx(utmos.score(slow, 16000), abs=0.02)


def test_the_published_sizes_fit():
    with torch.device("meta"):
        state = state_of(**PUBLISHED)
    network = network_of(state)
    assert sum(weight.numel() for weight in network.parameters()) == sum(map(torch.numel, state.values())) - 768


def test_too_short(path):
    with pytest.raises(BadSample, match=r"(?s)too short for UTMOS.*0\.025 s"):
        Utmos.load(path).score(noise(399), RATE)


@pytest.mark.parametrize("change", ["missing", "added", "shape", "list"])
def test_other_weights_are_refused(state, tmp_path, change):
    changed = dict(state)
    if change == "missing":
        del changed["judge_emb"]
    elif change == "added":
        changed["extra"] = torch.zeros(1)
    elif change == "shape":
        changed["projection.2.weight"] = torch.zeros(2, 20)
    torch.save(list(state.values()) if change == "list" else changed, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"(?s)other\.pt does not hold the weights of UTMOS22-strong.*step7459_v1\.pt"):
        Utmos.load(tmp_path / "other.pt")


@pytest.mark.filterwarnings("ignore:.*TorchScript")
def test_other_files_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-here"),)

    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "script.pt")
    for name in ("evil.pt", "empty.pt", "script.pt", "absent.pt"):
        with pytest.raises(UserError, match=f"{name} does not hold the weights of UTMOS22-strong"):
            Utmos.load(tmp_path / name)
    assert not (tmp_path / "was-here").exists()
