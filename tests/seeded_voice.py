"""A GE2E voice encoder of the real shape with seeded weights, as it is published and as it is opened."""

from pathlib import Path

import torch
from seeded_weights import seed_state

from slmkit.voice.ge2e import NUM_BANDS, PUBLISHED_FILE, WIDTH, GE2EVoice


def seeded_voice_state() -> dict[str, torch.Tensor]:
    """The published names, shapes and order of the weights that are used."""
    shapes = {}
    for layer in range(3):
        width = NUM_BANDS if layer == 0 else WIDTH
        shapes[f"lstm.weight_ih_l{layer}"], shapes[f"lstm.weight_hh_l{layer}"] = (4 * WIDTH, width), (4 * WIDTH, WIDTH)
        shapes[f"lstm.bias_ih_l{layer}"] = shapes[f"lstm.bias_hh_l{layer}"] = (4 * WIDTH,)
    shapes |= {"linear.weight": (WIDTH, WIDTH), "linear.bias": (WIDTH,)}
    return seed_state({name: torch.zeros(shape) for name, shape in shapes.items()})


def seeded_voice() -> GE2EVoice:
    return GE2EVoice(seeded_voice_state())


def write_published_voice(directory: Path) -> Path:
    """`directory` with pretrained.pt, as the wheel of resemblyzer has it."""
    directory.mkdir(parents=True)
    state = {"similarity_weight": torch.ones(1), "similarity_bias": torch.zeros(1), **seeded_voice_state()}
    torch.save({"step": 1, "model_state": state, "optimizer_state": {}}, directory / PUBLISHED_FILE)
    return directory
