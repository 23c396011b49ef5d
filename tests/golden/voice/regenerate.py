"""Makes golden.npz: speaker vectors of PyPI's package resemblyzer by its own code, of seeded waves.

    pip install resemblyzer
    PYTHONPATH=tests python tests/golden/voice/regenerate.py

`published_i` with the weights of the package, `seeded_i` with those of `seeded_weights.seed_state`. What only cutting
out silence needs is not imported, since nothing is cut out here.
"""

import sys
import types
from pathlib import Path

import numpy as np
from seeded_weights import seed_state, wave

WAVES = {0: (0.3, 1.0), 1: (1.6, 1.0), 2: (2.5, 0.05), 3: (9.0, 1.0)}  # by seed: seconds, loudness
SCALE = 2**15


def main() -> None:
    sys.modules.setdefault("webrtcvad", types.ModuleType("webrtcvad"))
    morphology = types.ModuleType("scipy.ndimage.morphology")
    morphology.binary_dilation = None
    sys.modules["scipy.ndimage.morphology"] = morphology
    from resemblyzer import VoiceEncoder, audio

    encoder = VoiceEncoder("cpu", verbose=False)
    state = {name: weight for name, weight in encoder.state_dict().items() if not name.startswith("similarity")}
    found = {}
    for name, weights in (("published", state), ("seeded", seed_state(state))):
        encoder.load_state_dict(weights, strict=False)
        for seed, (seconds, loudness) in WAVES.items():
            samples = wave(seconds, seed).astype(np.float32) / SCALE * np.float32(loudness)
            loud = audio.normalize_volume(samples, audio.audio_norm_target_dBFS, increase_only=True)
            found[f"{name}_{seed}"] = encoder.embed_utterance(loud.astype(np.float32))
    np.savez(Path(__file__).with_name("golden.npz"), **found)


if __name__ == "__main__":
    main()
