"""Codecs whose networks are classes of transformers: their files checked, and their weights loaded by name.

Settings are checked before a network is built, and the names and shapes of all weights before one is loaded. So a
config of absurd sizes costs no memory, and a missing, unexpected or misshapen weight is named. What only training uses
of a codebook is neither kept nor asked for. A kernel of weight norm is computed once, not in every call.

Importing this costs nothing: transformers is imported when a codec is opened.

Invariant: a network is built from its own weights, all of them, or not at all. Two builds of one file are equal.

Example:
    added = read_pretrained(source, "encodec", num_streams=32)
    model = load_network("EncodecModel", "EncodecConfig", added, device)
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import ConfigDict, Field
from pydantic.types import Strict
from torch import nn

from slmkit.codec.added import Added, Source, identity
from slmkit.codec.base import CodecSpec, Role, Stream
from slmkit.codec.single import SingleCodec
from slmkit.codec.stages import Stage
from slmkit.codec.weights import check_layout, plain_name
from slmkit.config.load import Config, from_dict
from slmkit.config.values import Positive, Takes
from slmkit.errors import UserError
from slmkit.precision import exact_float32
from slmkit.weights import UNREADABLE

Size = Annotated[int, Strict(), Ge(1), Le(2**16)]
Few = Annotated[int, Strict(), Ge(1), Le(64)]  # layers, kernels, strides
Rate = Annotated[int, Strict(), Ge(1000), Le(10**6)]
Ratios = Annotated[tuple[Few, ...], MinLen(1), MaxLen(8), Takes("a list of 1 to 8 whole numbers up to 64")]
PadMode = Literal["constant", "reflect", "replicate"]
MAX_HOP = 2**14  # samples
MAX_PARAMETERS = 4 * 10**9
# Of a codebook: what training has counted, and whether it has begun.
TRAINING_ONLY = re.compile(r"\.(inited|initialized|cluster_size|embed_avg)$")
BEGUN = re.compile(r"\.(inited|initialized)$")
PADDING = ("stride", "kernel_size", "padding_total")  # buffers of convolutions, one number each
# What a config.json says of the files, or of the machine.
ABOUT_FILES = re.compile(r"^_|^(architectures|auto_map|dtype|torch_dtype|transformers_version|quantization_config)$")
# Newer versions of transformers hold Mimi's networks in two halves.
MIMI_HALVES = (
    (re.compile(r"^(en|de)coder\.\1coder_seanet\."), r"\1coder."),
    (re.compile(r"^(?:en|de)coder\.((?:en|de)coder_transformer|downsample|upsample)\."), r"\1."),
)


class NetworkFile(Config):
    """The numbers of a codec's config.json that decide how much is built; transformers checks the others."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class RotaryFile(NetworkFile):
    """Rotary positions. Others than the plain ones would depend on how much is given at once."""

    rope_type: Literal["default"] = Field(default="default", description="kind of rotary positions")
    rope_theta: Positive = Field(default=10000.0, description="slowest period, in positions")


class NetworkCodec(SingleCodec):
    """A codec whose two chains of stages are made once, of the parts of its network."""

    _encoding: Sequence[Stage]
    _decoding: Sequence[Stage]

    def encoding_stages(self) -> Sequence[Stage]:
        return self._encoding

    def decoding_stages(self) -> Sequence[Stage]:
        return self._decoding


def read_pretrained(source: Source, model_type: str, codebook: str) -> Added | None:
    """The codec in a directory as transformers saves it, None where it is of another `model_type`.

    codebook: pattern of the names of codebooks. Raises UserError when the weights cannot be read.
    """
    if source.config.get("model_type") != model_type:
        return None
    weights = plain_weights(source.weights, source.weights_file)
    available = sum(1 for name in weights if re.fullmatch(codebook, name))
    if not available:
        raise UserError(f"{source.weights_file} holds no codebook of {model_type}", expected=f"weights like {codebook}")
    return Added(
        streams=source.chosen_streams(available),
        config=_of_the_network(source.config),
        weights=weights,
        licence=source.licence,
    )


def _of_the_network(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _of_the_network(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if not ABOUT_FILES.search(name)
    }


def plain_weights(state: Mapping[str, Any], where: Any) -> dict[str, torch.Tensor]:
    """The needed weights of a flat state, float32, names as published. Raises UserError when it holds anything else."""
    other = next((name for name, value in state.items() if not isinstance(value, torch.Tensor)), None)
    if other is not None:
        got = f"{other}: {type(state[other]).__name__}"
        raise UserError(f"{where} does not hold weights by name", got=got, expected="tensors")
    for name, value in state.items():
        if BEGUN.search(name) and not bool((value == 1).all()):
            raise UserError(f"{where} holds a codebook that was never trained", got=f"{name}: {value.tolist()}")
    return {canonical(name): value.float() for name, value in state.items() if not TRAINING_ONLY.search(name)}


def canonical(name: str) -> str:
    """The published name of a weight, of that or of any version of transformers."""
    name = plain_name(name)
    for pattern, to in MIMI_HALVES:
        name = pattern.sub(to, name)
    return name


def checked(kind: type[Config], added: Added) -> Any:
    """`added.config` as a `kind`. Raises ConfigError naming what is of the wrong type or absurdly large."""
    return from_dict(kind, added.config, "the codec's config")


def load_network(model_class: str, config_class: str, added: Added, device: torch.device) -> Any:
    """The network in evaluation mode on `device`, its weights loaded, weight norm folded. Check the config first.

    Raises UserError when this transformers has no such network, or config and weights do not fit.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    if not hasattr(transformers, model_class):
        raise UserError(
            f"this codec needs a newer transformers: it has no {model_class}",
            got=f"transformers {transformers.__version__}",
            next_step="pip install -U transformers",
        )
    network = getattr(transformers, model_class)
    try:
        config = getattr(transformers, config_class).from_dict(dict(added.config))
        with torch.random.fork_rng(devices=[]):  # weights may be drawn before they are loaded
            with torch.device("meta"):
                expected = network(config).state_dict()
            state = _fitting(added.weights, expected)
            with _quietly():
                model = network.from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    except (*UNREADABLE, StrictDataclassError) as error:
        raise UserError(f"the codec's config does not describe a {model_class}: {str(error)[:500]}") from error
    model.eval().requires_grad_(False)
    with torch.no_grad(), exact_float32(torch.device("cpu")):
        for module in model.modules():
            if nn.utils.parametrize.is_parametrized(module, "weight"):
                nn.utils.parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    # Convolutions compute their paddings with tensors: on the host, or each layer would wait for the device.
    kept = [(one, name, value) for one in model.modules() for name, value in one._buffers.items() if name in PADDING]
    model.to(device)
    for module, name, value in kept:
        setattr(module, name, value)
    return model


def _fitting(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`weights` under the network's own names. Raises UserError naming those that do not fit."""
    if sum(value.numel() for value in expected.values()) > MAX_PARAMETERS:
        raise UserError(
            "the codec's config describes a network that is too large", expected=f"{MAX_PARAMETERS:,} numbers"
        )
    needed = {canonical(name): name for name in expected if not TRAINING_ONLY.search(name)}
    layout = {name: tuple(expected[own].shape) for name, own in needed.items()}
    fitting = check_layout(weights, layout, "the codec's weights are not those that its config describes")
    state = {needed[name]: value for name, value in fitting.items()}
    for name, value in expected.items():
        if TRAINING_ONLY.search(name):
            state[name] = torch.ones(value.shape) if BEGUN.search(name) else torch.zeros(value.shape)
    return state


@contextmanager
def _quietly() -> Iterator[None]:
    """No bars and reports of transformers inside: what can be wrong was looked at before."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_streams(added: Added, available: int) -> None:
    """Raise UserError where codec.json asks for more streams than there are codebooks."""
    if added.streams > available:
        raise UserError("the codec has fewer codebooks than streams", got=f"{available}", expected=f"{added.streams}")


def checked_hop(strides: Sequence[int]) -> int:
    """Samples per frame. Raises UserError when that is absurd."""
    hop = math.prod(strides)
    if hop > MAX_HOP:
        raise UserError("the codec's frames are too long", got=f"{hop} samples", expected=f"at most {MAX_HOP}")
    return hop


def spec_of(
    name: str, added: Added, *, sample_rate: int, hop_samples: int, size: int, roles: Sequence[Role] = ("coupled",)
) -> CodecSpec:
    """The spec of a codec of `added.streams` codebooks of one size; the last of `roles` is that of all further ones."""
    streams = [Stream(f"codebook_{k + 1}", size, roles[min(k, len(roles) - 1)]) for k in range(added.streams)]
    return CodecSpec(
        name=name,
        sample_rate=sample_rate,
        hop_samples=hop_samples,
        streams=tuple(streams),
        speaker_dim=0,
        weights_sha256=identity(added),
    )
