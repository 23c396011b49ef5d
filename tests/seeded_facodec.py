"""FACodec with the weights the golden files were made with, built once per test process."""

import functools
from pathlib import Path

import torch
from seeded_weights import seed_state
from twins.facodec import PlainDecoder, PlainEncoder, PlainFACodec

from slmkit.codec.facodec.checkpoint import FILES
from slmkit.codec.facodec.codec import FACodec
from slmkit.codec.weights import Weights, fold


@functools.cache
def states() -> dict[str, dict[str, torch.Tensor]]:
    """The state dicts of "encoder" and "decoder", to be left unchanged."""
    return {"encoder": seed_state(PlainEncoder().state_dict()), "decoder": seed_state(PlainDecoder().state_dict())}


def write_files(directory: Path) -> None:
    """The two published files, with seeded weights."""
    for part, state in states().items():
        torch.save(state, directory / FILES[part])


def make_codec(device: str = "cpu", *, detail: bool = True) -> FACodec:
    """FACodec on `device`, built without files."""
    weights = {part: fold({k: v.to(device) for k, v in state.items()}) for part, state in states().items()}
    return FACodec(Weights(weights["encoder"]), Weights(weights["decoder"]), torch.device(device), detail=detail)


def make_plain() -> PlainFACodec:
    """The plain twin with the same weights."""
    plain = PlainFACodec()
    plain.encoder.load_state_dict(states()["encoder"])
    plain.decoder.load_state_dict(states()["decoder"])
    return plain
